//! The provider `azure-key-vault`: a key of Azure Key Vault or of a managed HSM.
//!
//! | `vaultType` | key | algorithm |
//! |---|---|---|
//! | `vault` | RSA | RSA-OAEP-256 (RFC 8017, section 7.1) |
//! | `managed-hsm` | AES of 256 bits, or RSA | A256KW (RFC 3394), or RSA-OAEP-256 |
//!
//! Neither algorithm takes a context, so the vault binds a wrapped key to nothing. What a key is for is bound by our
//! own AEAD, under the inner key that is wrapped here ([`crate::key::envelope`]). The KEK's id is the key's whole URL
//! with its version, as the vault returns it.

mod rotation;

use std::{fmt, time::Duration};

use async_trait::async_trait;
use azure_core::{
    http::{RequestContent, Response},
    time::OffsetDateTime,
};
use azure_security_keyvault_keys::{
    KeyClient, KeyClientOptions,
    models::{
        EncryptionAlgorithm, JsonWebKey, Key, KeyAttributes, KeyClientGetKeyOptions, KeyClientWrapKeyOptions,
        KeyOperationParameters, KeyType,
    },
};
use url::Url;

use crate::{
    exec::Deadline,
    key::{
        access::{
            SettingsFault,
            azure::{AzureFailure, Said, classify, client_options, credential},
        },
        binding::Binding,
        kms::{
            ByHand, Kek, KekState, Kms, KmsFailure, Periods, Rotation, Wrapped,
            settings::{self, VaultType},
        },
        record::KekMechanism,
    },
    secret::InnerKey,
};

/// A key of a vault.
pub struct AzureKeyVault {
    client: KeyClient,
    vault: Vault,
    key_name: String,
    key_version: Option<String>,
    mechanism: KekMechanism,
}

impl fmt::Debug for AzureKeyVault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AzureKeyVault").field("vault", &self.vault).finish_non_exhaustive()
    }
}

impl AzureKeyVault {
    /// A provider as it is configured. Nothing is asked of the network yet.
    ///
    /// # Errors
    /// A file cannot be read or does not hold what it should, or the credentials are none of a vault's.
    pub fn open(settings: settings::AzureKeyVault) -> Result<Self, SettingsFault> {
        let vault = Vault { url: settings.vault_url, kind: settings.vault_type };
        let credential = credential(&settings.access)?
            .ok_or_else(|| SettingsFault("a vault takes no shared access signature".to_owned()))?;
        // That a challenge names the vault's own service is checked by the SDK, and stays so.
        let options =
            KeyClientOptions { client_options: client_options(&settings.access, &vault.url)?, ..Default::default() };
        let client = KeyClient::new(&vault.endpoint(), credential, Some(options))
            .map_err(|error| SettingsFault(format!("{}: {error}", vault.endpoint())))?;
        let mechanism = match (vault.kind, settings.rsa) {
            (VaultType::Vault, _) | (VaultType::ManagedHsm, true) => KekMechanism::RsaOaep256,
            (VaultType::ManagedHsm, false) => KekMechanism::AesKeyWrap256,
        };
        Ok(Self { client, vault, key_name: settings.key_name, key_version: settings.key_version, mechanism })
    }

    /// The key to wrap with. Another one than the configured is one of the same vault, in its newest version.
    fn target(&self, kek: Option<&str>) -> Result<KeyId, KmsFailure> {
        let name = kek.unwrap_or(&self.key_name);
        if !is_name(name) {
            return Err(KmsFailure::NoSuchKek {
                kek_id: name.to_owned(),
                hint: "a key of a vault is named by letters, digits and hyphens".to_owned(),
            });
        }
        let version = if name == self.key_name { self.key_version.clone() } else { None };
        Ok(KeyId { name: name.to_owned(), version: version.unwrap_or_default() })
    }
}

