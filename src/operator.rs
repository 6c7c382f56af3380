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
        self, KekTrail, Place, StateDir, Trail,
        answer::Print,
        config::Show,
        inventory::{self, Sought, lists::Cluster},
        keys::{list::Which as KeksOf, rotation, status},
        progress::Progress,
        records::{Effect, import::Check, list::Which},
        rewrap::{Asked, Sweep},
    },
    chain::Others,
    config::{
        Faults,
        args::{
            Audit as AuditVerb, Config, EnableRotation, Inventory, Keys, KeysInit, KeysRotation, Policy, Records,
            Rewrap, Where,
        },
        file::{Environment, FileConfig},
    },
    key::{
        policy::{self, Claim},
        store::{DekStore, filesystem::Filesystem, memory::Memory},
    },
    keyservice::{
        audit::{self, Audit, Ending, Operation, Who},
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
    let (audit, who) = audit_log_at(path)?;
    Ok(Trail::to(move |volume_id, outcome| match outcome {
        Ok(info) => audit.done(&who, operation, Some(volume_id), Some(info)),
        Err(failure) => audit.not_done(&who, operation, Some(volume_id), failure),
    }))
}

/// The same for what a KMS is to do with a KEK.
fn kek_trail(audit_log: Option<&Path>, operation: Operation) -> Result<KekTrail> {
    let Some(path) = audit_log else {
        return Ok(KekTrail::to(move |provider, kek_id, outcome| {
            let operation = operation.name();
            match outcome {
                Ok(()) => tracing::info!(operation, provider, kek_id, "done"),
                Err(failure) => {
                    tracing::warn!(operation, provider, kek_id, error = rpc::message(failure), "not done");
                }
            }
            Ok(())
        }));
    };
    let (audit, who) = audit_log_at(path)?;
    Ok(KekTrail::to(move |provider, kek_id, outcome| {
        let outcome = outcome.map_err(|failure| (Ending::of(failure.refusal()), rpc::message(failure)));
        audit.of_kek(&who, operation, (provider, kek_id), outcome)
    }))
}

/// The audit log in a file, and who writes to it.
fn audit_log_at(path: &Path) -> Result<(Audit, Who)> {
    let file = audit::file(path).with_context(|| format!("open audit log {}", path.display()))?;
    Ok((Audit::to(file), Who::named(Caller::Uid(rustix::process::getuid().as_raw()).to_string())))
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
        Keys::Rotation(KeysRotation::Enable(asked)) => enable_rotation(asked, environment, out).await?,
    }
    Ok(())
}

async fn enable_rotation(asked: EnableRotation, environment: &Environment, out: &mut impl io::Write) -> Result<()> {
    let EnableRotation { provider, place, key_id, period, dry_run } = asked;
    let (place, audit_log) = place_and_log(&place, environment).await?;
    let plan = rotation::Plan::of(&place, rotation::Asked { provider, key_id, period, effect: Effect::of(dry_run) })?;
    // Where nothing is done, nothing is written down.
    let trail = kek_trail(audit_log.as_deref().filter(|_| !dry_run), Operation::EnableRotation)?;
    Ok(plan.run(&trail, out).await?)
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

pub(crate) async fn inventory(asked: Inventory, environment: &Environment) -> Result<()> {
    let (out, progress) = (&mut io::stdout(), &mut Progress::on_standard_error());
    let place = place(&asked.place, environment).await?;
    let config = asked.place.config.as_deref().map(|file| FileConfig::load(file, environment)).transpose()?;
    #[cfg(feature = "node")]
    let pool = asked.pool_dir.clone();
    #[cfg(not(feature = "node"))]
    let pool = None;
    let pool = pool.or_else(|| asked.place.state_dir.as_deref().map(|folder| StateDir::at(folder).volumes()));
    // Before the records are.
    let cluster = cluster(&asked, config.as_ref(), progress).await;
    Ok(inventory::inventory(&place, Sought { cluster, pool }, Print::of(asked.json), progress, out).await?)
}

/// The volumes of the cluster that a configuration is for.
#[cfg(feature = "kubernetes")]
async fn cluster(asked: &Inventory, config: Option<&FileConfig>, progress: &mut Progress) -> Cluster {
    let callers = config.and_then(|config| config.kubernetes.as_ref());
    let keeps_records = config.is_some_and(|config| config.store == Some(coffer::key::store::Settings::Kubernetes));
    if !(asked.kubernetes || callers.is_some() || keeps_records) {
        return Cluster::passed("the configuration names no cluster: --kubernetes asks the one of KUBECONFIG");
    }
    let drivers = callers.map_or_else(|| vec![inventory::lists::DRIVER.to_owned()], |callers| callers.drivers.clone());
    match coffer::kubernetes::client().await {
        Ok(client) => inventory::cluster::read(client, &drivers, progress).await,
        Err(fault) => Cluster::failed(&rpc::message(&fault)),
    }
}

#[cfg(not(feature = "kubernetes"))]
async fn cluster(_: &Inventory, _: Option<&FileConfig>, _: &mut Progress) -> Cluster {
    Cluster::passed("this build knows no Kubernetes")
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
