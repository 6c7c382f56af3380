//! `coffer dev`: the embedded default.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    sync::Arc,
};

use anyhow::{Context, Result};
use coffer::{
    admin::{Place, StateDir},
    config::{
        Faults,
        args::Dev,
        file::{Environment, FileConfig},
    },
    csi::identity::Services,
    key::{embedded::Embedded, store::census},
    keyservice::auth::{Caller, Guarded},
};
use rustix::fs::{FlockOperation, flock};

use crate::role::{
    audit,
    node::{driver, node_id},
    try_in_background, warn,
};

/// `coffer dev`: driver and key service in one process.
pub(crate) async fn dev(args: Dev, environment: &Environment) -> Result<()> {
    let state_dir = StateDir::at(&args.state_dir);
    let config = args.config.as_deref().map(|path| FileConfig::load(path, environment)).transpose()?;
    let node_id = node_id(args.node_id)?;
    let mut place = match &config {
        Some(config) => {
            expect_own_places(config)?;
            warn(config);
            Place::of_config(config, Some(&state_dir)).await?
        }
        None => Place::of_state_dir(&state_dir)?,
    };
    let _lock = lock(&state_dir)?;
    place.expect_ready().await?;
    let Place { cluster_id, providers, store, policies, trials } = place;
    let mut background = try_in_background(trials);
    background.spawn(census::once(store.clone(), providers.by_name.keys().cloned().collect()));
    let audit = audit(config.as_ref().and_then(|config| config.audit_log.as_deref()))?;
    let embedded = Embedded::new(cluster_id, providers, store).with_policies(policies);
    let keys = Arc::new(Guarded::new(Arc::new(embedded), Arc::new(audit), Caller::Process));
    let socket = args.listen.unwrap_or_else(|| state_dir.socket());
    driver(&socket, node_id, &state_dir.volumes(), keys, Services::NodeAndController).await
}

/// In one process there is nobody to listen for, and records lie in the state folder.
fn expect_own_places(config: &FileConfig) -> Result<(), Faults> {
    let mut faults = Faults::default();
    if config.unix.is_some() || config.tls.is_some() {
        faults.add("listen: `coffer dev` serves keys to nobody but itself; take the key out");
    }
    faults.or(())
}

/// Keeps a second driver off a state folder, as long as it is held.
fn lock(state_dir: &StateDir) -> Result<File> {
    let path = state_dir.lock();
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = opened.with_context(|| format!("open {}", path.display()))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("another coffer runs on {}", state_dir.path().display()))?;
    Ok(file)
}
