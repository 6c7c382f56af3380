//! The key record: the one truth about a volume, made before the volume exists and changed only by compare-and-swap.
//!
//! ```text
//! prepared ──begin_format──▶ formatting ──mark_ready──▶ ready
//!     └───────────────────────────┴─────────destroy───────┴──▶ destroyed (a tombstone: no key)
//! ```
//! A record is JSON in one exact form: what does not read back to the same bytes was torn or edited and is refused.
//! A MAC under a key derived from the DEK covers every field, so an edit that keeps the form is refused as well.
//! How it leads to the DEK is in [`StoredKey`].

mod stored_key;

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    key::{
        binding::Binding,
        derive::{self, SALT_BYTES, Tag},
    },
    secret::Dek,
    volume::{Content, Parameters, VolumeId},
};

pub use stored_key::{Aead, AwsRole, Base64, Derivation, KekMechanism, StoredKey};

/// The version of the record's form that this program writes.
pub const FORMAT_VERSION: u32 = 1;

const MAC_LABEL: &str = "coffer/v1/record";

/// How far a volume has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The key exists; nothing was written to a device.
    Prepared,
    /// A node formats the device, or broke off while it did. No user has written to it.
    Formatting,
    /// The volume holds its user's data: it is never formatted again.
    Ready,
    /// The key is gone for good.
    Destroyed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepared => "prepared",
            Self::Formatting => "formatting",
            Self::Ready => "ready",
            Self::Destroyed => "destroyed",
        })
    }
}

/// A volume's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Record {
    /// The form of what follows.
    pub format_version: u32,
    /// The installation of Coffer that made it.
    pub cluster_id: Uuid,
    /// The volume.
    pub volume_id: VolumeId,
    /// The name that CreateVolume was given.
    pub name: String,
    /// The namespace of the claim, where one is known.
    pub tenant: Option<String>,
    /// The StorageClass, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// The name of the claim, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// The KEK that the class asked for, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// The node that alone may have the key; none where any node may.
    pub node: Option<String>,
    /// Counts the keys that the volume id has had, from 1.
    pub generation: u32,
    /// How far the volume has come.
    pub state: State,
    /// The UUID of the LUKS header, chosen by us.
    pub luks_uuid: Uuid,
    /// Layout and encryption.
    pub parameters: Parameters,
    /// Counts the times that formatting was begun: only the latest attempt may finish.
    pub format_attempt: u32,
    /// HMAC-SHA256 of the finished LUKS header: 32 bytes.
    pub header_mac: Option<Base64>,
    /// The volume or snapshot that this one was copied from.
    pub lineage: Option<String>,
    /// What the class adds to the binding. Not secret.
    pub context: BTreeMap<String, String>,
    /// When the key was made.
    pub created_at: Timestamp,
    /// The provider that holds the KEK, by its name in the configuration.
    pub provider: String,
    /// The way to the DEK; none in a tombstone.
    pub key: Option<StoredKey>,
    /// HMAC-SHA256 over all of the above: 32 bytes; none in a tombstone, which has no key to make one with.
    pub mac: Option<Base64>,
}

