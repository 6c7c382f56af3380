//! A KES server of our own, after its documented HTTP API: clients are known by their certificates, a policy says what
//! each identity may, and keys are AES-256-GCM with the context as associated data.

use std::{
    collections::HashMap,
    fmt,
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use anyhow::{Context, Result};
use async_trait::async_trait;
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand,
};
use axum::{
    Json, Router,
    body::to_bytes,
    extract::Request,
    http::{Method, StatusCode},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    KmsBed, Standing, Variant,
    weather::{self, Authority, ClientCertificate, Forecast, Served, Tls},
};

const KEY: &str = "coffer";
const MISSING_KEY: &str = "coffer-missing";
/// What the identity of Coffer may do: the least that it needs.
const ALLOWED: [&str; 3] = ["/v1/key/describe/coffer", "/v1/key/encrypt/coffer", "/v1/key/decrypt/coffer"];

/// A KES server with a key, a client that may use it, one that may not, and one that it does not know.
#[derive(Debug)]
pub struct KesServer {
    forecast: Forecast,
    keys: Keys,
    tls: Tls,
    address: SocketAddr,
    served: Mutex<Option<Served>>,
    ca_file: PathBuf,
    client: Files,
    powerless: Files,
    stranger: Files,
}

impl KesServer {
    /// Starts one.
    ///
    /// # Errors
    /// A file cannot be written, or no port can be had.
    pub async fn start(folder: &Path) -> Result<Self> {
        let authority = Authority::new(folder)?;
        let others = folder.join("another-authority");
        std::fs::create_dir_all(&others)?;
        let client = Files::from(authority.client("coffer")?);
        let powerless = Files::from(authority.client("powerless")?);
        let stranger = Files::from(Authority::new(&others)?.client("stranger")?);

        let keys = Keys::default();
        keys.create(KEY);
        let missing = ALLOWED.map(|path| path.replace(KEY, MISSING_KEY));
        let allowed = ALLOWED.iter().map(|path| (*path).to_owned()).chain(missing).collect();
        keys.lock().policy.insert(client.identity()?, allowed);

        let forecast = Forecast::new().throttled_by(429, "application/json", r#"{"message":"too many requests"}"#);
        let tls = authority.server_asking(&["127.0.0.1"])?;
        let served = weather::serve(keys.router(&forecast), Some(tls.clone())).await?;
        Ok(Self {
            forecast,
            keys,
            tls,
            address: served.address(),
            served: Mutex::new(Some(served)),
            ca_file: authority.ca_file(),
            client,
            powerless,
            stranger,
        })
    }

    /// Another server of the same cluster: it has the same keys and policy, and a forecast of its own.
    ///
    /// # Errors
    /// No port can be had.
    pub async fn another(&self) -> Result<(Served, Forecast)> {
        let forecast = Forecast::new();
        let served = weather::serve(self.keys.router(&forecast), Some(self.tls.clone())).await?;
        Ok((served, forecast))
    }

    /// The identity of the client that may use the key.
    ///
    /// # Errors
    /// Its certificate cannot be read.
    pub fn identity(&self) -> Result<String> {
        self.client.identity()
    }

    fn configuration(&self, key_name: &str, client: &Files) -> Value {
        json!({
            "type": "kes",
            "endpoints": [format!("https://{}", self.address)],
            "keyName": key_name,
            "caFile": self.ca_file,
            "certificateFile": client.certificate,
            "privateKeyFile": client.private_key,
        })
    }

    fn served(&self) -> MutexGuard<'_, Option<Served>> {
        self.served.lock().expect("nothing panics while it is held")
    }
}

