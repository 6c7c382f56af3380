//! A device that is there already, by its path: a disk, a partition, a logical volume. Coffer encrypts it and does
//! nothing else to it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;

use crate::{
    node::{
        block::{Attached, Blocks},
        source::{BlockSource, SourceFailure},
    },
    volume::VolumeId,
};

/// One device of this node.
pub struct Device {
    path: PathBuf,
    blocks: Arc<dyn Blocks>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Device").field(&self.path).finish()
    }
}

impl Device {
    /// The device at a path.
    #[must_use]
    pub fn at(path: &Path, blocks: Arc<dyn Blocks>) -> Self {
        Self { path: path.to_owned(), blocks }
    }
}

#[async_trait]
impl BlockSource for Device {
    async fn attach(&self, volume_id: &VolumeId) -> Result<Attached, SourceFailure> {
        match self.blocks.size(&self.path).await {
            Ok(_) => Ok(Attached { path: self.path.clone(), hold: None }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(SourceFailure::Missing { volume_id: volume_id.clone(), place: self.path.clone() })
            }
            Err(source) => Err(SourceFailure::Io { step: "open block device", place: self.path.clone(), source }),
        }
    }

    async fn detach(&self, _: &VolumeId) -> Result<(), SourceFailure> {
        Ok(())
    }

    async fn grow(&self, _: &VolumeId) -> Result<(), SourceFailure> {
        Ok(())
    }
}
