//! The joint to where a volume's raw device comes from.

pub mod device;
pub mod files;
pub mod local;

use std::{
    io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;

use crate::{node::block::Attached, volume::VolumeId};

/// Where a volume's device comes from, as its volume context says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file in the pool of this node.
    Local,
    /// A device of this node, by its path.
    Device(PathBuf),
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum SourceFailure {
    /// It is not on this node.
    #[error("volume {volume_id} is not on this node: there is no {place}")]
    Missing {
        /// The volume.
        volume_id: VolumeId,
        /// Where it was looked for.
        place: PathBuf,
    },
    /// It is there and cannot be used.
    #[error("{step} {place}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        place: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Brings a volume's raw device to this node. Each step first looks, and finds done what is done.
#[async_trait]
pub trait BlockSource: Send + Sync {
    /// Makes the device be there.
    ///
    /// # Errors
    /// The volume is not on this node, or the kernel refuses.
    async fn attach(&self, volume_id: &VolumeId) -> Result<Attached, SourceFailure>;

    /// Lets go of the device, and waits until the disk has what was written to it.
    ///
    /// # Errors
    /// The kernel refuses. A volume that is not attached, or not there, is a success.
    async fn detach(&self, volume_id: &VolumeId) -> Result<(), SourceFailure>;

    /// Makes the kernel see the size that the volume has now.
    ///
    /// # Errors
    /// The volume is not on this node, or the kernel refuses.
    async fn grow(&self, volume_id: &VolumeId) -> Result<(), SourceFailure>;
}

fn failure(step: &'static str, place: &Path) -> impl Fn(io::Error) -> SourceFailure {
    let place = place.to_owned();
    move |source| SourceFailure::Io { step, place: place.clone(), source }
}