/// Why bytes are no record, or a record is not to be trusted.
#[derive(Debug, thiserror::Error)]
pub enum RecordFault {
    /// Not JSON, or not of a record's shape: torn, foreign or edited.
    #[error("it is no whole record (torn, foreign or edited)")]
    Unreadable(#[source] serde_json::Error),
    /// It reads as a record, but is not in the one form that is written.
    #[error("it was edited: it is not in the form that records are written in")]
    Edited,
    /// Its form is not ours.
    #[error("it has format version {0}; this program knows {FORMAT_VERSION}")]
    Version(u32),
    /// It lies under another volume's name.
    #[error("it is the record of volume {0}")]
    OtherVolume(VolumeId),
    /// It belongs to another installation.
    #[error("it belongs to cluster {0}")]
    OtherCluster(Uuid),
    /// The MAC does not match: a field was changed, or the key is not the one it was made with.
    #[error("its fields do not match its MAC: the record was changed, or the KEK is not the one it was made under")]
    Mac,
    /// A state without what belongs to it.
    #[error("state {0} does not fit its fields")]
    State(State),
}

impl Record {
    /// Reads a record from what a store holds.
    ///
    /// # Errors
    /// The bytes are not exactly what [`Record::to_bytes`] writes for a record of this format version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordFault> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            format_version: u32,
        }
        let Version { format_version } = serde_json::from_slice(bytes).map_err(RecordFault::Unreadable)?;
        if format_version != FORMAT_VERSION {
            return Err(RecordFault::Version(format_version));
        }
        let record: Self = serde_json::from_slice(bytes).map_err(RecordFault::Unreadable)?;
        if record.to_bytes() != bytes {
            return Err(RecordFault::Edited);
        }
        let whole = match record.state {
            State::Prepared | State::Formatting => record.key.is_some() && record.header_mac.is_none(),
            State::Ready => record.key.is_some() && record.header_tag().is_some(),
            State::Destroyed => record.key.is_none() && record.mac.is_none(),
        };
        if whole { Ok(record) } else { Err(RecordFault::State(record.state)) }
    }

    /// The record as it is stored: indented JSON and a line break.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("a record has string keys only");
        bytes.push(b'\n');
        bytes
    }

    /// What the DEK is bound to.
    #[must_use]
    pub fn binding(&self) -> Binding<'_> {
        Binding {
            cluster_id: self.cluster_id,
            volume_id: &self.volume_id,
            generation: self.generation,
            luks_uuid: self.luks_uuid,
            context: &self.context,
        }
    }

    /// The tag of the finished header, where there is one.
    #[must_use]
    pub fn header_tag(&self) -> Option<Tag> {
        self.header_mac.as_ref()?.exactly().map(Tag::from_bytes)
    }

    /// Writes the MAC over the fields as they are now.
    pub fn authenticate(&mut self, dek: &Dek) {
        self.mac = Some(Base64::new(*self.tag(dek).as_bytes()));
    }

    /// Checks the MAC over the fields.
    ///
    /// # Errors
    /// [`RecordFault::Mac`], also where there is no MAC.
    pub fn verify(&self, dek: &Dek) -> Result<(), RecordFault> {
        let written = self.mac.as_ref().and_then(Base64::exactly).map(Tag::from_bytes);
        if written == Some(self.tag(dek)) { Ok(()) } else { Err(RecordFault::Mac) }
    }

    /// The same volume without its key: what is left when the key is destroyed.
    #[must_use]
    pub fn tombstone(&self) -> Self {
        Self { state: State::Destroyed, header_mac: None, key: None, mac: None, ..self.clone() }
    }

    fn tag(&self, dek: &Dek) -> Tag {
        let parameters = &self.parameters;
        let (content, fs_type) = match parameters.content {
            Content::Filesystem(fs_type) => ("filesystem", fs_type.as_str()),
            Content::Block => ("block", ""),
        };
        let mut fields = self
            .binding()
            .fields(MAC_LABEL)
            .field(self.format_version.to_be_bytes())
            .field(&self.name)
            .optional(self.tenant.as_ref())
            .optional(self.node.as_ref())
            .field(self.state.to_string())
            .field(content)
            .field(fs_type)
            .field(parameters.cipher.as_str())
            .field(parameters.sector_size.bytes().to_be_bytes())
            .field(parameters.integrity.as_str())
            .field(parameters.discard.as_str())
            .list(parameters.mkfs_options.words())
            .field(self.format_attempt.to_be_bytes())
            .optional(self.header_mac.as_ref().map(Base64::as_bytes))
            .optional(self.lineage.as_ref())
            .field(self.created_at.to_string())
            .field(&self.provider);
        fields = match &self.key {
            None => fields.field("none"),
            Some(key) => key.bind(fields),
        };
        // What not every record has comes last, each behind its name, so that its absence is seen as well.
        let mechanism = self.key.as_ref().and_then(StoredKey::kek_mechanism).filter(|used| !used.is_symmetric());
        let role = self.key.as_ref().and_then(StoredKey::role);
        let optional = [
            ("kekMechanism", mechanism.map(KekMechanism::as_str)),
            ("storageClass", self.storage_class.as_deref()),
            ("claim", self.claim.as_deref()),
            ("keyId", self.key_id.as_deref()),
            ("role", role.map(|role| role.arn.as_str())),
            ("roleSessionName", role.map(|role| role.session_name.as_str())),
            ("roleExternalId", role.and_then(|role| role.external_id.as_deref())),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                fields = fields.field(name).field(value);
            }
        }
        derive::mac(&derive::record_mac_key(dek), &fields.bytes())
    }
}

/// A salt as a record holds it.
#[must_use]
pub fn random_salt() -> [u8; SALT_BYTES] {
    let mut salt = [0; SALT_BYTES];
    getrandom::fill(&mut salt).expect("getrandom(2) gives 32 bytes once the kernel is up");
    salt
}
