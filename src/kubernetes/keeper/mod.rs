//! A node's side of local volumes: the files that its `LocalVolume`s ask for are made, grown and removed, and its
//! `LocalPool` says what room is left.
//!
//! Nothing is remembered that a restart would miss: each look compares an object with the file, takes one step, and says
//! in the object's status what came of it. A file is never removed while its volume has a key, whoever has deleted what.

mod room;
mod volume;

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use kube::{
    Api, Client, ResourceExt,
    api::PatchParams,
    runtime::{
        Controller,
        controller::{self, Action},
        reflector::ObjectRef,
        watcher,
    },
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    key::service::{KeyFailure, KeyService},
    kubernetes::{FIELD_MANAGER, events::Events, local_pool::LocalPool, local_volume::LocalVolume},
    node::source::{
        SourceFailure,
        local::{Local, PoolFailure},
    },
    server::rpc::message,
    volume::VolumeId,
};

/// Volumes that are worked on at once.
const AT_ONCE: u16 = 8;
/// How often a volume is looked at that nobody has changed: its file may be gone.
const LOOK_AGAIN: Duration = Duration::from_secs(300);
/// How soon a volume is looked at that has changed meanwhile.
const CHANGED: Duration = Duration::from_millis(200);
/// How soon what did not work is tried again, and how late at most.
const FIRST_TRY: Duration = Duration::from_millis(500);
const LAST_TRY: Duration = Duration::from_secs(30);
/// How long what is being done may take when the program is told to end.
const END_TIME: Duration = Duration::from_secs(5);
/// How long the API server may take to answer.
const API_TIME: Duration = Duration::from_secs(30);

/// Keeps the local volumes of a node, until the end. What is being done then is finished.
///
/// `pool` is the one that the node's driver opens volumes from; `node` is the node's name, which its objects have.
pub async fn keep(client: Client, node: String, pool: Local, keys: Arc<dyn KeyService>, end: CancellationToken) {
    let ours = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let keeper = Arc::new(Keeper {
        volumes: Api::all(client.clone()),
        pools: Api::all(client.clone()),
        events: Events::through(client),
        node,
        pool,
        keys,
        changed: Notify::new(),
        tries: Mutex::default(),
    });
    tracing::info!(node = keeper.node, "keeping local volumes");
    let volumes = Controller::new(keeper.volumes.clone(), ours.clone())
        .with_config(controller::Config::default().concurrency(AT_ONCE))
        .graceful_shutdown_on(end.clone().cancelled_owned())
        .run(
            |volume, keeper: Arc<Keeper>| async move { keeper.look(&volume).await },
            |volume, _, keeper| Action::requeue(keeper.patience(&volume.name_any())),
            keeper.clone(),
        )
        .for_each(|looked| {
            if let Err(controller::Error::ObjectNotFound(gone)) = &looked {
                keeper.settled(&gone.name);
            }
            told(looked);
            std::future::ready(())
        });
    let all = async { tokio::join!(volumes, keeper.report(&end), keeper.tell_of_strangers(&ours, &end)) };
    let late = async {
        end.cancelled().await;
        tokio::time::sleep(END_TIME).await;
    };
    // Whatever breaks off, the next look puts right.
    tokio::select! {
        _ = all => {}
        () = late => tracing::warn!("what was begun on local volumes is left for the next start"),
    }
}

/// What did not work, in one line.
fn told(looked: Result<(ObjectRef<LocalVolume>, Action), controller::Error<KeeperFailure, watcher::Error>>) {
    match looked {
        Ok(_) | Err(controller::Error::ObjectNotFound(_)) => {}
        Err(controller::Error::ReconcilerFailed(failure, volume)) => {
            tracing::error!(
                volume_id = volume.name,
                error = message(&failure),
                "a local volume is not as it should be"
            );
        }
        Err(controller::Error::QueueError(error)) => {
            tracing::warn!(error = message(&error), "local volumes cannot be watched; trying again");
        }
        Err(controller::Error::RunnerError(error)) => {
            tracing::error!(error = message(&error), "local volumes are not looked at");
        }
    }
}

/// A node, as what keeps its files.
struct Keeper {
    volumes: Api<LocalVolume>,
    pools: Api<LocalPool>,
    events: Events,
    node: String,
    pool: Local,
    keys: Arc<dyn KeyService>,
    /// A file was made, grown or removed.
    changed: Notify,
    /// How often a volume was tried in vain.
    tries: Mutex<HashMap<String, u32>>,
}

/// Why a local volume is not as it should be.
#[derive(Debug, thiserror::Error)]
enum KeeperFailure {
    /// The key service was asked whether the volume has a key.
    #[error("ask for the key record of volume {volume_id}")]
    Key {
        volume_id: VolumeId,
        #[source]
        source: KeyFailure,
    },
    /// The pool fails.
    #[error(transparent)]
    Pool(#[from] PoolFailure),
    /// The object has changed since it was looked at, or is gone.
    #[error("LocalVolume {0} has changed meanwhile")]
    Changed(String),
    /// The API server refused, or is away.
    #[error("{step} {name} at the API server")]
    Api {
        step: &'static str,
        name: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<SourceFailure> for KeeperFailure {
    fn from(failure: SourceFailure) -> Self {
        Self::Pool(failure.into())
    }
}

impl Keeper {
    /// How long to wait before a volume is tried again: longer each time.
    fn patience(&self, name: &str) -> Duration {
        let mut tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
        let tried = tries.entry(name.to_owned()).or_default();
        let patience = FIRST_TRY.saturating_mul(1 << (*tried).min(10));
        *tried = tried.saturating_add(1);
        patience.min(LAST_TRY)
    }

    fn settled(&self, name: &str) {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

/// What the API server answers, in time.
async fn asked<T>(
    step: &'static str,
    name: &str,
    call: impl Future<Output = kube::Result<T>> + Send,
) -> Result<T, KeeperFailure> {
    let source: Box<dyn std::error::Error + Send + Sync> = match tokio::time::timeout(API_TIME, call).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.is_conflict() || status.is_not_found() => {
            return Err(KeeperFailure::Changed(name.to_owned()));
        }
        Ok(Err(kube::Error::Api(status))) => status,
        Ok(Err(error)) => Box::new(error),
        Err(late) => Box::new(late),
    };
    Err(KeeperFailure::Api { step, name: name.to_owned(), source })
}

fn written_by_us() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}
