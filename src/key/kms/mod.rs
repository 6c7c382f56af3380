//! The joint to whoever holds a KEK, and the providers behind it.

pub mod failure;
pub mod guarded;
pub mod local;
pub mod rotation;
pub mod settings;

#[cfg(feature = "aws-kms")]
pub mod aws;
#[cfg(feature = "azure-key-vault")]
pub mod azure;
#[cfg(feature = "gcp-kms")]
pub mod gcp;
#[cfg(any(feature = "transit", feature = "kes"))]
mod http;
#[cfg(feature = "kes")]
pub mod kes;
#[cfg(feature = "transit")]
pub mod transit;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    exec::Deadline,
    key::{access::SettingsFault, binding::Binding, record::KekMechanism},
    secret::InnerKey,
};

pub use failure::{KekState, KmsFailure};
pub use rotation::{ByHand, Periods, Rotation};

/// An inner key as a KMS wrapped it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapped {
    /// The KEK, as the KMS returned it, with its version where it has one: what unwrap must name.
    pub kek_id: String,
    /// How the KEK wrapped.
    pub mechanism: KekMechanism,
    /// The wrapped bytes.
    pub bytes: Vec<u8>,
}

/// A KEK as its KMS describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kek {
    /// Its id, in the form in which [`Wrapped::kek_id`] would name it now.
    pub id: String,
    /// How it wraps.
    pub mechanism: KekMechanism,
}

/// Everything a provider of one of the types is configured with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settings {
    /// `local`
    Local(settings::Local),
    /// `aws-kms`
    AwsKms(settings::AwsKms),
    /// `azure-key-vault`
    AzureKeyVault(settings::AzureKeyVault),
    /// `gcp-kms`
    GcpKms(settings::GcpKms),
    /// `transit`
    Transit(settings::Transit),
    /// `kes`
    Kes(settings::Kes),
}

impl Settings {
    /// What the configuration calls the type.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Local(_) => "local",
            Self::AwsKms(_) => "aws-kms",
            Self::AzureKeyVault(_) => "azure-key-vault",
            Self::GcpKms(_) => "gcp-kms",
            Self::Transit(_) => "transit",
            Self::Kes(_) => "kes",
        }
    }
}

/// Builds a provider. Nothing is asked of any network yet.
///
/// # Errors
/// A file cannot be read or does not hold what it should, or this build lacks the type.
pub async fn open(settings: Settings) -> Result<Arc<dyn Kms>, SettingsFault> {
    Ok(match settings {
        Settings::Local(settings) => {
            let fault = |fault| SettingsFault(format!("{}: {fault}", settings.key_file.display()));
            Arc::new(local::Local::load(&settings.key_file, settings.salt.as_deref()).map_err(fault)?)
        }
        #[cfg(feature = "aws-kms")]
        Settings::AwsKms(settings) => Arc::new(aws::AwsKms::open(settings).await?),
        #[cfg(feature = "azure-key-vault")]
        Settings::AzureKeyVault(settings) => Arc::new(azure::AzureKeyVault::open(settings)?),
        #[cfg(feature = "gcp-kms")]
        Settings::GcpKms(settings) => Arc::new(gcp::GcpKms::open(settings).await?),
        #[cfg(feature = "transit")]
        Settings::Transit(settings) => Arc::new(transit::Transit::open(settings)?),
        #[cfg(feature = "kes")]
        Settings::Kes(settings) => Arc::new(kes::Kes::open(settings)?),
        #[cfg(not(all(
            feature = "aws-kms",
            feature = "azure-key-vault",
            feature = "gcp-kms",
            feature = "transit",
            feature = "kes"
        )))]
        _ => return Err(SettingsFault("this build has no provider of this type".to_owned())),
    })
}

/// Holds KEKs, and wraps and unwraps inner keys under them.
///
/// `kek` names a KEK as the KMS does (an alias, an ARN, a name); none is the one that the provider is configured with.
/// Implementations make one attempt a call: retries, limits and the circuit breaker are around all of them
/// ([`crate::key::calls`]). They look at the deadline only where they would otherwise wait without end.
#[async_trait]
pub trait Kms: Send + Sync {
    /// Describes the KEK that wraps now. It creates nothing.
    ///
    /// # Errors
    /// The KMS cannot be asked, or the KEK cannot be used for wrapping and unwrapping.
    async fn describe(&self, kek: Option<&str>, deadline: Deadline) -> Result<Kek, KmsFailure>;

    /// Wraps an inner key (32 bytes) for a binding, which must be given again to unwrap it where the KMS binds at all.
    ///
    /// # Errors
    /// The KMS cannot be asked, or refuses.
    async fn wrap(
        &self,
        key: &InnerKey,
        kek: Option<&str>,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<Wrapped, KmsFailure>;

    /// Unwraps an inner key with the KEK that [`Wrapped`] names, and no other.
    ///
    /// # Errors
    /// The KMS cannot be asked, refuses, or finds that the parts do not belong together.
    async fn unwrap(
        &self,
        wrapped: &Wrapped,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<InnerKey, KmsFailure>;

    /// Unwraps what was wrapped a moment ago, to see that it opens: nothing is kept of it.
    ///
    /// # Errors
    /// As [`Kms::unwrap`].
    async fn unwrap_again(
        &self,
        wrapped: &Wrapped,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<InnerKey, KmsFailure> {
        self.unwrap(wrapped, binding, deadline).await
    }

    /// Makes sure that there is a KEK of this name, and makes one where there is none. Only a provider whose key scope
    /// is not `key` is asked.
    ///
    /// # Errors
    /// The KMS cannot be asked, refuses, or has a KEK of that name which cannot be used.
    async fn ensure(&self, kek: &str, deadline: Deadline) -> Result<(), KmsFailure> {
        let _ = deadline;
        Err(KmsFailure::Refused {
            action: "create a key",
            kek_id: kek.to_owned(),
            detail: "this type of provider makes no keys".to_owned(),
        })
    }

    /// How often it can be asked to rotate a KEK by itself. Nobody is asked for the answer.
    ///
    /// # Errors
    /// It rotates that KEK only by hand.
    fn rotation_periods(&self, kek: Option<&str>) -> Result<Periods, ByHand> {
        let _ = kek;
        Err(ByHand(
            "its KMS has no timer: make another KEK, let a second provider name it, make that one the default, and run \
             coffer rewrap --from OLD --to NEW",
        ))
    }

    /// Whether it rotates a KEK by itself. To know that may take a permission that nothing else does.
    ///
    /// # Errors
    /// The KMS cannot be asked, or refuses.
    async fn rotation(&self, kek: Option<&str>, deadline: Deadline) -> Result<Rotation, KmsFailure> {
        let _ = (kek, deadline);
        Ok(Rotation::Off)
    }

    /// Has it rotate a KEK by itself from now on, so often. It may be asked so again.
    ///
    /// # Errors
    /// The KMS cannot be asked, or refuses.
    async fn rotate_every(&self, period: Duration, kek: Option<&str>, deadline: Deadline) -> Result<(), KmsFailure> {
        let _ = (period, deadline);
        Err(KmsFailure::Refused {
            action: "rotate by itself",
            kek_id: kek.unwrap_or("of the provider").to_owned(),
            detail: "this type of provider has no timer".to_owned(),
        })
    }
}
