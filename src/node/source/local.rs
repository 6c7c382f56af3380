//! Files of a pool of this node, each a volume's raw device through a loop device.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;

use crate::{
    exec::Deadline,
    node::{
        block::{Attached, Blocks},
        source::{
            BlockSource, SourceFailure, failure,
            files::{Files, NoFile},
        },
    },
    volume::VolumeId,
};

/// The pool of this node.
#[derive(Clone)]
pub struct Local {
    files: Arc<dyn Files>,
    blocks: Arc<dyn Blocks>,
}

/// How long a device that was detached may take to go.
const RELEASE_TIME: Duration = Duration::from_secs(3);
const RELEASE_STEP: Duration = Duration::from_millis(20);

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Local").field(&self.files.folder()).finish()
    }
}

/// Why a file of the pool is not made or grown.
#[derive(Debug, thiserror::Error)]
pub enum PoolFailure {
    /// It does not fit.
    #[error("{needed} bytes are needed and {available} are available in pool {pool}")]
    Full {
        /// Bytes that are missing to the file.
        needed: u64,
        /// Bytes that are not promised to anybody.
        available: u64,
        /// The folder.
        pool: PathBuf,
    },
    /// The volume has a device in use.
    #[error("volume {volume_id} is in use by {}", device.display())]
    InUse {
        /// The volume.
        volume_id: VolumeId,
        /// Its loop device.
        device: PathBuf,
    },
    /// There is no such volume, or the file system fails.
    #[error(transparent)]
    Source(#[from] SourceFailure),
}

impl Local {
    /// A pool of files.
    #[must_use]
    pub fn of(files: Arc<dyn Files>, blocks: Arc<dyn Blocks>) -> Self {
        Self { files, blocks }
    }

    /// The size of a volume's file in bytes, where there is one.
    ///
    /// # Errors
    /// The file system fails.
    pub async fn size(&self, volume_id: &VolumeId) -> Result<Option<u64>, SourceFailure> {
        // Only an id that is safe as a file's name can have a file here.
        let Some(name) = volume_id.file_name() else { return Ok(None) };
        self.files.size(name).await.map_err(failure("look at", &self.path(name)))
    }

    /// Makes a volume's file, full of zeros, where there is none, and returns the size that it has.
    ///
    /// # Errors
    /// It does not fit, or the file system fails. Then there is no file.
    pub async fn create(&self, volume_id: &VolumeId, bytes: u64) -> Result<u64, PoolFailure> {
        let name = self.expect_name(volume_id)?;
        self.files.create(name, bytes).await.map_err(|fault| self.no_file(name, fault))?;
        Ok(self.expect_size(volume_id).await?)
    }

    /// Makes a volume's file at least this large.
    ///
    /// # Errors
    /// There is none, the growth does not fit, or the file system fails.
    pub async fn expand(&self, volume_id: &VolumeId, bytes: u64) -> Result<u64, PoolFailure> {
        let name = self.expect_name(volume_id)?;
        let size = self.expect_size(volume_id).await?;
        if size >= bytes {
            return Ok(size);
        }
        self.files.grow(name, bytes).await.map_err(|fault| self.no_file(name, fault))?;
        Ok(bytes)
    }

    /// Removes a volume's file. One that is not there is a success.
    ///
    /// # Errors
    /// It is attached to a device, or the file system fails.
    pub async fn remove(&self, volume_id: &VolumeId) -> Result<(), PoolFailure> {
        self.expect_unused(volume_id).await?;
        let Some(name) = volume_id.file_name() else { return Ok(()) };
        Ok(self.files.remove(name).await.map_err(failure("remove", &self.path(name)))?)
    }

    /// Checks that no device has a volume's file.
    ///
    /// # Errors
    /// One has, or the kernel cannot be asked.
    pub async fn expect_unused(&self, volume_id: &VolumeId) -> Result<(), PoolFailure> {
        match self.devices(volume_id).await?.into_iter().next() {
            Some((device, _)) => Err(PoolFailure::InUse { volume_id: volume_id.clone(), device }),
            None => Ok(()),
        }
    }

