//! The joint between those who need a key and those who have one: what a key service does, and how it refuses.

use std::collections::BTreeMap;

use async_trait::async_trait;
use uuid::Uuid;

use crate::{
    exec::Deadline,
    key::{
        derive::Tag,
        record::{Record, RecordFault, State, StoredKey},
    },
    secret::Dek,
    volume::{Parameters, VolumeId},
};

/// What a record says beside the key: what a node or a controller may know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// The volume.
    pub volume_id: VolumeId,
    /// The name that CreateVolume was given.
    pub name: String,
    /// The node that alone may have the key; none where any node may.
    pub node: Option<String>,
    /// Counts the keys that the volume id has had, from 1.
    pub generation: u32,
    /// How far the volume has come.
    pub state: State,
    /// The UUID of the LUKS header.
    pub luks_uuid: Uuid,
    /// Layout and encryption.
    pub parameters: Parameters,
    /// Counts the times that formatting was begun.
    pub format_attempt: u32,
    /// The tag of the finished header; present in state ready.
    pub header_tag: Option<Tag>,
    /// The provider that holds the KEK.
    pub provider: String,
    /// The KEK, as the provider names it; empty in a tombstone.
    pub kek_id: String,
}

impl From<&Record> for KeyInfo {
    fn from(record: &Record) -> Self {
        Self {
            volume_id: record.volume_id.clone(),
            name: record.name.clone(),
            node: record.node.clone(),
            generation: record.generation,
            state: record.state,
            luks_uuid: record.luks_uuid,
            parameters: record.parameters.clone(),
            format_attempt: record.format_attempt,
            header_tag: record.header_tag(),
            provider: record.provider.clone(),
            kek_id: match &record.key {
                None => String::new(),
                Some(StoredKey::Derived { cluster_key_version, .. }) => format!("cluster-key:v{cluster_key_version}"),
                Some(StoredKey::Wrapped { kek_id, .. }) => kek_id.clone(),
            },
        }
    }
}

/// A volume that is to get a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// The volume.
    pub volume_id: VolumeId,
    /// The name that CreateVolume was given.
    pub name: String,
    /// Layout and encryption.
    pub parameters: Parameters,
    /// The node that alone may have the key; none where any node may.
    pub node: Option<String>,
    /// The namespace of the claim, where one is known.
    pub tenant: Option<String>,
    /// The StorageClass, where one is known.
    pub storage_class: Option<String>,
    /// The name of the claim, where one is known.
    pub claim: Option<String>,
    /// A provider of the configuration; none for its default.
    pub provider: Option<String>,
    /// A KEK of that provider; none for its configured one.
    pub key_id: Option<String>,
    /// More binding data, not secret.
    pub context: BTreeMap<String, String>,
}

/// A released key with what is needed to open the volume.
#[derive(Debug)]
pub struct VolumeKey {
    /// What the record says.
    pub info: KeyInfo,
    /// The key: 32 bytes.
    pub dek: Dek,
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Records in the store's order, without tombstones.
    pub infos: Vec<KeyInfo>,
    /// The volume id after which the next page begins; none on the last page.
    pub next: Option<VolumeId>,
}

