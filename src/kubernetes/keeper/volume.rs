//! One local volume of a node: what its object asks for, what file there is, and the next step.

use std::time::Duration;

use kube::{Resource, ResourceExt, api::Patch, runtime::controller::Action};
use serde_json::json;

use crate::{
    exec::Deadline,
    key::{record::State, service::KeyInfo},
    kubernetes::{
        events::Reason,
        keeper::{CHANGED, Keeper, KeeperFailure, LOOK_AGAIN, asked, written_by_us},
        local_volume::{FILE, LocalVolume, LocalVolumeStatus, Phase, signed},
    },
    node::source::local::PoolFailure,
    server::rpc::message,
    step::{Step, reached},
    volume::VolumeId,
};

/// How long the key service may take to answer.
const KEY_TIME: Duration = Duration::from_secs(20);

const NO_NAME: &str = "this is no name of a local volume: delete the object";
const NO_KEY: &str = "the volume has no key: it is being deleted, or was not made by coffer's controller";
const KEY_IN_USE: &str = "the key of this volume is still in use; delete the PersistentVolumeClaim. The file stays until \
                          the key is destroyed";
const FILE_GONE: &str = "the file of this volume is not in the pool, and is not made again: is the pool's disk mounted? \
                         Put the file back from a backup, or delete the PersistentVolumeClaim";

/// What is to be done about a volume.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Nothing.
    Nothing,
    /// Its file is made.
    Make,
    /// Its file is made larger.
    Grow,
    /// Its file, which is there, is written down as ours.
    Own,
    /// Its status is to say this.
    Say(LocalVolumeStatus),
    /// Its file was there and is not any more.
    Lost,
    /// Its file is removed.
    Remove,
}

/// How a look ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looked {
    /// Nothing is left to do until something changes.
    Settled,
    /// Something has to change that nobody tells of.
    Waiting,
}

/// What an object asks for, seen against its file.
fn next(volume: &LocalVolume, file: Option<u64>) -> Next {
    if volume.is_leaving() {
        return if volume.has_finalizer() { Next::Remove } else { Next::Nothing };
    }
    match file {
        Some(_) if !volume.has_finalizer() => Next::Own,
        Some(size) if size < volume.wanted_bytes() => match volume.phase() {
            Phase::Full => Next::Nothing,
            Phase::Pending | Phase::Ready | Phase::Failed => Next::Grow,
        },
        Some(size) => {
            let status = ready(volume, size);
            if volume.status.as_ref() == Some(&status) { Next::Nothing } else { Next::Say(status) }
        }
        None if volume.was_made() => match volume.phase() {
            Phase::Failed => Next::Nothing,
            Phase::Pending | Phase::Ready | Phase::Full => Next::Lost,
        },
        // What does not fit is not tried again: the controller takes it back, or asks for another size.
        None if volume.phase() == Phase::Full => Next::Nothing,
        None => Next::Make,
    }
}

fn ready(volume: &LocalVolume, size: u64) -> LocalVolumeStatus {
    LocalVolumeStatus {
        phase: Phase::Ready,
        size_bytes: Some(signed(size)),
        message: None,
        observed_generation: volume.metadata.generation,
    }
}

/// The status that a volume has, with another phase and message.
fn saying(volume: &LocalVolume, phase: Phase, words: impl Into<String>) -> LocalVolumeStatus {
    let size_bytes = volume.status.as_ref().and_then(|status| status.size_bytes);
    let observed_generation = volume.metadata.generation;
    LocalVolumeStatus { phase, size_bytes, message: Some(words.into()), observed_generation }
}

impl Keeper {
    /// Looks at a volume and takes the next step.
    pub(super) async fn look(&self, seen: &LocalVolume) -> Result<Action, KeeperFailure> {
        let name = seen.name_any();
        match self.step(&name, seen).await {
            Ok(Looked::Settled) => {
                self.settled(&name);
                Ok(Action::requeue(LOOK_AGAIN))
            }
            Ok(Looked::Waiting) => Ok(Action::requeue(self.patience(&name))),
            Err(KeeperFailure::Changed(_)) => Ok(Action::requeue(CHANGED)),
            Err(failure) => {
                // Whoever waits for the volume sees why; that it cannot be said is no other failure.
                let phase = match (seen.status.as_ref().map(|status| status.phase).unwrap_or_default(), seen.phase()) {
                    // That another size did not fit says nothing of this one.
                    (Phase::Full, Phase::Pending) if seen.was_made() => Phase::Ready,
                    (Phase::Full, phase) => phase,
                    (phase, _) => phase,
                };
                let _ = self.say(seen, saying(seen, phase, message(&failure))).await;
                Err(failure)
            }
        }
    }

