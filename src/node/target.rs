//! The joint to the paths that a volume is mounted on: looked at without following a link, and made only when all else
//! is decided, so that a refusal leaves nothing behind.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;

use crate::node::{NodeFailure, block, group};

/// What a volume is mounted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder, for a file system.
    Folder,
    /// A file, for a device node.
    File,
}

/// A path that can be mounted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The path as the kernel shows it: its folder has no link in it.
    pub path: PathBuf,
    /// What is to be there.
    pub kind: Kind,
}

/// The paths that volumes are mounted on.
#[async_trait]
pub trait Targets: Send + Sync {
    /// A path as the kernel shows it, with no link in it.
    ///
    /// # Errors
    /// It is not there.
    async fn resolve(&self, path: &Path) -> io::Result<PathBuf>;

    /// Looks at a path. Nothing is made.
    ///
    /// # Errors
    /// It is a link, or of the other kind, or its folder is not there.
    async fn look(&self, path: &Path, kind: Kind) -> Result<Target, NodeFailure>;

    /// Makes the folder or file where there is none. A folder must be empty: a mount would hide what lies in it.
    ///
    /// # Errors
    /// The folder is not empty, or cannot be made.
    async fn make(&self, target: &Target) -> Result<(), NodeFailure>;

    /// Removes what [`Targets::make`] made: an empty folder, or a file without a byte. Nothing there is a success.
    ///
    /// # Errors
    /// It is something else, or in use.
    async fn remove(&self, path: &Path) -> Result<(), NodeFailure>;

    /// Gives all files of a mounted volume to a group, so that it may read and write them.
    ///
    /// # Errors
    /// The file system fails. One that is read-only is left as it is.
    async fn give(&self, path: &Path, group: u32) -> io::Result<()>;
}

/// The paths of this machine.
#[derive(Clone, Copy, Debug)]
pub struct LinuxTargets;

#[async_trait]
impl Targets for LinuxTargets {
    async fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        let path = path.to_owned();
        block::blocking(move || path.canonicalize()).await
    }

    async fn look(&self, path: &Path, kind: Kind) -> Result<Target, NodeFailure> {
        let path = path.to_owned();
        blocking(move || look(&path, kind)).await
    }

    async fn make(&self, target: &Target) -> Result<(), NodeFailure> {
        let target = target.clone();
        blocking(move || make(&target)).await
    }

    async fn remove(&self, path: &Path) -> Result<(), NodeFailure> {
        let path = path.to_owned();
        blocking(move || remove(path)).await
    }

    async fn give(&self, path: &Path, group: u32) -> io::Result<()> {
        group::give(path, group).await
    }
}

fn look(path: &Path, kind: Kind) -> Result<Target, NodeFailure> {
    let refuse = |fault| Err(NodeFailure::Path { path: path.to_owned(), fault });
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return refuse("has no parent folder") };
    let parent = match parent.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return refuse("is in a folder that does not exist"),
        parent => parent.map_err(NodeFailure::io("look at", parent_of(path)))?,
    };
    let path = parent.join(name);
    let found = match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Target { path, kind }),
        found => found.map_err(NodeFailure::io("look at", &path))?.file_type(),
    };
    match kind {
        _ if found.is_symlink() => refuse("is a symbolic link; a volume is mounted on no link"),
        Kind::Folder if !found.is_dir() => refuse("is not a folder"),
        Kind::File if found.is_dir() => refuse("is a folder; a block volume is mounted on a file"),
        Kind::Folder | Kind::File => Ok(Target { path, kind }),
    }
}

fn make(target: &Target) -> Result<(), NodeFailure> {
    let path = &target.path;
    let made = match target.kind {
        Kind::Folder => fs::create_dir(path),
        Kind::File => fs::File::create_new(path).map(drop),
    };
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && target.kind == Kind::Folder => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return match fs::symlink_metadata(path).map_err(NodeFailure::io("look at", path))?.len() {
                0 => Ok(()),
                _ => Err(NodeFailure::Occupied { path: path.clone(), what: "the file is not empty" }),
            };
        }
        made => return made.map_err(NodeFailure::io("make", path)),
    }
    if target.kind == Kind::Folder && fs::read_dir(path).map_err(NodeFailure::io("list", path))?.next().is_some() {
        return Err(NodeFailure::Occupied { path: path.clone(), what: "the folder is not empty" });
    }
    Ok(())
}

fn remove(path: PathBuf) -> Result<(), NodeFailure> {
    let metadata = match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata.map_err(NodeFailure::io("look at", &path))?,
    };
    let removed = match metadata.file_type() {
        kind if kind.is_symlink() => {
            return Err(NodeFailure::Path { path, fault: "is a symbolic link; a volume is mounted on no link" });
        }
        kind if kind.is_dir() => fs::remove_dir(&path),
        kind if kind.is_file() && metadata.len() == 0 => fs::remove_file(&path),
        _ => return Err(NodeFailure::Occupied { path, what: "it is a file with content, which no publish made" }),
    };
    removed.map_err(NodeFailure::io("remove", &path))
}

fn parent_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).to_owned()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NodeFailure> + Send + 'static,
) -> Result<T, NodeFailure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(NodeFailure::io("look at", "a path")(io::Error::other("the program is shutting down"))))
}
