//! The operator's verbs: from their words to what they work on.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use coffer::{
    admin::{
        self, Place, StateDir, Trail,
        answer::Print,
        config::Show,
        keys::{list::Which as KeksOf, status},
        progress::Progress,
        records::{Effect, import::Check, list::Which},
        rewrap::{Asked, Sweep},
    },
    chain::Others,
    config::{
        Faults,
        args::{Audit as AuditVerb, Config, Keys, KeysInit, Policy, Records, Rewrap, Where},
        file::{Environment, FileConfig},
    },
    key::{
        policy::{self, Claim},
        store::{DekStore, filesystem::Filesystem, memory::Memory},
    },
    keyservice::{
        audit::{self, Audit, Operation, Who},
        auth::Caller,
    },
    server::rpc,
};

/// What is opened for a verb.
async fn place(at: &Where, environment: &Environment) -> Result<Place, Faults> {
    Ok(place_and_log(at, environment).await?.0)
}

/// The same, with the file of the audit log where the configuration names one.
async fn place_and_log(at: &Where, environment: &Environment) -> Result<(Place, Option<PathBuf>), Faults> {
    let state_dir = at.state_dir.as_deref().map(StateDir::at);
    match (&state_dir, &at.config) {
        (_, Some(config)) => {
            let config = FileConfig::load(config, environment)?;
            let place = Place::of_config(&config, state_dir.as_ref()).await?;
            Ok((place, config.audit_log))
        }
        (Some(state_dir), None) => Ok((Place::of_state_dir(state_dir)?, None)),
        (None, None) => Err(Faults::one("name a state folder (--state-dir) or a configuration file (--config)")),
    }
}

/// Where a verb writes down what it does to keys: the audit log where that is a file, which a key service may write to
/// at the same time; else the log, because standard output is the verb's own.
fn trail(audit_log: Option<&Path>, operation: Operation) -> Result<Trail> {
    let Some(path) = audit_log else {
        return Ok(Trail::to(move |volume_id, outcome| {
            let operation = operation.name();
            match outcome {
                Ok(info) => {
                    let (provider, kek_id) = (&info.provider, &info.kek_id);
                    tracing::info!(%volume_id, operation, provider, kek_id, "done");
                }
                Err(failure) => tracing::warn!(%volume_id, operation, error = rpc::message(failure), "not done"),
            }
            Ok(())
        }));
    };
    let audit = Audit::to(audit::file(path).with_context(|| format!("open audit log {}", path.display()))?);
    let who = Who::named(Caller::Uid(rustix::process::getuid().as_raw()).to_string());
    Ok(Trail::to(move |volume_id, outcome| match outcome {
        Ok(info) => audit.done(&who, operation, Some(volume_id), Some(info)),
        Err(failure) => audit.not_done(&who, operation, Some(volume_id), failure),
    }))
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
        Records::Import { file, place: at, dry_run, no_verify } => {
            let (place, audit_log) = place_and_log(&at, environment).await?;
            // Where nothing is done, nothing is written down.
            let trail = trail(audit_log.as_deref().filter(|_| !dry_run), Operation::Import)?;
            let how = (Effect::of(dry_run), Check::of(no_verify));
            admin::records::import::import(&place, &file, how, &trail, progress, out).await?;
        }
        Records::ExpectNone { place: at } => {
            let store = store(&at, environment).await?;
            admin::records::expect_none::expect_none(store.as_ref(), progress, out).await?;
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
        Keys::Init(asked) => init(asked, out).await?,
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

async fn init(asked: KeysInit, out: &mut impl io::Write) -> Result<()> {
    #[cfg(feature = "kubernetes")]
    if let Some(namespace) = asked.at.kubernetes {
        let KeysInit { name, service_names, only, .. } = asked;
        let asked = admin::keys::kubernetes::Asked { namespace, name, service_names, only };
        return Ok(admin::keys::kubernetes::init(coffer::kubernetes::client().await?, &asked, out).await?);
    }
    let state_dir = asked.at.state_dir.ok_or_else(|| Faults::one("name a state folder (--state-dir)"))?;
    Ok(admin::keys::init(&StateDir::at(&state_dir), out)?)
}

pub(crate) async fn rewrap(args: Rewrap, environment: &Environment) -> Result<()> {
    let (out, progress) = (&mut io::stdout(), &mut Progress::on_standard_error());
    let (place, audit_log) = place_and_log(&args.place, environment).await?;
    let Rewrap { from, to, volume, dry_run, .. } = args;
    let sweep = Sweep::plan(&place, Asked { from, to, volume, effect: Effect::of(dry_run) })?;
    let trail = trail(audit_log.as_deref().filter(|_| !dry_run), Operation::Rewrap)?;
    Ok(sweep.run(&trail, progress, out).await?)
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

pub(crate) fn audit(AuditVerb::Verify { file, mixed }: AuditVerb) -> Result<()> {
    let others = if mixed { Others::PassedOver } else { Others::Refused };
    Ok(admin::audit::verify(&file, others, &mut io::stdout())?)
}
