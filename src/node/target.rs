//! The paths that a volume is mounted on: looked at without following a link, and made only when all else is decided,
//! so that a refusal leaves nothing behind.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::node::NodeFailure;

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
    kind: Kind,
}

impl Target {
    /// Looks at a path. Nothing is made.
    ///
    /// # Errors
    /// It is a link, or of the other kind, or its folder is not there.
    pub async fn look(path: &Path, kind: Kind) -> Result<Self, NodeFailure> {
        let owned = path.to_owned();
        blocking(move || look(&owned, kind)).await
    }

    /// Makes the folder or file where there is none. A folder must be empty: a mount would hide what lies in it.
    ///
    /// # Errors
    /// The folder is not empty, or cannot be made.
    pub async fn make(&self) -> Result<(), NodeFailure> {
        let target = self.clone();
        blocking(move || make(&target)).await
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

fn parent_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).to_owned()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NodeFailure> + Send + 'static,
) -> Result<T, NodeFailure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(NodeFailure::io("look at", "a path")(io::Error::other("the program is shutting down"))))
}
