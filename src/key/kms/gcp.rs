//! The provider `gcp-kms`: a symmetric key of Google Cloud KMS.
//!
//! Its additional authenticated data are the binding's bytes ([`Binding::aad`]), so it binds every field. A record names
//! the key version that Encrypt returned; Decrypt is asked of the key itself, which finds the version in the ciphertext.
//! A record of another key than the configured one is opened with the key that it names, where IAM allows it: a
//! configuration that has moved to another key still opens what was wrapped before.
//!
//! CRC32C of everything goes both ways and is checked here, because the SDK does not. The plaintext that is sent is wiped
//! when it has been sent, and what was received when it has been taken over; the SDK's own buffers (JSON, base64, TLS)
//! are overwritten by the allocator when they are freed.

mod place;
mod rotation;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use crc32c::crc32c;
use google_cloud_auth::credentials::Credentials;
use google_cloud_kms_v1::{
    client::KeyManagementService,
    model::{CryptoKey, CryptoKeyVersion, crypto_key::CryptoKeyPurpose, crypto_key_version::CryptoKeyVersionState},
};
use zeroize::Zeroizing;

use crate::{
    exec::Deadline,
    key::{
        access::{
            SettingsFault,
            google::{Cause, Clients, NeverRetry},
        },
        binding::Binding,
        kms::{ByHand, Kek, KekState, Kms, KmsFailure, Periods, Rotation, Wrapped, settings},
        record::KekMechanism,
    },
    secret::InnerKey,
};

use place::{Place, is_same_key, region_of};

const SERVICE: &str = "https://cloudkms.googleapis.com";
const VERSIONS: &str = "/cryptoKeyVersions/";
/// What IAM calls what is asked for.
const GET: &str = "cloudkms.cryptoKeys.get";
const ENCRYPT: &str = "cloudkms.cryptoKeyVersions.useToEncrypt";
const DECRYPT: &str = "cloudkms.cryptoKeyVersions.useToDecrypt";

/// Google Cloud KMS.
#[derive(Debug)]
pub struct GcpKms {
    key_name: String,
    endpoint: String,
    clients: Clients<KeyManagementService>,
}

impl GcpKms {
    /// A provider. Nothing is asked of any network yet.
    ///
    /// # Errors
    /// The key's name is none, or the credentials file cannot be used.
    pub async fn open(settings: settings::GcpKms) -> Result<Self, SettingsFault> {
        let settings::GcpKms { key_name, access } = settings;
        if Place::of(&key_name).is_none() {
            let form = "projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY";
            return Err(SettingsFault(format!("keyName {key_name} is not {form}")));
        }
        let endpoint = access.endpoint.map_or_else(|| SERVICE.to_owned(), |endpoint| endpoint.url.to_string());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Ok(Self { key_name, endpoint, clients: Clients::new(access.auth)? })
    }

    async fn client(&self) -> Result<KeyManagementService, KmsFailure> {
        let build = |credentials: Credentials| {
            KeyManagementService::builder()
                .with_endpoint(&self.endpoint)
                .with_credentials(credentials)
                .with_retry_policy(NeverRetry)
                .build()
        };
        self.clients.client(build).await.map_err(|cause| self.failure(GET, &self.key_name, cause))
    }

    /// The whole name of a key: the configured one, one that is named by its whole name (of a version, too), or one of
    /// the configured key ring.
    fn key(&self, kek: Option<&str>) -> Result<String, KmsFailure> {
        let kek = kek.unwrap_or(&self.key_name);
        if kek.contains('/') {
            return self.key_of_record(kek).map(str::to_owned);
        }
        let ring = self.key_name.rsplit_once('/').map_or("", |(ring, _)| ring);
        self.key_of_record(&format!("{ring}/{kek}")).map(str::to_owned)
    }

