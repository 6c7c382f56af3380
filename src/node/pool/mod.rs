//! The joint to the pools of local volumes: the one of this node, or those of every node of a cluster. A pool has files
//! and no keys: who asks for something here has looked at the volume's record.

pub mod here;

use std::path::Path;

use async_trait::async_trait;

use crate::{
    exec::Deadline,
    key::service::KeyInfo,
    node::source::{SourceFailure, local::PoolFailure},
    volume::VolumeId,
};

/// On which nodes a volume may be (CSI specification, TopologyRequirement), by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The nodes that are better than others, the best first.
    pub preferred: Vec<String>,
    /// The nodes of which it must be one; none where any node will do.
    pub allowed: Option<Vec<String>>,
}

impl Wanted {
    /// Whether a volume may be on a node.
    #[must_use]
    pub fn allows(&self, node: &str) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| allowed.iter().any(|name| name == node))
    }

    /// The nodes that it names and allows, the best first, each once.
    #[must_use]
    pub fn order(&self) -> Vec<&str> {
        let named = self.preferred.iter().chain(self.allowed.iter().flatten()).map(String::as_str);
        let mut order = Vec::new();
        for node in named.filter(|node| self.allows(node)) {
            if !order.contains(&node) {
                order.push(node);
            }
        }
        order
    }
}

/// What a new volume needs of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs<'a> {
    /// A file of so many bytes.
    File(u64),
    /// A device that is there already.
    Device(&'a Path),
}

/// Where a new volume is made.
#[derive(Debug)]
pub enum Placement {
    /// On this node; a record that is there is the one to go on with.
    At(String),
    /// On this node. The record that is there is bound to another, where nothing was ever written under it: it is
    /// destroyed, and made anew.
    Anew(String),
    /// Nowhere now, for this reason. What was begun is being taken away, and the record that is there has no use any more:
    /// it is destroyed, so that nothing keeps the node from removing the file.
    Nowhere(PoolsFailure),
}

/// A volume of these pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What its record says.
    pub info: KeyInfo,
    /// Its node.
    pub node: String,
    /// The size of its file in bytes; none where there is no file.
    pub bytes: Option<u64>,
}

/// Why a pool does not do as it is asked.
#[derive(Debug, thiserror::Error)]
pub enum PoolsFailure {
    /// The pool of this node fails.
    #[error(transparent)]
    Pool(#[from] PoolFailure),
    /// The volume may not be here.
    #[error("this is node {node}, and the volume is required elsewhere")]
    Elsewhere {
        /// This node.
        node: String,
    },
    /// A volume would not fit.
    #[error("{needed} bytes are needed and {available} are available in {place}")]
    NoRoom {
        /// The size of its file in bytes.
        needed: u64,
        /// The most bytes that are promised to nobody in one pool.
        available: u64,
        /// Which pools were looked at.
        place: String,
    },
    /// A node has refused to make or grow a file. What was begun is taken back.
    #[error("node {node} has no room for volume {volume_id}: {message}")]
    Full {
        /// The volume.
        volume_id: VolumeId,
        /// The node.
        node: String,
        /// What it said.
        message: String,
    },
    /// There is a file and no record: what a deletion left that broke off, or what is left when records were lost.
    #[error(
        "volume {0} has a file in the pool and no key record: delete the volume if it is not needed, or restore its \
         record from a backup"
    )]
    NoRecord(VolumeId),
    /// The volume exists, and not where it is asked for.
    #[error("volume {volume_id} exists on node {node}, which is not where it is asked for")]
    OnOtherNode {
        /// The volume.
        volume_id: VolumeId,
        /// Its node.
        node: String,
    },
    /// The volume is being made with another size.
    #[error("volume {volume_id} exists with a file of {bytes} bytes, which is not the size that is asked for")]
    OtherSize {
        /// The volume.
        volume_id: VolumeId,
        /// The size of its file.
        bytes: u64,
    },
    /// The volume is in use.
    #[error("volume {volume_id} is staged on node {node}")]
    Staged {
        /// The volume.
        volume_id: VolumeId,
        /// Its node.
        node: String,
    },
    /// A node cannot make or keep the volume's file, and another try helps nobody.
    #[error("volume {volume_id} on node {node}: {message}")]
    Broken {
        /// The volume.
        volume_id: VolumeId,
        /// Its node.
        node: String,
        /// What is wrong, and what to do.
        message: String,
    },
    /// What was begun before is still being taken away.
    #[error(
        "volume {volume_id} is still being removed from node {node}. It is made again when that is done; if the node \
         never comes back, remove the finalizer coffer.csi/file from the LocalVolume {volume_id}"
    )]
    Leaving {
        /// The volume.
        volume_id: VolumeId,
        /// Its old node.
        node: String,
    },
    /// Somebody else has changed the volume meanwhile.
    #[error("volume {0} is being changed by others; try again")]
    Busy(VolumeId),
    /// A node has not answered within the caller's time. The work goes on, and a retry finds it.
    #[error(
        "node {node} has not {work} of volume {volume_id} yet{last}. Is the node up, and is coffer's pod on it running \
         with local volumes switched on? It goes on by itself as soon as it is"
    )]
    Waited {
        /// The volume.
        volume_id: VolumeId,
        /// The node.
        node: String,
        /// What it is to do.
        work: &'static str,
        /// What it said last, after a colon; empty where it said nothing.
        last: String,
    },
    /// The API server has not answered within the caller's time.
    #[error("{step} {name}: the API server has not answered before the deadline")]
    Late {
        /// What was tried.
        step: &'static str,
        /// On what.
        name: String,
    },
    /// The API server refused, or is away.
    #[error("{step} {name} at the API server")]
    Api {
        /// What was tried.
        step: &'static str,
        /// On what.
        name: String,
        /// What it said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A device that cannot be used.
    #[error("parameter device")]
    Device(#[source] SourceFailure),
    /// The controller of a whole cluster has no devices.
    #[error(
        "parameter device: a device is one node's, and this controller is no node's: take the parameter out, or make a \
         PersistentVolume for the device by hand"
    )]
    NoDevices,
}

