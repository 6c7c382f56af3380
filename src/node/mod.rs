//! The work on a node: from a volume id to a mounted file system, and back. Knows no gRPC and no Kubernetes.
//!
//! Nothing is remembered between calls: what is open, attached and mounted is asked of the kernel each time, so a
//! restart of the program loses nothing. Each step first looks and then acts, so each call can be repeated.

pub mod block;
pub mod expand;
pub mod failure;
pub mod filesystem;
pub mod format;
pub mod group;
pub mod header;
pub mod luks;
pub mod mount;
pub mod publish;
pub mod source;
pub mod stage;
pub mod stats;
pub mod unstage;

pub mod loopdev;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    exec::{Deadline, Exec},
    key::service::KeyService,
    node::{
        block::{Blocks, Mapping},
        failure::NodeFailure,
        luks::LuksFailure,
        mount::{Mount, Mounts, Options},
        source::{BlockSource, Place, device::Device, local::Local},
    },
    volume::{FsType, MapperName, VolumeId},
};

/// A node, as everything it acts through.
pub struct Node {
    /// Programs.
    pub exec: Arc<dyn Exec>,
    /// Mounts.
    pub mounts: Arc<dyn Mounts>,
    /// Block devices.
    pub blocks: Arc<dyn Blocks>,
    /// Keys.
    pub keys: Arc<dyn KeyService>,
    /// The pool of local volumes.
    pub pool: Local,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("pool", &self.pool).finish_non_exhaustive()
    }
}

/// How many may use a volume, as CSI's access modes for one node say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// One or more may write.
    Write,
    /// One may write.
    WriteAlone,
    /// Nobody may write.
    Read,
}

/// In which form a volume is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// A mounted file system.
    Filesystem {
        /// Its type, where one is asked for.
        fs_type: Option<FsType>,
        /// How it is mounted.
        options: Options,
        /// The group that is to own its files.
        group: Option<u32>,
    },
    /// A raw block device.
    Block,
}

/// What a request asks of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// In which form.
    pub form: Form,
    /// For whom.
    pub access: Use,
}

impl Node {
    fn source(&self, place: &Place) -> Arc<dyn BlockSource> {
        match place {
            Place::Local => Arc::new(self.pool.clone()),
            Place::Device(path) => Arc::new(Device::at(path, self.blocks.clone())),
        }
    }

    async fn mapping(&self, volume_id: &VolumeId) -> Result<Option<Mapping>, NodeFailure> {
        let mapping = self.blocks.mapping(&MapperName::of(volume_id)).await;
        mapping.map_err(NodeFailure::io("look for mappings in", "/sys/block"))
    }

    async fn mounts(&self) -> Result<Vec<Mount>, NodeFailure> {
        self.mounts.table().await.map_err(NodeFailure::io("read", "/proc/self/mountinfo"))
    }

    /// Closes a mapping that nobody uses.
    async fn close(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<(), NodeFailure> {
        match luks::close(self.exec.as_ref(), &MapperName::of(volume_id), deadline).await {
            Err(LuksFailure::Busy(mapper)) => {
                Err(NodeFailure::InUse { volume_id: volume_id.clone(), what: format!("through /dev/mapper/{mapper}") })
            }
            closed => closed.map_err(NodeFailure::luks("close", volume_id)),
        }
    }

    /// Closes a mapping that must not be used again; one that is busy goes with its last user.
    async fn discard(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<(), NodeFailure> {
        let mapper = MapperName::of(volume_id);
        match luks::close(self.exec.as_ref(), &mapper, deadline).await {
            Err(LuksFailure::Busy(_)) => {
                let closed = luks::close_deferred(self.exec.as_ref(), &mapper, deadline).await;
                closed.map_err(NodeFailure::luks("close", volume_id))?;
                Err(NodeFailure::StaleMapping { volume_id: volume_id.clone() })
            }
            closed => closed.map_err(NodeFailure::luks("close", volume_id)),
        }
    }
}

/// Whether a mount is one of this mapping: its file system, or its device node bound to a file.
fn shows(mount: &Mount, mapping: &Mapping) -> bool {
    mount.number == mapping.number || is_node_of(mount, mapping)
}

fn is_node_of(mount: &Mount, mapping: &Mapping) -> bool {
    let kernel_name = Path::new("/").join(&mapping.kernel_name);
    let mapper_name = mapping.path.strip_prefix("/dev").map(|path| Path::new("/").join(path));
    mount.fs_type == "devtmpfs" && (mount.root == kernel_name || mapper_name.is_ok_and(|name| mount.root == name))
}

/// The uppermost mount at a path.
fn mounted_at<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts.iter().rev().find(|mount| mount.target == path)
}

/// Makes sure that a path can be mounted on, without following a link, and returns it as the kernel will show it.
async fn prepare_target(path: &Path, kind: Target) -> Result<PathBuf, NodeFailure> {
    let owned = path.to_owned();
    let prepared = tokio::task::spawn_blocking(move || target(&owned, kind)).await;
    prepared.unwrap_or_else(|_| Err(NodeFailure::Unsupported("the program is shutting down")))
}

/// What a volume is mounted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Folder,
    File,
}

fn target(path: &Path, kind: Target) -> Result<PathBuf, NodeFailure> {
    let refuse = |fault| Err(NodeFailure::Path { path: path.to_owned(), fault });
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return refuse("has no parent folder") };
    let parent = match parent.canonicalize() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return refuse("is in a folder that does not exist");
        }
        parent => parent.map_err(NodeFailure::io("look at", parent_of(path)))?,
    };
    let path = parent.join(name);
    let found = match std::fs::symlink_metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        found => Some(found.map_err(NodeFailure::io("look at", &path))?.file_type()),
    };
    match (kind, found) {
        (_, Some(found)) if found.is_symlink() => return refuse("is a symbolic link; a volume is mounted on no link"),
        (Target::Folder, None) => std::fs::create_dir(&path).map_err(NodeFailure::io("make folder", &path)),
        (Target::File, None) => {
            std::fs::File::create_new(&path).map(|_| ()).map_err(NodeFailure::io("make file", &path))
        }
        (Target::Folder, Some(found)) if !found.is_dir() => return refuse("is not a folder"),
        (Target::File, Some(found)) if found.is_dir() => return refuse("is a folder; a block volume is mounted on a file"),
        (_, Some(_)) => Ok(()),
    }?;
    Ok(path)
}

fn parent_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).to_owned()
}

/// Refuses a folder in which something lies that a mount would hide.
async fn expect_empty(path: &Path) -> Result<(), NodeFailure> {
    let mut entries = tokio::fs::read_dir(path).await.map_err(NodeFailure::io("list", path))?;
    match entries.next_entry().await.map_err(NodeFailure::io("list", path))? {
        None => Ok(()),
        Some(_) => Err(NodeFailure::Occupied { path: path.to_owned(), what: "the folder is not empty" }),
    }
}
