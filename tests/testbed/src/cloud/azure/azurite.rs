//! Azurite, Microsoft's emulator of Azure Storage, behind a proxy that makes the weather.
//!
//! It is reached by http and an account's shared access signature, made here from the account and key that Azurite has
//! on every machine (both are in its documentation). Path-style URLs are signed without their host, so that a proxy's
//! address does as well as its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::hmac;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tonic::async_trait;
use url::{Url, form_urlencoded};

use crate::cloud::{
    Forecast, Standing, StoreBed, StoreVariant,
    server::{Server, free_port, tool},
    weather::{self, Served},
};

const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
/// The version of the service whose rules a signature follows.
const SIGNED_VERSION: &str = "2021-12-02";

/// A running Azurite.
pub struct Azurite {
    server: Server,
    proxy: Served,
    forecast: Forecast,
    folder: PathBuf,
    client: reqwest::Client,
    containers: AtomicU32,
}

impl std::fmt::Debug for Azurite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Azurite").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Azurite {
    /// Starts one.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub async fn start(folder: &Path) -> Result<Self> {
        let port = free_port()?;
        let mut command = Command::new(tool("azurite-blob")?);
        command.current_dir(folder).args(["--blobHost", "127.0.0.1", "--blobPort"]).arg(port.to_string());
        command.args(["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]);
        let server = Server::start("azurite", command, port, folder).await?;
        let busy = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\
                    <Error><Code>ServerBusy</Code><Message>The server is busy.</Message></Error>";
        let forecast = Forecast::new().throttled_by(503, "application/xml", busy);
        let proxy = weather::proxy(server.address(), forecast.clone()).await?;
        let client = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { server, proxy, forecast, folder: folder.to_owned(), client, containers: AtomicU32::new(0) })
    }

    /// The URL of a container or of something in it, at Azurite itself.
    fn url(&self, path: &[&str]) -> Result<Url> {
        let mut url = Url::parse(&format!("http://{}/{ACCOUNT}?{}", self.server.address(), signature(&key()?)))?;
        url.path_segments_mut()
            .ok()
            .context("http URLs have paths")?
            .extend(path.iter().flat_map(|part| part.split('/')));
        Ok(url)
    }

    async fn put(&self, url: Url, blob: bool, bytes: Vec<u8>) -> Result<()> {
        // Of an empty body nobody else tells the length, which the service wants.
        let length = bytes.len().to_string();
        let mut request = self.client.put(url).header("x-ms-version", SIGNED_VERSION);
        request = request.header("content-length", length).body(bytes);
        if blob {
            request = request.header("x-ms-blob-type", "BlockBlob");
        }
        let answer = request.send().await?;
        let status = answer.status();
        ensure!(status.is_success(), "Azurite answered {status}: {}", answer.text().await?);
        Ok(())
    }
}

#[async_trait]
impl StoreBed for Azurite {
    fn store(&self) -> &'static str {
        "azure-blob"
    }

    fn server(&self) -> String {
        "Azurite 3.35.0".to_owned()
    }

    fn standing(&self) -> Standing {
        Standing::Emulator
    }

    async fn config(&self, variant: StoreVariant) -> Result<Option<Value>> {
        let container = format!("records-{}", self.containers.fetch_add(1, Ordering::Relaxed));
        if matches!(variant, StoreVariant::Good | StoreVariant::NoPermission) {
            let mut url = self.url(&[container.as_str()])?;
            url.query_pairs_mut().append_pair("restype", "container");
            self.put(url, false, Vec::new()).await?;
        }
        let sas_file = self.folder.join(format!("{container}.sas"));
        let signing = if variant == StoreVariant::NoPermission { vec![0; 64] } else { key()? };
        fs::write(&sas_file, signature(&signing))?;
        Ok(Some(json!({
            "type": "azure-blob",
            "accountUrl": format!("http://{}/{ACCOUNT}", self.proxy.address()),
            "insecureEndpoint": true,
            "container": container,
            "createIfMissing": variant == StoreVariant::CreateIfMissing,
            "auth": { "type": "sas", "sasFile": sas_file },
        })))
    }

    fn forecast(&self) -> &Forecast {
        &self.forecast
    }

    async fn overwrite(&self, config: &Value, name: &str, bytes: Vec<u8>) -> Result<()> {
        let container = config["container"].as_str().context("the configuration names a container")?;
        self.put(self.url(&[container, name])?, true, bytes).await
    }
}

fn key() -> Result<Vec<u8>> {
    Ok(BASE64_STANDARD.decode(KEY)?)
}

/// A signature for blobs and containers, to read, add, create, write and list, and not to delete, as a query
/// (Azure Storage, "Create an account SAS").
fn signature(key: &[u8]) -> String {
    let (services, types, permissions, protocols) = ("b", "sco", "rwlac", "https,http");
    let (begin, end) = ("2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z");
    let signed =
        format!("{ACCOUNT}\n{permissions}\n{services}\n{types}\n{begin}\n{end}\n\n{protocols}\n{SIGNED_VERSION}\n\n");
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), signed.as_bytes());
    let tag = BASE64_STANDARD.encode(tag);
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs([("sv", SIGNED_VERSION), ("ss", services), ("srt", types), ("sp", permissions)])
        .extend_pairs([("st", begin), ("se", end), ("spr", protocols), ("sig", tag.as_str())])
        .finish()
}
