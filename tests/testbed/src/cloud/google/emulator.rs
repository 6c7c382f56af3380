//! fake-gcs-server, somebody else's imitation of Cloud Storage.

use std::{net::SocketAddr, path::Path, process::Command};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tonic::async_trait;

use crate::cloud::{
    Forecast, Standing, StoreBed, StoreVariant,
    server::{Server, free_port, tool},
    weather::{Served, proxy},
};

/// fake-gcs-server 1.56.1, for reading, creating and compare-and-swap.
///
/// Its gRPC is of another version than the official client library's, so a list fails, and so does making a bucket. It
/// says of a missing object and of a missing bucket the same (404 `Not Found`), and takes writes into a bucket that it
/// does not have; so a missing object is told as one only after a write or a read that went well (the store's own check
/// does one), and there is no [`StoreVariant::MissingBucket`]. It lets everybody in.
#[derive(Debug)]
pub struct FakeGcsServer {
    server: Server,
    front: Served,
    forecast: Forecast,
}

impl FakeGcsServer {
    /// Starts it, with its objects in memory.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub async fn start(folder: &Path) -> Result<Self> {
        let port = free_port()?;
        let (address, url) = (format!("127.0.0.1:{port}"), format!("http://127.0.0.1:{port}"));
        let mut command = Command::new(tool("fake-gcs-server")?);
        command.args(["-scheme", "http", "-host", "127.0.0.1", "-port", &port.to_string(), "-backend", "memory"]);
        command.args(["-public-host", &address, "-external-url", &url]);
        let server = Server::start("fake-gcs-server", command, port, folder).await?;
        let forecast = Forecast::new();
        let front = proxy(server.address(), forecast.clone()).await?;
        Ok(Self { server, front, forecast })
    }

    fn address(&self) -> SocketAddr {
        self.server.address()
    }
}

#[async_trait]
impl StoreBed for FakeGcsServer {
    fn store(&self) -> &'static str {
        "gcs"
    }

    fn server(&self) -> String {
        "fake-gcs-server 1.56.1".to_owned()
    }

    fn standing(&self) -> Standing {
        Standing::Emulator
    }

    async fn config(&self, variant: StoreVariant) -> Result<Option<Value>> {
        match variant {
            StoreVariant::Good => {}
            StoreVariant::MissingBucket | StoreVariant::CreateIfMissing | StoreVariant::NoPermission => {
                return Ok(None);
            }
        }
        let bucket = format!("coffer-{}", uuid::Uuid::new_v4().simple());
        let url = format!("http://{}/storage/v1/b?project=coffer-tests", self.address());
        let made = reqwest::Client::new().post(url).json(&json!({"name": bucket})).send().await?;
        ensure!(made.status().is_success(), "no bucket: {}", made.status());
        Ok(Some(json!({
            "type": "gcs",
            "bucket": bucket,
            "endpoint": format!("http://{}", self.front.address()),
            "insecureEndpoint": true,
            "auth": {"type": "anonymous"},
        })))
    }

    fn forecast(&self) -> &Forecast {
        &self.forecast
    }

    async fn overwrite(&self, config: &Value, name: &str, bytes: Vec<u8>) -> Result<()> {
        let bucket = config["bucket"].as_str().unwrap_or_default();
        let mut url = url::Url::parse(&format!("http://{}/upload/storage/v1/b/{bucket}/o", self.address()))?;
        url.query_pairs_mut().append_pair("uploadType", "media").append_pair("name", name);
        let written = reqwest::Client::new().post(url).body(bytes).send().await?;
        ensure!(written.status().is_success(), "not overwritten: {}", written.status());
        Ok(())
    }
}