#[async_trait]
impl Kms for AzureKeyVault {
    async fn describe(&self, kek: Option<&str>, _: Deadline) -> Result<Kek, KmsFailure> {
        let target = self.target(kek)?;
        let options = KeyClientGetKeyOptions { key_version: target.given_version(), ..Default::default() };
        let answer = self.client.get_key(&target.name, Some(options)).await.and_then(Response::into_model);
        let key = answer.map_err(|error| self.vault.failure(GET, &self.vault.id(&target), error))?;
        let id = self.vault.returned(key.key.as_ref().and_then(|key| key.kid.as_deref()), &target)?;
        usable(&id, &key, self.mechanism, OffsetDateTime::now_utc())?;
        Ok(Kek { id, mechanism: self.mechanism })
    }

    async fn wrap(
        &self,
        key: &InnerKey,
        kek: Option<&str>,
        _: &Binding<'_>,
        _: Deadline,
    ) -> Result<Wrapped, KmsFailure> {
        let target = self.target(kek)?;
        let fail = |error| self.vault.failure(WRAP, &self.vault.id(&target), error);
        // The SDK makes copies of its own; they are overwritten when they are freed, as all memory of the program is.
        let parameters = parameters(self.mechanism, key.expose_secret().to_vec()).map_err(fail)?;
        let options = KeyClientWrapKeyOptions { key_version: target.given_version(), ..Default::default() };
        let answer = self.client.wrap_key(&target.name, parameters, Some(options)).await;
        let result = answer.and_then(Response::into_model).map_err(fail)?;
        let kek_id = self.vault.returned(result.kid.as_deref(), &target)?;
        let bytes = result.result.filter(|bytes| !bytes.is_empty());
        let bytes = bytes.ok_or_else(|| KmsFailure::garbled(self.vault.endpoint(), "without a wrapped key"))?;
        Ok(Wrapped { kek_id, mechanism: self.mechanism, bytes })
    }

    async fn unwrap(&self, wrapped: &Wrapped, _: &Binding<'_>, _: Deadline) -> Result<InnerKey, KmsFailure> {
        if wrapped.mechanism == KekMechanism::Symmetric {
            // Nothing of a vault's is wrapped so.
            return Err(KmsFailure::Mismatch);
        }
        let key = self.vault.key(&wrapped.kek_id).ok_or_else(|| KmsFailure::NoSuchKek {
            kek_id: wrapped.kek_id.clone(),
            hint: format!("the provider's vault is {}; configure one for the key's own vault", self.vault.endpoint()),
        })?;
        let fail = |error| self.vault.failure(UNWRAP, &wrapped.kek_id, error);
        let parameters = parameters(wrapped.mechanism, wrapped.bytes.clone()).map_err(fail)?;
        let answer = self.client.unwrap_key(&key.name, &key.version, parameters, None).await;
        let result = answer.and_then(Response::into_model).map_err(fail)?.result;
        let bytes = result.ok_or_else(|| KmsFailure::garbled(self.vault.endpoint(), "without an unwrapped key"))?;
        // Whoever has the public key can wrap anything; what is no key of ours was not wrapped by us.
        InnerKey::take(bytes).map_err(|_| KmsFailure::Mismatch)
    }

    fn rotation_periods(&self, kek: Option<&str>) -> Result<Periods, ByHand> {
        let is_pinned = self.key_version.is_some() && kek.is_none_or(|kek| kek == self.key_name);
        if is_pinned { Err(rotation::PINNED) } else { Ok(rotation::periods(self.vault.kind)) }
    }

    async fn rotation(&self, kek: Option<&str>, _: Deadline) -> Result<Rotation, KmsFailure> {
        self.rotation_of(&self.target(kek)?).await
    }

    async fn rotate_every(&self, period: Duration, kek: Option<&str>, _: Deadline) -> Result<(), KmsFailure> {
        self.rotate(&self.target(kek)?, period).await
    }
}

const GET: &str = "keys/get";
const WRAP: &str = "keys/wrapKey";
const UNWRAP: &str = "keys/unwrapKey";
/// Permissions of their own, which wrapping does not need.
const GET_POLICY: &str = "keys/getrotationpolicy";
const SET_POLICY: &str = "keys/setrotationpolicy";

