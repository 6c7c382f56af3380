//! The beds of S3.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::primitives::ByteStream;
use serde_json::{Value, json};
use tonic::async_trait;

use super::{ID, REGION, SECRET, identity, moto, sdk};
use crate::cloud::{
    Forecast, Standing, StoreBed, StoreVariant,
    server::{Server, free_port, tool},
    weather::{Served, proxy},
};

/// Begins the name of every object in these beds' stores.
const PREFIX: &str = "fleet/";
/// What `tests/install` installs; the program itself does not know its version.
const VERSITYGW: &str = "versitygw 1.8.0";

/// S3 of versitygw, a real server: it checks signatures and who may.
pub struct Versity(Buckets);

impl Versity {
    /// Starts the server, with two identities: one owns all buckets, the other may use none.
    ///
    /// # Errors
    /// It is not installed, or does not do what is needed.
    pub async fn start(folder: &Path) -> Result<Self> {
        let (program, port) = (tool("versitygw")?, free_port()?);
        let (buckets, users) = (folder.join("versity-buckets"), folder.join("versity-users"));
        fs::create_dir_all(&buckets)?;
        fs::create_dir_all(&users)?;
        let mut command = Command::new(&program);
        command.args(["--port", &format!("127.0.0.1:{port}"), "--access", ID, "--secret", SECRET]);
        command.args(["--region", REGION, "--quiet", "--iam-dir"]);
        // It works in the folder of its buckets, so both are whole paths.
        command.arg(fs::canonicalize(&users)?).arg("posix").arg(fs::canonicalize(&buckets)?);
        let server = Server::start("versitygw", command, port, folder).await?;
        let other = ("stranger", "stranger-secret-access-key");
        let mut user = tokio::process::Command::new(&program);
        user.args(["admin", "--access", ID, "--secret", SECRET, "--region", REGION, "--endpoint-url"]);
        user.arg(format!("http://{}", server.address()));
        user.args(["create-user", "--access", other.0, "--secret", other.1, "--role", "user"]);
        let made = user.output().await?;
        ensure!(made.status.success(), "make a user: {}", String::from_utf8_lossy(&made.stderr));
        let stranger = identity(folder, "versity-stranger", other.0, other.1)?;
        Ok(Self(Buckets::make(VERSITYGW.to_owned(), server, Some(stranger), folder).await?))
    }
}

#[async_trait]
impl StoreBed for Versity {
    fn store(&self) -> &'static str {
        "s3"
    }

    fn server(&self) -> String {
        self.0.name.clone()
    }

    fn standing(&self) -> Standing {
        Standing::RealServer
    }

    async fn config(&self, variant: StoreVariant) -> Result<Option<Value>> {
        self.0.config(variant).await
    }

    fn forecast(&self) -> &Forecast {
        &self.0.forecast
    }

    async fn overwrite(&self, config: &Value, name: &str, bytes: Vec<u8>) -> Result<()> {
        self.0.overwrite(config, name, bytes).await
    }
}

/// S3 of moto. It lets anybody in.
pub struct MotoS3(Buckets);

impl MotoS3 {
    /// Starts the server.
    ///
    /// # Errors
    /// It is not installed, or does not do what is needed.
    pub async fn start(folder: &Path) -> Result<Self> {
        let (name, server) = moto("moto-s3", folder).await?;
        Ok(Self(Buckets::make(name, server, None, folder).await?))
    }
}

#[async_trait]
impl StoreBed for MotoS3 {
    fn store(&self) -> &'static str {
        "s3"
    }

    fn server(&self) -> String {
        self.0.name.clone()
    }

    fn standing(&self) -> Standing {
        Standing::Emulator
    }

    async fn config(&self, variant: StoreVariant) -> Result<Option<Value>> {
        self.0.config(variant).await
    }

    fn forecast(&self) -> &Forecast {
        &self.0.forecast
    }

    async fn overwrite(&self, config: &Value, name: &str, bytes: Vec<u8>) -> Result<()> {
        self.0.overwrite(config, name, bytes).await
    }
}

/// A server of buckets.
struct Buckets {
    name: String,
    forecast: Forecast,
    weather: Served,
    client: aws_sdk_s3::Client,
    auth: Value,
    /// Who may use no bucket, where the server knows such a thing.
    stranger: Option<Value>,
    made: AtomicU32,
    // Ends last.
    _server: Server,
}

impl Buckets {
    async fn make(name: String, server: Server, stranger: Option<Value>, folder: &Path) -> Result<Self> {
        let forecast = Forecast::new().throttled_by(
            503,
            "application/xml",
            "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
        );
        let weather = proxy(server.address(), forecast.clone()).await?;
        let config = aws_sdk_s3::config::Builder::from(&sdk(server.address(), REGION).await);
        let client = aws_sdk_s3::Client::from_conf(config.force_path_style(true).build());
        let auth = identity(folder, "s3", ID, SECRET)?;
        Ok(Self { name, forecast, weather, client, auth, stranger, made: AtomicU32::new(0), _server: server })
    }

    async fn config(&self, variant: StoreVariant) -> Result<Option<Value>> {
        let auth = match variant {
            StoreVariant::NoPermission => self.stranger.as_ref(),
            StoreVariant::Good | StoreVariant::MissingBucket | StoreVariant::CreateIfMissing => Some(&self.auth),
        };
        let Some(auth) = auth else { return Ok(None) };
        let bucket = format!("coffer-{}", self.made.fetch_add(1, Ordering::Relaxed));
        if matches!(variant, StoreVariant::Good | StoreVariant::NoPermission) {
            self.client.create_bucket().bucket(&bucket).send().await.context("make a bucket")?;
        }
        Ok(Some(json!({
            "type": "s3",
            "bucket": bucket,
            "prefix": PREFIX,
            "createIfMissing": variant == StoreVariant::CreateIfMissing,
            "pathStyle": true,
            "region": REGION,
            "endpoint": format!("http://{}", self.weather.address()),
            "insecureEndpoint": true,
            "auth": auth,
        })))
    }

    async fn overwrite(&self, config: &Value, name: &str, bytes: Vec<u8>) -> Result<()> {
        let bucket = config["bucket"].as_str().context("the configuration has a bucket")?;
        let put = self.client.put_object().bucket(bucket).key(name).body(ByteStream::from(bytes));
        put.send().await.context("overwrite an object")?;
        Ok(())
    }
}