    /// The key whose name, or whose version's name, this is; not one that the configured endpoint cannot have.
    fn key_of_record<'a>(&self, kek_id: &'a str) -> Result<&'a str, KmsFailure> {
        let key = kek_id.split_once(VERSIONS).map_or(kek_id, |(key, _)| key);
        let Some(place) = Place::of(key) else {
            let hint = "Cloud KMS has no keys of such names; is the record another provider's?".to_owned();
            return Err(KmsFailure::NoSuchKek { kek_id: kek_id.to_owned(), hint });
        };
        match region_of(&self.endpoint) {
            Some(region) if region != place.location => Err(KmsFailure::OtherRegion {
                kek_id: kek_id.to_owned(),
                region: region.to_owned(),
                hint: format!("it lies in {}: set endpoint to that location's, or to none", place.location),
            }),
            _ => Ok(key),
        }
    }

    /// Describes a key that can encrypt and decrypt now.
    async fn look(&self, client: &KeyManagementService, name: &str) -> Result<Kek, KmsFailure> {
        let found = client.get_crypto_key().set_name(name).send().await;
        let found = found.map_err(|error| self.failure(GET, name, self.clients.cause(error)))?;
        if found.name.is_empty() {
            return Err(self.garbled("a key without a name"));
        }
        Ok(Kek { id: usable_version(name, &found)?.name.clone(), mechanism: KekMechanism::Symmetric })
    }

    /// Why a key was not encrypted with: its description knows it better than the refusal does.
    async fn why(&self, client: &KeyManagementService, name: &str, refusal: KmsFailure) -> KmsFailure {
        if !matches!(refusal, KmsFailure::Refused { .. }) {
            return refusal;
        }
        match self.look(client, name).await {
            Err(reason @ (KmsFailure::WrongType { .. } | KmsFailure::Unusable { .. })) => reason,
            Ok(_) | Err(_) => refusal,
        }
    }

    fn garbled(&self, what: &str) -> KmsFailure {
        KmsFailure::garbled(&self.endpoint, what)
    }

    fn failure(&self, action: &'static str, kek_id: &str, cause: Cause) -> KmsFailure {
        let (endpoint, kek_id) = (self.endpoint.clone(), kek_id.to_owned());
        match cause {
            Cause::NoAnswer(source) => KmsFailure::Unreachable { endpoint, source },
            Cause::Throttled(retry_after) => KmsFailure::Throttled { endpoint, retry_after },
            Cause::Unauthenticated(source) => KmsFailure::Unauthenticated {
                endpoint,
                hint: "look at auth: the credentials file, or the workload identity of Coffer's pod".to_owned(),
                source,
            },
            Cause::Denied(detail) => KmsFailure::Denied {
                action,
                kek_id,
                detail,
                hint: "grant the permission on the key to the account that Coffer is; is the key there?".to_owned(),
            },
            Cause::NotFound(detail) => {
                let key = kek_id.split_once(VERSIONS).map_or(kek_id.as_str(), |(key, _)| key);
                let hint = match Place::of(key) {
                    Some(Place { project, location, ring }) => {
                        format!("{endpoint} was asked for key ring {ring} in {location} of project {project}: {detail}")
                    }
                    None => format!("{endpoint} says: {detail}"),
                };
                KmsFailure::NoSuchKek { kek_id, hint }
            }
            Cause::Condition(detail) | Cause::Precondition(detail) => match state_told(&detail) {
                Some(state) => KmsFailure::Unusable { kek_id, state, hint: hint_for(state, &detail) },
                None => KmsFailure::Refused { action, kek_id, detail },
            },
            // A checksum that does not hold is told so; nothing else of what Decrypt is sent can be invalid but the
            // ciphertext and its binding.
            Cause::Invalid(detail) if detail.to_ascii_lowercase().contains("checksum") => {
                self.garbled("that the request was changed on its way")
            }
            Cause::Invalid(_) if action == DECRYPT => KmsFailure::Mismatch,
            Cause::Garbled => self.garbled("what is no answer of Cloud KMS"),
            Cause::Invalid(detail) | Cause::Exists(detail) | Cause::Other(detail) => {
                KmsFailure::Refused { action, kek_id, detail }
            }
        }
    }
}

#[async_trait]
impl Kms for GcpKms {
    async fn describe(&self, kek: Option<&str>, _: Deadline) -> Result<Kek, KmsFailure> {
        let name = self.key(kek)?;
        self.look(&self.client().await?, &name).await
    }

