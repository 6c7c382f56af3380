//! OpenBao itself, in development mode, which keeps everything in memory: a transit secrets engine, and each way to log
//! in to it. Coffer goes through a proxy that has weather; what a test manages goes to the server directly.

mod logins;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    KmsBed, Standing, Variant,
    server::{Server, free_port, tool},
    weather::{self, Forecast, Served, Weather},
};

const ROOT: &str = "root";
const MOUNT: &str = "transit";
const KEY: &str = "coffer";
const RSA_KEY: &str = "coffer-rsa";
const DERIVED_KEY: &str = "coffer-derived";
const SIGNING_KEY: &str = "coffer-signing";
const MISSING_KEY: &str = "coffer-missing";
const READY: Duration = Duration::from_secs(15);

/// An OpenBao server with keys, a policy of the least permissions, and each way to log in.
#[derive(Debug)]
pub struct OpenBao {
    root: Root,
    version: String,
    forecast: Forecast,
    proxy: Served,
    token_file: PathBuf,
    keeper_token_file: PathBuf,
    powerless_token_file: PathBuf,
    wrong_token_file: PathBuf,
    logins: Vec<(&'static str, Value)>,
    _reviewer: Served,
    _server: Server,
}

impl OpenBao {
    /// Starts one.
    ///
    /// # Errors
    /// It is not installed, does not start, or refuses what is needed.
    pub async fn start(folder: &Path) -> Result<Self> {
        let port = free_port()?;
        let mut command = Command::new(tool("bao")?);
        command
            .args(["server", "-dev", "-dev-no-store-token"])
            .arg(format!("-dev-root-token-id={ROOT}"))
            .arg(format!("-dev-listen-address=127.0.0.1:{port}"))
            .env("HOME", folder);
        let server = Server::start("bao", command, port, folder).await?;
        let root = Root { client: reqwest::Client::new(), address: format!("http://{}", server.address()) };
        let version = root.version().await?;

        root.post(&format!("sys/mounts/{MOUNT}"), json!({ "type": "transit" })).await?;
        for (name, settings) in [
            (KEY, json!({ "type": "aes256-gcm96" })),
            (DERIVED_KEY, json!({ "type": "aes256-gcm96", "derived": true })),
            (RSA_KEY, json!({ "type": "rsa-2048" })),
            (SIGNING_KEY, json!({ "type": "ed25519" })),
        ] {
            root.post(&format!("{MOUNT}/keys/{name}"), settings).await?;
        }
        let names = [KEY, DERIVED_KEY, RSA_KEY, SIGNING_KEY, MISSING_KEY];
        root.post("sys/policies/acl/coffer", json!({ "policy": names.map(policy).concat() })).await?;
        let keeper = names.map(|name| policy(name) + &rotating(name)).concat();
        root.post("sys/policies/acl/keeper", json!({ "policy": keeper })).await?;
        let nothing = r#"path "sys/nothing" { capabilities = ["read"] }"#;
        root.post("sys/policies/acl/nothing", json!({ "policy": nothing })).await?;

        let token_file = written(folder, "token", &root.token("coffer").await?)?;
        let keeper_token_file = written(folder, "keeper-token", &root.token("keeper").await?)?;
        let powerless_token_file = written(folder, "powerless-token", &root.token("nothing").await?)?;
        let wrong_token_file = written(folder, "wrong-token", "s.nobodyGaveOutThisToken")?;
        let mut logins = root.approle(folder).await?;
        let (jwt_logins, reviewer) = root.jwt_and_kubernetes(folder).await?;
        logins.extend(jwt_logins);

        let quota = r#"{"errors":["request path \"transit/encrypt/coffer\": rate limit quota exceeded"]}"#;
        let forecast = Forecast::new().throttled_by(429, "application/json", quota);
        let proxy = weather::proxy(server.address(), forecast.clone()).await?;
        Ok(Self {
            root,
            version,
            forecast,
            proxy,
            token_file,
            keeper_token_file,
            powerless_token_file,
            wrong_token_file,
            logins,
            _reviewer: reviewer,
            _server: server,
        })
    }

    /// The server's own address, past the weather.
    #[must_use]
    pub fn direct(&self) -> &str {
        &self.root.address
    }

    /// Good configurations beside the one with a token file, each with what is special about it.
    #[must_use]
    pub fn also_good(&self) -> Vec<(&'static str, Value)> {
        let logins = self.logins.iter().map(|(name, auth)| (*name, self.configuration(KEY, auth.clone())));
        let derived = self.configuration(DERIVED_KEY, token(&self.token_file));
        logins.chain([("a derived key", derived)]).collect()
    }

    /// Revokes every token that somebody got by a login (AppRole, JWT, Kubernetes).
    ///
    /// # Errors
    /// The server refuses.
    pub async fn revoke_logins(&self) -> Result<()> {
        for mount in ["approle", "jwt", "kubernetes"] {
            self.root.post(&format!("sys/leases/revoke-prefix/auth/{mount}"), json!({})).await?;
        }
        Ok(())
    }

