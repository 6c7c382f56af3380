//! The beds of AWS KMS.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use aws_sdk_kms::types::{KeySpec, KeyUsageType};
use serde_json::{Value, json};
use tonic::async_trait;

use super::{ID, REGION, SECRET, identity, moto, sdk, versioned};
use crate::cloud::{
    Forecast, KmsBed, Standing, Variant,
    server::{Server, free_port, tool},
    weather::{Served, proxy},
};

const OTHER_REGION: &str = "eu-west-1";
const ALIAS: &str = "alias/coffer-testbed";

/// KMS of moto. It checks context and ciphertext. A KEK that is switched off works on, and anybody is let in.
pub struct MotoKms(Keys);

impl MotoKms {
    /// Starts the server, with a KEK behind an alias.
    ///
    /// # Errors
    /// It is not installed, or does not do what is needed.
    pub async fn start(folder: &Path) -> Result<Self> {
        let (name, server) = moto("moto-kms", folder).await?;
        Ok(Self(Keys::make(name, server, folder).await?))
    }

    /// Every alias of the account, with the id of its KEK.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn aliases(&self) -> Result<BTreeMap<String, String>> {
        self.0.aliases().await
    }

    /// Makes a KEK in another account, behind the alias that the good configuration names, and says its ARN. Whoever has
    /// keys of a role of that account, and nobody else, has to do with that account.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn kek_of(&self, account: &'static str) -> Result<String> {
        self.0.kek_of(account).await
    }

    /// The ids of all KEKs of the account.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn keys(&self) -> Result<Vec<String>> {
        let listed = self.0.client.list_keys().limit(1000).send().await.context("list keys")?;
        ensure!(!listed.truncated(), "there are more keys than a test makes");
        Ok(listed.keys().iter().filter_map(|key| key.key_id().map(str::to_owned)).collect())
    }

    /// The tags of a KEK.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn tags(&self, key: &str) -> Result<BTreeMap<String, String>> {
        let listed = self.0.client.list_resource_tags().key_id(key).send().await.context("list tags")?;
        Ok(listed.tags().iter().map(|tag| (tag.tag_key().to_owned(), tag.tag_value().to_owned())).collect())
    }
}

#[async_trait]
impl KmsBed for MotoKms {
    fn provider(&self) -> &'static str {
        "aws-kms"
    }

    fn server(&self) -> String {
        self.0.name.clone()
    }

    fn standing(&self) -> Standing {
        Standing::Emulator
    }

    async fn config(&self, variant: Variant) -> Result<Option<Value>> {
        Ok(self.0.config(variant))
    }

    fn forecast(&self) -> &Forecast {
        &self.0.forecast
    }

    async fn rotate(&self) -> Result<bool> {
        let sent = self.0.client.rotate_key_on_demand().key_id(self.0.key()).send().await;
        sent.context("rotate the KEK")?;
        Ok(true)
    }

    async fn move_alias(&self) -> Result<bool> {
        self.0.move_alias().await
    }

    async fn enable(&self, _: bool) -> Result<bool> {
        Ok(false)
    }

    async fn outage(&self, _: bool) -> Result<bool> {
        Ok(false)
    }
}

/// KMS of MiniStack. It knows the states of keys. Changed ciphertext opens, also by another key, nothing rotates, and
/// anybody is let in.
pub struct MiniStackKms(Keys);

impl MiniStackKms {
    /// Starts the server, with a KEK behind an alias.
    ///
    /// # Errors
    /// It is not installed, or does not do what is needed.
    pub async fn start(folder: &Path) -> Result<Self> {
        let (program, port) = (tool("ministack")?, free_port()?);
        let mut command = Command::new(&program);
        command.env("BIND_HOST", "127.0.0.1").env("GATEWAY_PORT", port.to_string()).env("SERVICES", "kms,sts");
        // It would listen on other ports, too, and two of it would fight for them.
        command.env("IOT_MTLS_ENABLED", "0").env("SFTP_ENABLED", "0").env("STATE_DIR", folder.join("ministack"));
        let server = Server::start("ministack-kms", command, port, folder).await?;
        Ok(Self(Keys::make(versioned(&program, "ministack", "MiniStack"), server, folder).await?))
    }

    /// Every alias of the account, with the id of its KEK.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn aliases(&self) -> Result<BTreeMap<String, String>> {
        self.0.aliases().await
    }

    /// Switches a KEK off or on that Coffer made.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn enable_made(&self, key: &str, enabled: bool) -> Result<()> {
        if enabled {
            self.0.client.enable_key().key_id(key).send().await.context("switch a KEK on")?;
        } else {
            self.0.client.disable_key().key_id(key).send().await.context("switch a KEK off")?;
        }
        Ok(())
    }

    /// The good configuration, with a new multi-region KEK and the region of its replica. Both regions answer at the
    /// same address; which one is asked, a request's signature says.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn multi_region(&self) -> Result<Value> {
        let made = self.0.client.create_key().multi_region(true).send().await.context("make a multi-region key")?;
        let key = made.key_metadata.context("a key that was made")?.key_id;
        let replica = self.0.client.replicate_key().key_id(&key).replica_region(OTHER_REGION);
        replica.send().await.context("replicate it")?;
        let mut config = self.0.config(Variant::Good).context("there is a good configuration")?;
        config["keyId"] = key.into();
        config["regions"] = json!([OTHER_REGION]);
        Ok(config)
    }
}