    async fn step(&self, name: &str, seen: &LocalVolume) -> Result<Looked, KeeperFailure> {
        let volume_id = name.parse::<VolumeId>().ok();
        let volume_id = volume_id.filter(|id| id.file_name().is_some() && !id.is_ephemeral());
        let Some(volume_id) = volume_id else {
            if !seen.is_leaving() {
                self.say(seen, saying(seen, Phase::Failed, NO_NAME)).await?;
            }
            return Ok(Looked::Settled);
        };
        let file = self.pool.size(&volume_id).await?;
        if next(seen, file) == Next::Nothing {
            return Ok(Looked::Settled);
        }
        // What a watch has seen may be old. From here on it is the object itself, and each write names its version.
        let Some(volume) = asked("look at LocalVolume", name, self.volumes.get_opt(name)).await? else {
            return Ok(Looked::Settled);
        };
        if volume.spec.node_name != self.node {
            return Ok(Looked::Settled);
        }
        match next(&volume, file) {
            Next::Nothing => Ok(Looked::Settled),
            Next::Make => self.make(&volume_id, &volume).await,
            Next::Grow => self.grow(&volume_id, &volume).await,
            Next::Own => {
                self.own(&volume).await?;
                Err(KeeperFailure::Changed(name.to_owned()))
            }
            Next::Say(status) => {
                self.say(&volume, status).await?;
                Ok(Looked::Settled)
            }
            Next::Lost => {
                if self.say(&volume, saying(&volume, Phase::Failed, FILE_GONE)).await? {
                    self.events.tell(&volume.object_ref(&()), Reason::FileGone, FILE_GONE).await;
                }
                tracing::error!(%volume_id, "{FILE_GONE}");
                Ok(Looked::Settled)
            }
            Next::Remove => self.remove(&volume_id, &volume).await,
        }
    }

    async fn make(&self, volume_id: &VolumeId, volume: &LocalVolume) -> Result<Looked, KeeperFailure> {
        let refusal = match self.key(volume_id).await? {
            None => {
                self.say(volume, saying(volume, Phase::Pending, NO_KEY)).await?;
                return Ok(Looked::Waiting);
            }
            Some(KeyInfo { node, .. }) if node.as_deref() != Some(self.node.as_str()) => {
                Some(format!("the key of this volume is bound to node {}", node.as_deref().unwrap_or("(none)")))
            }
            // A file in its place would be a blank volume where a user's data was.
            Some(KeyInfo { state: State::Ready | State::Destroyed, .. }) => Some(FILE_GONE.to_owned()),
            Some(KeyInfo { state: State::Prepared | State::Formatting, .. }) => None,
        };
        if let Some(refusal) = refusal {
            self.say(volume, saying(volume, Phase::Failed, refusal)).await?;
            return Ok(Looked::Settled);
        }
        let volume = self.own(volume).await?;
        match self.pool.create(volume_id, volume.wanted_bytes()).await {
            Ok(size) => {
                reached(Step::FileCreated, volume_id);
                tracing::info!(%volume_id, bytes = size, "file made");
                self.changed.notify_one();
                self.say(&volume, ready(&volume, size)).await?;
                Ok(Looked::Settled)
            }
            Err(full @ PoolFailure::Full { .. }) => {
                // There is no file, so that whoever takes the volume back need not wait for this node.
                let volume = self.disown(&volume).await?;
                self.say(&volume, saying(&volume, Phase::Full, full.to_string())).await?;
                Ok(Looked::Settled)
            }
            Err(failure) => Err(failure.into()),
        }
    }

    async fn grow(&self, volume_id: &VolumeId, volume: &LocalVolume) -> Result<Looked, KeeperFailure> {
        let status = match self.pool.expand(volume_id, volume.wanted_bytes()).await {
            Ok(size) => {
                reached(Step::FileGrown, volume_id);
                tracing::info!(%volume_id, bytes = size, "file grown");
                self.changed.notify_one();
                ready(volume, size)
            }
            Err(full @ PoolFailure::Full { .. }) => saying(volume, Phase::Full, full.to_string()),
            Err(failure) => return Err(failure.into()),
        };
        self.say(volume, status).await?;
        Ok(Looked::Settled)
    }

