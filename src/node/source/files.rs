//! The joint to the files of a pool: one folder, one file a volume.
//!
//! A file is sparse: it takes space as it is written. What was promised is kept all the same: a new or grown file has
//! to fit into what is free after every other file of the pool has been written full.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use rustix::fs::{FlockOperation, flock};

use crate::node::{
    block::blocking,
    source::{SourceFailure, failure},
};

/// Why a file is not made or grown.
#[derive(Debug)]
pub enum NoFile {
    /// It does not fit.
    Full {
        /// Bytes that are missing to the file.
        needed: u64,
        /// Bytes that are not promised to anybody.
        available: u64,
    },
    /// The file system fails.
    Io(io::Error),
}

impl From<io::Error> for NoFile {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The files of a pool, by their names.
#[async_trait]
pub trait Files: Send + Sync {
    /// The folder, by its real path: the kernel shows loop devices so.
    fn folder(&self) -> &Path;

    /// The size of a file in bytes; none where there is no such file.
    ///
    /// # Errors
    /// The file system fails.
    async fn size(&self, name: &str) -> io::Result<Option<u64>>;

    /// Makes a file, full of zeros, whole or not at all. One that is there already stays as it is.
    ///
    /// # Errors
    /// It does not fit, or the file system fails.
    async fn create(&self, name: &str, bytes: u64) -> Result<(), NoFile>;

    /// Makes a file at least this large; a file never becomes smaller.
    ///
    /// # Errors
    /// It is not there, the growth does not fit, or the file system fails.
    async fn grow(&self, name: &str, bytes: u64) -> Result<(), NoFile>;

    /// Removes a file. One that is not there is a success.
    ///
    /// # Errors
    /// The file system fails.
    async fn remove(&self, name: &str) -> io::Result<()>;

    /// Waits until the disk has what was written to a file. One that is not there is a success.
    ///
    /// # Errors
    /// The file system fails.
    async fn flush(&self, name: &str) -> io::Result<()>;

    /// Bytes that are promised to nobody.
    ///
    /// # Errors
    /// The file system fails.
    async fn available(&self) -> io::Result<u64>;

    /// The names of all files, in no order.
    ///
    /// # Errors
    /// The file system fails.
    async fn names(&self) -> io::Result<Vec<String>>;
}

/// A folder of this machine.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    /// Held while space is promised, so that two requests are not promised the same.
    promising: Arc<Mutex<()>>,
    /// Held as long as the pool is used: requests for one volume are kept apart within one process only.
    _lock: Arc<File>,
}

const UNFINISHED: &str = "unfinished";

impl Folder {
    /// Opens a folder, and makes it where it is missing (mode 0700). What a crash left unfinished is removed.
    ///
    /// # Errors
    /// The folder cannot be made, or another driver has it.
    pub fn open(path: &Path) -> Result<Self, SourceFailure> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        let path = made.and_then(|()| path.canonicalize()).map_err(failure("make folder", path))?;
        let lock = File::open(&path).map_err(failure("open", &path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| failure("lock, which another driver holds,", &path)(errno.into()))?;
        for entry in fs::read_dir(&path).map_err(failure("list", &path))?.flatten() {
            let file = entry.path();
            if file.extension().is_some_and(|extension| extension == UNFINISHED) {
                fs::remove_file(&file).map_err(failure("remove unfinished", &file))?;
            }
        }
        Ok(Self { path, promising: Arc::default(), _lock: Arc::new(lock) })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let file = self.path.join(name);
        blocking(move || work(&file)).await
    }

    async fn promise(
        &self,
        name: &str,
        bytes: u64,
        make: impl FnOnce(&Path, u64) -> io::Result<()> + Send + 'static,
    ) -> Result<(), NoFile> {
        let folder = self.clone();
        let work = move |file: &Path| {
            let _promising = folder.promising.lock().unwrap_or_else(PoisonError::into_inner);
            let available = available(&folder.path)?;
            let needed = bytes.saturating_sub(fs::metadata(file).map_or(0, |metadata| metadata.len()));
            if needed > available {
                return Ok(Err(NoFile::Full { needed, available }));
            }
            make(file, bytes).map(Ok)
        };
        self.blocking(name, work).await?
    }
}

#[async_trait]
impl Files for Folder {
    fn folder(&self) -> &Path {
        &self.path
    }

    async fn size(&self, name: &str) -> io::Result<Option<u64>> {
        self.blocking(name, |file| Ok(unless_missing(fs::metadata(file))?.map(|metadata| metadata.len()))).await
    }

    async fn create(&self, name: &str, bytes: u64) -> Result<(), NoFile> {
        if self.size(name).await?.is_some() {
            return Ok(());
        }
        self.promise(name, bytes, |path, bytes| {
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
        .await
    }

    async fn grow(&self, name: &str, bytes: u64) -> Result<(), NoFile> {
        self.promise(name, bytes, |path, bytes| {
            let file = OpenOptions::new().write(true).open(path)?;
            // Somebody else may have grown it meanwhile.
            if file.metadata()?.len() < bytes {
                file.set_len(bytes)?;
            }
            file.sync_all()
        })
        .await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        self.blocking(name, |file| match unless_missing(fs::remove_file(file))? {
            None => Ok(()),
            Some(()) => sync_folder(file),
        })
        .await
    }

    async fn flush(&self, name: &str) -> io::Result<()> {
        self.blocking(name, |file| unless_missing(File::open(file))?.map_or(Ok(()), |file| file.sync_all())).await
    }

    async fn available(&self) -> io::Result<u64> {
        let folder = self.path.clone();
        blocking(move || available(&folder)).await
    }

    async fn names(&self) -> io::Result<Vec<String>> {
        let folder = self.path.clone();
        blocking(move || {
            let entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
            Ok(entries.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
        })
        .await
    }
}

fn unless_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
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