    /// Bytes that are promised to nobody.
    ///
    /// # Errors
    /// The file system fails.
    pub async fn available(&self) -> Result<u64, SourceFailure> {
        self.files.available().await.map_err(failure("measure", self.files.folder()))
    }

    /// The volumes that have a file here. What has another name than a volume's file could have is none.
    ///
    /// # Errors
    /// The file system fails.
    pub async fn volumes(&self) -> Result<Vec<VolumeId>, SourceFailure> {
        let names = self.files.names().await.map_err(failure("list", self.files.folder()))?;
        let ids = names.into_iter().filter_map(|name| name.parse::<VolumeId>().ok());
        Ok(ids.filter(|id| id.file_name().is_some()).collect())
    }

    /// Lets go of a volume's device, and does not wait for its disk. One that is not attached is a success.
    ///
    /// # Errors
    /// The kernel refuses, or somebody keeps the device.
    pub async fn release(&self, volume_id: &VolumeId) -> Result<(), SourceFailure> {
        let waited = Deadline::within(RELEASE_TIME);
        // What somebody else has attached in a way of their own is theirs to detach.
        while let Some((device, _)) = self.devices(volume_id).await?.into_iter().find(|(_, ours)| *ours) {
            self.blocks.detach(&device).await.map_err(failure("detach", &device))?;
            if waited.left().is_zero() {
                let busy = io::Error::new(io::ErrorKind::ResourceBusy, "somebody still has it open");
                return Err(failure("detach", &device)(busy));
            }
            // A device that somebody is about to close goes when they have, and is not said to be gone before.
            tokio::time::sleep(RELEASE_STEP).await;
        }
        Ok(())
    }

    async fn devices(&self, volume_id: &VolumeId) -> Result<Vec<(PathBuf, bool)>, SourceFailure> {
        let Some(name) = volume_id.file_name() else { return Ok(Vec::new()) };
        let path = self.path(name);
        match self.blocks.attached(&path).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            devices => devices.map_err(failure("look for loop devices of", &path)),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.folder().join(name)
    }

    fn expect_name<'a>(&self, volume_id: &'a VolumeId) -> Result<&'a str, SourceFailure> {
        volume_id.file_name().ok_or_else(|| missing(volume_id, self.files.folder()))
    }

    async fn expect_size(&self, volume_id: &VolumeId) -> Result<u64, SourceFailure> {
        let path = self.path(self.expect_name(volume_id)?);
        self.size(volume_id).await?.ok_or_else(|| missing(volume_id, &path))
    }

    fn no_file(&self, name: &str, fault: NoFile) -> PoolFailure {
        match fault {
            NoFile::Full { needed, available } => {
                PoolFailure::Full { needed, available, pool: self.files.folder().to_owned() }
            }
            NoFile::Io(source) => PoolFailure::Source(failure("make room for", &self.path(name))(source)),
        }
    }
}

#[async_trait]
impl BlockSource for Local {
    async fn attach(&self, volume_id: &VolumeId) -> Result<Attached, SourceFailure> {
        let path = self.path(self.expect_name(volume_id)?);
        match self.blocks.attach_file(&path).await {
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                // The file is not there, or the kernel has no loop devices: each needs another remedy.
                self.expect_size(volume_id).await?;
                Err(failure("attach a loop device to", &path)(source))
            }
            attached => attached.map_err(failure("attach a loop device to", &path)),
        }
    }

    async fn detach(&self, volume_id: &VolumeId) -> Result<(), SourceFailure> {
        self.release(volume_id).await?;
        let Some(name) = volume_id.file_name() else { return Ok(()) };
        self.files.flush(name).await.map_err(failure("flush", &self.path(name)))
    }

    async fn grow(&self, volume_id: &VolumeId) -> Result<(), SourceFailure> {
        for (device, _) in self.devices(volume_id).await? {
            self.blocks.refresh(&device).await.map_err(failure("refresh the size of", &device))?;
        }
        Ok(())
    }
}

fn missing(volume_id: &VolumeId, place: &Path) -> SourceFailure {
    SourceFailure::Missing { volume_id: volume_id.clone(), place: place.to_owned() }
}
