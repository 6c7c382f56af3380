//! What an inventory can find, each with what is to be done about it.

use serde::Serialize;

/// What does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// A PersistentVolume whose key nobody has: its data cannot be read.
    VolumeWithoutRecord,
    /// A key whose volume is nowhere.
    RecordWithoutVolume,
    /// Something that lies among the records and is none.
    RecordUnreadable,
    /// A PersistentVolume of a pool that no node looks after.
    VolumeWithoutLocalVolume,
    /// A LocalVolume that nobody can claim or delete.
    LocalVolumeWithoutVolume,
    /// A LocalVolume whose node has no file for it.
    LocalVolumeFailed,
    /// A file of a pool whose key nobody has.
    FileWithoutRecord,
    /// A file of a pool with another header than the record knows.
    OtherHeader,
    /// A key that no provider of the configuration opens.
    ProviderMissing,
    /// A key that a policy wants from another provider.
    ProviderNotPolicys,
    /// A key under another KEK than its provider wraps with now.
    OldKey,
    /// A key of another provider than a new one of the same claim would get, unless its class asked for that.
    ProviderNotDefault,
}

impl Kind {
    /// Every one, in the order in which they are told.
    pub(super) const ALL: [Self; 12] = [
        Self::VolumeWithoutRecord,
        Self::RecordWithoutVolume,
        Self::RecordUnreadable,
        Self::VolumeWithoutLocalVolume,
        Self::LocalVolumeWithoutVolume,
        Self::LocalVolumeFailed,
        Self::FileWithoutRecord,
        Self::OtherHeader,
        Self::ProviderMissing,
        Self::ProviderNotPolicys,
        Self::OldKey,
        Self::ProviderNotDefault,
    ];

    /// Whether it may well be as somebody wants it: then it is told, and no fault.
    pub(super) fn is_note(self) -> bool {
        self == Self::ProviderNotDefault
    }

    pub(super) fn told(self) -> &'static str {
        match self {
            Self::VolumeWithoutRecord => "volume without record",
            Self::RecordWithoutVolume => "record without volume",
            Self::RecordUnreadable => "record unreadable",
            Self::VolumeWithoutLocalVolume => "volume without LocalVolume",
            Self::LocalVolumeWithoutVolume => "LocalVolume without volume",
            Self::LocalVolumeFailed => "LocalVolume failed",
            Self::FileWithoutRecord => "file without record",
            Self::OtherHeader => "header not the record's",
            Self::ProviderMissing => "provider missing",
            Self::ProviderNotPolicys => "provider not the policy's",
            Self::OldKey => "old key",
            Self::ProviderNotDefault => "provider not the default",
        }
    }
}

/// One of them, at one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Finding {
    pub(super) kind: Kind,
    /// None where it is not known which volume it is.
    pub(super) volume_id: Option<String>,
    pub(super) what: String,
    pub(super) next: String,
}

impl Finding {
    pub(super) fn of(kind: Kind, volume_id: &str, what: String, next: impl Into<String>) -> Self {
        Self { kind, volume_id: Some(volume_id.to_owned()), what, next: next.into() }
    }
}

/// What was not looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Unseen {
    pub(super) what: String,
    pub(super) why: String,
    /// It was to be looked at, and could not be: nobody can say that all is well.
    pub(super) is_failure: bool,
}

/// All that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) findings: Vec<Finding>,
    pub(super) unseen: Vec<Unseen>,
    /// What is no finding, and somebody should know.
    pub(super) remarks: Vec<String>,
}
