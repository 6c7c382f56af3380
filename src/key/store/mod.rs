//! The joint to where records lie, and the stores behind it.
//!
//! A store never overwrites: a record is created where none is, or replaced where the one that was read still lies.

pub mod filesystem;
pub mod memory;

use std::{io, path::PathBuf};

use async_trait::async_trait;
use sha2::{Digest, Sha256};

use crate::{
    exec::Deadline,
    key::record::{Record, RecordFault},
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

    /// At most `limit` records after a volume id, in the order of the volume ids.
    ///
    /// # Errors
    /// The store does not answer. What is no record is left out, and told in the log.
    async fn list(
        &self,
        after: Option<&VolumeId>,
        limit: usize,
        deadline: Deadline,
    ) -> Result<Vec<Record>, StoreFailure>;
}
