//! The provider `kes`: MinIO's Key Encryption Service. A client is known by its certificate.
//!
//! Wrapped bytes: the ciphertext that the server gave. KEK id: `kes:NAME`; the server names no versions. The binding is
//! the `context` of each call.
//!
//! Of several servers, the first that is not parked is asked. One that does not answer is parked for a while, so that
//! the next attempt goes to another.

mod identity;
mod private_key;

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use url::Url;

use crate::{
    exec::Deadline,
    key::{
        access::SettingsFault,
        binding::Binding,
        kms::{
            Kek, Kms, KmsFailure, Wrapped,
            http::{self, Answer, SecretText},
            settings,
        },
        record::KekMechanism,
        reread::Reread,
    },
    secret::InnerKey,
};

use identity::Caller;

const PREFIX: &str = "kes:";
/// How long a server that did not answer is left alone where there is another.
const PARKED_FOR: Duration = Duration::from_secs(30);

/// A KES cluster.
pub struct Kes {
    servers: Vec<Server>,
    key_name: String,
    caller: Reread<Caller>,
}

impl fmt::Debug for Kes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints: Vec<_> = self.servers.iter().map(|server| &server.endpoint).collect();
        f.debug_struct("Kes").field("endpoints", &endpoints).field("key", &self.key_name).finish_non_exhaustive()
    }
}

impl Kes {
    /// A provider as it is configured. Certificate and key are read again when their files change.
    ///
    /// # Errors
    /// A file cannot be read or does not hold what it should, a name cannot be one, or there is no endpoint.
    pub fn open(settings: settings::Kes) -> Result<Self, SettingsFault> {
        if !is_key_name(&settings.key_name) {
            return Err(SettingsFault(format!("keyName {:?} is no name of a KES key", settings.key_name)));
        }
        if settings.endpoints.is_empty() {
            return Err(SettingsFault("there is no endpoint".to_owned()));
        }
        let servers = settings.endpoints.iter().map(|endpoint| Server::new(endpoint.url.clone())).collect();
        let key_name = settings.key_name.clone();
        let mut files = vec![settings.certificate_file.clone(), settings.private_key_file.clone()];
        files.extend(settings.ca_file.iter().chain(&settings.password_file).cloned());
        Ok(Self { servers, key_name, caller: Reread::new(files, move || Caller::load(&settings))? })
    }

    /// The key that a caller names: by its name, or by an id.
    fn key<'a>(&'a self, kek: Option<&'a str>) -> Result<&'a str, KmsFailure> {
        let Some(kek) = kek else { return Ok(&self.key_name) };
        let name = kek.strip_prefix(PREFIX).unwrap_or(kek);
        if is_key_name(name) { Ok(name) } else { Err(no_such(kek, "it is no name of a KES key")) }
    }

    /// Asks one server. The answer is a success.
    async fn ask(
        &self,
        operation: Operation,
        key: &str,
        body: Option<Body<'_>>,
    ) -> Result<(&Server, Answer), KmsFailure> {
        let server = choose(&self.servers);
        let caller = self.caller.current();
        let url = http::url(&server.address, &["v1", "key", operation.path(), key]);
        let mut request = caller.client.request(operation.method(), url);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let trial = Trial { server, passed: false };
        let answer = http::ask(request, &server.endpoint).await?;
        let said = said(&answer);
        match answer.trouble(&server.endpoint, &said) {
            Some(failure @ KmsFailure::Throttled { .. }) => {
                trial.passed();
                Err(failure)
            }
            Some(failure) => Err(failure),
            None => {
                trial.passed();
                if answer.status.is_success() {
                    Ok((server, answer))
                } else {
                    Err(refused(operation, key, server, &caller.identity, answer.status, said))
                }
            }
        }
    }
}

#[async_trait]
impl Kms for Kes {
    async fn describe(&self, kek: Option<&str>, _: Deadline) -> Result<Kek, KmsFailure> {
        let key = self.key(kek)?;
        let (server, answer) = self.ask(Operation::Describe, key, None).await?;
        let Described { name } = answer.json(&server.endpoint)?;
        if name != key {
            return Err(KmsFailure::garbled(&server.endpoint, "the description of another key"));
        }
        Ok(Kek { id: format!("{PREFIX}{key}"), mechanism: KekMechanism::Symmetric })
    }

