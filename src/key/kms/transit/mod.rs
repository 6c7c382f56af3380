//! The provider `transit`: the transit secrets engine of OpenBao and HashiCorp Vault.
//!
//! Wrapped bytes: the ciphertext as text, `vault:vN:…`. KEK id: `transit:[NAMESPACE/]MOUNT/KEY:vN`, without the
//! server's address, so that a server may move.
//!
//! Keys of the AEAD types get the binding as `associated_data` and as `context`: the engine takes the context for
//! derived keys and ignores it for others. The engine's own rewrap drops `associated_data`, so a rewrap is an unwrap
//! and a wrap. To encrypt with a key that is missing would create it, where the token may: a key is read before it
//! wraps.

mod api;
mod batch;
mod key_info;
mod login;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, task::AbortHandle, time::Instant};

use crate::{
    exec::Deadline,
    key::{
        access::SettingsFault,
        binding::Binding,
        kms::{
            ByHand, Kek, Kms, KmsFailure, Periods, Rotation, Wrapped,
            http::{self, Answer, SecretText},
            settings,
        },
        record::KekMechanism,
    },
    secret::InnerKey,
};

use api::{Api, Operation, Token};
use batch::{Batches, Decrypt, Turn};
use key_info::{KeyInfo, PERIODS};
use login::Login;

const PREFIX: &str = "transit:";
/// How long a key that was read is trusted to be there and of its type.
const TRUSTED_FOR: Duration = Duration::from_secs(60);

/// A transit secrets engine.
pub struct Transit {
    api: Arc<Api>,
    login: Arc<Login>,
    batches: Arc<Batches>,
    /// `transit:[NAMESPACE/]MOUNT/`
    place: String,
    mount: String,
    key_name: String,
    /// The keys that were read, by name, and when.
    read: Mutex<BTreeMap<String, (Instant, KekMechanism)>>,
    renewing: Option<AbortHandle>,
}

impl fmt::Debug for Transit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transit")
            .field("endpoint", &self.api.endpoint)
            .field("key", &self.named(&self.key_name))
            .finish_non_exhaustive()
    }
}

impl Drop for Transit {
    fn drop(&mut self) {
        if let Some(renewing) = &self.renewing {
            renewing.abort();
        }
    }
}

impl Transit {
    /// A provider as it is configured. Inside a runtime, its token is renewed in the background from now on.
    ///
    /// # Errors
    /// A file cannot be read or does not hold what it should, or a name cannot be one.
    pub fn open(settings: settings::Transit) -> Result<Self, SettingsFault> {
        let api = Arc::new(Api::new(&settings)?);
        let login = Arc::new(Login::new(api.clone(), settings.auth)?);
        let mount = settings.mount.trim_matches('/').to_owned();
        if !is_path(&mount) {
            return Err(SettingsFault(format!("mount {mount:?} is no path of a secrets engine")));
        }
        if !is_key_name(&settings.key_name) {
            return Err(SettingsFault(format!("keyName {:?} is no name of a transit key", settings.key_name)));
        }
        let namespace = settings.namespace.as_deref().map(|path| format!("{}/", path.trim_matches('/')));
        let place = format!("{PREFIX}{}{mount}/", namespace.unwrap_or_default());
        let renewing = Handle::try_current().ok().map(|runtime| runtime.spawn(login.clone().renew()).abort_handle());
        let batches = Batches::new(api.clone(), login.clone(), mount.clone());
        let (key_name, read) = (settings.key_name, Mutex::default());
        Ok(Self { api, login, batches, place, mount, key_name, read, renewing })
    }

    /// A key as ids and failures name it where no version is known.
    fn named(&self, key: &str) -> String {
        format!("{}{key}", self.place)
    }

