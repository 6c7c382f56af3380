//! The operator's verbs: from their words to what they work on.

use std::{collections::BTreeMap, io, sync::Arc};

use anyhow::Result;
use coffer::{
    admin::{
        self, Place, StateDir,
        answer::Print,
        config::Show,
        keys::{list::Which as KeksOf, status},
        progress::Progress,
        records::{Effect, list::Which},
        rewrap::{Asked, Sweep},
    },
    config::{
        Faults,
        args::{Config, Keys, Policy, Records, Rewrap, Where},
        file::{Environment, FileConfig},
    },
    key::{
        policy::{self, Claim},
        store::{DekStore, filesystem::Filesystem, memory::Memory},
    },
};

/// What is opened for a verb.
async fn place(at: &Where, environment: &Environment) -> Result<Place, Faults> {
    let state_dir = at.state_dir.as_deref().map(StateDir::at);
    match (&state_dir, &at.config) {
        (_, Some(config)) => Place::of_config(&FileConfig::load(config, environment)?, state_dir.as_ref()).await,
        (Some(state_dir), None) => Place::of_state_dir(state_dir),
        (None, None) => Err(Faults::one("name a state folder (--state-dir) or a configuration file (--config)")),
    }
}

/// The store alone: a key that is lost keeps nobody from looking, and looking makes nothing.
async fn store(at: &Where, environment: &Environment) -> Result<Arc<dyn DekStore>> {
    match &at.state_dir {
        Some(state_dir) if at.config.is_none() => {
            let records = StateDir::at(state_dir).records();
            Ok(if Filesystem::holds_records(&records)? {
                Arc::new(Filesystem::open(&records)?)
            } else {
                Arc::new(Memory::default())
            })
        }
        _ => Ok(place(at, environment).await?.store),
    }
}

pub(crate) async fn records(verb: Records, environment: &Environment) -> Result<()> {
    let (out, progress) = (&mut io::stdout(), &mut Progress::on_standard_error());
    match verb {
        Records::List { place: at, all, json } => {
            let store = store(&at, environment).await?;
            admin::records::list::list(store.as_ref(), Which::of(all), Print::of(json), progress, out).await?;
        }
        Records::Show { volume, place: at } => {
            admin::records::show::show(store(&at, environment).await?.as_ref(), &volume, out).await?;
        }
        Records::Export { file, place: at } => {
            admin::records::export::export(&place(&at, environment).await?, &file, progress, out).await?;
        }
        Records::Import { file, place: at, dry_run } => {
            let place = place(&at, environment).await?;
            admin::records::import::import(&place, &file, Effect::of(dry_run), progress, out).await?;
        }
        Records::Verify { place: at, json } => {
            let place = place(&at, environment).await?;
            admin::records::verify::verify(&place, Print::of(json), progress, out).await?;
        }
    }
    Ok(())
}

pub(crate) async fn keys(verb: Keys, environment: &Environment) -> Result<()> {
    let (out, progress) = (&mut io::stdout(), &mut Progress::on_standard_error());
    match verb {
        Keys::Init { state_dir } => admin::keys::init(&StateDir::at(&state_dir), out)?,
        Keys::Status { place: at, json } => {
            status::status(&place(&at, environment).await?, Print::of(json), progress, out).await?;
        }
        Keys::List { place: at, orphans, json } => {
            let (place, which) = (place(&at, environment).await?, KeksOf::of(orphans));
            admin::keys::list::list(&place, which, Print::of(json), progress, out).await?;
        }
    }
    Ok(())
}

pub(crate) async fn rewrap(args: Rewrap, environment: &Environment) -> Result<()> {
    let (out, progress) = (&mut io::stdout(), &mut Progress::on_standard_error());
    let place = place(&args.place, environment).await?;
    let Rewrap { from, to, volume, dry_run, .. } = args;
    let sweep = Sweep::plan(&place, Asked { from, to, volume, effect: Effect::of(dry_run) })?;
    Ok(sweep.run(progress, out).await?)
}

pub(crate) fn config(verb: Config, environment: &Environment) -> Result<()> {
    let out = &mut io::stdout();
    match verb {
        Config::Check { file } => admin::config::check(&file, environment, out)?,
        Config::Show { file, sources } => admin::config::show(&file, Show::of(sources), environment, out)?,
    }
    Ok(())
}

pub(crate) fn policy(verb: Policy, environment: &Environment) -> Result<()> {
    let Policy::Explain { config, storage_class, namespace, claim, provider, key_id } = verb;
    let config = FileConfig::load(&config, environment)?;
    let claim =
        Claim { storage_class: storage_class.as_deref(), namespace: namespace.as_deref(), claim: claim.as_deref() };
    let asked = policy::Asked { provider: provider.as_deref(), key_id: key_id.as_deref(), context: &BTreeMap::new() };
    Ok(admin::policy::explain(&config, &claim, &asked, &mut io::stdout())?)
}