    /// Whether the server has a key.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn has_key(&self, name: &str) -> Result<bool> {
        let keys = self.root.ask(Method::GET, &format!("{MOUNT}/keys?list=true"), None).await?;
        let keys = keys["data"]["keys"].as_array().context("a list of keys")?;
        Ok(keys.iter().any(|key| key == name))
    }

    /// Lets the KEK open only what its latest version wrapped.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn archive_old_versions(&self) -> Result<()> {
        let key = self.root.ask(Method::GET, &format!("{MOUNT}/keys/{KEY}"), None).await?;
        let latest = key["data"]["latest_version"].as_u64().context("a key has a latest version")?;
        let config = json!({ "min_decryption_version": latest });
        self.root.post(&format!("{MOUNT}/keys/{KEY}/config"), config).await?;
        Ok(())
    }

    fn configuration(&self, key_name: &str, auth: Value) -> Value {
        json!({
            "type": "transit",
            "address": format!("http://{}", self.proxy.address()),
            "insecureEndpoint": true,
            "mount": MOUNT,
            "keyName": key_name,
            "auth": auth,
        })
    }
}

#[async_trait]
impl KmsBed for OpenBao {
    fn provider(&self) -> &'static str {
        "transit"
    }

    fn server(&self) -> String {
        format!("OpenBao {}", self.version)
    }

    fn standing(&self) -> Standing {
        Standing::RealServer
    }

    async fn config(&self, variant: Variant) -> Result<Option<Value>> {
        let (key_name, token_file) = match variant {
            Variant::Good => (KEY, &self.token_file),
            Variant::Rsa => (RSA_KEY, &self.token_file),
            Variant::MissingKek => (MISSING_KEY, &self.token_file),
            Variant::WrongType => (SIGNING_KEY, &self.token_file),
            Variant::NoPermission => (KEY, &self.powerless_token_file),
            Variant::BadCredentials => (KEY, &self.wrong_token_file),
            Variant::WrongRegion => return Ok(None),
        };
        Ok(Some(self.configuration(key_name, token(token_file))))
    }

    async fn keeper(&self) -> Result<Option<Value>> {
        Ok(Some(self.configuration(KEY, token(&self.keeper_token_file))))
    }

    fn forecast(&self) -> &Forecast {
        &self.forecast
    }

    async fn rotate(&self) -> Result<bool> {
        for name in [KEY, DERIVED_KEY, RSA_KEY] {
            self.root.post(&format!("{MOUNT}/keys/{name}/rotate"), json!({})).await?;
        }
        Ok(true)
    }

    /// A soft-deleted key is kept and not used, which is what OpenBao has for switching one off.
    async fn enable(&self, enabled: bool) -> Result<bool> {
        if enabled {
            self.root.post(&format!("{MOUNT}/keys/{KEY}/soft-delete-restore"), json!({})).await?;
        } else {
            self.root.ask(Method::DELETE, &format!("{MOUNT}/keys/{KEY}/soft-delete"), None).await?;
        }
        Ok(true)
    }

    /// In development mode the server forgets everything when it ends. What ends here is the way to it: every
    /// connection breaks without an answer.
    async fn outage(&self, begins: bool) -> Result<bool> {
        self.forecast.always(begins.then_some(Weather::Reset));
        Ok(true)
    }
}

/// The server, asked as root.
#[derive(Debug)]
struct Root {
    client: reqwest::Client,
    address: String,
}

impl Root {
    /// Its version, as soon as it serves.
    async fn version(&self) -> Result<String> {
        let ready = async {
            loop {
                if let Ok(health) = self.ask(Method::GET, "sys/health", None).await {
                    break health;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let health = tokio::time::timeout(READY, ready).await.context("OpenBao does not become ready")?;
        health["version"].as_str().map(str::to_owned).context("OpenBao names no version")
    }

    async fn post(&self, path: &str, body: Value) -> Result<Value> {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// Null where there is no answer but success.
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let mut request = self.client.request(method, format!("{}/v1/{path}", self.address));
        request = request.header("x-vault-token", ROOT);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await?;
        let (status, text) = (response.status(), response.text().await?);
        if !status.is_success() {
            bail!("OpenBao answers {status} for {path}: {text}");
        }
        if text.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_str(&text)?) }
    }

    async fn token(&self, policy: &str) -> Result<String> {
        let body = json!({ "policies": [policy], "period": "24h", "no_parent": true });
        let made = self.post("auth/token/create", body).await?;
        text(&made["auth"]["client_token"])
    }
}

/// The least that Coffer needs: no `create`, so that a missing key is never made.
fn policy(key: &str) -> String {
    [("encrypt", "update"), ("decrypt", "update"), ("keys", "read")]
        .map(|(path, capability)| format!("path \"{MOUNT}/{path}/{key}\" {{ capabilities = [\"{capability}\"] }}\n"))
        .concat()
}

/// What it takes more to have the engine rotate a key.
fn rotating(key: &str) -> String {
    format!("path \"{MOUNT}/keys/{key}/config\" {{ capabilities = [\"update\"] }}\n")
}

fn token(file: &Path) -> Value {
    json!({ "type": "token", "tokenFile": file })
}

fn written(folder: &Path, name: &str, content: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, format!("{content}\n")).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).context("OpenBao answers without what was asked for")
}
