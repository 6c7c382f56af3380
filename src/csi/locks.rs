//! One lock a volume, never waited for: CSI lets a driver answer ABORTED while it is at work on a volume, and the
//! container orchestrator asks again (CSI specification, "Error Scheme").

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::volume::VolumeId;

/// The volumes that are being worked on.
#[derive(Debug, Default)]
pub struct Locks(Mutex<HashSet<VolumeId>>);

/// A volume's lock, free again when this is dropped.
#[derive(Debug)]
pub struct Lock {
    locks: Arc<Locks>,
    volume_id: VolumeId,
}

impl Locks {
    /// Takes a volume's lock, where it is free.
    #[must_use]
    pub fn take(self: &Arc<Self>, volume_id: &VolumeId) -> Option<Lock> {
        let taken = self.held().insert(volume_id.clone());
        taken.then(|| Lock { locks: self.clone(), volume_id: volume_id.clone() })
    }

    fn held(&self) -> MutexGuard<'_, HashSet<VolumeId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.locks.held().remove(&self.volume_id);
    }
}