    /// The key that a caller names: by its name, or by an id of this provider.
    fn key<'a>(&'a self, kek: Option<&'a str>) -> Result<&'a str, KmsFailure> {
        match kek {
            None => Ok(&self.key_name),
            Some(id) if id.starts_with(PREFIX) => self.key_and_version(id).map(|(key, _)| key),
            Some(name) if is_key_name(name) => Ok(name),
            Some(other) => Err(no_such(other, "it is no name of a transit key".to_owned())),
        }
    }

    /// The key that an id names, and the digits of its version.
    fn key_and_version<'a>(&self, id: &'a str) -> Result<(&'a str, &'a str), KmsFailure> {
        let named = id.strip_prefix(&self.place).and_then(|rest| rest.rsplit_once(":v"));
        match named {
            Some((key, version)) if is_key_name(key) && is_version(version) => Ok((key, version)),
            _ => {
                let hint = format!("this provider has keys named {}KEY:vN; look at namespace and mount", self.place);
                Err(no_such(id, hint))
            }
        }
    }

    /// Asks with a token; where it is refused and there may be a better one, once more.
    async fn ask(
        &self,
        operation: Operation,
        key: &str,
        kek_id: &str,
        request: impl Fn(&Token) -> RequestBuilder,
    ) -> Result<Answer, KmsFailure> {
        let mut token = self.login.token().await?;
        let mut answer = self.api.ask(request(&token)).await?;
        if answer.status == StatusCode::FORBIDDEN
            && let Some(better) = self.login.better(&token).await?
        {
            answer = self.api.ask(request(&better)).await?;
            token = better;
        }
        if answer.status.is_success() {
            return Ok(answer);
        }
        // What was read of the key may be true no more.
        self.read().remove(key);
        if !matches!(answer.status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) {
            return Err(api::refused(operation, &self.mount, kek_id, &answer));
        }
        let said = api::said(&answer);
        if !self.login.is_taken(&token).await? {
            return Err(self.login.refused(&said));
        }
        let (mount, path, capability) = (&self.mount, operation.path(), operation.capability());
        let part = operation.part().map_or_else(String::new, |part| format!("/{part}"));
        Err(KmsFailure::Denied {
            action: operation.action(),
            kek_id: kek_id.to_owned(),
            detail: if said.is_empty() { format!("status {}", answer.status.as_u16()) } else { said },
            hint: format!(
                "its policy needs: path \"{mount}/{path}/{key}{part}\" {{ capabilities = [\"{capability}\"] }}; \
                 or nothing is mounted at {mount}, or the namespace is another"
            ),
        })
    }

    async fn key_info(&self, key: &str) -> Result<(KekMechanism, KeyInfo), KmsFailure> {
        let kek_id = self.named(key);
        let request = |token: &Token| self.request(Method::GET, Operation::Read, key, token);
        let answer = self.ask(Operation::Read, key, &kek_id, request).await?;
        let info: KeyInfo = self.api.data(&answer)?;
        if info.soft_deleted {
            return Err(api::soft_deleted(&self.mount, kek_id));
        }
        let mechanism = info.mechanism().filter(|_| info.supports_encryption && info.supports_decryption);
        let Some(mechanism) = mechanism else {
            return Err(api::wrong_type(kek_id, format!("{} does not encrypt keys", http::line(&info.kind))));
        };
        self.read().insert(key.to_owned(), (Instant::now(), mechanism));
        Ok((mechanism, info))
    }

    /// How a key wraps, which also shows that it is there.
    async fn mechanism(&self, key: &str) -> Result<KekMechanism, KmsFailure> {
        let known = self.read().get(key).copied();
        match known {
            Some((when, mechanism)) if when.elapsed() < TRUSTED_FOR => Ok(mechanism),
            _ => self.key_info(key).await.map(|(mechanism, _)| mechanism),
        }
    }

    fn request(&self, method: Method, operation: Operation, key: &str, token: &Token) -> RequestBuilder {
        let path = [Some(self.mount.as_str()), Some(operation.path()), Some(key), operation.part()];
        self.api.request(method, &path.into_iter().flatten().collect::<Vec<_>>(), Some(token))
    }

    fn read(&self) -> MutexGuard<'_, BTreeMap<String, (Instant, KekMechanism)>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Kms for Transit {
    async fn describe(&self, kek: Option<&str>, _: Deadline) -> Result<Kek, KmsFailure> {
        let key = self.key(kek)?;
        let (mechanism, info) = self.key_info(key).await?;
        Ok(Kek { id: format!("{}:v{}", self.named(key), info.latest_version), mechanism })
    }

    async fn wrap(
        &self,
        key: &InnerKey,
        kek: Option<&str>,
        binding: &Binding<'_>,
        _: Deadline,
    ) -> Result<Wrapped, KmsFailure> {
        let name = self.key(kek)?;
        let mechanism = self.mechanism(name).await?;
        let (plaintext, bound) = (http::secret_base64(key), bound(mechanism, binding));
        let body = Encrypt { plaintext: &plaintext, associated_data: bound.as_deref(), context: bound.as_deref() };
        let request = |token: &Token| self.request(Method::POST, Operation::Encrypt, name, token).json(&body);
        let answer = self.ask(Operation::Encrypt, name, &self.named(name), request).await?;
        let Encrypted { ciphertext } = self.api.data(&answer)?;
        let version = version(&ciphertext).ok_or_else(|| {
            KmsFailure::garbled(&self.api.endpoint, "a ciphertext that does not begin with vault:vN:")
        })?;
        Ok(Wrapped { kek_id: format!("{}:v{version}", self.named(name)), mechanism, bytes: ciphertext.into_bytes() })
    }

    async fn unwrap(
        &self,
        wrapped: &Wrapped,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<InnerKey, KmsFailure> {
        let (key, kek_version) = self.key_and_version(&wrapped.kek_id)?;
        let ciphertext = std::str::from_utf8(&wrapped.bytes).map_err(|_| KmsFailure::Mismatch)?;
        // The engine would decrypt with the version that the ciphertext names, whatever the record says.
        if version(ciphertext) != Some(kek_version) || wrapped.mechanism == KekMechanism::AesKeyWrap256 {
            return Err(KmsFailure::Mismatch);
        }
        let bound = bound(wrapped.mechanism, binding);
        let body = Decrypt::new(ciphertext, bound);
        let _place = match self.batches.turn(key, &body, deadline).await {
            Turn::Along(brought) => return brought,
            Turn::Alone(place) => place,
        };
        let request = |token: &Token| self.request(Method::POST, Operation::Decrypt, key, token).json(&body);
        let answer = self.ask(Operation::Decrypt, key, &wrapped.kek_id, request).await?;
        let Decrypted { plaintext } = self.api.data(&answer)?;
        plaintext.key(&self.api.endpoint)
    }

    fn rotation_periods(&self, _: Option<&str>) -> Result<Periods, ByHand> {
        Ok(PERIODS)
    }

    async fn rotation(&self, kek: Option<&str>, _: Deadline) -> Result<Rotation, KmsFailure> {
        self.key_info(self.key(kek)?).await.map(|(_, info)| info.rotation())
    }

    async fn rotate_every(&self, period: Duration, kek: Option<&str>, _: Deadline) -> Result<(), KmsFailure> {
        let key = self.key(kek)?;
        let body = Rotate { auto_rotate_period: format!("{}s", period.as_secs()) };
        let request = |token: &Token| self.request(Method::POST, Operation::Configure, key, token).json(&body);
        self.ask(Operation::Configure, key, &self.named(key), request).await.map(drop)
    }
}

