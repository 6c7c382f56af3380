//! Why a node did not do as it was asked: the failed step, the volume, and what to do next.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    exec::ExecFailure,
    key::service::{KeyFailure, KeyInfo},
    node::{
        header::HeaderFault,
        luks::LuksFailure,
        source::{SourceFailure, local::PoolFailure},
    },
    volume::{Content, VolumeId},
};

/// A failed step on a node.
#[derive(Debug, thiserror::Error)]
pub enum NodeFailure {
    /// The key service refused or failed.
    #[error("ask for the key of volume {volume_id}")]
    Key {
        /// The volume.
        volume_id: VolumeId,
        /// Why.
        #[source]
        source: KeyFailure,
    },
    /// There is no device.
    #[error("attach volume {volume_id}")]
    Source {
        /// The volume.
        volume_id: VolumeId,
        /// Why.
        #[source]
        source: SourceFailure,
    },
    /// The pool has no file for an ephemeral volume, or keeps one.
    #[error("{step} the file of volume {volume_id}")]
    Pool {
        /// What was tried.
        step: &'static str,
        /// The volume.
        volume_id: VolumeId,
        /// Why.
        #[source]
        source: PoolFailure,
    },
    /// The device does not hold what the record says. Nothing on it was changed.
    #[error(
        "volume {volume_id} is refused, and nothing on its device {} was changed: its record says it is finished, \
         with LUKS UUID {luks_uuid}, but {source}. Attach the right device or put its bytes back, then try again",
        device.display()
    )]
    Header {
        /// The volume.
        volume_id: VolumeId,
        /// The device.
        device: PathBuf,
        /// The UUID that was looked for.
        luks_uuid: uuid::Uuid,
        /// What was found.
        source: HeaderFault,
    },
    /// A device for a new volume is not blank. Nothing on it was changed.
    #[error(
        "volume {volume_id} is refused, and nothing on its device {} was changed: it is a new volume, but the device \
         holds {found}. If that is not needed, wipe the device; else attach the right one",
        device.display()
    )]
    NotBlank {
        /// The volume.
        volume_id: VolumeId,
        /// The device.
        device: PathBuf,
        /// What was found.
        found: String,
    },
    /// cryptsetup made another header than Coffer knows. Nothing of it was written.
    #[error("the LUKS2 header that cryptsetup made for volume {volume_id} is not used; is it version 2.4 or later?")]
    NewHeader {
        /// The volume.
        volume_id: VolumeId,
        /// What is other.
        source: HeaderFault,
    },
    /// A new volume's device does not read as it was written.
    #[error(
        "volume {volume_id} is not finished: its device {} does not hold {what} any more. The disk loses what is \
         written to it, or somebody else writes to it: look at the kernel log, then try again",
        device.display()
    )]
    NotKept {
        /// The volume.
        volume_id: VolumeId,
        /// The device.
        device: PathBuf,
        /// What was written and is not there.
        what: &'static str,
    },
    /// The device ends before the volume does. Nothing on it was changed.
    #[error(
        "volume {volume_id} is refused, and nothing on its device {} was changed: the device has {bytes} bytes and \
         the volume needs at least {needed}. Attach the right device",
        device.display()
    )]
    TooSmall {
        /// The volume.
        volume_id: VolumeId,
        /// The device.
        device: PathBuf,
        /// Its size.
        bytes: u64,
        /// The least size.
        needed: u64,
    },
    /// Integrity is asked for and cannot be had.
    #[error(
        "volume {0} asks for integrity hmac-sha256, which this version cannot give: a new volume would have to be \
         written full before its first use. Create the volume without the integrity parameter"
    )]
    NoIntegrity(VolumeId),
    /// The volume holds something else than is asked for.
    #[error("volume {volume_id} holds {content} and {asked} is asked for")]
    OtherContent {
        /// The volume.
        volume_id: VolumeId,
        /// What its record says.
        content: Content,
        /// What is asked for.
        asked: String,
    },
    /// LUKS failed.
    #[error("{step} volume {volume_id}")]
    Luks {
        /// What was tried.
        step: &'static str,
        /// The volume.
        volume_id: VolumeId,
        /// Why.
        #[source]
        source: LuksFailure,
    },
    /// A tool of a file system failed.
    #[error("{step} of volume {volume_id}")]
    Filesystem {
        /// What was tried.
        step: &'static str,
        /// The volume.
        volume_id: VolumeId,
        /// Why.
        #[source]
        source: ExecFailure,
    },
    /// A mount failed.
    #[error("mount volume {volume_id} on {} (the kernel log may say more)", target.display())]
    Mount {
        /// The volume.
        volume_id: VolumeId,
        /// Where.
        target: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A system call failed.
    #[error("{step} {}", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A path of the request cannot be used.
    #[error("{} {fault}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// Something else is at the place of the request.
    #[error("{} is in use: {what}", path.display())]
    Occupied {
        /// The path.
        path: PathBuf,
        /// By what.
        what: &'static str,
    },
    /// The volume is staged or published there in another way.
    #[error("volume {volume_id} is mounted on {} already, {how}", path.display())]
    Incompatible {
        /// The volume.
        volume_id: VolumeId,
        /// Where.
        path: PathBuf,
        /// In which way.
        how: &'static str,
    },
    /// A user still has the volume.
    #[error("volume {volume_id} is still in use {what}")]
    InUse {
        /// The volume.
        volume_id: VolumeId,
        /// Where.
        what: String,
    },
    /// Somebody is at work on the volume's device or mapping, and a retry finds it free.
    #[error("volume {volume_id} is busy: {what}; try again")]
    Busy {
        /// The volume.
        volume_id: VolumeId,
        /// In which way.
        what: String,
    },
    /// So many volumes are worked on that this one had no turn before the deadline.
    #[error("volume {0} had no turn before the deadline: the node is at work on many volumes; try again")]
    Waited(VolumeId),
    /// The volume has one writer, and it is another.
    #[error("volume {volume_id} allows one writer and is published on {}", path.display())]
    HasWriter {
        /// The volume.
        volume_id: VolumeId,
        /// Where.
        path: PathBuf,
    },
    /// The volume is not staged.
    #[error("volume {volume_id} is not staged on {}", path.display())]
    NotStaged {
        /// The volume.
        volume_id: VolumeId,
        /// Where.
        path: PathBuf,
    },
    /// The volume is not at that path.
    #[error("volume {volume_id} is not at {}", path.display())]
    NotThere {
        /// The volume.
        volume_id: VolumeId,
        /// Where.
        path: PathBuf,
    },
    /// A mapping whose device is gone, or is another, and that somebody still has open.
    #[error(
        "volume {volume_id} has an old mapping whose device is gone; it is closed when its last user ends, and the \
         volume can be staged again then"
    )]
    StaleMapping {
        /// The volume.
        volume_id: VolumeId,
    },
    /// The size asked for is more than there is.
    #[error("volume {volume_id} has {bytes} bytes and {asked} are asked for")]
    NotThatLarge {
        /// The volume.
        volume_id: VolumeId,
        /// What it has.
        bytes: u64,
        /// What is asked for.
        asked: u64,
    },
    /// The request cannot be met by any volume.
    #[error("{0}")]
    Unsupported(&'static str),
}