    async fn wrap(
        &self,
        key: &InnerKey,
        kek: Option<&str>,
        binding: &Binding<'_>,
        _: Deadline,
    ) -> Result<Wrapped, KmsFailure> {
        let name = self.key(kek)?;
        let client = self.client().await?;
        let (plaintext, aad) = (Zeroizing::new(key.expose_secret().to_vec()), binding.aad());
        let request = client
            .encrypt()
            .set_name(&name)
            .set_plaintext_crc32c(i64::from(crc32c(&plaintext)))
            .set_additional_authenticated_data_crc32c(i64::from(crc32c(&aad)))
            .set_plaintext(Bytes::from_owner(plaintext))
            .set_additional_authenticated_data(aad);
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => {
                let refusal = self.failure(ENCRYPT, &name, self.clients.cause(error));
                return Err(self.why(&client, &name, refusal).await);
            }
        };
        if !(answer.verified_plaintext_crc32c && answer.verified_additional_authenticated_data_crc32c) {
            return Err(self.garbled("without having checked what it was sent (CRC32C)"));
        }
        if answer.ciphertext_crc32c != Some(i64::from(crc32c(&answer.ciphertext))) {
            return Err(self.garbled("a ciphertext that was changed on its way (CRC32C)"));
        }
        // A project has an id and a number, so only what follows it can be compared.
        let version = answer.name.split_once(VERSIONS).filter(|(_, version)| !version.is_empty());
        if version.is_none_or(|(key, _)| !is_same_key(key, &name)) {
            return Err(self.garbled("for another key than the one that was asked"));
        }
        Ok(Wrapped { kek_id: answer.name, mechanism: KekMechanism::Symmetric, bytes: answer.ciphertext.into() })
    }

    async fn unwrap(&self, wrapped: &Wrapped, binding: &Binding<'_>, _: Deadline) -> Result<InnerKey, KmsFailure> {
        if wrapped.mechanism != KekMechanism::Symmetric {
            return Err(KmsFailure::Mismatch);
        }
        let name = self.key_of_record(&wrapped.kek_id)?;
        let (client, aad) = (self.client().await?, binding.aad());
        let request = client
            .decrypt()
            .set_name(name)
            .set_ciphertext_crc32c(i64::from(crc32c(&wrapped.bytes)))
            .set_ciphertext(wrapped.bytes.clone())
            .set_additional_authenticated_data_crc32c(i64::from(crc32c(&aad)))
            .set_additional_authenticated_data(aad);
        let answer = request.send().await;
        let answer = answer.map_err(|error| self.failure(DECRYPT, &wrapped.kek_id, self.clients.cause(error)))?;
        let told = answer.plaintext_crc32c;
        let plaintext = Zeroizing::new(Vec::from(answer.plaintext));
        if told != Some(i64::from(crc32c(&plaintext))) {
            return Err(self.garbled("a plaintext that was changed on its way (CRC32C)"));
        }
        InnerKey::take(plaintext).map_err(|_| KmsFailure::Mismatch)
    }

    fn rotation_periods(&self, _: Option<&str>) -> Result<Periods, ByHand> {
        Ok(rotation::PERIODS)
    }

    async fn rotation(&self, kek: Option<&str>, _: Deadline) -> Result<Rotation, KmsFailure> {
        self.rotation_of(&self.key(kek)?).await
    }

    async fn rotate_every(&self, period: Duration, kek: Option<&str>, _: Deadline) -> Result<(), KmsFailure> {
        self.rotate(&self.key(kek)?, period).await
    }
}

/// The version that a key encrypts with.
fn usable_version<'a>(name: &str, key: &'a CryptoKey) -> Result<&'a CryptoKeyVersion, KmsFailure> {
    let kek_id = || name.to_owned();
    if key.purpose != CryptoKeyPurpose::EncryptDecrypt {
        return Err(KmsFailure::WrongType {
            kek_id: kek_id(),
            what: format!("its purpose is {}", key.purpose),
            hint: "make a key with the purpose ENCRYPT_DECRYPT: a purpose cannot be changed".to_owned(),
        });
    }
    let unusable = |state, detail: &str| {
        let kek_id = key.primary.as_ref().map_or_else(kek_id, |primary| primary.name.clone());
        KmsFailure::Unusable { kek_id, state, hint: hint_for(state, detail) }
    };
    let Some(primary) = &key.primary else {
        return Err(unusable(KekState::NoMaterial, "it has no primary version"));
    };
    match primary.state {
        CryptoKeyVersionState::Enabled => Ok(primary),
        ref state => {
            let text = state.to_string();
            Err(unusable(state_of(&text), &format!("the primary version's state is {text}")))
        }
    }
}