/// The binding as the engine takes it; RSA binds nothing.
fn bound(mechanism: KekMechanism, binding: &Binding<'_>) -> Option<String> {
    (mechanism == KekMechanism::Symmetric).then(|| BASE64_STANDARD.encode(binding.aad()))
}

/// The digits of the version in `vault:vN:…`. The server takes base64 whose last bits say something else than those it
/// wrote; here there is one text for one ciphertext.
fn version(ciphertext: &str) -> Option<&str> {
    let (version, base64) = ciphertext.strip_prefix("vault:v")?.split_once(':')?;
    (is_version(version) && BASE64_STANDARD.decode(base64).is_ok()).then_some(version)
}

fn is_version(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// What the engine takes as a name. A name goes into a path, and a record may have been edited.
fn is_key_name(name: &str) -> bool {
    let (word, inner) = (|byte: u8| byte.is_ascii_alphanumeric() || byte == b'_', |byte| matches!(byte, b'-' | b'.'));
    let bytes = name.as_bytes();
    let ends = bytes.first().is_some_and(|&byte| word(byte)) && bytes.last().is_some_and(|&byte| word(byte));
    ends && bytes.iter().all(|&byte| word(byte) || inner(byte))
}

fn is_path(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn no_such(kek: &str, hint: String) -> KmsFailure {
    KmsFailure::NoSuchKek { kek_id: kek.to_owned(), hint }
}

#[derive(Serialize)]
struct Encrypt<'a> {
    plaintext: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    associated_data: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<&'a str>,
}

#[derive(Deserialize)]
struct Encrypted {
    ciphertext: String,
}

#[derive(Deserialize)]
struct Decrypted {
    plaintext: SecretText,
}

#[derive(Serialize)]
struct Rotate {
    auto_rotate_period: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{access::Endpoint, kms::settings::TransitAuth};

    fn transit(namespace: Option<&str>, mount: &str, key_name: &str) -> Result<Transit, SettingsFault> {
        let folder = tempfile::tempdir().expect("a folder");
        let (token_file, ca_file) = (folder.path().join("token"), folder.path().join("ca.crt"));
        let authority = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        std::fs::write(&token_file, "s.token\n").expect("it can be written");
        std::fs::write(&ca_file, authority.cert.pem()).expect("it can be written");
        Transit::open(settings::Transit {
            address: Endpoint { url: "http://127.0.0.1:1".parse().expect("a URL") },
            mount: mount.to_owned(),
            key_name: key_name.to_owned(),
            namespace: namespace.map(str::to_owned),
            ca_file: Some(ca_file),
            auth: TransitAuth::Token { token_file },
        })
    }

    #[test]
    fn an_id_names_namespace_mount_key_and_version() {
        let there = transit(Some("team/"), "deep/transit", "volumes").expect("it opens");
        let parsed = there.key_and_version("transit:team/deep/transit/volumes:v12").expect("an id of its own");
        assert_eq!(parsed, ("volumes", "12"));
        for other in [
            "transit:deep/transit/volumes:v12",
            "transit:team/deep/transit/volumes",
            "transit:team/deep/transit/volumes:v",
            "transit:team/deep/transit/volumes:v+1",
            "transit:team/deep/transit/../volumes:v1",
            "transit:team/deep/transit/:v1",
            "local:00",
        ] {
            let refused = there.key_and_version(other);
            assert!(matches!(refused, Err(KmsFailure::NoSuchKek { kek_id, .. }) if kek_id == other), "{other}");
        }
    }

    #[test]
    fn names_that_would_leave_their_path_are_refused() {
        for (mount, key_name) in [("", "k"), ("a/../b", "k"), ("transit", "a/b"), ("transit", "."), ("transit", "k.")] {
            assert!(transit(None, mount, key_name).is_err(), "{mount} {key_name}");
        }
        let there = transit(None, "/transit/", "key_1.a-b").expect("it opens");
        assert_eq!(there.named("k"), "transit:transit/k");
        assert!(!format!("{there:?}").contains("s.token"));
    }

    #[test]
    fn the_version_is_read_out_of_the_ciphertext() {
        assert_eq!(version("vault:v3:AAAA"), Some("3"));
        for wrong in ["", "vault:v3", "vault:v:AAAA", "vault:vx:AAAA", "other:v3:AAAA"] {
            assert_eq!(version(wrong), None, "{wrong}");
        }
    }
}