#[async_trait]
impl KmsBed for MiniStackKms {
    fn provider(&self) -> &'static str {
        "aws-kms"
    }

    fn server(&self) -> String {
        self.0.name.clone()
    }

    fn standing(&self) -> Standing {
        Standing::Emulator
    }

    async fn config(&self, variant: Variant) -> Result<Option<Value>> {
        Ok(self.0.config(variant))
    }

    fn forecast(&self) -> &Forecast {
        &self.0.forecast
    }

    async fn rotate(&self) -> Result<bool> {
        Ok(false)
    }

    async fn move_alias(&self) -> Result<bool> {
        self.0.move_alias().await
    }

    async fn enable(&self, enabled: bool) -> Result<bool> {
        let key = self.0.key();
        if enabled {
            self.0.client.enable_key().key_id(key).send().await.context("switch the KEK on")?;
        } else {
            self.0.client.disable_key().key_id(key).send().await.context("switch the KEK off")?;
        }
        Ok(true)
    }

    async fn outage(&self, _: bool) -> Result<bool> {
        Ok(false)
    }
}

/// A KMS with a KEK behind an alias, and with those that are not to be used.
struct Keys {
    name: String,
    forecast: Forecast,
    weather: Served,
    client: aws_sdk_kms::Client,
    auth: Value,
    /// The ARN behind the alias.
    key: Mutex<String>,
    rsa: String,
    signing: String,
    /// Without its region, which a configuration would be refused for.
    abroad: String,
    // Ends last.
    _server: Server,
}

impl Keys {
    async fn make(name: String, server: Server, folder: &Path) -> Result<Self> {
        let forecast = Forecast::new().throttled_by(
            400,
            "application/x-amz-json-1.1",
            r#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#,
        );
        let weather = proxy(server.address(), forecast.clone()).await?;
        let client = aws_sdk_kms::Client::new(&sdk(server.address(), REGION).await);
        let abroad = aws_sdk_kms::Client::new(&sdk(server.address(), OTHER_REGION).await);
        let key = first(&client).await?;
        let alias = client.create_alias().alias_name(ALIAS).target_key_id(&key).send().await;
        alias.context("name the KEK")?;
        Ok(Self {
            rsa: create(&client, KeySpec::Rsa2048, KeyUsageType::EncryptDecrypt).await?,
            signing: create(&client, KeySpec::Rsa2048, KeyUsageType::SignVerify).await?,
            abroad: id_of(&create(&abroad, KeySpec::SymmetricDefault, KeyUsageType::EncryptDecrypt).await?),
            auth: identity(folder, "aws-kms", ID, SECRET)?,
            key: Mutex::new(key),
            _server: server,
            name,
            forecast,
            weather,
            client,
        })
    }

    fn config(&self, variant: Variant) -> Option<Value> {
        let (key_id, algorithm) = match variant {
            Variant::Good => (ALIAS, "symmetric"),
            Variant::Rsa => (self.rsa.as_str(), "rsa-oaep-256"),
            Variant::MissingKek => ("alias/coffer-of-nobody", "symmetric"),
            Variant::WrongType => (self.signing.as_str(), "symmetric"),
            Variant::WrongRegion => (self.abroad.as_str(), "symmetric"),
            Variant::NoPermission | Variant::BadCredentials => return None,
        };
        Some(json!({
            "type": "aws-kms",
            "keyId": key_id,
            "algorithm": algorithm,
            "region": REGION,
            "endpoint": format!("http://{}", self.weather.address()),
            "insecureEndpoint": true,
            "auth": self.auth,
        }))
    }

    async fn aliases(&self) -> Result<BTreeMap<String, String>> {
        let listed = self.client.list_aliases().send().await.context("list aliases")?;
        ensure!(!listed.truncated(), "there are more aliases than fit on a page");
        let one = |alias: &aws_sdk_kms::types::AliasListEntry| {
            Some((alias.alias_name()?.to_owned(), alias.target_key_id()?.to_owned()))
        };
        Ok(listed.aliases().iter().filter_map(one).collect())
    }

    async fn kek_of(&self, account: &'static str) -> Result<String> {
        const ACCOUNT: &str = "x-moto-account-id";
        let made = self.client.create_key().customize().mutate_request(move |request| {
            request.headers_mut().insert(ACCOUNT, account);
        });
        let made = made.send().await.context("make a key in another account")?;
        let arn = made.key_metadata.and_then(|metadata| metadata.arn).context("a key has an ARN")?;
        let named = self.client.create_alias().alias_name(ALIAS).target_key_id(&arn).customize();
        let named = named.mutate_request(move |request| {
            request.headers_mut().insert(ACCOUNT, account);
        });
        named.send().await.context("name the KEK in another account")?;
        Ok(arn)
    }

    fn key(&self) -> String {
        self.key.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn move_alias(&self) -> Result<bool> {
        let key = create(&self.client, KeySpec::SymmetricDefault, KeyUsageType::EncryptDecrypt).await?;
        let moved = self.client.update_alias().alias_name(ALIAS).target_key_id(&key).send().await;
        moved.context("move the alias")?;
        *self.key.lock().unwrap_or_else(PoisonError::into_inner) = key;
        Ok(true)
    }
}

/// The first key. A server that takes connections may still break them while it starts.
async fn first(client: &aws_sdk_kms::Client) -> Result<String> {
    let start = std::time::Instant::now();
    loop {
        match create(client, KeySpec::SymmetricDefault, KeyUsageType::EncryptDecrypt).await {
            Err(_) if start.elapsed().as_secs() < 20 => tokio::time::sleep(std::time::Duration::from_millis(200)).await,
            made => return made,
        }
    }
}

async fn create(client: &aws_sdk_kms::Client, spec: KeySpec, usage: KeyUsageType) -> Result<String> {
    let made = client.create_key().key_spec(spec).key_usage(usage).send().await.context("make a key")?;
    made.key_metadata.and_then(|metadata| metadata.arn).context("a key has an ARN")
}

/// The id in a key's ARN.
fn id_of(arn: &str) -> String {
    arn.rsplit('/').next().unwrap_or_default().to_owned()
}