    async fn wrap(
        &self,
        key: &InnerKey,
        kek: Option<&str>,
        binding: &Binding<'_>,
        _: Deadline,
    ) -> Result<Wrapped, KmsFailure> {
        let name = self.key(kek)?;
        let (plaintext, context) = (http::secret_base64(key), BASE64_STANDARD.encode(binding.aad()));
        let body = Body { plaintext: Some(plaintext.as_str()), ciphertext: None, context: &context };
        let (server, answer) = self.ask(Operation::Encrypt, name, Some(body)).await?;
        let Encrypted { ciphertext } = answer.json(&server.endpoint)?;
        let bytes = BASE64_STANDARD.decode(ciphertext).ok().filter(|bytes| !bytes.is_empty());
        let bytes = bytes.ok_or_else(|| KmsFailure::garbled(&server.endpoint, "a ciphertext that is not base64"))?;
        Ok(Wrapped { kek_id: format!("{PREFIX}{name}"), mechanism: KekMechanism::Symmetric, bytes })
    }

    async fn unwrap(&self, wrapped: &Wrapped, binding: &Binding<'_>, _: Deadline) -> Result<InnerKey, KmsFailure> {
        let name = wrapped.kek_id.strip_prefix(PREFIX).filter(|name| is_key_name(name));
        let name = name.ok_or_else(|| no_such(&wrapped.kek_id, "it is no id of a KES key, such as kes:NAME"))?;
        if wrapped.mechanism != KekMechanism::Symmetric {
            return Err(KmsFailure::Mismatch);
        }
        let (ciphertext, context) = (BASE64_STANDARD.encode(&wrapped.bytes), BASE64_STANDARD.encode(binding.aad()));
        let body = Body { plaintext: None, ciphertext: Some(ciphertext.as_str()), context: &context };
        let (server, answer) = self.ask(Operation::Decrypt, name, Some(body)).await?;
        let Decrypted { plaintext } = answer.json(&server.endpoint)?;
        plaintext.key(&server.endpoint)
    }
}

/// What a refusal means.
fn refused(
    operation: Operation,
    key: &str,
    server: &Server,
    identity: &str,
    status: StatusCode,
    said: String,
) -> KmsFailure {
    let kek_id = format!("{PREFIX}{key}");
    let detail = if said.is_empty() { format!("status {}", status.as_u16()) } else { said };
    match status {
        StatusCode::BAD_REQUEST if operation == Operation::Decrypt && detail.contains("not authentic") => {
            KmsFailure::Mismatch
        }
        StatusCode::FORBIDDEN => KmsFailure::Denied {
            action: operation.action(),
            kek_id,
            detail,
            hint: format!("its policy has to allow /v1/key/{}/{key} to the identity {identity}", operation.path()),
        },
        StatusCode::NOT_FOUND => no_such(&kek_id, "look at `kes key ls`, and at keyName of the provider"),
        StatusCode::UNAUTHORIZED => not_known(server, detail),
        StatusCode::BAD_REQUEST if detail.contains("certificate") => not_known(server, detail),
        _ => KmsFailure::Refused { action: operation.action(), kek_id, detail },
    }
}

fn not_known(server: &Server, detail: String) -> KmsFailure {
    let hint = "look at certificateFile: the server asks for a client certificate that it trusts";
    KmsFailure::unauthenticated(&server.endpoint, hint, detail)
}

fn no_such(kek: &str, hint: &str) -> KmsFailure {
    KmsFailure::NoSuchKek { kek_id: kek.to_owned(), hint: hint.to_owned() }
}

/// What a refusal says, in one line.
fn said(answer: &Answer) -> String {
    #[derive(Deserialize)]
    struct Said {
        message: String,
    }
    answer.parsed::<Said>().map(|Said { message }| http::line(&message)).unwrap_or_default()
}

/// What a server takes as a name. A name goes into a path, and a record may have been edited.
fn is_key_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

