//! The joint to where records lie, and the stores behind it.
//!
//! A store never overwrites: a record is created where none is, or replaced where the one that was read still lies.

pub mod census;
pub mod filesystem;
pub mod measured;
pub mod memory;
pub mod object;
pub mod settings;

#[cfg(feature = "azure-blob")]
pub mod azure_blob;
#[cfg(feature = "gcs")]
pub mod gcs;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
#[cfg(feature = "s3")]
pub mod s3;

use std::{error::Error, io, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use sha2::{Digest, Sha256};

use crate::{
    exec::Deadline,
    key::{
        access::SettingsFault,
        calls::{Retry, Transient},
        record::{Record, RecordFault},
        service::Refusal,
    },
    volume::VolumeId,
};

/// What a stored record looked like when it was read: SHA-256 of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version([u8; 32]);

impl Version {
    /// The version of a record's bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

/// A record with what is needed to replace it.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The record.
    pub record: Record,
    /// What it looked like.
    pub version: Version,
}

/// What a page of a list has found.
#[derive(Debug, Default)]
pub struct Listed {
    /// The records, at most as many as were asked for.
    pub records: Vec<Record>,
    /// What lies among them under a record's name and is none. It takes no place in the page.
    pub refused: Vec<Refused>,
}

impl From<Vec<Record>> for Listed {
    fn from(records: Vec<Record>) -> Self {
        Self { records, refused: Vec::new() }
    }
}

/// What lies where a record should, and is not to be trusted: torn, edited, foreign, or another volume's.
#[derive(Debug, thiserror::Error)]
#[error("{place} is refused; restore it from a backup")]
pub struct Refused {
    /// Where it lies: for people.
    pub place: String,
    /// The finding.
    #[source]
    pub source: RecordFault,
}

/// Why a store did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreFailure {
    /// Create where a record is.
    #[error("volume {0} has a record already")]
    Exists(VolumeId),
    /// Replace of a record that is gone or that somebody else has replaced.
    #[error("the record of volume {0} was changed meanwhile")]
    Stale(VolumeId),
    /// What lies there is no record to be trusted.
    #[error("{place} is refused; restore it from a backup")]
    Fault {
        /// The volume whose record was asked for, where one was.
        volume_id: Option<VolumeId>,
        /// Where it lies.
        place: String,
        /// The finding.
        #[source]
        source: RecordFault,
    },
    /// A file or folder cannot be used.
    #[error("{step} {path}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The bucket or container is not there.
    #[error("{place} is not there; make it, or set createIfMissing: true")]
    NoBucket {
        /// Bucket or container, and where it was looked for.
        place: String,
    },
    /// Whoever Coffer is to the store may not do this.
    #[error("{action} in {place} is denied ({detail})")]
    Denied {
        /// The permission that is missing, as the service calls it.
        action: &'static str,
        /// Bucket or container.
        place: String,
        /// What the service said.
        detail: String,
    },
    /// The service does not take the credentials, or there are none.
    #[error("{place} does not take the credentials")]
    Unauthenticated {
        /// Bucket or container, and who was asked.
        place: String,
        /// What was said.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// It does not honour the conditions that keep one writer from overwriting another's record.
    #[error("{place} {what}; Coffer needs a store that honours preconditions, and uses no other")]
    NoPreconditions {
        /// Bucket or container.
        place: String,
        /// What it did.
        what: &'static str,
    },
    /// Another refusal that a retry does not change.
    #[error("{action} in {place} is refused: {detail}")]
    Refused {
        /// What was asked for.
        action: &'static str,
        /// Bucket or container.
        place: String,
        /// What the service said.
        detail: String,
    },
    /// Too many requests.
    #[error("{place} is asked too often")]
    Throttled {
        /// Bucket or container.
        place: String,
        /// How long it asked to wait.
        retry_after: Option<Duration>,
    },
    /// It does not answer, or answers that it cannot.
    #[error("{place} does not answer")]
    Unreachable {
        /// Bucket or container, and who was asked.
        place: String,
        /// What happened.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The caller's time was over before there was an answer.
    #[error("{place} did not answer before the deadline")]
    Deadline {
        /// Bucket or container, and who was asked.
        place: String,
    },
}

impl StoreFailure {
    /// [`StoreFailure::Unreachable`] with its cause.
    #[must_use]
    pub fn unreachable(place: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unreachable { place: place.into(), source: Arc::from(source.into()) }
    }

    /// [`StoreFailure::Unauthenticated`] with its cause.
    #[must_use]
    pub fn unauthenticated(place: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unauthenticated { place: place.into(), source: Arc::from(source.into()) }
    }
}

impl StoreFailure {
    /// One word for it, as metrics have it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Exists(_) => "exists",
            Self::Stale(_) => "stale",
            Self::Fault { .. } => "fault",
            Self::Io { .. } => "io",
            Self::NoBucket { .. } => "no-bucket",
            Self::Denied { .. } => "denied",
            Self::Unauthenticated { .. } => "unauthenticated",
            Self::NoPreconditions { .. } => "no-preconditions",
            Self::Refused { .. } => "refused",
            Self::Throttled { .. } => "throttled",
            Self::Unreachable { .. } => "unreachable",
            Self::Deadline { .. } => "deadline",
        }
    }

    /// What the caller of the key service can do about it.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Exists(_) | Self::Stale(_) => Refusal::Busy,
            Self::Fault { .. } | Self::NoBucket { .. } | Self::NoPreconditions { .. } | Self::Refused { .. } => {
                Refusal::State
            }
            Self::Denied { .. } => Refusal::Denied,
            Self::Io { .. } | Self::Unauthenticated { .. } | Self::Throttled { .. } | Self::Unreachable { .. } => {
                Refusal::Unavailable
            }
            Self::Deadline { .. } => Refusal::Deadline,
        }
    }
}

