//! What a driver that went down has left behind and nobody will ask for again, cleared away before the next one serves:
//! mappings whose device is gone, and files of ephemeral volumes whose key is.
//!
//! Nothing is touched that anybody has open, mounted or attached, and nothing of a volume that has a record: what lies in
//! the pool under such a volume's name stays, whatever it is.

use std::time::Duration;

use crate::{
    exec::Deadline,
    node::{Node, NodeFailure, block::Mapping, luks, mount::Mount, shows},
    volume::{MapperName, VolumeId},
};

/// How long closing one mapping may take: a disk that hangs holds up no start.
const CLOSE_TIME: Duration = Duration::from_secs(10);

impl Node {
    /// Clears away what is left, among the mappings that there are. What cannot be looked at or cleared away is told, and
    /// stays: it keeps no volume from being served.
    pub async fn clear_leftovers(&self, mappings: &[(MapperName, Mapping)]) {
        if let Err(error) = self.close_left(mappings).await {
            tracing::warn!(%error, "mappings whose device is gone are not looked for");
        }
        match self.pool.volumes().await {
            Ok(volumes) => self.remove_left(&volumes).await,
            Err(error) => tracing::warn!(%error, "files of ephemeral volumes are not looked for"),
        }
    }

    async fn close_left(&self, mappings: &[(MapperName, Mapping)]) -> Result<(), NodeFailure> {
        let mounts = self.mounts().await?;
        for (name, _) in mappings.iter().filter(|(_, mapping)| is_left(mapping, &mounts)) {
            // One that somebody has open is not closed by this; the kernel says so.
            match luks::close(self.exec.as_ref(), name, Deadline::within(CLOSE_TIME)).await {
                Ok(()) => tracing::info!(mapping = %name, "closed: its device is gone, and nobody has it open"),
                Err(error) => tracing::warn!(mapping = %name, %error, "its device is gone, and it stays open"),
            }
        }
        Ok(())
    }

    async fn remove_left(&self, volumes: &[VolumeId]) {
        for own in volumes.iter().filter(|volume_id| volume_id.is_ephemeral()) {
            // One that is open, or is being opened by a program that outlived its driver, is in use.
            let is_closed = self.mapping(own).await.is_ok_and(|mapping| mapping.is_none());
            if is_closed && self.pool.expect_unused(own).await.is_ok() {
                match self.pool.remove(own).await {
                    Ok(()) => tracing::info!(file = %own, "removed: an ephemeral volume whose key is gone"),
                    Err(error) => tracing::warn!(file = %own, %error, "an ephemeral volume's file stays"),
                }
            }
        }
    }
}

/// Whether a mapping has lost its device and is mounted nowhere. One without a size is being opened.
fn is_left(mapping: &Mapping, mounts: &[Mount]) -> bool {
    mapping.backing.is_empty() && mapping.bytes > 0 && !mounts.iter().any(|mount| shows(mount, mapping))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::block::{Access, Backing, DeviceNumber};

    #[test]
    fn only_a_mapping_without_device_mount_and_opener_is_left() {
        let number = DeviceNumber { major: 254, minor: 0 };
        let left = Mapping {
            path: "/dev/mapper/coffer-1".into(),
            kernel_name: "dm-0".to_owned(),
            number,
            luks_uuid: None,
            backing: Vec::new(),
            bytes: 4096,
            access: Access::ReadWrite,
        };
        let mount = Mount {
            number,
            root: "/".into(),
            target: "/mnt".into(),
            access: Access::ReadWrite,
            fs_type: "ext4".to_owned(),
            source: "/dev/mapper/coffer-1".into(),
            super_access: Access::ReadWrite,
        };
        assert!(is_left(&left, &[]));
        assert!(!is_left(&left, &[mount]), "it is mounted");
        let backing = vec![Backing { path: "/dev/loop0".into(), number }];
        assert!(!is_left(&Mapping { backing, ..left.clone() }, &[]), "its device is there");
        assert!(!is_left(&Mapping { bytes: 0, ..left }, &[]), "it is being opened");
    }
}