    async fn remove(&self, volume_id: &VolumeId, volume: &LocalVolume) -> Result<Looked, KeeperFailure> {
        let phase = volume.status.as_ref().map(|status| status.phase).unwrap_or_default();
        if self.key(volume_id).await?.is_some() {
            if self.say(volume, saying(volume, phase, KEY_IN_USE)).await? {
                tracing::warn!(%volume_id, "LocalVolume was deleted: {KEY_IN_USE}");
                self.events.tell(&volume.object_ref(&()), Reason::KeyInUse, KEY_IN_USE).await;
            }
            return Ok(Looked::Waiting);
        }
        match self.pool.remove(volume_id).await {
            Ok(()) => {
                reached(Step::FileRemoved, volume_id);
                tracing::info!(%volume_id, "file removed");
                self.changed.notify_one();
                self.disown(volume).await?;
                Ok(Looked::Settled)
            }
            Err(used @ PoolFailure::InUse { .. }) => {
                self.say(volume, saying(volume, phase, format!("{used}; the file goes when it is not"))).await?;
                Ok(Looked::Waiting)
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// The volume's record, where it has a key.
    async fn key(&self, volume_id: &VolumeId) -> Result<Option<KeyInfo>, KeeperFailure> {
        let found = self.keys.describe(volume_id, Deadline::within(KEY_TIME)).await;
        found.map_err(|source| KeeperFailure::Key { volume_id: volume_id.clone(), source })
    }

    /// Says something in a volume's status, unless it is said already. Returns whether it was not.
    async fn say(&self, volume: &LocalVolume, status: LocalVolumeStatus) -> Result<bool, KeeperFailure> {
        if volume.status.as_ref() == Some(&status) {
            return Ok(false);
        }
        let name = volume.name_any();
        // In a merge patch (RFC 7386) null takes a field away.
        let patch = json!({
            "metadata": { "resourceVersion": volume.resource_version() },
            "status": {
                "phase": status.phase,
                "sizeBytes": status.size_bytes,
                "message": status.message,
                "observedGeneration": status.observed_generation,
            },
        });
        let (patch, params) = (Patch::Merge(&patch), written_by_us());
        asked("write the status of LocalVolume", &name, self.volumes.patch_status(&name, &params, &patch)).await?;
        Ok(true)
    }

    /// Writes down that there may be a file.
    async fn own(&self, volume: &LocalVolume) -> Result<LocalVolume, KeeperFailure> {
        if volume.has_finalizer() {
            return Ok(volume.clone());
        }
        let mut finalizers = volume.finalizers().to_vec();
        finalizers.push(FILE.to_owned());
        self.set_finalizers(volume, finalizers).await
    }

    /// Writes down that there is no file.
    async fn disown(&self, volume: &LocalVolume) -> Result<LocalVolume, KeeperFailure> {
        let others = volume.finalizers().iter().filter(|name| *name != FILE).cloned();
        self.set_finalizers(volume, others.collect()).await
    }

    async fn set_finalizers(
        &self,
        volume: &LocalVolume,
        finalizers: Vec<String>,
    ) -> Result<LocalVolume, KeeperFailure> {
        let name = volume.name_any();
        let patch = json!({
            "metadata": { "resourceVersion": volume.resource_version(), "finalizers": finalizers },
        });
        let (patch, params) = (Patch::Merge(&patch), written_by_us());
        asked("write the finalizers of LocalVolume", &name, self.volumes.patch(&name, &params, &patch)).await
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;

    fn volume(finalizer: bool, status: Option<(Phase, Option<i64>, i64)>) -> LocalVolume {
        let mut volume = LocalVolume::of(&"vol-1".parse().expect("an id"), "n1", 100);
        volume.metadata.generation = Some(2);
        volume.metadata.finalizers = finalizer.then(|| vec![FILE.to_owned()]);
        volume.status = status.map(|(phase, size_bytes, observed)| LocalVolumeStatus {
            phase,
            size_bytes,
            message: None,
            observed_generation: Some(observed),
        });
        volume
    }

    #[test]
    fn a_file_is_made_once_and_never_in_the_place_of_one_that_is_gone() {
        assert_eq!(next(&volume(false, None), None), Next::Make);
        assert_eq!(next(&volume(true, None), None), Next::Make, "it broke off between finalizer and file");
        assert_eq!(next(&volume(true, Some((Phase::Ready, Some(100), 2))), None), Next::Lost);
        assert_eq!(next(&volume(true, Some((Phase::Pending, Some(100), 1))), None), Next::Lost);
        assert_eq!(next(&volume(true, Some((Phase::Failed, Some(100), 2))), None), Next::Nothing);
        assert_eq!(next(&volume(false, Some((Phase::Full, None, 2))), None), Next::Nothing);
        assert_eq!(next(&volume(false, Some((Phase::Full, None, 1))), None), Next::Make, "another size is asked for");
    }

    #[test]
    fn what_is_there_is_said_and_grown_as_far_as_it_fits() {
        let said = |volume: &LocalVolume, size| Next::Say(ready(volume, size));
        let fresh = volume(true, None);
        assert_eq!(next(&fresh, Some(100)), said(&fresh, 100), "it broke off between file and status");
        assert_eq!(next(&volume(true, Some((Phase::Ready, Some(100), 2))), Some(100)), Next::Nothing);
        assert_eq!(next(&volume(true, Some((Phase::Ready, Some(50), 1))), Some(50)), Next::Grow);
        assert_eq!(next(&volume(true, Some((Phase::Full, Some(50), 2))), Some(50)), Next::Nothing);
        let back = volume(true, Some((Phase::Failed, Some(100), 2)));
        assert_eq!(next(&back, Some(100)), said(&back, 100), "the file came back");
        assert_eq!(next(&volume(false, Some((Phase::Ready, Some(100), 2))), Some(100)), Next::Own);
    }

    #[test]
    fn what_leaves_is_removed_and_never_made() {
        let leaving = |finalizer| {
            let mut volume = volume(finalizer, Some((Phase::Ready, Some(100), 2)));
            volume.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
            volume
        };
        assert_eq!(next(&leaving(true), Some(100)), Next::Remove);
        assert_eq!(next(&leaving(true), None), Next::Remove, "it broke off between file and finalizer");
        assert_eq!(next(&leaving(false), None), Next::Nothing);
    }
}
