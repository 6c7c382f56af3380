//! Our imitation of Cloud KMS: its REST API, version 1, with real AES-256-GCM, for one key ring.
//!
//! What it follows, by the public reference (<https://cloud.google.com/kms/docs/reference/rest/v1>):
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/{cryptoKey}` | 200 CryptoKey: `name`, `purpose`, `primary` (none for asymmetric keys) with its `state`, `rotationPeriod`, `nextRotationTime` |
//! | `PATCH /v1/{cryptoKey}?updateMask=rotationPeriod,nextRotationTime` | 200 the same; both have to be there, the period at least a day, the time to come, the purpose `ENCRYPT_DECRYPT`: else 400 INVALID_ARGUMENT |
//! | `POST /v1/{cryptoKey}:encrypt`, `plaintext`, `additionalAuthenticatedData` in base64, `plaintextCrc32c`, `additionalAuthenticatedDataCrc32c` as decimal text | 200 `name` of the version, `ciphertext`, `ciphertextCrc32c`, `verifiedPlaintextCrc32c`, `verifiedAdditionalAuthenticatedDataCrc32c` |
//! | `POST /v1/{cryptoKey}:decrypt`, `ciphertext`, `additionalAuthenticatedData`, `ciphertextCrc32c`, `additionalAuthenticatedDataCrc32c` | 200 `plaintext`, `plaintextCrc32c`, `usedPrimary` |
//! | a checksum that does not hold | 400 INVALID_ARGUMENT |
//! | a ciphertext of another key, or with other data | 400 INVALID_ARGUMENT, `Decryption failed: …` |
//! | a version that is not enabled | 400 FAILED_PRECONDITION, `{version} is not enabled, current state is: DISABLED.` |
//! | no key of that name | 404 NOT_FOUND |
//! | no token, or none that Google takes | 401 UNAUTHENTICATED |
//! | an account without the permission | 403 PERMISSION_DENIED, `Permission '…' denied on resource '…' (or it may not exist).`, also where the key is not there |
//! | too many requests | 429 RESOURCE_EXHAUSTED |
//!
//! Errors are `{"error": {"code", "message", "status"}}`. Which code the real service gives where a key has another purpose
//! is not in the reference: here it is FAILED_PRECONDITION. The form of a ciphertext is our own.

mod key;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::SystemTime,
};

use anyhow::Result;
use aws_lc_rs::aead::{Aad, Nonce};
use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use crc32c::crc32c;
use serde_json::{Value, json};
use tonic::async_trait;
use url::form_urlencoded;

use self::key::{Key, Schedule, Version, random, version_name};
use super::accounts::{Accounts, PROJECT, Who};
use crate::cloud::{
    Forecast, KmsBed, Standing, Variant,
    weather::{Served, Tls, serve, serve_at, under},
};

const LOCATION: &str = "europe-west3";
const THROTTLED: &str = r#"{"error": {"code": 429, "message": "Quota exceeded.", "status": "RESOURCE_EXHAUSTED"}}"#;
/// A ciphertext begins with what tells its key, and the number of the version.
const TAG_BYTES: usize = 8;
const NONCE_BYTES: usize = 12;
const HEAD_BYTES: usize = TAG_BYTES + 4 + NONCE_BYTES;

/// Our imitation of Cloud KMS, with one key ring.
#[derive(Debug)]
pub struct CloudKms {
    service: Arc<Service>,
    forecast: Forecast,
    address: SocketAddr,
    served: Mutex<Option<Served>>,
}

impl CloudKms {
    /// Starts it with a symmetric key and one for signatures.
    ///
    /// # Errors
    /// A file cannot be written, or no port can be had.
    pub async fn start(folder: &Path) -> Result<Self> {
        let service = Arc::new(Service { accounts: Accounts::new(folder)?, keys: Mutex::default() });
        let symmetric = Key::new("ENCRYPT_DECRYPT", [(1, Version::new())].into());
        let signing = Key::new("ASYMMETRIC_SIGN", BTreeMap::new());
        service.keys().extend([(key_name("kek"), symmetric), (key_name("signing"), signing)]);
        let forecast = Forecast::new().throttled_by(429, "application/json; charset=UTF-8", THROTTLED);
        let served = serve(router(&service, &forecast), None).await?;
        Ok(Self { service, forecast, address: served.address(), served: Mutex::new(Some(served)) })
    }

    /// Serves the same by TLS as well, as `https://127.0.0.1:PORT`, and says how a configuration is for that.
    ///
    /// # Errors
    /// No port can be had.
    pub async fn by_tls(&self, config: &Value, tls: Tls) -> Result<(Value, Served)> {
        let served = serve(router(&self.service, &self.forecast), Some(tls)).await?;
        let mut config = config.clone();
        config["endpoint"] = format!("https://{}", served.address()).into();
        config["insecureEndpoint"] = false.into();
        Ok((config, served))
    }

    fn configuration(&self, key: &str, who: Who, endpoint: &str) -> Value {
        json!({
            "type": "gcp-kms",
            "keyName": key_name(key),
            "endpoint": endpoint,
            "insecureEndpoint": true,
            "auth": self.service.accounts.auth(who),
        })
    }

    fn with_kek<T>(&self, change: impl FnOnce(&mut Key) -> T) -> T {
        change(self.service.keys().get_mut(&key_name("kek")).expect("it is never deleted"))
    }
}