/// What a caller can do about a failure. The edges turn it into their protocol's codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such volume.
    Missing,
    /// The volume exists and is another.
    Exists,
    /// The volume is in a state in which this cannot be done, or the configuration does not let it be; a retry does not
    /// help before somebody has changed that.
    State,
    /// Somebody else is at work on it; a retry helps.
    Busy,
    /// The caller may not.
    Denied,
    /// The request makes no sense.
    Invalid,
    /// A KMS, a store or the key service does not answer; a retry helps.
    Unavailable,
    /// The caller's deadline passed.
    Deadline,
    /// Something is broken that should not be.
    Fault,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFailure {
    /// No record.
    #[error("volume {0} has no key record")]
    Missing(VolumeId),
    /// A tombstone.
    #[error("the key of volume {0} was destroyed; its data cannot be read again")]
    Destroyed(VolumeId),
    /// CreateKey for a volume id that has a record which differs.
    #[error("volume {volume_id} exists with another {what}")]
    Differs {
        /// The volume.
        volume_id: VolumeId,
        /// What differs.
        what: &'static str,
    },
    /// A step that the state does not allow.
    #[error("volume {volume_id} is {state}; {step} is not possible")]
    State {
        /// The volume.
        volume_id: VolumeId,
        /// Its state.
        state: State,
        /// The step.
        step: &'static str,
    },
    /// A step of a generation or an attempt that is no longer the latest.
    #[error("volume {0} was taken over by a later attempt")]
    Superseded(VolumeId),
    /// Others changed the record again and again.
    #[error("the record of volume {0} is being changed by others")]
    Contended(VolumeId),
    /// The caller may not have this.
    #[error("{who} may not have {what}")]
    Denied {
        /// The caller.
        who: String,
        /// The thing.
        what: String,
    },
    /// Whoever knows which node holds the volume does not answer.
    #[error("nobody can say now which node holds volume {volume_id}")]
    Holder {
        /// The volume.
        volume_id: VolumeId,
        /// The finding.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The request names what is not configured, or what makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The request makes sense, and how the key service is configured does not let it be: a policy forbids it, or goes by
    /// what is not known of the claim.
    #[error("{0}")]
    Forbidden(String),
    /// The record is not to be trusted.
    #[error("the record of volume {volume_id} is refused; restore it from a backup")]
    Record {
        /// The volume.
        volume_id: VolumeId,
        /// The finding.
        #[source]
        source: RecordFault,
    },
    /// The record's provider is not among those that are configured.
    #[error(
        "the key of volume {volume_id} is of provider {provider}, which is not configured (there are: {known}); configure \
         it again as it was; to do without it for good, move its records while it is there: coffer rewrap --from \
         {provider} --to OTHER"
    )]
    NoProvider {
        /// The volume.
        volume_id: VolumeId,
        /// The provider.
        provider: String,
        /// Those that are configured.
        known: String,
    },
    /// The KEK does not open the record.
    #[error("the key in the record of volume {volume_id} does not open with provider {provider}")]
    Unwrap {
        /// The volume.
        volume_id: VolumeId,
        /// The provider.
        provider: String,
        /// The finding.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A mandatory policy wants the key from another provider.
    #[error(
        "the key of volume {volume_id} is provider {provider}'s, and a mandatory policy wants {wanted}'s; move it: \
         coffer rewrap --volume {volume_id} --to {wanted}"
    )]
    OtherProvider {
        /// The volume.
        volume_id: VolumeId,
        /// Whose it is.
        provider: String,
        /// Whose it should be.
        wanted: String,
    },
    /// A KMS that does not answer, or refuses.
    #[error("provider {provider} gives no key")]
    Kms {
        /// The provider.
        provider: String,
        /// What can be done about it.
        refusal: Refusal,
        /// The finding.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A store that does not answer.
    #[error("the store of key records failed")]
    Store {
        /// What can be done about it.
        refusal: Refusal,
        /// The finding.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What was done could not be written down, so it was not answered.
    #[error("write the audit log")]
    Audit(#[source] std::io::Error),
    /// The deadline passed.
    #[error("the key service did not answer before the deadline")]
    Deadline,
    /// The work broke off.
    #[error("the work on this request broke off")]
    Broken,
    /// A key service at the other end of a wire refused, or could not be reached.
    #[error("key service: {message}")]
    Remote {
        /// What can be done about it.
        refusal: Refusal,
        /// What it said.
        message: String,
    },
}

impl KeyFailure {
    /// What the caller can do about it.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Missing(_) => Refusal::Missing,
            Self::Differs { .. } => Refusal::Exists,
            Self::Destroyed(_)
            | Self::State { .. }
            | Self::Forbidden(_)
            | Self::Record { .. }
            | Self::NoProvider { .. }
            | Self::Unwrap { .. }
            | Self::OtherProvider { .. } => Refusal::State,
            Self::Superseded(_) | Self::Contended(_) => Refusal::Busy,
            Self::Denied { .. } => Refusal::Denied,
            Self::Invalid(_) => Refusal::Invalid,
            Self::Kms { refusal, .. } | Self::Store { refusal, .. } => *refusal,
            Self::Audit(_) | Self::Holder { .. } => Refusal::Unavailable,
            Self::Deadline => Refusal::Deadline,
            Self::Broken => Refusal::Fault,
            Self::Remote { refusal, .. } => *refusal,
        }
    }
}

/// Gives DEKs and keeps their records: in this process, or at the other end of a wire.
#[async_trait]
pub trait KeyService: Send + Sync {
    /// Makes the record of a new volume, in state prepared, with a new key. The same request again finds the same record.
    ///
    /// # Errors
    /// The volume id has a record that differs, the provider is not configured, a policy forbids it, or KMS or store fail.
    async fn create(&self, new: NewKey, deadline: Deadline) -> Result<KeyInfo, KeyFailure>;

    /// Releases a volume's DEK. It never creates anything.
    ///
    /// # Errors
    /// No record, a tombstone, a caller who may not, a record that is not to be trusted, or KMS or store fail.
    async fn get(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<VolumeKey, KeyFailure>;

    /// What a volume's record says, without its key and without asking a KMS; so its MAC is not checked. None where
    /// there is no record, or a tombstone.
    ///
    /// # Errors
    /// The store fails or holds no whole record, or the caller may not.
    async fn describe(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<Option<KeyInfo>, KeyFailure>;

    /// Moves a record from prepared, or from a formatting that was broken off, to formatting under a new attempt.
    ///
    /// # Errors
    /// As [`KeyService::get`]; and the record is ready, or of a later generation.
    async fn begin_format(
        &self,
        volume_id: &VolumeId,
        generation: u32,
        deadline: Deadline,
    ) -> Result<KeyInfo, KeyFailure>;

    /// Moves a record from formatting to ready. Only the latest attempt may; the same call again is a success.
    ///
    /// # Errors
    /// As [`KeyService::get`]; and another attempt has begun, or the record is ready with another header.
    async fn mark_ready(
        &self,
        volume_id: &VolumeId,
        attempt: Attempt,
        header: Tag,
        deadline: Deadline,
    ) -> Result<KeyInfo, KeyFailure>;

    /// Destroys one generation of a volume's key and leaves a tombstone. No record, a tombstone, or a later generation,
    /// which there is only behind a tombstone, is a success.
    ///
    /// # Errors
    /// The store fails, or the caller may not.
    async fn destroy(&self, volume_id: &VolumeId, generation: u32, deadline: Deadline) -> Result<(), KeyFailure>;

    /// Lists at most `limit` records after the one of a volume id, in an order that is the store's own.
    ///
    /// # Errors
    /// The store fails, a record cannot be read, or the caller may not.
    async fn list(&self, after: Option<&VolumeId>, limit: usize, deadline: Deadline) -> Result<Page, KeyFailure>;
}

/// Which try at formatting a volume speaks: a later one fences off an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The generation of the key.
    pub generation: u32,
    /// The record's count of attempts when this one began.
    pub number: u32,
}
