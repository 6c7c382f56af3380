//! Files in a folder of this node, the pool, each a volume's raw device through a loop device.
//!
//! A file is sparse: it takes space as it is written. What was promised is kept all the same: a new or grown file has
//! to fit into what is free after every other file of the pool has been written full.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rustix::fs::{FlockOperation, flock};

use crate::{
    exec::Deadline,
    node::{
        block::{Attached, Blocks, blocking},
        source::{BlockSource, SourceFailure},
    },
    volume::VolumeId,
};

/// The pool of this node.
#[derive(Clone)]
pub struct Local {
    folder: PathBuf,
    blocks: Arc<dyn Blocks>,
    /// Held while space is promised, so that two requests are not promised the same.
    promising: Arc<Mutex<()>>,
    /// Held as long as the pool is used: requests for one volume are kept apart within one process only.
    _lock: Arc<File>,
}

/// How long a device that was detached may take to go.
const RELEASE_TIME: Duration = Duration::from_secs(3);
const RELEASE_STEP: Duration = Duration::from_millis(20);
const UNFINISHED: &str = "unfinished";

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Local").field(&self.folder).finish()
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
    /// Opens a pool, and makes its folder where it is missing (mode 0700).
    ///
    /// # Errors
    /// The folder cannot be made, or another driver has it.
    pub fn open(folder: &Path, blocks: Arc<dyn Blocks>) -> Result<Self, SourceFailure> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        // The kernel shows mounts and loop devices by their real paths.
        let folder = made.and_then(|()| folder.canonicalize()).map_err(failure("make folder", folder))?;
        let lock = File::open(&folder).map_err(failure("open", &folder))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| failure("lock, which another driver holds,", &folder)(errno.into()))?;
        for entry in fs::read_dir(&folder).map_err(failure("list", &folder))?.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == UNFINISHED) {
                fs::remove_file(&path).map_err(failure("remove unfinished", &path))?;
            }
        }
        Ok(Self { folder, blocks, promising: Arc::default(), _lock: Arc::new(lock) })
    }

    /// The size of a volume's file in bytes, where there is one.
    ///
    /// # Errors
    /// The file system fails.
    pub async fn size(&self, volume_id: &VolumeId) -> Result<Option<u64>, SourceFailure> {
        let Some(path) = self.path(volume_id) else { return Ok(None) };
        self.blocking("look at", &path, |path| match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            metadata => Ok(Some(metadata?.len())),
        })
        .await
    }

    /// Makes a volume's file, full of zeros, where there is none, and returns the size that it has.
    ///
    /// # Errors
    /// It does not fit, or the file system fails. Then there is no file.
    pub async fn create(&self, volume_id: &VolumeId, bytes: u64) -> Result<u64, PoolFailure> {
        let path = self.expect_path(volume_id)?;
        if let Some(size) = self.size(volume_id).await? {
            return Ok(size);
        }
        self.promise(&path, bytes, |path, bytes| {
            let unfinished = path.with_extension(UNFINISHED);
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
            let linked =
                file.set_len(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::hard_link(&unfinished, path));
            // It has its own name now, or is not wanted.
            let _ = fs::remove_file(&unfinished);
            // A link never replaces: a file that somebody else made meanwhile stays as it is.
            match linked {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                linked => linked?,
            }
            sync_folder(path)
        })
        .await?;
        let missing = || SourceFailure::Missing { volume_id: volume_id.clone(), place: path.clone() };
        Ok(self.size(volume_id).await?.ok_or_else(missing)?)
    }

    /// Makes a volume's file at least this large.
    ///
    /// # Errors
    /// There is none, the growth does not fit, or the file system fails.
    pub async fn expand(&self, volume_id: &VolumeId, bytes: u64) -> Result<u64, PoolFailure> {
        let path = self.expect_path(volume_id)?;
        let missing = || SourceFailure::Missing { volume_id: volume_id.clone(), place: path.clone() };
        let size = self.size(volume_id).await?.ok_or_else(missing)?;
        if size >= bytes {
            return Ok(size);
        }
        self.promise(&path, bytes, |path, bytes| {
            let file = OpenOptions::new().write(true).open(path)?;
            // Somebody else may have grown it meanwhile: a file of the pool never becomes smaller.
            if file.metadata()?.len() < bytes {
                file.set_len(bytes)?;
            }
            file.sync_all()
        })
        .await?;
        Ok(bytes)
    }

    /// Removes a volume's file. One that is not there is a success.
    ///
    /// # Errors
    /// It is attached to a device, or the file system fails.
    pub async fn remove(&self, volume_id: &VolumeId) -> Result<(), PoolFailure> {
        self.expect_unused(volume_id).await?;
        let Some(path) = self.path(volume_id) else { return Ok(()) };
        Ok(self
            .blocking("remove", &path, |path| match fs::remove_file(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed.and_then(|()| sync_folder(path)),
            })
            .await?)
    }

    /// Checks that no device has a volume's file.
    ///
    /// # Errors
    /// One has, or the kernel cannot be asked.
    pub async fn expect_unused(&self, volume_id: &VolumeId) -> Result<(), PoolFailure> {
        match self.devices(volume_id).await?.into_iter().next() {
            Some(device) => Err(PoolFailure::InUse { volume_id: volume_id.clone(), device }),
            None => Ok(()),
        }
    }

    /// Bytes that are promised to nobody.
    ///
    /// # Errors
    /// The file system fails.
    pub async fn available(&self) -> Result<u64, SourceFailure> {
        self.blocking("measure", &self.folder, available).await
    }

    async fn devices(&self, volume_id: &VolumeId) -> Result<Vec<PathBuf>, SourceFailure> {
        let Some(path) = self.path(volume_id) else { return Ok(Vec::new()) };
        match self.blocks.attached(&path).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            devices => devices.map_err(failure("look for loop devices of", &path)),
        }
    }

    async fn promise(
        &self,
        path: &Path,
        bytes: u64,
        make: impl FnOnce(&Path, u64) -> io::Result<()> + Send + 'static,
    ) -> Result<(), PoolFailure> {
        let pool = self.clone();
        let work = move |path: &Path| {
            let _promising = pool.promising.lock().unwrap_or_else(PoisonError::into_inner);
            let available = available(&pool.folder)?;
            let needed = bytes.saturating_sub(fs::metadata(path).map_or(0, |metadata| metadata.len()));
            if needed > available {
                return Ok(Err(PoolFailure::Full { needed, available, pool: pool.folder.clone() }));
            }
            make(path, bytes).map(Ok)
        };
        self.blocking("make room for", path, work).await?
    }

    async fn blocking<T: Send + 'static>(
        &self,
        step: &'static str,
        path: &Path,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, SourceFailure> {
        let owned = path.to_owned();
        blocking(move || work(&owned)).await.map_err(failure(step, path))
    }

    /// Only an id that is safe as a file's name can have a file here.
    fn path(&self, volume_id: &VolumeId) -> Option<PathBuf> {
        Some(self.folder.join(volume_id.file_name()?))
    }

    fn expect_path(&self, volume_id: &VolumeId) -> Result<PathBuf, SourceFailure> {
        let missing = || SourceFailure::Missing { volume_id: volume_id.clone(), place: self.folder.clone() };
        self.path(volume_id).ok_or_else(missing)
    }
}