fn router(service: &Arc<Service>, forecast: &Forecast) -> Router {
    under(Router::new().fallback(answer).with_state(service.clone()), forecast.clone())
}

fn key_name(key: &str) -> String {
    format!("projects/{PROJECT}/locations/{LOCATION}/keyRings/coffer/cryptoKeys/{key}")
}

#[async_trait]
impl KmsBed for CloudKms {
    fn provider(&self) -> &'static str {
        "gcp-kms"
    }

    fn server(&self) -> String {
        "Cloud KMS REST API v1".to_owned()
    }

    fn standing(&self) -> Standing {
        Standing::OurFake
    }

    async fn config(&self, variant: Variant) -> Result<Option<Value>> {
        let endpoint = format!("http://{}", self.address);
        let (key, who, endpoint) = match variant {
            Variant::Good => ("kek", Who::User, endpoint),
            // Keys of the purpose ASYMMETRIC_DECRYPT are not for this provider.
            Variant::Rsa => return Ok(None),
            Variant::MissingKek => ("missing", Who::Owner, endpoint),
            Variant::WrongType => ("signing", Who::Owner, endpoint),
            Variant::NoPermission => ("kek", Who::Stranger, endpoint),
            Variant::BadCredentials => ("kek", Who::Impostor, endpoint),
            // A regional endpoint's name tells that it has no such key, so that it is not asked.
            Variant::WrongRegion => ("kek", Who::Owner, "http://cloudkms.us-east1.rep.googleapis.com".to_owned()),
        };
        Ok(Some(self.configuration(key, who, &endpoint)))
    }

    async fn keeper(&self) -> Result<Option<Value>> {
        Ok(Some(self.configuration("kek", Who::Owner, &format!("http://{}", self.address))))
    }

    fn forecast(&self) -> &Forecast {
        &self.forecast
    }

    async fn rotate(&self) -> Result<bool> {
        self.with_kek(|key| {
            key.primary = key.versions.keys().max().map_or(1, |newest| newest + 1);
            key.versions.insert(key.primary, Version::new());
        });
        Ok(true)
    }

    async fn enable(&self, enabled: bool) -> Result<bool> {
        let state = if enabled { "ENABLED" } else { "DISABLED" };
        self.with_kek(|key| key.versions.values_mut().for_each(|version| version.state = state));
        Ok(true)
    }

    async fn outage(&self, begins: bool) -> Result<bool> {
        let router = router(&self.service, &self.forecast);
        let served = if begins { None } else { Some(serve_at(router, None, self.address).await?) };
        *self.served.lock().expect("nothing panics while it is held") = served;
        Ok(true)
    }
}

#[derive(Debug)]
struct Service {
    accounts: Accounts,
    keys: Mutex<BTreeMap<String, Key>>,
}