impl Transient for StoreFailure {
    fn retry(&self) -> Retry {
        match self {
            Self::Throttled { retry_after: Some(time), .. } => Retry::After(*time),
            Self::Throttled { retry_after: None, .. } | Self::Unreachable { .. } => Retry::Soon,
            Self::Exists(_)
            | Self::Stale(_)
            | Self::Fault { .. }
            | Self::Io { .. }
            | Self::NoBucket { .. }
            | Self::Denied { .. }
            | Self::Unauthenticated { .. }
            | Self::NoPreconditions { .. }
            | Self::Refused { .. }
            | Self::Deadline { .. } => Retry::Never,
        }
    }

    fn is_answer(&self) -> bool {
        !matches!(self, Self::Unreachable { .. } | Self::Deadline { .. })
    }

    fn no_answer(place: &str, why: String) -> Self {
        Self::unreachable(place, why)
    }

    fn deadline(place: &str) -> Self {
        Self::Deadline { place: place.to_owned() }
    }
}

/// Everything a store of one of the types is configured with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settings {
    /// `filesystem`: the folder.
    Filesystem(PathBuf),
    /// `s3`
    S3(settings::S3),
    /// `gcs`
    Gcs(settings::Gcs),
    /// `azure-blob`
    AzureBlob(settings::AzureBlob),
    /// `kubernetes`: custom resources at the API server of the cluster that the program runs in, or of a kubeconfig.
    Kubernetes,
}

/// Builds the bucket of a store of objects. Nothing is asked of any network yet.
///
/// # Errors
/// A file cannot be read or does not hold what it should, or this build lacks the type.
pub async fn open_bucket(settings: Settings) -> Result<Arc<dyn object::Bucket>, SettingsFault> {
    match settings {
        #[cfg(feature = "s3")]
        Settings::S3(settings) => Ok(Arc::new(s3::S3::open(settings).await?)),
        #[cfg(feature = "gcs")]
        Settings::Gcs(settings) => Ok(Arc::new(gcs::Gcs::open(settings).await?)),
        #[cfg(feature = "azure-blob")]
        Settings::AzureBlob(settings) => Ok(Arc::new(azure_blob::AzureBlob::open(settings)?)),
        _ => Err(SettingsFault("this build has no store of this type".to_owned())),
    }
}

/// Keeps one record a volume.
#[async_trait]
pub trait DekStore: Send + Sync {
    /// Reads a volume's record. It never makes one.
    ///
    /// # Errors
    /// The store does not answer, or what it holds is not a whole record of this volume.
    async fn get(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<Option<Stored>, StoreFailure>;

    /// Stores a record where none is. When it returns, the record survives a power cut.
    ///
    /// # Errors
    /// [`StoreFailure::Exists`] where the volume has a record; else the store does not answer.
    async fn create(&self, record: &Record, deadline: Deadline) -> Result<(), StoreFailure>;

    /// Replaces the record that was read as `version`. When it returns, the record survives a power cut.
    ///
    /// # Errors
    /// [`StoreFailure::Stale`] where it is not that record any more; else the store does not answer.
    async fn replace(&self, record: &Record, version: Version, deadline: Deadline) -> Result<(), StoreFailure>;

    /// At most `limit` records after the one of a volume id, in an order that is the store's own and does not change;
    /// fewer only where there are no more. What is no record is told beside them, once in all pages: a bad object hides
    /// no good one. What is not named as a record is none of ours, and passed over.
    ///
    /// # Errors
    /// The store does not answer.
    async fn list(&self, after: Option<&VolumeId>, limit: usize, deadline: Deadline) -> Result<Listed, StoreFailure>;
}
