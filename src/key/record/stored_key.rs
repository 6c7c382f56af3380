//! How a record leads to its DEK: what it was derived by, or who wrapped it, by what, and in which role that is reached.

use serde::{Deserialize, Serialize};

use crate::key::binding::Fields;

/// Bytes that are written as base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Base64(Vec<u8>);

impl Base64 {
    /// Bytes of any length.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, where there are exactly `N`.
    #[must_use]
    pub fn exactly<const N: usize>(&self) -> Option<[u8; N]> {
        self.0.as_slice().try_into().ok()
    }
}

impl From<Base64> for String {
    fn from(bytes: Base64) -> Self {
        base64::Engine::encode(&base64::prelude::BASE64_STANDARD, bytes.0)
    }
}

impl TryFrom<String> for Base64 {
    type Error = base64::DecodeError;

    fn try_from(text: String) -> Result<Self, base64::DecodeError> {
        base64::Engine::decode(&base64::prelude::BASE64_STANDARD, text).map(Self)
    }
}

/// How a record leads to its DEK.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum StoredKey {
    /// Derived again from the cluster key at each use; the salt is all that is kept.
    Derived {
        /// The derivation.
        mechanism: Derivation,
        /// The version of the cluster key.
        cluster_key_version: u32,
        /// 32 random bytes of this volume; for `constellation-v1` the cluster's salt is used and this is empty.
        salt: Base64,
    },
    /// Wrapped by an AEAD under an inner key that a KMS has wrapped.
    Wrapped {
        /// The AEAD over the DEK.
        mechanism: Aead,
        /// The KEK, as the KMS named it when it wrapped.
        kek_id: String,
        /// How the KEK wrapped the inner key.
        #[serde(default, skip_serializing_if = "KekMechanism::is_symmetric")]
        kek_mechanism: KekMechanism,
        /// The role in which the KEK is reached; none where the provider reaches it as what it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<AwsRole>,
        /// 12 bytes.
        nonce: Base64,
        /// The DEK under the inner key: 48 bytes.
        wrapped_dek: Base64,
        /// The inner key as the KMS wrapped it.
        wrapped_inner_key: Base64,
    },
}

impl StoredKey {
    /// How the KEK wrapped; none where nothing is wrapped.
    #[must_use]
    pub fn kek_mechanism(&self) -> Option<KekMechanism> {
        match self {
            Self::Derived { .. } => None,
            Self::Wrapped { kek_mechanism, .. } => Some(*kek_mechanism),
        }
    }

    /// The role in which its KEK is reached, where it is one.
    #[must_use]
    pub fn role(&self) -> Option<&AwsRole> {
        match self {
            Self::Derived { .. } => None,
            Self::Wrapped { role, .. } => role.as_ref(),
        }
    }

    /// The same, of a KEK that is reached in this role. What is derived has no KEK, and stays as it is.
    #[must_use]
    pub fn in_role(mut self, reached: Option<AwsRole>) -> Self {
        if let Self::Wrapped { role, .. } = &mut self {
            *role = reached;
        }
        self
    }

    /// Adds to a record's MAC what every key of its kind has.
    pub(super) fn bind(&self, fields: Fields) -> Fields {
        match self {
            Self::Derived { mechanism, cluster_key_version, salt } => fields
                .field(match mechanism {
                    Derivation::CofferV1 => "coffer-v1",
                    Derivation::ConstellationV1 => "constellation-v1",
                })
                .field(cluster_key_version.to_be_bytes())
                .field(salt.as_bytes()),
            // How the KEK wrapped and in which role came later: the record adds them, each behind its name.
            Self::Wrapped {
                mechanism: Aead::Aes256Gcm,
                kek_id,
                kek_mechanism: _,
                role: _,
                nonce,
                wrapped_dek,
                wrapped_inner_key,
            } => fields
                .field("aes256-gcm")
                .field(kek_id)
                .field(nonce.as_bytes())
                .field(wrapped_dek.as_bytes())
                .field(wrapped_inner_key.as_bytes()),
        }
    }
}

/// A role of AWS, with all that assuming it takes: whoever reads a record needs no configuration to know it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AwsRole {
    /// Its ARN.
    pub arn: String,
    /// What CloudTrail calls the session.
    pub session_name: String,
    /// What the role's owner asks for. It is no secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
}

/// How a DEK is derived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Derivation {
    /// Our own.
    CofferV1,
    /// That of Constellation.
    ConstellationV1,
}

/// How a DEK is wrapped by its inner key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aead {
    /// AES-256 in GCM (NIST SP 800-38D), nonce of 12 bytes, tag of 16.
    Aes256Gcm,
}

/// How a KEK wraps an inner key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KekMechanism {
    /// The KMS's own authenticated encryption, which takes a context.
    #[default]
    Symmetric,
    /// RSA-OAEP with SHA-256 and MGF1 with SHA-256 (RFC 8017, section 7.1). It binds no context.
    RsaOaep256,
    /// AES Key Wrap with a KEK of 256 bits (RFC 3394). It binds no context.
    AesKeyWrap256,
}

impl KekMechanism {
    /// The name that records and configurations have for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Symmetric => "symmetric",
            Self::RsaOaep256 => "rsa-oaep-256",
            Self::AesKeyWrap256 => "aes-key-wrap-256",
        }
    }

    /// Whether a KMS that wraps so binds what it wraps to a context.
    #[must_use]
    pub fn takes_context(self) -> bool {
        self.is_symmetric()
    }

    pub(super) fn is_symmetric(&self) -> bool {
        *self == Self::Symmetric
    }
}
