//! The joint to whoever holds a KEK, and the providers behind it.

pub mod local;

use async_trait::async_trait;

use crate::{exec::Deadline, secret::InnerKey};

/// An inner key as a KMS wrapped it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapped {
    /// The KEK, as the KMS names it: what unwrap must name.
    pub kek_id: String,
    /// The wrapped bytes.
    pub bytes: Vec<u8>,
}

/// Why a KMS did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum KmsFailure {
    /// It has no such KEK.
    #[error("KEK {kek_id} is not there; {hint}")]
    NoSuchKek {
        /// The KEK.
        kek_id: String,
        /// What to look at next.
        hint: &'static str,
    },
    /// The wrapped bytes, their context and the KEK do not belong together.
    #[error("the wrapped key does not open: it was changed, or belongs to another volume or KEK")]
    Mismatch,
}

/// Holds a KEK, and wraps and unwraps inner keys under it.
#[async_trait]
pub trait Kms: Send + Sync {
    /// Names the KEK that wraps now.
    ///
    /// # Errors
    /// The KMS cannot be asked, or the KEK cannot be used.
    async fn describe(&self, deadline: Deadline) -> Result<String, KmsFailure>;

    /// Wraps an inner key; `aad` must be given again to unwrap it.
    ///
    /// # Errors
    /// The KMS cannot be asked, or refuses.
    async fn wrap(&self, key: &InnerKey, aad: &[u8], deadline: Deadline) -> Result<Wrapped, KmsFailure>;

    /// Unwraps an inner key.
    ///
    /// # Errors
    /// The KMS cannot be asked, refuses, or finds that the parts do not belong together.
    async fn unwrap(&self, wrapped: &Wrapped, aad: &[u8], deadline: Deadline) -> Result<InnerKey, KmsFailure>;
}
