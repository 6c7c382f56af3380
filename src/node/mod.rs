//! The work on a node: from a volume id to a mounted file system, and back. Knows no gRPC and no Kubernetes.
//!
//! Nothing is remembered between calls: what is open, attached and mounted is asked of the kernel each time, so a
//! restart of the program loses nothing. Each step first looks and then acts, so each call can be repeated.

pub mod block;
pub mod ephemeral;
pub mod expand;
pub mod failure;
pub mod filesystem;
pub mod format;
pub mod group;
pub mod header;
pub mod leftovers;
pub mod luks;
pub mod mount;
#[cfg(feature = "controller")]
pub mod pool;
pub mod publish;
pub mod source;
pub mod stage;
pub mod stats;
pub mod target;
pub mod turns;
pub mod unstage;

pub mod loopdev;

use std::{path::Path, sync::Arc};

use crate::{
    exec::{Deadline, Exec, ExecFailure},
    key::service::KeyService,
    node::{
        block::{Blocks, Mapping},
        failure::NodeFailure,
        mount::{Mount, Mounts, Options},
        source::{BlockSource, Place, device::Device, local::Local},
        target::Targets,
        turns::Turns,
    },
    volume::{FsType, MapperName, VolumeId},
};

/// A node, as everything it acts through.
pub struct Node {
    /// Programs.
    pub exec: Arc<dyn Exec>,
    /// Mounts.
    pub mounts: Arc<dyn Mounts>,
    /// The paths that volumes are mounted on.
    pub targets: Arc<dyn Targets>,
    /// Block devices.
    pub blocks: Arc<dyn Blocks>,
    /// Keys.
    pub keys: Arc<dyn KeyService>,
    /// The pool of local volumes.
    pub pool: Local,
    /// How many volumes are worked on at once.
    pub turns: Turns,
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

    /// Closes a mapping that nobody uses. One that is not open is a success.
    async fn close(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<(), NodeFailure> {
        let mapper = MapperName::of(volume_id);
        let closed = luks::close(self.exec.as_ref(), &mapper, deadline).await;
        // dmsetup has one status for all that goes wrong; whether the mapping is still there tells the rest.
        match (closed, self.mapping(volume_id).await?) {
            (_, None) => Ok(()),
            (Ok(()) | Err(ExecFailure::Status { .. }), Some(_)) => {
                let what = format!("/dev/mapper/{mapper} is open or being closed");
                Err(NodeFailure::Busy { volume_id: volume_id.clone(), what })
            }
            (Err(failure), Some(_)) => Err(NodeFailure::luks("close", volume_id)(failure.into())),
        }
    }

    /// Closes a mapping that must not be used again; one that is busy goes with its last user.
    async fn discard(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<(), NodeFailure> {
        match self.close(volume_id, deadline).await {
            Err(NodeFailure::Busy { .. }) => {
                let closed = luks::close_deferred(self.exec.as_ref(), &MapperName::of(volume_id), deadline).await;
                if closed.is_err() && self.mapping(volume_id).await?.is_none() {
                    return Ok(());
                }
                closed.map_err(|failure| NodeFailure::luks("close", volume_id)(failure.into()))?;
                Err(NodeFailure::StaleMapping { volume_id: volume_id.clone() })
            }
            closed => closed,
        }
    }
}

/// Whether a mount is one of this mapping: its file system, or its device node bound to a file.
fn shows(mount: &Mount, mapping: &Mapping) -> bool {
    mount.number == mapping.number || is_node_of(mount, mapping) || is_btrfs_of(mount, mapping)
}

/// Btrfs can span devices, so its mounts have a number that is none of a device.
fn is_btrfs_of(mount: &Mount, mapping: &Mapping) -> bool {
    let kernel_path = Path::new("/dev").join(&mapping.kernel_name);
    mount.fs_type == FsType::Btrfs.as_str() && (mount.source == mapping.path || mount.source == kernel_path)
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
