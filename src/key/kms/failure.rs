//! Why a KMS did not do as it was asked: what failed, on what, and what to look at next.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use crate::key::{
    calls::{Retry, Transient},
    service::Refusal,
};

/// What keeps a KEK from being used, although it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KekState {
    /// Somebody switched it off.
    Disabled,
    /// It will be deleted, or its deletion was begun.
    PendingDeletion,
    /// Its bytes are gone, or were never brought.
    NoMaterial,
    /// It is not yet, or no longer, within its time.
    OutOfTime,
}

impl fmt::Display for KekState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disabled => "disabled",
            Self::PendingDeletion => "to be deleted",
            Self::NoMaterial => "without key material",
            Self::OutOfTime => "outside of its validity time",
        })
    }
}

/// Why a KMS did not do as it was asked. `hint` says what to look at next.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KmsFailure {
    /// It has no such KEK.
    #[error("KEK {kek_id} is not there; {hint}")]
    NoSuchKek {
        /// The KEK.
        kek_id: String,
        /// What to look at next.
        hint: String,
    },
    /// The KEK is there and cannot be used now.
    #[error("KEK {kek_id} is {state}; {hint}")]
    Unusable {
        /// The KEK.
        kek_id: String,
        /// What keeps it from being used.
        state: KekState,
        /// What to look at next.
        hint: String,
    },
    /// The KEK is made for something else.
    #[error("KEK {kek_id} is of the wrong type: {what}; {hint}")]
    WrongType {
        /// The KEK.
        kek_id: String,
        /// What it is.
        what: String,
        /// What to look at next.
        hint: String,
    },
    /// The KEK lies in a region that the provider is not configured for.
    #[error("KEK {kek_id} is not in {region}, where it was looked for; {hint}")]
    OtherRegion {
        /// The KEK.
        kek_id: String,
        /// The region that was asked, or those that are configured.
        region: String,
        /// What to look at next.
        hint: String,
    },
    /// Whoever Coffer is to the KMS may not do this.
    #[error("{action} with KEK {kek_id} is denied ({detail}); {hint}")]
    Denied {
        /// The permission that is missing, as the KMS calls it.
        action: &'static str,
        /// The KEK.
        kek_id: String,
        /// What the KMS said, which often names who was refused.
        detail: String,
        /// What to look at next.
        hint: String,
    },
    /// There are no credentials, or the KMS does not take them.
    #[error("{endpoint} does not take the credentials; {hint}")]
    Unauthenticated {
        /// Who refused them.
        endpoint: String,
        /// What to look at next.
        hint: String,
        /// What was said.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The wrapped bytes, their context and the KEK do not belong together.
    #[error("the wrapped key does not open: it was changed, or belongs to another volume or KEK")]
    Mismatch,
    /// Another refusal that a retry does not change.
    #[error("{action} with KEK {kek_id} is refused: {detail}")]
    Refused {
        /// What was asked for, as the KMS calls it.
        action: &'static str,
        /// The KEK.
        kek_id: String,
        /// What the KMS said.
        detail: String,
    },
    /// Too many requests.
    #[error("{endpoint} is asked too often; raise its quota, or the provider's cache times")]
    Throttled {
        /// Who said so.
        endpoint: String,
        /// How long it asked to wait (RFC 9110, Retry-After).
        retry_after: Option<Duration>,
    },
    /// It does not answer, or answers that it cannot answer.
    #[error("{endpoint} does not answer")]
    Unreachable {
        /// Who was asked.
        endpoint: String,
        /// What happened.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// It answered what makes no sense. It may have been answered by somebody else.
    #[error("{endpoint} answered {what}; is it the KMS?")]
    Garbled {
        /// Who was asked.
        endpoint: String,
        /// What is wrong with the answer, without any of it.
        what: String,
    },
    /// The caller's time was over before there was an answer.
    #[error("{endpoint} did not answer before the deadline")]
    Deadline {
        /// Who was asked.
        endpoint: String,
    },
}

impl KmsFailure {
    /// [`KmsFailure::Unreachable`] with its cause.
    #[must_use]
    pub fn unreachable(endpoint: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unreachable { endpoint: endpoint.into(), source: Arc::from(source.into()) }
    }

    /// [`KmsFailure::Unauthenticated`] with its cause.
    #[must_use]
    pub fn unauthenticated(
        endpoint: impl Into<String>,
        hint: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::Unauthenticated { endpoint: endpoint.into(), hint: hint.into(), source: Arc::from(source.into()) }
    }

    /// [`KmsFailure::Garbled`].
    #[must_use]
    pub fn garbled(endpoint: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Garbled { endpoint: endpoint.into(), what: what.into() }
    }

    /// One word for it, as metrics have it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoSuchKek { .. } => "no-such-kek",
            Self::Unusable { .. } => "unusable",
            Self::WrongType { .. } => "wrong-type",
            Self::OtherRegion { .. } => "other-region",
            Self::Denied { .. } => "denied",
            Self::Unauthenticated { .. } => "unauthenticated",
            Self::Mismatch => "mismatch",
            Self::Refused { .. } => "refused",
            Self::Throttled { .. } => "throttled",
            Self::Unreachable { .. } => "unreachable",
            Self::Garbled { .. } => "garbled",
            Self::Deadline { .. } => "deadline",
        }
    }

    /// What the caller of the key service can do about it.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::NoSuchKek { .. }
            | Self::Unusable { .. }
            | Self::WrongType { .. }
            | Self::OtherRegion { .. }
            | Self::Mismatch
            | Self::Refused { .. } => Refusal::State,
            Self::Denied { .. } => Refusal::Denied,
            Self::Unauthenticated { .. }
            | Self::Throttled { .. }
            | Self::Unreachable { .. }
            | Self::Garbled { .. }
            | Self::Deadline { .. } => Refusal::Unavailable,
        }
    }

    /// Whether nobody answered, so that a key that was released a moment ago may be released again.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unreachable { .. } | Self::Garbled { .. })
    }
}

impl Transient for KmsFailure {
    fn retry(&self) -> Retry {
        match self {
            Self::Throttled { retry_after: Some(time), .. } => Retry::After(*time),
            Self::Throttled { retry_after: None, .. } | Self::Unreachable { .. } => Retry::Soon,
            Self::NoSuchKek { .. }
            | Self::Unusable { .. }
            | Self::WrongType { .. }
            | Self::OtherRegion { .. }
            | Self::Denied { .. }
            | Self::Unauthenticated { .. }
            | Self::Mismatch
            | Self::Refused { .. }
            | Self::Garbled { .. }
            | Self::Deadline { .. } => Retry::Never,
        }
    }

    fn is_answer(&self) -> bool {
        !matches!(self, Self::Unreachable { .. } | Self::Deadline { .. })
    }

    fn no_answer(endpoint: &str, why: String) -> Self {
        Self::unreachable(endpoint, why)
    }

    fn deadline(endpoint: &str) -> Self {
        Self::Deadline { endpoint: endpoint.to_owned() }
    }
}
