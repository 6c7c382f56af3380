//! `coffer dev`: the embedded default.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    sync::Arc,
};

use anyhow::{Context, Result};
use coffer::{
    admin::{StateDir, keys},
    config::{Faults, args::Dev, file::FileConfig},
    csi::identity::Services,
    key::{
        cluster::ClusterKeys,
        embedded::Embedded,
        providers::{Provider, Providers},
        service::KeyService,
        store::filesystem::Filesystem,
    },
    keyservice::auth::{Caller, Guarded},
};
use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use crate::role::{
    node::{driver, node_id},
    providers::{audit, providers},
};

/// The name of the provider of a state folder's own cluster key.
const CLUSTER_PROVIDER: &str = "cluster";

/// `coffer dev`: driver and key service in one process.
pub(crate) async fn dev(args: Dev) -> Result<()> {
    let state_dir = StateDir::at(&args.state_dir);
    let config = args.config.as_deref().map(FileConfig::load).transpose()?;
    let (cluster_id, providers) = match &config {
        Some(config) => {
            expect_own_places(config)?;
            providers(config)?
        }
        None => own_cluster_key(&state_dir)?,
    };
    let node_id = node_id(args.node_id)?;
    let _lock = lock(&state_dir)?;
    let store = Filesystem::open(&state_dir.records())?;
    let audit = audit(config.as_ref().and_then(|config| config.audit_log.as_deref()))?;
    let embedded: Arc<dyn KeyService> = Arc::new(Embedded::new(cluster_id, providers, Arc::new(store)));
    let keys = Arc::new(Guarded::new(embedded, Arc::new(audit), Caller::Process));
    let socket = args.listen.unwrap_or_else(|| state_dir.socket());
    driver(&socket, node_id, &state_dir.volumes(), keys, Services::NodeAndController).await
}

/// In one process there is nobody to listen for, and records lie in the state folder.
fn expect_own_places(config: &FileConfig) -> Result<(), Faults> {
    let mut faults = Faults::default();
    if config.store.is_some() {
        faults.add("store: `coffer dev` keeps its records in its state folder; take the key out");
    }
    if config.unix.is_some() || config.tls.is_some() {
        faults.add("listen: `coffer dev` serves keys to nobody but itself; take the key out");
    }
    faults.or(())
}

/// A state folder's own cluster key, which is there or must be restored: it is never made here.
fn own_cluster_key(state_dir: &StateDir) -> Result<(Uuid, Providers)> {
    let path = state_dir.cluster_key();
    if !path.exists() {
        if Filesystem::holds_records(&state_dir.records())? {
            return Err(keys::lost(state_dir).into());
        }
        let how = format!(
            "{}: there is no cluster key. Make one, once: coffer keys init --state-dir {}",
            path.display(),
            state_dir.path().display()
        );
        return Err(Faults::one(how).into());
    }
    let keys = ClusterKeys::load(&path).map_err(|fault| Faults::one(format!("{}: {fault}", path.display())))?;
    let cluster_id = keys.cluster_id();
    let by_name = [(CLUSTER_PROVIDER.to_owned(), Provider::Cluster(keys))].into();
    Ok((cluster_id, Providers { by_name, default: CLUSTER_PROVIDER.to_owned() }))
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
