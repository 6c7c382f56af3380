//! NodeGetVolumeStats: how full a volume is, and whether it is well.

use std::path::Path;

use crate::{
    node::{Node, NodeFailure, block::Access, is_node_of, mount::Usage, mounted_at, shows},
    volume::VolumeId,
};

/// How full a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// A file system's use.
    Filesystem(Usage),
    /// A raw device's bytes.
    Block(u64),
}

/// Whether a volume is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It is.
    Normal,
    /// It is not, and why.
    Abnormal(&'static str),
}

/// What is known of a volume in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// How full it is.
    pub size: Size,
    /// Whether it is well.
    pub condition: Condition,
}

impl Node {
    /// Looks at a staged or published volume.
    ///
    /// # Errors
    /// The volume is not at that path.
    pub async fn stats(&self, volume_id: &VolumeId, volume_path: &Path) -> Result<Stats, NodeFailure> {
        let not_there = || NodeFailure::NotThere { volume_id: volume_id.clone(), path: volume_path.to_owned() };
        let path = self.targets.resolve(volume_path).await.map_err(|_| not_there())?;
        let own = self.ephemeral(volume_id).await?;
        let mapping = self.mapping(own.as_ref().unwrap_or(volume_id)).await?.ok_or_else(not_there)?;
        let mounts = self.mounts().await?;
        let mount = mounted_at(&mounts, &path).filter(|mount| shows(mount, &mapping)).ok_or_else(not_there)?;
        let condition = if mapping.backing.is_empty() {
            Condition::Abnormal(
                "the device below the volume is gone: stop its pods, bring the device back and restart them",
            )
        } else if mount.super_access == Access::ReadOnly && mount.access == Access::ReadWrite {
            Condition::Abnormal("the file system became read-only after an error: look at the kernel log and the disk")
        } else if self.mounts.errors(&mapping.kernel_name).await.is_ok_and(|errors| errors > 0) {
            // The flag of the mount does not show it on every kernel: since 6.12 it stays as it was.
            Condition::Abnormal(
                "the kernel found errors in the file system: look at the kernel log and the disk, and restart the \
                 volume's pods; it is repaired before it is mounted again",
            )
        } else {
            Condition::Normal
        };
        let size = if is_node_of(mount, &mapping) {
            Size::Block(mapping.bytes)
        } else {
            Size::Filesystem(self.mounts.usage(&path).await.map_err(NodeFailure::io("measure", &path))?)
        };
        Ok(Stats { size, condition })
    }
}