/// The state in the text `… is not enabled, current state is: DESTROYED.`
fn state_told(detail: &str) -> Option<KekState> {
    let (_, state) = detail.split_once("current state is")?;
    Some(state_of(state.trim_matches(|c: char| !c.is_ascii_alphabetic())))
}

fn state_of(state: &str) -> KekState {
    match state {
        "DESTROY_SCHEDULED" | "PENDING_EXTERNAL_DESTRUCTION" => KekState::PendingDeletion,
        "DISABLED" => KekState::Disabled,
        _ => KekState::NoMaterial,
    }
}

fn hint_for(state: KekState, detail: &str) -> String {
    let next = match state {
        KekState::Disabled => "enable the version, or make an enabled one primary",
        KekState::PendingDeletion => "restore the version before its time is over, then enable it",
        KekState::NoMaterial | KekState::OutOfTime => {
            "make an enabled version primary; what a destroyed version wrapped is lost"
        }
    };
    format!("{next} ({detail})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::access::{Endpoint, GoogleAccess, GoogleAuth};

    const KEY: &str = "projects/p/locations/europe-west3/keyRings/r/cryptoKeys/k";

    async fn provider(endpoint: Option<&str>) -> GcpKms {
        let endpoint = endpoint.map(|url| Endpoint { url: url.parse().expect("a URL") });
        let access = GoogleAccess { auth: GoogleAuth::Anonymous, endpoint };
        GcpKms::open(settings::GcpKms { key_name: KEY.to_owned(), access }).await.expect("a provider")
    }

    #[tokio::test]
    async fn a_key_is_named_whole_by_its_version_or_within_the_ring() {
        let kms = provider(None).await;
        let other = "projects/p/locations/europe-west3/keyRings/r/cryptoKeys/other";
        for (kek, key) in [(None, KEY), (Some("other"), other), (Some(other), other)] {
            assert_eq!(kms.key(kek).expect("a key"), key);
        }
        assert_eq!(kms.key(Some(&format!("{other}{VERSIONS}3"))).expect("a key"), other);
        for wrong in ["", "..", "a/b", "projects/p/locations/l/keyRings/../cryptoKeys/k", &format!("{KEY}/x"), "a b"] {
            assert!(matches!(kms.key(Some(wrong)), Err(KmsFailure::NoSuchKek { .. })), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_regional_endpoint_has_no_key_of_another_location() {
        for endpoint in
            ["https://cloudkms.us-east1.rep.googleapis.com", "https://us-east1-cloudkms.googleapis.com:443/"]
        {
            let refused = provider(Some(endpoint)).await.key_of_record(KEY).map(str::to_owned);
            assert!(
                matches!(refused, Err(KmsFailure::OtherRegion { region, .. }) if region == "us-east1"),
                "{endpoint}"
            );
        }
        for endpoint in [SERVICE, "https://cloudkms.europe-west3.rep.googleapis.com", "http://127.0.0.1:8080"] {
            assert_eq!(provider(Some(endpoint)).await.key_of_record(KEY).expect("a key"), KEY);
        }
    }

    #[test]
    fn a_state_is_found_in_what_is_told() {
        let told = |state: &str| state_told(&format!("{KEY}{VERSIONS}1 is not enabled, current state is: {state}."));
        assert_eq!(told("DISABLED"), Some(KekState::Disabled));
        assert_eq!(told("DESTROY_SCHEDULED"), Some(KekState::PendingDeletion));
        assert_eq!(told("DESTROYED"), Some(KekState::NoMaterial));
        assert_eq!(state_told("something else"), None);
    }
}
