//! What each provider is configured with, as checked values. No SDK is needed to read them.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use url::Url;

use crate::key::{
    access::{AwsAccess, AzureAccess, Endpoint, GoogleAccess},
    calls::CallSettings,
};

/// How long unwrapped keys are kept in memory. Zero switches a kind of keeping off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// From when it was unwrapped, however often it is used.
    pub expiry_any: Duration,
    /// From when it was last used.
    pub expiry_unused: Duration,
    /// From when it was unwrapped, while the KMS does not answer.
    pub expiry_offline: Duration,
    /// The most keys that are kept.
    pub entries: u64,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            expiry_any: Duration::from_secs(300),
            expiry_unused: Duration::from_secs(30),
            expiry_offline: Duration::ZERO,
            entries: 10_000,
        }
    }
}

/// When a provider's KEK is tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Validate {
    /// Before anything is served.
    Startup,
    /// Before it wraps the first time, and in the background after the start.
    #[default]
    Lazy,
    /// Never.
    Off,
}

/// Which KEK a volume's key is wrapped by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyScope {
    /// The provider's one KEK.
    #[default]
    Key,
    /// One KEK for each StorageClass, made when it is first needed.
    Class,
    /// One KEK for each namespace, made when it is first needed.
    Namespace,
}

/// Everything a provider is configured with, beside what its type asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Common {
    /// Goes into the encryption context of every key of this provider.
    pub context: BTreeMap<String, String>,
    /// How it is called.
    pub calls: CallSettings,
    /// How long its answers are kept.
    pub cache: CacheSettings,
    /// When its KEK is tried.
    pub validate: Validate,
}

/// Provider `local`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Holds the KEK, in base64.
    pub key_file: PathBuf,
    /// A salt, where the KEK is to be derived.
    pub salt: Option<String>,
}

/// Provider `aws-kms`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsKms {
    /// Id, ARN, alias or alias ARN; none where `key_scope` names the KEK.
    pub key_id: Option<String>,
    /// RSAES_OAEP_SHA_256 in place of the symmetric algorithm.
    pub rsa: bool,
    /// Other regions of a multi-region KEK that are asked, in this order, when the first does not answer.
    pub fallback_regions: Vec<String>,
    /// Which KEK a volume gets.
    pub key_scope: KeyScope,
    /// Begins the alias of KEKs that are made: `alias/<prefix>-<cluster>-<namespace>`.
    pub key_prefix: String,
    /// Tags of KEKs that are made.
    pub key_tags: BTreeMap<String, String>,
    /// How AWS is reached, and as whom.
    pub access: AwsAccess,
}

/// What kind of vault holds an Azure KEK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VaultType {
    /// Key Vault: an RSA key, RSA-OAEP-256.
    Vault,
    /// Managed HSM: an AES key (A256KW), or an RSA key.
    ManagedHsm,
}

/// Provider `azure-key-vault`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AzureKeyVault {
    /// The vault, such as `https://name.vault.azure.net`.
    pub vault_url: Url,
    /// What kind it is.
    pub vault_type: VaultType,
    /// The key's name.
    pub key_name: String,
    /// A version that wraps; none for the newest.
    pub key_version: Option<String>,
    /// RSA-OAEP-256 in a managed HSM, too.
    pub rsa: bool,
    /// How Azure is reached, and as whom.
    pub access: AzureAccess,
}

/// Provider `gcp-kms`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GcpKms {
    /// `projects/…/locations/…/keyRings/…/cryptoKeys/…`
    pub key_name: String,
    /// How Google is reached, and as whom.
    pub access: GoogleAccess,
}

/// Provider `transit`: OpenBao, HashiCorp Vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transit {
    /// The server.
    pub address: Endpoint,
    /// Where the secrets engine is mounted.
    pub mount: String,
    /// The key's name.
    pub key_name: String,
    /// The namespace, where the server has any.
    pub namespace: Option<String>,
    /// Authorities in place of the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// How a token is got.
    pub auth: TransitAuth,
}

/// How a token of OpenBao or Vault is got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransitAuth {
    /// It lies in a file, kept fresh by somebody else (an agent), or is renewed here while it can be.
    Token {
        /// Holds the token; read again when it changes.
        token_file: PathBuf,
    },
    /// A role and its secret.
    AppRole {
        /// Where the method is mounted.
        mount: String,
        /// The role.
        role_id: String,
        /// Holds the secret id; read at each login.
        secret_id_file: PathBuf,
    },
    /// A signed token of somebody else's.
    Jwt {
        /// Where the method is mounted.
        mount: String,
        /// The role.
        role: String,
        /// Holds the token; read at each login.
        token_file: PathBuf,
    },
    /// A projected ServiceAccount token.
    Kubernetes {
        /// Where the method is mounted.
        mount: String,
        /// The role.
        role: String,
        /// Holds the token; read at each login.
        token_file: PathBuf,
    },
}

/// Provider `kes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kes {
    /// The servers, asked in this order.
    pub endpoints: Vec<Endpoint>,
    /// The key's name.
    pub key_name: String,
    /// Authorities in place of the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// Our certificate, PEM.
    pub certificate_file: PathBuf,
    /// Its private key, PEM; may be encrypted.
    pub private_key_file: PathBuf,
    /// Holds the private key's password.
    pub password_file: Option<PathBuf>,
}