#[async_trait]
impl KmsBed for KesServer {
    fn provider(&self) -> &'static str {
        "kes"
    }

    fn server(&self) -> String {
        "our own, after the documented API of KES".to_owned()
    }

    fn standing(&self) -> Standing {
        Standing::OurFake
    }

    async fn config(&self, variant: Variant) -> Result<Option<Value>> {
        Ok(match variant {
            Variant::Good => Some(self.configuration(KEY, &self.client)),
            Variant::MissingKek => Some(self.configuration(MISSING_KEY, &self.client)),
            Variant::NoPermission => Some(self.configuration(KEY, &self.powerless)),
            Variant::BadCredentials => Some(self.configuration(KEY, &self.stranger)),
            // A server has keys of one kind, and no regions.
            Variant::Rsa | Variant::WrongType | Variant::WrongRegion => None,
        })
    }

    fn forecast(&self) -> &Forecast {
        &self.forecast
    }

    /// The open source server gives a key no versions.
    async fn rotate(&self) -> Result<bool> {
        Ok(false)
    }

    /// It has no such state.
    async fn enable(&self, _: bool) -> Result<bool> {
        Ok(false)
    }

    async fn outage(&self, begins: bool) -> Result<bool> {
        let ended = self.served().take();
        drop(ended);
        if !begins {
            let router = self.keys.router(&self.forecast);
            let served = weather::serve_at(router, Some(self.tls.clone()), self.address).await?;
            *self.served() = Some(served);
        }
        Ok(true)
    }
}

/// A client's files.
#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    private_key: PathBuf,
}

impl From<(PathBuf, PathBuf)> for Files {
    fn from((certificate, private_key): (PathBuf, PathBuf)) -> Self {
        Self { certificate, private_key }
    }
}

impl Files {
    fn identity(&self) -> Result<String> {
        let pem = std::fs::read(&self.certificate)?;
        let (_, section) = x509_parser::pem::parse_x509_pem(&pem).ok().context("a certificate in PEM")?;
        identity(&section.contents).context("a certificate")
    }
}

/// The identity that KES gives a certificate: the SHA-256 of its public key (SubjectPublicKeyInfo in DER).
fn identity(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let mut text = String::new();
    for byte in Sha256::digest(certificate.public_key().raw) {
        write!(text, "{byte:02x}").expect("a text can always be written to");
    }
    Some(text)
}

/// What the servers of a cluster share: keys, and what each identity may.
#[derive(Clone, Default)]
struct Keys(Arc<Mutex<Cluster>>);

#[derive(Default)]
struct Cluster {
    keys: HashMap<String, [u8; 32]>,
    policy: HashMap<String, Vec<String>>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

type Reply = (StatusCode, Json<Value>);

impl Keys {
    fn lock(&self) -> MutexGuard<'_, Cluster> {
        self.0.lock().expect("nothing panics while it is held")
    }

    fn router(&self, forecast: &Forecast) -> Router {
        let keys = self.clone();
        let router = Router::new().fallback(move |request: Request| {
            let keys = keys.clone();
            async move { keys.answer(request).await.unwrap_or_else(|refusal| refusal) }
        });
        weather::under(router, forecast.clone())
    }

    /// False where there is a key of this name.
    fn create(&self, name: &str) -> bool {
        let mut cluster = self.lock();
        let is_new = !cluster.keys.contains_key(name);
        if is_new {
            cluster.keys.insert(name.to_owned(), random());
        }
        is_new
    }

