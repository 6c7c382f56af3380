//! What an inventory has read: records, the volumes of a cluster, the files of a pool; or why it has not.

use std::path::PathBuf;

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    key::{record::Record, store::Refused},
    volume::VolumeId,
};

/// The driver of local volumes (`csi::DRIVER_NAME`), and the one whose volumes have keys where no other is named.
pub const DRIVER: &str = "coffer.csi";

/// What came of looking at something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Looked<T> {
    /// It was read.
    At(T),
    /// Nobody asked for it, or there is no such thing here, for this reason.
    Passed(String),
    /// It was to be read and could not be, for this reason.
    Failed(String),
}

impl<T> Looked<T> {
    /// What was read.
    #[must_use]
    pub fn at(&self) -> Option<&T> {
        match self {
            Self::At(found) => Some(found),
            Self::Passed(_) | Self::Failed(_) => None,
        }
    }
}

/// The volumes of a Kubernetes cluster. They are read before the records are: see [`crate::admin::inventory`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// The PersistentVolumes of the drivers whose volumes have keys here.
    pub persistent: Looked<Vec<Persistent>>,
    /// The LocalVolumes.
    pub local: Looked<Vec<Local>>,
}

impl Cluster {
    /// A cluster that nobody asked for.
    #[must_use]
    pub fn passed(why: &str) -> Self {
        Self { persistent: Looked::Passed(why.to_owned()), local: Looked::Passed(why.to_owned()) }
    }

    /// A cluster that cannot be asked.
    #[must_use]
    pub fn failed(why: &str) -> Self {
        Self { persistent: Looked::Failed(why.to_owned()), local: Looked::Failed(why.to_owned()) }
    }
}

/// A PersistentVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persistent {
    /// Its name.
    pub name: String,
    /// The CSI driver whose it is.
    pub driver: String,
    /// What the driver calls it: the volume id.
    pub handle: String,
    /// The claim that it is bound to, NAMESPACE/NAME.
    pub claim: Option<String>,
    /// It lies on a device of its node, and not in a pool.
    pub is_device: bool,
    /// It is being deleted, or will be now that its claim is gone.
    pub is_leaving: bool,
}

/// A LocalVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Its name: the volume id.
    pub name: String,
    /// Its node.
    pub node: String,
    /// When the object was made.
    pub created: Option<Timestamp>,
    /// The node has made the file, once.
    pub is_made: bool,
    /// The node says that it cannot make or keep the file.
    pub is_failed: bool,
    /// What the node said last; empty where it said nothing.
    pub message: String,
    /// It is being deleted.
    pub is_leaving: bool,
}

/// A file of a pool, by its name alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The volume that has this name.
    pub volume_id: VolumeId,
    /// Where it lies.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// A file of a pool, and what it begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFile {
    /// The file.
    pub named: Named,
    /// What it begins with.
    pub holds: Holds,
}

/// What a file begins with, held against the record of its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holds {
    /// The header that the record knows: its UUID and its MAC, under the volume's own key.
    Own,
    /// The UUID is the record's. The MAC was not compared, for this reason.
    UuidAlone(String),
    /// The record says that the volume is not finished, and nothing there gives it the lie.
    Unfinished,
    /// Something that is not the record's, or was changed.
    Other(String),
    /// This, and there is no record with a key to hold it against.
    Unmatched(String),
    /// It could not be read, for this reason.
    Unread(String),
}

/// All that was read.
#[derive(Debug)]
pub(super) struct Lists {
    /// The installation.
    pub(super) cluster_id: Uuid,
    /// Every record of the store.
    pub(super) records: Vec<Record>,
    /// What lies among them and is none.
    pub(super) refused: Vec<Refused>,
    pub(super) cluster: Cluster,
    pub(super) files: Looked<Vec<PoolFile>>,
}

#[cfg(test)]
mod tests {
    #[cfg(feature = "node")]
    #[test]
    fn the_driver_is_the_one_that_nodes_serve() {
        assert_eq!(super::DRIVER, crate::csi::DRIVER_NAME);
    }
}