#[async_trait]
impl BlockSource for Local {
    async fn attach(&self, volume_id: &VolumeId) -> Result<Attached, SourceFailure> {
        let path = self.expect_path(volume_id)?;
        self.blocks.attach_file(&path).await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound if !path.exists() => {
                SourceFailure::Missing { volume_id: volume_id.clone(), place: path.clone() }
            }
            _ => SourceFailure::Io { step: "attach a loop device to", place: path.clone(), source },
        })
    }

    async fn detach(&self, volume_id: &VolumeId) -> Result<(), SourceFailure> {
        let waited = Deadline::within(RELEASE_TIME);
        while let Some(device) = self.devices(volume_id).await?.into_iter().next() {
            self.blocks.detach(&device).await.map_err(failure("detach", &device))?;
            if waited.left().is_zero() {
                let busy = io::Error::new(io::ErrorKind::ResourceBusy, "somebody still has it open");
                return Err(failure("detach", &device)(busy));
            }
            // A device that somebody is about to close goes when they have, and is not said to be gone before.
            tokio::time::sleep(RELEASE_STEP).await;
        }
        let Some(path) = self.path(volume_id) else { return Ok(()) };
        self.blocking("flush", &path, |path| match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            file => file?.sync_all(),
        })
        .await
    }

    async fn grow(&self, volume_id: &VolumeId) -> Result<(), SourceFailure> {
        for device in self.devices(volume_id).await? {
            self.blocks.refresh(&device).await.map_err(failure("refresh the size of", &device))?;
        }
        Ok(())
    }
}

/// What is free on the pool's file system, less what its sparse files may still take.
fn available(folder: &Path) -> io::Result<u64> {
    let mut promised = 0_u64;
    for entry in fs::read_dir(folder)? {
        // A file that is removed while we look takes nothing.
        let Ok(metadata) = entry?.metadata() else { continue };
        promised = promised.saturating_add(metadata.len().saturating_sub(512 * metadata.blocks()));
    }
    let stat = rustix::fs::statvfs(folder)?;
    Ok((stat.f_bavail * stat.f_frsize).saturating_sub(promised))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn failure(step: &'static str, place: &Path) -> impl Fn(io::Error) -> SourceFailure {
    let place = place.to_owned();
    move |source| SourceFailure::Io { step, place: place.clone(), source }
}