    async fn answer(&self, request: Request) -> Result<Reply, Reply> {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        if path == "/version" {
            return Ok(success(json!({ "version": "a fake", "commit": "" })));
        }
        let caller = head.extensions.get::<ClientCertificate>().and_then(|ClientCertificate(der)| identity(der));
        let Some(caller) = caller else {
            return Err(refusal(StatusCode::BAD_REQUEST, "no client certificate is present"));
        };
        let is_allowed = self.lock().policy.get(&caller).is_some_and(|allowed| allowed.iter().any(|it| it == path));
        if !is_allowed {
            return Err(refusal(StatusCode::FORBIDDEN, "not authorized: insufficient permissions"));
        }
        let Some(("v1", "key", operation, name)) = parts(path) else {
            return Err(refusal(StatusCode::NOT_FOUND, "not found"));
        };
        match (&head.method, operation) {
            (&Method::PUT | &Method::POST, "create") => {
                if self.create(name) {
                    Ok(success(Value::Null))
                } else {
                    Err(refusal(StatusCode::BAD_REQUEST, "key already exists"))
                }
            }
            (&Method::GET, "list") => {
                let prefix = name.trim_end_matches('*');
                let mut names: Vec<_> = self.lock().keys.keys().filter(|it| it.starts_with(prefix)).cloned().collect();
                names.sort();
                Ok(success(json!({ "names": names, "continue_at": "" })))
            }
            (&Method::GET, "describe") => {
                self.key(name)?;
                let created_at = "2026-01-01T00:00:00Z";
                Ok(success(json!({ "name": name, "created_at": created_at, "created_by": caller })))
            }
            (&Method::PUT | &Method::POST, "generate" | "encrypt" | "decrypt") => {
                let key = self.key(name)?;
                let body = to_bytes(body, 1 << 20).await.unwrap_or_default();
                let body: Value = serde_json::from_slice(&body)
                    .map_err(|_| refusal(StatusCode::BAD_REQUEST, "invalid request body"))?;
                let context = bytes(&body, "context")?;
                match operation {
                    "generate" => {
                        let plaintext: [u8; 32] = random();
                        let ciphertext = BASE64_STANDARD.encode(sealed(&key, &plaintext, &context));
                        let plaintext = BASE64_STANDARD.encode(plaintext);
                        Ok(success(json!({ "plaintext": plaintext, "ciphertext": ciphertext })))
                    }
                    "encrypt" => {
                        let ciphertext = sealed(&key, &bytes(&body, "plaintext")?, &context);
                        Ok(success(json!({ "ciphertext": BASE64_STANDARD.encode(ciphertext) })))
                    }
                    _ => {
                        let opened = opened(&key, &bytes(&body, "ciphertext")?, &context);
                        let not_authentic = "decryption failed: ciphertext is not authentic";
                        let plaintext = opened.ok_or_else(|| refusal(StatusCode::BAD_REQUEST, not_authentic))?;
                        Ok(success(json!({ "plaintext": BASE64_STANDARD.encode(plaintext) })))
                    }
                }
            }
            _ => Err(refusal(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")),
        }
    }

    fn key(&self, name: &str) -> Result<[u8; 32], Reply> {
        let key = self.lock().keys.get(name).copied();
        key.ok_or_else(|| refusal(StatusCode::NOT_FOUND, "key does not exist"))
    }
}

/// A path of four parts.
fn parts(path: &str) -> Option<(&str, &str, &str, &str)> {
    let parts: Vec<_> = path.strip_prefix('/')?.split('/').collect();
    match parts[..] {
        [version, kind, operation, name] => Some((version, kind, operation, name)),
        _ => None,
    }
}

fn success(body: Value) -> Reply {
    (StatusCode::OK, Json(body))
}

fn refusal(status: StatusCode, message: &str) -> Reply {
    (status, Json(json!({ "message": message })))
}

/// A field in base64; empty where it is missing.
fn bytes(body: &Value, field: &str) -> Result<Vec<u8>, Reply> {
    let decoded = BASE64_STANDARD.decode(body[field].as_str().unwrap_or_default());
    decoded.map_err(|_| refusal(StatusCode::BAD_REQUEST, "invalid request body"))
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the kernel has random bytes");
    bytes
}

fn cipher(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("a key of 32 bytes"))
}

/// nonce ‖ ciphertext ‖ tag
fn sealed(key: &[u8; 32], plaintext: &[u8], context: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE_LEN] = random();
    let mut sealed = plaintext.to_vec();
    let under = Nonce::assume_unique_for_key(nonce);
    cipher(key).seal_in_place_append_tag(under, Aad::from(context), &mut sealed).expect("it is short");
    [nonce.as_slice(), &sealed].concat()
}

fn opened(key: &[u8; 32], sealed: &[u8], context: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut opened = sealed.to_vec();
    let under = Nonce::assume_unique_for_key(*nonce);
    let length = cipher(key).open_in_place(under, Aad::from(context), &mut opened).ok()?.len();
    opened.truncate(length);
    Some(opened)
}