/// An error as the API tells it.
struct Refused(u16, &'static str, String);

impl Refused {
    fn invalid(message: &str) -> Self {
        Self(400, "INVALID_ARGUMENT", message.to_owned())
    }

    fn no_key(name: &str) -> Self {
        Self(404, "NOT_FOUND", format!("CryptoKey {name} not found."))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(code, status, message) = self;
        let body = json!({"error": {"code": code, "message": message, "status": status}});
        (StatusCode::from_u16(code).expect("these are statuses"), Json(body)).into_response()
    }
}

async fn answer(
    State(service): State<Arc<Service>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, Refused> {
    let Some(account) = service.accounts.caller(&headers) else {
        let message = "Request had invalid authentication credentials.".to_owned();
        return Err(Refused(401, "UNAUTHENTICATED", message));
    };
    let path = uri.path().strip_prefix("/v1/").unwrap_or_default();
    let (name, verb) = path.rsplit_once(':').unwrap_or((path, ""));
    let permission = match (&method, verb) {
        (&Method::GET, "") => "cloudkms.cryptoKeys.get",
        (&Method::PATCH, "") => "cloudkms.cryptoKeys.update",
        (&Method::POST, "encrypt") => "cloudkms.cryptoKeyVersions.useToEncrypt",
        (&Method::POST, "decrypt") => "cloudkms.cryptoKeyVersions.useToDecrypt",
        _ => return Err(Refused(404, "NOT_FOUND", format!("{method} {path} is not imitated."))),
    };
    if !account.may(permission) {
        let message = format!("Permission '{permission}' denied on resource '{name}' (or it may not exist).");
        return Err(Refused(403, "PERMISSION_DENIED", message));
    }
    if method == Method::GET {
        return service.describe(name);
    }
    let body: Value = serde_json::from_slice(&body).map_err(|_| Refused::invalid("Invalid JSON payload received."))?;
    if method == Method::PATCH {
        let query: HashMap<_, _> = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).collect();
        let mask = query.get("updateMask").map(|mask| &**mask).unwrap_or_default();
        return service.schedule(name, mask, &body);
    }
    if verb == "encrypt" { service.encrypt(name, &body) } else { service.decrypt(name, &body) }
}

impl Service {
    fn keys(&self) -> MutexGuard<'_, BTreeMap<String, Key>> {
        self.keys.lock().expect("nothing panics while it is held")
    }

    fn describe(&self, name: &str) -> Result<Json<Value>, Refused> {
        let keys = self.keys();
        let key = keys.get(name).ok_or_else(|| Refused::no_key(name))?;
        let mut found = json!({"name": name, "purpose": key.purpose, "createTime": "2026-01-02T03:04:05.678901234Z"});
        if let Some(primary) = key.versions.get(&key.primary) {
            found["primary"] = json!({
                "name": version_name(name, key.primary),
                "state": primary.state,
                "protectionLevel": "SOFTWARE",
                "algorithm": "GOOGLE_SYMMETRIC_ENCRYPTION",
            });
        }
        if let Some(Schedule { period, next }) = &key.rotation {
            found["rotationPeriod"] = period.as_str().into();
            found["nextRotationTime"] = next.as_str().into();
        }
        Ok(Json(found))
    }

    fn schedule(&self, name: &str, mask: &str, body: &Value) -> Result<Json<Value>, Refused> {
        let mut keys = self.keys();
        let key = keys.get_mut(name).ok_or_else(|| Refused::no_key(name))?;
        if mask.split(',').collect::<BTreeSet<_>>() != BTreeSet::from(["rotationPeriod", "nextRotationTime"]) {
            return Err(Refused::invalid("only a rotation period with its time is imitated"));
        }
        if key.purpose != "ENCRYPT_DECRYPT" {
            return Err(Refused::invalid("Rotation is for keys of the purpose ENCRYPT_DECRYPT."));
        }
        let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
        let schedule = Schedule { period: text("rotationPeriod"), next: text("nextRotationTime") };
        let seconds = schedule.period.strip_suffix('s').and_then(|seconds| seconds.parse::<u64>().ok());
        if seconds.is_none_or(|seconds| !(86_400..=876_000 * 3600).contains(&seconds)) {
            return Err(Refused::invalid("rotation_period must be at least 24 hours and at most 876000 hours."));
        }
        let next = schedule.next.parse::<prost_types::Timestamp>().map_or(0, |next| next.seconds);
        if next <= prost_types::Timestamp::from(SystemTime::now()).seconds {
            return Err(Refused::invalid("next_rotation_time must be in the future."));
        }
        key.rotation = Some(schedule);
        drop(keys);
        self.describe(name)
    }

    fn encrypt(&self, name: &str, body: &Value) -> Result<Json<Value>, Refused> {
        let keys = self.keys();
        let key = keys.get(name).ok_or_else(|| Refused::no_key(name))?;
        let (plaintext, is_checked) = checked(body, "plaintext", "plaintextCrc32c")?;
        let (aad, is_aad_checked) = checked(body, AAD, AAD_CHECKSUM)?;
        let version = key.usable(name, key.primary)?;
        let (nonce, mut sealed) = (random::<NONCE_BYTES>(), plaintext);
        let sealing =
            version.cipher().seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut sealed);
        sealing.expect("so few bytes can be sealed");
        let ciphertext = [&key.tag[..], &key.primary.to_be_bytes(), &nonce, &sealed].concat();
        Ok(Json(json!({
            "name": version_name(name, key.primary),
            "ciphertext": BASE64_STANDARD.encode(&ciphertext),
            "ciphertextCrc32c": crc32c(&ciphertext).to_string(),
            "verifiedPlaintextCrc32c": is_checked,
            "verifiedAdditionalAuthenticatedDataCrc32c": is_aad_checked,
            "protectionLevel": "SOFTWARE",
        })))
    }

    fn decrypt(&self, name: &str, body: &Value) -> Result<Json<Value>, Refused> {
        let keys = self.keys();
        let key = keys.get(name).ok_or_else(|| Refused::no_key(name))?;
        let (ciphertext, _) = checked(body, "ciphertext", "ciphertextCrc32c")?;
        let (aad, _) = checked(body, AAD, AAD_CHECKSUM)?;
        let invalid = || Refused::invalid("Decryption failed: the ciphertext is invalid.");
        let (head, sealed) = ciphertext.split_at_checked(HEAD_BYTES).ok_or_else(invalid)?;
        let (tag, rest) = head.split_at(TAG_BYTES);
        let (number, nonce) = rest.split_first_chunk().expect("the head has a number");
        if tag != key.tag.as_slice() {
            return Err(Refused::invalid("Decryption failed: verify that 'name' refers to the correct CryptoKey."));
        }
        let number = u32::from_be_bytes(*number);
        if !key.versions.contains_key(&number) {
            return Err(invalid());
        }
        let cipher = key.usable(name, number)?.cipher();
        let nonce = Nonce::try_assume_unique_for_key(nonce).expect("the head has a nonce");
        let mut opened = sealed.to_vec();
        let plaintext = cipher.open_in_place(nonce, Aad::from(aad), &mut opened).map_err(|_| invalid())?;
        Ok(Json(json!({
            "plaintext": BASE64_STANDARD.encode(&*plaintext),
            "plaintextCrc32c": crc32c(plaintext).to_string(),
            "usedPrimary": number == key.primary,
            "protectionLevel": "SOFTWARE",
        })))
    }
}

const AAD: &str = "additionalAuthenticatedData";
const AAD_CHECKSUM: &str = "additionalAuthenticatedDataCrc32c";

/// A field's bytes, and whether a checksum was sent with them, which then holds.
fn checked(body: &Value, field: &str, checksum: &str) -> Result<(Vec<u8>, bool), Refused> {
    let text = body[field].as_str().unwrap_or_default();
    let bytes =
        BASE64_STANDARD.decode(text).map_err(|_| Refused::invalid(&format!("Base64 decoding failed for {field}")))?;
    let told = match &body[checksum] {
        Value::Null => return Ok((bytes, false)),
        Value::String(text) => text.parse().ok(),
        number => number.as_u64(),
    };
    if told != Some(u64::from(crc32c(&bytes))) {
        return Err(Refused::invalid(&format!("The checksum in {checksum} does not match the data in {field}.")));
    }
    Ok((bytes, true))
}