impl NodeFailure {
    pub(crate) fn key(volume_id: &VolumeId) -> impl Fn(KeyFailure) -> Self {
        move |source| Self::Key { volume_id: volume_id.clone(), source }
    }

    pub(crate) fn header(info: &KeyInfo, device: &Path) -> impl Fn(HeaderFault) -> Self {
        let (volume_id, device, luks_uuid) = (info.volume_id.clone(), device.to_owned(), info.luks_uuid);
        move |source| Self::Header { volume_id: volume_id.clone(), device: device.clone(), luks_uuid, source }
    }

    pub(crate) fn source(volume_id: &VolumeId) -> impl Fn(SourceFailure) -> Self {
        move |source| Self::Source { volume_id: volume_id.clone(), source }
    }

    pub(crate) fn pool(step: &'static str, volume_id: &VolumeId) -> impl Fn(PoolFailure) -> Self {
        move |source| Self::Pool { step, volume_id: volume_id.clone(), source }
    }

    pub(crate) fn luks(step: &'static str, volume_id: &VolumeId) -> impl Fn(LuksFailure) -> Self {
        move |source| Self::Luks { step, volume_id: volume_id.clone(), source }
    }

    pub(crate) fn filesystem(step: &'static str, volume_id: &VolumeId) -> impl Fn(ExecFailure) -> Self {
        move |source| Self::Filesystem { step, volume_id: volume_id.clone(), source }
    }

    pub(crate) fn io(step: &'static str, path: impl Into<PathBuf>) -> impl Fn(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { step, path: path.clone(), source }
    }
}
