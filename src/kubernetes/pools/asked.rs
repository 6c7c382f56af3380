//! What the API server is asked about volumes: each question with its step, the volume's name and the caller's deadline.

use std::{future::Future, pin::pin, time::Duration};

use futures::StreamExt;
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::{WatchStreamExt, watcher::watch_object},
};
use serde_json::json;

use crate::{
    exec::Deadline,
    kubernetes::{
        FIELD_MANAGER,
        local_volume::{LocalVolume, signed},
        pools::{ClusterPools, Seen},
    },
    node::pool::PoolsFailure,
    volume::VolumeId,
};

/// What is left of a caller's time for the answer that a node has not answered.
const ANSWER_TIME: Duration = Duration::from_secs(1);

const LOOK: &str = "look at LocalVolume";
const RESIZE: &str = "resize LocalVolume";
pub(super) const DELETE: &str = "delete LocalVolume";

impl ClusterPools {
    /// A volume's object, where there is one.
    pub(super) async fn look(
        &self,
        volume_id: &VolumeId,
        deadline: Deadline,
    ) -> Result<Option<LocalVolume>, PoolsFailure> {
        // An id that is safe as a file's name is safe in a URL; no other has an object.
        let Some(name) = volume_id.file_name() else { return Ok(None) };
        expected(LOOK, name, asked(LOOK, name, deadline, self.volumes.get_opt(name)).await?)
    }

    /// Deletes an object in the version that was seen, and says whether nothing is left of it: a node that may have a file
    /// keeps the object until it has none. None where others have changed it.
    pub(super) async fn take_back(
        &self,
        volume: &LocalVolume,
        deadline: Deadline,
    ) -> Result<Option<bool>, PoolsFailure> {
        let (name, preconditions) =
            (volume.name_any(), Preconditions { resource_version: volume.resource_version(), uid: volume.uid() });
        let params = DeleteParams::default().preconditions(preconditions);
        match asked(DELETE, &name, deadline, self.volumes.delete(&name, &params)).await? {
            Ok(deleted) => Ok(Some(deleted.left().is_none_or(|left| !left.has_finalizer()))),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Some(true)),
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(None),
            Err(error) => Err(refused(DELETE, &name, error)),
        }
    }

    /// Sets the size that a file is to have. None where others have changed the object.
    pub(super) async fn resize(
        &self,
        volume: &LocalVolume,
        bytes: u64,
        deadline: Deadline,
    ) -> Result<Option<LocalVolume>, PoolsFailure> {
        let name = volume.name_any();
        let patch = json!({
            "metadata": { "resourceVersion": volume.resource_version() },
            "spec": { "sizeBytes": signed(bytes) },
        });
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        match asked(RESIZE, &name, deadline, self.volumes.patch(&name, &params, &Patch::Merge(&patch))).await? {
            Ok(resized) => Ok(Some(resized)),
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(None),
            Err(error) => Err(refused(RESIZE, &name, error)),
        }
    }

    /// Watches a volume's object until `judge` has seen enough.
    pub(super) async fn wait(
        &self,
        volume_id: &VolumeId,
        node: &str,
        work: &'static str,
        deadline: Deadline,
        judge: impl Fn(Option<LocalVolume>) -> Option<Seen> + Send + Sync,
    ) -> Result<Seen, PoolsFailure> {
        let mut changes = pin!(watch_object(self.volumes.clone(), volume_id.as_str()).default_backoff());
        let mut last = String::new();
        let left = deadline.left();
        // Before the caller gives up and is told nothing.
        let patience = left.saturating_sub(ANSWER_TIME.min(left / 4));
        let seen = tokio::time::timeout(patience, async {
            while let Some(change) = changes.next().await {
                match change {
                    Ok(found) => {
                        last = found.as_ref().map(|volume| volume.message().to_owned()).unwrap_or_default();
                        if let Some(seen) = judge(found) {
                            return Some(seen);
                        }
                    }
                    Err(error) => last = error.to_string(),
                }
            }
            None
        })
        .await;
        if let Ok(Some(seen)) = seen {
            return Ok(seen);
        }
        let last = if last.is_empty() { last } else { format!(": {last}") };
        Err(PoolsFailure::Waited { volume_id: volume_id.clone(), node: node.to_owned(), work, last })
    }
}

/// What the API server answers, before the deadline.
pub(super) async fn asked<T>(
    step: &'static str,
    name: &str,
    deadline: Deadline,
    call: impl Future<Output = kube::Result<T>> + Send,
) -> Result<kube::Result<T>, PoolsFailure> {
    let late = |_| PoolsFailure::Late { step, name: name.to_owned() };
    tokio::time::timeout(deadline.left(), call).await.map_err(late)
}

/// The answer, or why there is none.
pub(super) fn expected<T>(step: &'static str, name: &str, answer: kube::Result<T>) -> Result<T, PoolsFailure> {
    answer.map_err(|error| refused(step, name, error))
}

/// Why the API server did not do it.
pub(super) fn refused(step: &'static str, name: &str, error: kube::Error) -> PoolsFailure {
    let source: Box<dyn std::error::Error + Send + Sync> = match error {
        // What the API server says itself, without what is around it.
        kube::Error::Api(status) => status,
        other => Box::new(other),
    };
    PoolsFailure::Api { step, name: name.to_owned(), source }
}