struct Server {
    address: Url,
    /// As failures name it.
    endpoint: String,
    parked_until: Mutex<Option<Instant>>,
}

impl Server {
    fn new(address: Url) -> Self {
        Self { endpoint: http::endpoint(&address), address, parked_until: Mutex::default() }
    }

    fn parked_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.parked_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first server that is not parked; where all are, the one whose time is over soonest.
fn choose(servers: &[Server]) -> &Server {
    let now = Instant::now();
    let chosen = servers.iter().min_by_key(|server| server.parked_until().filter(|until| *until > now));
    chosen.expect("a provider is not opened without an endpoint")
}

/// A request that is under way. Unless it passes, its server is parked: also where the caller gives up waiting, which
/// is how a server that hangs is found out.
struct Trial<'a> {
    server: &'a Server,
    passed: bool,
}

impl Trial<'_> {
    fn passed(mut self) {
        self.passed = true;
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        *self.server.parked_until() = (!self.passed).then(|| Instant::now() + PARKED_FOR);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Describe,
    Encrypt,
    Decrypt,
}

impl Operation {
    fn method(self) -> Method {
        match self {
            Self::Describe => Method::GET,
            Self::Encrypt | Self::Decrypt => Method::PUT,
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Describe => "describe",
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
        }
    }

    fn action(self) -> &'static str {
        match self {
            Self::Describe => "/v1/key/describe",
            Self::Encrypt => "/v1/key/encrypt",
            Self::Decrypt => "/v1/key/decrypt",
        }
    }
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    plaintext: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext: Option<&'a str>,
    context: &'a str,
}

#[derive(Deserialize)]
struct Described {
    name: String,
}

#[derive(Deserialize)]
struct Encrypted {
    ciphertext: String,
}

#[derive(Deserialize)]
struct Decrypted {
    plaintext: SecretText,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_is_left_alone_for_a_while() {
        let server = |port: u16| Server::new(format!("https://127.0.0.1:{port}").parse().expect("a URL"));
        let servers = [server(1), server(2)];
        let chosen = || choose(&servers).endpoint.clone();
        let fail = || drop(Trial { server: choose(&servers), passed: false });
        assert_eq!(chosen(), "https://127.0.0.1:1");
        fail();
        assert_eq!(chosen(), "https://127.0.0.1:2");
        tokio::time::advance(Duration::from_secs(10)).await;
        fail();
        // Both are parked: the first for the shorter time.
        assert_eq!(chosen(), "https://127.0.0.1:1");
        tokio::time::advance(Duration::from_secs(1)).await;
        fail();
        assert_eq!(chosen(), "https://127.0.0.1:2");
        Trial { server: choose(&servers), passed: false }.passed();
        assert_eq!(chosen(), "https://127.0.0.1:2");
        tokio::time::advance(PARKED_FOR).await;
        assert_eq!(chosen(), "https://127.0.0.1:1");
    }

    #[test]
    fn names_that_would_leave_their_path_are_refused() {
        assert!(is_key_name("coffer-1_A"));
        for name in ["", ".", "..", "a/b", "a b", "ä"] {
            assert!(!is_key_name(name), "{name}");
        }
    }

    #[test]
    fn a_refusal_says_who_was_refused() {
        let server = Server::new("https://kes:7373".parse().expect("a URL"));
        let refused = |operation, status, said: &str| {
            refused(operation, "coffer", &server, "abc", status, said.to_owned()).to_string()
        };
        assert_eq!(
            refused(Operation::Encrypt, StatusCode::FORBIDDEN, "not authorized: insufficient permissions"),
            "/v1/key/encrypt with KEK kes:coffer is denied (not authorized: insufficient permissions); its policy has \
             to allow /v1/key/encrypt/coffer to the identity abc"
        );
        assert_eq!(
            refused(Operation::Decrypt, StatusCode::BAD_REQUEST, "decryption failed: ciphertext is not authentic"),
            KmsFailure::Mismatch.to_string()
        );
        assert_eq!(
            refused(Operation::Describe, StatusCode::NOT_FOUND, "key does not exist"),
            "KEK kes:coffer is not there; look at `kes key ls`, and at keyName of the provider"
        );
    }
}