fn parameters(mechanism: KekMechanism, value: Vec<u8>) -> azure_core::Result<RequestContent<KeyOperationParameters>> {
    let algorithm = match mechanism {
        KekMechanism::AesKeyWrap256 => EncryptionAlgorithm::A256Kw,
        KekMechanism::RsaOaep256 | KekMechanism::Symmetric => EncryptionAlgorithm::RsaOaep256,
    };
    KeyOperationParameters { algorithm: Some(algorithm), value: Some(value), ..Default::default() }.try_into()
}

/// Which key of a vault, and which version of it: the newest where the version is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KeyId {
    name: String,
    version: String,
}

impl KeyId {
    fn given_version(&self) -> Option<String> {
        Some(self.version.clone()).filter(|version| !version.is_empty())
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// A vault: its URL, and the ids of its keys.
#[derive(Debug)]
struct Vault {
    url: Url,
    kind: VaultType,
}

impl Vault {
    fn endpoint(&self) -> String {
        self.url.as_str().trim_end_matches('/').to_owned()
    }

    fn id(&self, key: &KeyId) -> String {
        format!("{}/keys/{}/{}", self.endpoint(), key.name, key.version).trim_end_matches('/').to_owned()
    }

    /// The key that an id names, where it is the id of one version of a key of this vault.
    fn key(&self, id: &str) -> Option<KeyId> {
        let url = Url::parse(id).ok()?;
        let is_here = url.origin() == self.url.origin();
        let segments: Vec<_> = url.path_segments()?.collect();
        match segments.as_slice() {
            ["keys", name, version] if is_here && is_name(name) && is_name(version) => {
                Some(KeyId { name: (*name).to_owned(), version: (*version).to_owned() })
            }
            _ => None,
        }
    }

    /// The id that the vault returned, where it names the key that was asked for.
    fn returned(&self, id: Option<&str>, target: &KeyId) -> Result<String, KmsFailure> {
        let is_asked =
            |key: &KeyId| key.name == target.name && (target.version.is_empty() || key.version == target.version);
        id.filter(|id| self.key(id).as_ref().is_some_and(is_asked))
            .map(str::to_owned)
            .ok_or_else(|| KmsFailure::garbled(self.endpoint(), "for another key, or none"))
    }

    fn failure(&self, action: &'static str, kek_id: &str, error: azure_core::Error) -> KmsFailure {
        let (endpoint, kek_id) = (self.endpoint(), kek_id.to_owned());
        match classify(error) {
            AzureFailure::NoAnswer(source) => KmsFailure::unreachable(endpoint, source),
            AzureFailure::Throttled(retry_after) => KmsFailure::Throttled { endpoint, retry_after },
            AzureFailure::Unauthenticated(source) => KmsFailure::unauthenticated(
                endpoint,
                "look at the provider's auth: tenant, client id, and whether the secret or the federation has expired",
                source,
            ),
            AzureFailure::Garbled(what) => KmsFailure::garbled(endpoint, what),
            AzureFailure::Denied(said) => self.denied(action, kek_id, &said),
            AzureFailure::NotFound(said) if said.code.contains("NotFound") => KmsFailure::NoSuchKek {
                kek_id,
                hint: format!("look at keyName; what was deleted comes back by `az keyvault key recover` ({said})"),
            },
            // RSA-OAEP and AES Key Wrap both find out that bytes were not wrapped by this key.
            AzureFailure::Refused(said) if said.status == 400 && action == UNWRAP => KmsFailure::Mismatch,
            AzureFailure::Refused(said) if said.status == 400 && said.message.to_lowercase().contains("algorithm") => {
                wrong_type(kek_id, said.to_string())
            }
            AzureFailure::Refused(said) | AzureFailure::NotFound(said) => {
                KmsFailure::Refused { action, kek_id, detail: said.to_string() }
            }
        }
    }

    /// Status 403 says that the caller may not, and as well that the key cannot.
    fn denied(&self, action: &'static str, kek_id: String, said: &Said) -> KmsFailure {
        let is = |code: &str, words: &str| said.code == code || said.message.contains(words);
        if is("KeyDisabled", "disabled key") {
            return KmsFailure::Unusable { kek_id, state: KekState::Disabled, hint: ENABLE.to_owned() };
        }
        if is("KeyExpired", "expired key") || is("KeyNotYetValid", "not yet valid") {
            return KmsFailure::Unusable { kek_id, state: KekState::OutOfTime, hint: EXTEND.to_owned() };
        }
        if is("KeyOperationForbidden", "not permitted on this key") {
            return wrong_type(kek_id, said.to_string());
        }
        let is_policy = matches!(action, GET_POLICY | SET_POLICY);
        let hint = match (said.code.as_str(), self.kind) {
            ("ForbiddenByFirewall" | "ForbiddenByConnection", _) => {
                "the vault's network rules do not let this cluster in: allow its addresses, or make a private endpoint"
            }
            (_, VaultType::Vault) if is_policy => {
                "a rotation policy is for the role Key Vault Crypto Officer, or, where the vault has access policies, for \
                 getrotationpolicy and setrotationpolicy for keys; on this key alone, and only while it is needed"
            }
            (_, VaultType::ManagedHsm) if is_policy => {
                "a rotation policy is for the HSM's local role Managed HSM Crypto User, on this key alone, and only while it \
                 is needed"
            }
            (_, VaultType::Vault) => {
                "give the identity the role Key Vault Crypto Service Encryption User, or, where the vault has access \
                 policies, get, wrapKey and unwrapKey for keys; a new role takes some minutes"
            }
            (_, VaultType::ManagedHsm) => {
                "give the identity the HSM's local role Managed HSM Crypto Service Encryption User for this key"
            }
        };
        KmsFailure::Denied { action, kek_id, detail: said.to_string(), hint: hint.to_owned() }
    }
}

const ENABLE: &str = "`az keyvault key set-attributes --enabled true` switches it on";
const EXTEND: &str =
    "`az keyvault key set-attributes --expires` gives it more time, `az keyvault key rotate` a new version";

fn wrong_type(kek_id: String, what: String) -> KmsFailure {
    let hint = "it has to be an RSA key, or in a managed HSM an AES key of 256 bits, as algorithm says, whose \
                operations are wrapKey and unwrapKey";
    KmsFailure::WrongType { kek_id, what, hint: hint.to_owned() }
}

/// Whether a key can wrap and unwrap now.
fn usable(id: &str, key: &Key, mechanism: KekMechanism, now: OffsetDateTime) -> Result<(), KmsFailure> {
    let unusable = |state, hint: &str| KmsFailure::Unusable { kek_id: id.to_owned(), state, hint: hint.to_owned() };
    if let Some(KeyAttributes { enabled, not_before, expires, .. }) = &key.attributes {
        if *enabled == Some(false) {
            return Err(unusable(KekState::Disabled, ENABLE));
        }
        if not_before.is_some_and(|moment| moment > now) || expires.is_some_and(|moment| moment <= now) {
            return Err(unusable(KekState::OutOfTime, EXTEND));
        }
    }
    let Some(JsonWebKey { kty: Some(kty), key_ops, .. }) = &key.key else {
        return Err(wrong_type(id.to_owned(), "a key without a type".to_owned()));
    };
    let fits = match mechanism {
        KekMechanism::AesKeyWrap256 => matches!(kty, KeyType::Oct | KeyType::OctHsm),
        KekMechanism::RsaOaep256 | KekMechanism::Symmetric => matches!(kty, KeyType::Rsa | KeyType::RsaHsm),
    };
    if !fits {
        return Err(wrong_type(id.to_owned(), format!("a key of type {kty}, and not for {}", mechanism.as_str())));
    }
    let may = |operation: &str| key_ops.as_ref().is_none_or(|all| all.iter().any(|one| one == operation));
    match ["wrapKey", "unwrapKey"].into_iter().find(|&operation| !may(operation)) {
        None => Ok(()),
        Some(operation) => Err(wrong_type(id.to_owned(), format!("its operations lack {operation}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vault() -> Vault {
        let url = "https://keys.vault.azure.net".parse().expect("a URL");
        Vault { url, kind: VaultType::Vault }
    }

    #[test]
    fn only_versions_of_keys_of_this_vault_are_keys() {
        let id = "https://keys.vault.azure.net/keys/kek/0123abcd";
        let key = vault().key(id).expect("a key");
        assert_eq!((key.name.as_str(), key.version.as_str()), ("kek", "0123abcd"));
        assert_eq!(vault().id(&key), id);
        for foreign in [
            "kek",
            "http://keys.vault.azure.net/keys/kek/0123abcd",
            "https://other.vault.azure.net/keys/kek/0123abcd",
            "https://keys.vault.azure.net:8443/keys/kek/0123abcd",
            "https://keys.vault.azure.net/keys/kek",
            "https://keys.vault.azure.net/keys/kek/0123abcd/more",
            "https://keys.vault.azure.net/secrets/kek/0123abcd",
            "https://keys.vault.azure.net/keys/%2e%2e/0123abcd",
        ] {
            assert_eq!(vault().key(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_403_tells_the_key_from_the_caller() {
        let told = |code: &str, message: &str| {
            let said = Said { status: 403, code: code.to_owned(), message: message.to_owned() };
            vault().denied(UNWRAP, "kek".to_owned(), &said)
        };
        let disabled = told("KeyDisabled", "Operation unwrapKey is not allowed on a disabled key.");
        assert!(matches!(disabled, KmsFailure::Unusable { state: KekState::Disabled, .. }));
        let expired = told("Forbidden", "Operation wrapKey is not allowed on an expired key.");
        assert!(matches!(expired, KmsFailure::Unusable { state: KekState::OutOfTime, .. }));
        let signing = told("KeyOperationForbidden", "Operation wrapKey is not permitted on this key.");
        assert!(matches!(signing, KmsFailure::WrongType { .. }));
        for code in ["ForbiddenByRbac", "ForbiddenByPolicy", "ForbiddenByFirewall", "Forbidden"] {
            assert!(matches!(told(code, "no"), KmsFailure::Denied { action: UNWRAP, .. }), "{code}");
        }
    }

    #[test]
    fn a_key_must_be_able_to_wrap_now() {
        let key = |json: &str| serde_json::from_str::<Key>(json).expect("a key");
        let check = |json: &str, mechanism| usable("kek", &key(json), mechanism, OffsetDateTime::UNIX_EPOCH);
        let rsa = r#"{"key":{"kty":"RSA","key_ops":["wrapKey","unwrapKey"]},"attributes":{"enabled":true,"exp":1}}"#;
        assert!(check(rsa, KekMechanism::RsaOaep256).is_ok());
        assert!(matches!(check(rsa, KekMechanism::AesKeyWrap256), Err(KmsFailure::WrongType { .. })));
        let signing = r#"{"key":{"kty":"RSA","key_ops":["sign"]}}"#;
        assert!(matches!(check(signing, KekMechanism::RsaOaep256), Err(KmsFailure::WrongType { .. })));
        for (attributes, expected) in [
            (r#"{"enabled":false}"#, KekState::Disabled),
            (r#"{"enabled":true,"nbf":1}"#, KekState::OutOfTime),
            (r#"{"enabled":true,"exp":0}"#, KekState::OutOfTime),
        ] {
            let json = format!(r#"{{"key":{{"kty":"RSA"}},"attributes":{attributes}}}"#);
            let refused = check(&json, KekMechanism::RsaOaep256);
            assert!(matches!(refused, Err(KmsFailure::Unusable { state, .. }) if state == expected), "{attributes}");
        }
    }
}
