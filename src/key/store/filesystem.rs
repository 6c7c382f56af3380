//! A store of files: one folder, one file a record. The embedded default.
//!
//! A record becomes visible whole or not at all: it is written to a file of its own, flushed, and then linked
//! (create) or renamed (replace) to its name, and the folder is flushed. Writers of all processes take a lock on the
//! folder (flock(2)), so that compare and swap are one step and readers see what the disk has. A file that a crash left behind has a
//! name that no record has, and is removed when the store is opened.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    exec::Deadline,
    key::{
        record::{Record, RecordFault},
        store::{DekStore, Listed, Refused, StoreFailure, Stored, Version},
    },
    volume::{VolumeId, hex},
};

const SUFFIX: &str = ".json";
const UNFINISHED: &str = ".unfinished-";

/// A folder of records.
#[derive(Clone, Debug)]
pub struct Filesystem {
    folder: PathBuf,
}

impl Filesystem {
    /// Opens a folder of records, makes it where it is missing (mode 0700), and removes what a crash left unfinished.
    ///
    /// # Errors
    /// The folder cannot be made, read or locked.
    pub fn open(folder: &Path) -> Result<Self, StoreFailure> {
        let fail = |step: &'static str| failure(step, folder);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fail("make folder"))?;
        let store = Self { folder: folder.to_owned() };
        let lock = store.lock(FlockOperation::LockExclusive)?;
        // What an earlier process made visible and did not live to flush; and the folder's own name.
        let parent = folder.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all());
        lock.sync_all().and(parent).map_err(fail("flush"))?;
        for entry in fs::read_dir(folder).map_err(fail("list"))? {
            let path = entry.map_err(fail("list"))?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(UNFINISHED)) {
                fs::remove_file(&path).map_err(failure("remove unfinished", &path))?;
            }
        }
        Ok(store)
    }

    /// Whether a folder holds any record, without opening or changing it.
    ///
    /// # Errors
    /// The folder is there and cannot be listed.
    pub fn holds_records(folder: &Path) -> Result<bool, StoreFailure> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            entries => entries.map_err(failure("list", folder))?,
        };
        for entry in entries {
            if entry.map_err(failure("list", folder))?.file_name().to_string_lossy().ends_with(SUFFIX) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn lock(&self, operation: FlockOperation) -> Result<File, StoreFailure> {
        let folder = File::open(&self.folder).map_err(failure("open", &self.folder))?;
        flock(&folder, operation).map_err(|errno| failure("lock", &self.folder)(errno.into()))?;
        Ok(folder)
    }

    /// A safe id is its file's name; any other id's file is named by its hash, behind a character no safe id has.
    fn path(&self, volume_id: &VolumeId) -> PathBuf {
        self.folder.join(match volume_id.file_name() {
            Some(name) => format!("{name}{SUFFIX}"),
            None => format!("={}{SUFFIX}", hex(&Sha256::digest(volume_id.as_str().as_bytes()))),
        })
    }

    fn read(&self, volume_id: &VolumeId) -> Result<Option<Stored>, StoreFailure> {
        // Shared with other readers: a writer keeps it until the disk has what it wrote, so that nobody acts on a
        // record that a power cut would take back.
        let (_lock, path) = (self.lock(FlockOperation::LockShared)?, self.path(volume_id));
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(failure("read", &path))?,
        };
        let record = parse(&bytes, volume_id, &path)?;
        if record.volume_id != *volume_id {
            return Err(fault(volume_id, &path, RecordFault::OtherVolume(record.volume_id)));
        }
        Ok(Some(Stored { record, version: Version::of(&bytes) }))
    }

    fn create_new(&self, record: &Record) -> Result<(), StoreFailure> {
        let (folder, path) = (self.lock(FlockOperation::LockExclusive)?, self.path(&record.volume_id));
        let unfinished = self.write_unfinished(record)?;
        let linked = fs::hard_link(&unfinished, &path);
        // The record is there by its own name; the other one, should it stay, goes at the next opening.
        let _ = fs::remove_file(&unfinished);
        match linked {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(StoreFailure::Exists(record.volume_id.clone()))
            }
            linked => linked.and_then(|()| folder.sync_all()).map_err(failure("create", &path)),
        }
    }

    fn swap(&self, record: &Record, version: Version) -> Result<(), StoreFailure> {
        let (folder, path) = (self.lock(FlockOperation::LockExclusive)?, self.path(&record.volume_id));
        let now = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            bytes => Some(Version::of(&bytes.map_err(failure("read", &path))?)),
        };
        if now != Some(version) {
            return Err(StoreFailure::Stale(record.volume_id.clone()));
        }
        let unfinished = self.write_unfinished(record)?;
        let renamed = fs::rename(&unfinished, &path).inspect_err(|_| {
            // As above.
            let _ = fs::remove_file(&unfinished);
        });
        renamed.and_then(|()| folder.sync_all()).map_err(failure("replace", &path))
    }

    fn write_unfinished(&self, record: &Record) -> Result<PathBuf, StoreFailure> {
        let path = self.folder.join(format!("{UNFINISHED}{}", Uuid::new_v4()));
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(&record.to_bytes())?;
            file.sync_all()
        };
        write().map_err(|error| {
            // What could not be written whole is of no use; the next opening removes it if this cannot.
            let _ = fs::remove_file(&path);
            failure("write", &path)(error)
        })?;
        Ok(path)
    }

    fn later(&self, after: Option<&VolumeId>, limit: usize) -> Result<Listed, StoreFailure> {
        let mut listed = Listed::default();
        for entry in fs::read_dir(&self.folder).map_err(failure("list", &self.folder))? {
            let path = entry.map_err(failure("list", &self.folder))?.path();
            if !path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(SUFFIX)) {
                continue;
            }
            let source = match Record::from_bytes(&fs::read(&path).map_err(failure("read", &path))?) {
                Ok(record) if self.path(&record.volume_id) != path => RecordFault::OtherVolume(record.volume_id),
                Ok(record) => {
                    if after.is_none_or(|after| record.volume_id > *after) {
                        listed.records.push(record);
                    }
                    continue;
                }
                Err(source) => source,
            };
            // Each page reads the whole folder, and the first one tells what is no record.
            if after.is_none() {
                listed.refused.push(Refused { place: path.display().to_string(), source });
            }
        }
        listed.records.sort_unstable_by(|a, b| a.volume_id.cmp(&b.volume_id));
        listed.records.truncate(limit);
        listed.refused.sort_unstable_by(|a, b| a.place.cmp(&b.place));
        Ok(listed)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreFailure> + Send + 'static,
    ) -> Result<T, StoreFailure> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || work(&store)).await.expect("file work does not panic")
    }
}

