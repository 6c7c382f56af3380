//! What a driver that went down has left behind and nobody will ask for again, cleared away before the next one serves:
//! mappings whose device is gone, and ephemeral volumes that are mounted nowhere.
//!
//! Nothing is touched that anybody has open or mounted, and nothing of a volume that has a record: what lies in the pool
//! under such a volume's name stays, whatever it is. The table of mounts shows this process the pods' folders; a mount in a
//! namespace that it does not show keeps its mapping open all the same, and the kernel closes none that is.

use std::time::Duration;

use crate::{
    exec::Deadline,
    node::{Node, NodeFailure, block::Mapping, luks, mount::Mount, shows},
    volume::{MapperName, VolumeId},
};

/// How long closing one mapping may take: a disk that hangs holds up no start.
const CLOSE_TIME: Duration = Duration::from_secs(10);
/// How long one that is open is asked for again: whoever looks at each new device (udev) has it open for a moment.
const BUSY_TIME: Duration = Duration::from_secs(2);
const BUSY_STEP: Duration = Duration::from_millis(50);

impl Node {
    /// Clears away what is left, among the mappings that there are. What cannot be looked at or cleared away is told, and
    /// stays: it keeps no volume from being served.
    pub async fn clear_leftovers(&self, mappings: &[(MapperName, Mapping)]) {
        if let Err(error) = self.close_left(mappings).await {
            tracing::warn!(%error, "mappings whose device is gone are not looked for");
        }
        match self.pool.volumes().await {
            Ok(volumes) => self.unmake_left(&volumes).await,
            Err(error) => tracing::warn!(%error, "what is left of ephemeral volumes is not looked for"),
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

    async fn unmake_left(&self, volumes: &[VolumeId]) {
        for own in volumes.iter().filter(|volume_id| volume_id.is_ephemeral()) {
            match self.unmake_unless_mounted(own).await {
                Ok(true) => tracing::info!(file = %own, "removed: an ephemeral volume that was mounted nowhere"),
                Ok(false) => tracing::debug!(file = %own, "an ephemeral volume stays with the pod that has it mounted"),
                Err(error) => {
                    let error: &(dyn std::error::Error + 'static) = &error;
                    tracing::warn!(file = %own, error, "something of an ephemeral volume stays until it is unpublished");
                }
            }
        }
    }

    /// From what there is of an ephemeral volume to nothing, and whether that was done. One that was opened and not mounted
    /// holds nothing that anybody wrote, and the key of one that was unmounted or never opened is nobody's any more.
    async fn unmake_unless_mounted(&self, own: &VolumeId) -> Result<bool, NodeFailure> {
        if let Some(mapping) = self.mapping(own).await? {
            if is_mounted(&mapping, &self.mounts().await?) {
                return Ok(false);
            }
            self.close_unless_open(own).await?;
        }
        // A loop device goes with its last user, in the kernel's own time; a program that outlived its driver is one.
        self.pool.release(own).await.map_err(NodeFailure::source(own))?;
        self.pool.remove(own).await.map_err(NodeFailure::pool("remove", own))?;
        Ok(true)
    }

    /// Closes the mapping of an ephemeral volume. The kernel refuses while anybody has it open, and be it a program that
    /// outlived its driver and still makes the file system.
    async fn close_unless_open(&self, own: &VolumeId) -> Result<(), NodeFailure> {
        let busy = Deadline::within(BUSY_TIME);
        loop {
            match self.close(own, Deadline::within(CLOSE_TIME)).await {
                Err(NodeFailure::Busy { .. }) if !busy.left().is_zero() => tokio::time::sleep(BUSY_STEP).await,
                closed => return closed,
            }
        }
    }
}

/// Whether a mapping has lost its device and is mounted nowhere. One without a size is being opened.
fn is_left(mapping: &Mapping, mounts: &[Mount]) -> bool {
    mapping.backing.is_empty() && mapping.bytes > 0 && !is_mounted(mapping, mounts)
}

/// Whether a mapping is mounted anywhere: its file system, a folder of it, or its device node.
fn is_mounted(mapping: &Mapping, mounts: &[Mount]) -> bool {
    mounts.iter().any(|mount| shows(mount, mapping))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::block::{Access, Backing, DeviceNumber};

    const NUMBER: DeviceNumber = DeviceNumber { major: 254, minor: 0 };

    fn mapping() -> Mapping {
        Mapping {
            path: "/dev/mapper/coffer-1".into(),
            kernel_name: "dm-0".to_owned(),
            number: NUMBER,
            luks_uuid: None,
            backing: Vec::new(),
            bytes: 4096,
            access: Access::ReadWrite,
        }
    }

    fn mount() -> Mount {
        Mount {
            number: NUMBER,
            root: "/".into(),
            target: "/mnt".into(),
            access: Access::ReadWrite,
            fs_type: "ext4".to_owned(),
            source: "/dev/mapper/coffer-1".into(),
            super_access: Access::ReadWrite,
        }
    }

    #[test]
    fn only_a_mapping_without_device_mount_and_opener_is_left() {
        let left = mapping();
        assert!(is_left(&left, &[]));
        assert!(!is_left(&left, &[mount()]), "it is mounted");
        let backing = vec![Backing { path: "/dev/loop0".into(), number: NUMBER }];
        assert!(!is_left(&Mapping { backing, ..left.clone() }, &[]), "its device is there");
        assert!(!is_left(&Mapping { bytes: 0, ..left }, &[]), "it is being opened");
    }

    #[test]
    fn a_mapping_that_any_mount_shows_in_any_form_is_mounted() {
        let other = DeviceNumber { major: 8, minor: 1 };
        let elsewhere = Mount { number: other, source: "/dev/sda1".into(), ..mount() };
        assert!(!is_mounted(&mapping(), std::slice::from_ref(&elsewhere)));
        let folder = Mount { root: "/folder".into(), target: "/second".into(), ..mount() };
        // Btrfs shows a number of its own, and a device node the number of the file system that it lies in.
        let btrfs = Mount { number: other, fs_type: "btrfs".to_owned(), ..mount() };
        let node = Mount { number: other, fs_type: "devtmpfs".to_owned(), root: "/dm-0".into(), ..mount() };
        for shown in [folder, btrfs, node] {
            assert!(is_mounted(&mapping(), &[elsewhere.clone(), shown.clone()]), "{shown:?}");
        }
    }
}