impl PoolsFailure {
    /// Whether a smaller volume, or the same one on another node, could be had.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Pool(PoolFailure::Full { .. }) | Self::NoRoom { .. } | Self::Full { .. })
    }
}

/// Pools of local volumes. Each call can be repeated, and finds done what is done.
#[async_trait]
pub trait Pools: Send + Sync {
    /// Chooses the node of a volume that is to be made. `existing` is the record that its id has.
    ///
    /// # Errors
    /// No node that is allowed has room, what is there stands in the way, or the pools cannot be asked.
    async fn place(
        &self,
        volume_id: &VolumeId,
        needs: Needs<'_>,
        wanted: &Wanted,
        existing: Option<&KeyInfo>,
        deadline: Deadline,
    ) -> Result<Placement, PoolsFailure>;

    /// The size of a device in bytes.
    ///
    /// # Errors
    /// There is no such device, or these pools have none.
    async fn device_bytes(&self, volume_id: &VolumeId, path: &Path) -> Result<u64, PoolsFailure>;

    /// The size of a volume's file in bytes; none where there is none.
    ///
    /// # Errors
    /// The pools cannot be asked.
    async fn size(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<Option<u64>, PoolsFailure>;

    /// Makes a volume's file on a node, full of zeros, where there is none, and returns the size that it has in bytes.
    ///
    /// # Errors
    /// It does not fit, and then nothing is left of it; it is there with another size or on another node; or the node has
    /// not made it within the caller's time, and then it goes on.
    async fn create(
        &self,
        volume_id: &VolumeId,
        node: &str,
        bytes: u64,
        deadline: Deadline,
    ) -> Result<u64, PoolsFailure>;

    /// Makes a volume's file at least this large, and returns the size that it has in bytes.
    ///
    /// # Errors
    /// There is none, the growth does not fit, or the node has not done it within the caller's time.
    async fn expand(&self, volume_id: &VolumeId, bytes: u64, deadline: Deadline) -> Result<u64, PoolsFailure>;

    /// Checks that nobody uses a volume, as far as that can be known from here.
    ///
    /// # Errors
    /// Somebody does, or the kernel cannot be asked.
    async fn expect_unused(&self, volume_id: &VolumeId) -> Result<(), PoolsFailure>;

    /// Removes a volume's file, or sees to it that its node does. One that is not there is a success. `destroyed` is what
    /// the record said before its key was destroyed, where this deletion has done that.
    ///
    /// # Errors
    /// It is in use, or the pools cannot be asked.
    async fn remove(
        &self,
        volume_id: &VolumeId,
        destroyed: Option<&KeyInfo>,
        deadline: Deadline,
    ) -> Result<(), PoolsFailure>;

    /// Bytes that are promised to nobody in a node's pool; where no node is named, in the pool that has the most. A node
    /// that has no pool has none.
    ///
    /// # Errors
    /// The pools cannot be asked.
    async fn available(&self, node: Option<&str>, deadline: Deadline) -> Result<u64, PoolsFailure>;

    /// Of these volumes, those that these pools are asked for.
    ///
    /// # Errors
    /// The pools cannot be asked.
    async fn held(&self, infos: Vec<KeyInfo>, deadline: Deadline) -> Result<Vec<Held>, PoolsFailure>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_preferred_come_first_and_only_where_they_are_allowed() {
        let wanted = Wanted { preferred: names(&["c", "b"]), allowed: Some(names(&["a", "b"])) };
        assert_eq!(wanted.order(), ["b", "a"]);
        assert!(wanted.allows("a") && !wanted.allows("c"));
    }

    #[test]
    fn without_a_requirement_any_node_will_do() {
        let anywhere = Wanted::default();
        assert!(anywhere.allows("a") && anywhere.order().is_empty());
        let preferring = Wanted { preferred: names(&["a"]), allowed: None };
        assert!(preferring.allows("b"));
        assert_eq!(preferring.order(), ["a"]);
    }
}
