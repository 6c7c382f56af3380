//! What a node's pool as a whole has to tell: its room, in the `LocalPool`, and files that no object asks for, in the log.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use jiff::{Timestamp, Unit};
use kube::{
    ResourceExt,
    api::{ListParams, Patch, PostParams},
    runtime::watcher,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    kubernetes::{
        FIELD_MANAGER,
        keeper::{Keeper, KeeperFailure, asked, written_by_us},
        local_pool::{LocalPool, LocalPoolFields},
        local_volume::signed,
    },
    server::rpc::message,
    volume::MIB,
};

/// How often the room is measured: other files on the same disk take some, too.
const EVERY: Duration = Duration::from_secs(30);
/// How often the room is told that has not changed.
const ANYWAY: Duration = Duration::from_secs(300);
/// How soon what could not be told is told again.
const AGAIN: Duration = Duration::from_secs(5);

impl Keeper {
    /// Says what room there is, when it has changed by more than a MiB or was told a while ago, until the end.
    pub(super) async fn report(&self, end: &CancellationToken) {
        let (mut told, mut when) = (None, Instant::now());
        loop {
            if when.elapsed() >= ANYWAY {
                // The object may be gone, and what is old is not believed.
                told = None;
            }
            let pause = match self.tell_room(told).await {
                Ok(available) => {
                    if told != Some(available) {
                        when = Instant::now();
                    }
                    told = Some(available);
                    EVERY
                }
                Err(failure) => {
                    tracing::warn!(node = self.node, error = message(&failure), "the room for volumes was not told");
                    AGAIN
                }
            };
            tokio::select! {
                () = end.cancelled() => return,
                () = self.changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Returns the room that was told last, in bytes.
    async fn tell_room(&self, told: Option<u64>) -> Result<u64, KeeperFailure> {
        let available = self.pool.available().await?;
        if let Some(told) = told.filter(|told| told.abs_diff(available) <= MIB) {
            return Ok(told);
        }
        let name = self.node.as_str();
        let updated = Timestamp::now().round(Unit::Second).expect("now is far from the end of time");
        let status = json!({ "status": { "availableBytes": signed(available), "updated": updated.to_string() } });
        let write = || {
            let (patch, params) = (Patch::Merge(&status), written_by_us());
            async move { asked(WRITE, name, self.pools.patch_status(name, &params, &patch)).await.map(drop) }
        };
        match write().await {
            // There is no object of this node yet.
            Err(KeeperFailure::Changed(_)) => {
                let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
                let new = LocalPool::new(name, LocalPoolFields {});
                asked("create LocalPool", name, self.pools.create(&params, &new)).await?;
                write().await?;
            }
            written => written?,
        }
        Ok(available)
    }

    /// Tells, once, of files that no object asks for. Nothing is done about them: an object that was lost comes back from
    /// a backup, a file does not.
    pub(super) async fn tell_of_strangers(&self, ours: &watcher::Config, end: &CancellationToken) {
        let strangers = loop {
            match self.strangers(ours).await {
                Ok(strangers) => break strangers,
                Err(failure) => tracing::debug!(error = message(&failure), "files were not compared with LocalVolumes"),
            }
            tokio::select! {
                () = end.cancelled() => return,
                () = tokio::time::sleep(AGAIN) => {}
            }
        };
        for file in strangers {
            tracing::warn!(
                volume_id = file,
                "a file in the pool has no LocalVolume, and is not touched: what it was for is gone, or is in a backup"
            );
        }
    }

    async fn strangers(&self, ours: &watcher::Config) -> Result<Vec<String>, KeeperFailure> {
        // The files first: a file has an object before it is made.
        let files = self.pool.volumes().await?;
        let params = ListParams { field_selector: ours.field_selector.clone(), ..ListParams::default() };
        let listed = asked("list LocalVolumes of node", &self.node, self.volumes.list(&params)).await?;
        let known: BTreeSet<_> = listed.iter().map(ResourceExt::name_any).collect();
        let mut strangers = Vec::new();
        for file in files.into_iter().filter(|file| !file.is_ephemeral() && !known.contains(file.as_str())) {
            // It may have been on its way out.
            if self.pool.size(&file).await?.is_some() {
                strangers.push(file.to_string());
            }
        }
        Ok(strangers)
    }
}

const WRITE: &str = "write the status of LocalPool";