#[async_trait]
impl DekStore for Filesystem {
    async fn get(&self, volume_id: &VolumeId, _: Deadline) -> Result<Option<Stored>, StoreFailure> {
        let volume_id = volume_id.clone();
        self.blocking(move |store| store.read(&volume_id)).await
    }

    async fn create(&self, record: &Record, _: Deadline) -> Result<(), StoreFailure> {
        let record = record.clone();
        self.blocking(move |store| store.create_new(&record)).await
    }

    async fn replace(&self, record: &Record, version: Version, _: Deadline) -> Result<(), StoreFailure> {
        let record = record.clone();
        self.blocking(move |store| store.swap(&record, version)).await
    }

    async fn list(&self, after: Option<&VolumeId>, limit: usize, _: Deadline) -> Result<Listed, StoreFailure> {
        let after = after.cloned();
        self.blocking(move |store| store.later(after.as_ref(), limit)).await
    }
}

fn parse(bytes: &[u8], volume_id: &VolumeId, path: &Path) -> Result<Record, StoreFailure> {
    Record::from_bytes(bytes).map_err(|source| fault(volume_id, path, source))
}

fn fault(volume_id: &VolumeId, path: &Path, source: RecordFault) -> StoreFailure {
    StoreFailure::Fault { volume_id: Some(volume_id.clone()), place: path.display().to_string(), source }
}

fn failure(step: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreFailure {
    let path = path.to_owned();
    move |source| StoreFailure::Io { step, path: path.clone(), source }
}
