//! Providers and stores by their names: started on this machine, and told to programs that may run in a guest.

use std::{any::Any, collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cloud::{KmsBed, StoreBed, StoreVariant, Variant, aws, azure, google, kes, transit};

/// The types of providers that wrap.
pub const PROVIDERS: [&str; 6] = ["aws-kms", "azure-key-vault", "gcp-kms", "transit", "kes", "local"];
/// The types of stores.
pub const STORES: [&str; 5] = ["s3", "gcs", "azure-blob", FILESYSTEM, MEMORY];
/// The embedded store: the state folder of whoever is configured with it.
pub const FILESYSTEM: &str = "filesystem";
/// The store that forgets everything: no configuration has it.
pub const MEMORY: &str = "memory";
/// The installation.
pub const CLUSTER: &str = "6f9c9f0e-5a5c-4f0e-9f44-0c7d3f5b7a11";

/// A provider or a store: its configuration, and what it stands on.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Side {
    /// Its type.
    pub name: String,
    /// The server, with its version.
    pub server: String,
    /// What the server stands for.
    pub standing: String,
    /// As it stands in the configuration; null where nothing stands there.
    pub config: Value,
}

/// What keeps a server going: it ends when this is dropped.
pub type Running = Box<dyn Any + Send + Sync>;

/// Starts a provider's server with a KEK in it; files go into a folder of that name.
///
/// # Errors
/// There is no such type, or the server does not start.
pub async fn provider(name: &str, folder: &Path) -> Result<(Side, Running)> {
    let at = folder.join(name);
    fs::create_dir_all(&at)?;
    match name {
        "aws-kms" => of_kms(aws::MotoKms::start(&at).await?).await,
        "azure-key-vault" => of_kms(azure::KeyVault::start(&at).await?).await,
        "gcp-kms" => of_kms(google::CloudKms::start(&at).await?).await,
        "transit" => of_kms(transit::OpenBao::start(&at).await?).await,
        "kes" => of_kms(kes::KesServer::start(&at).await?).await,
        "local" => {
            let key_file = at.join("local.key");
            fs::write(&key_file, "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n")?;
            fs::set_permissions(&key_file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
            let config = json!({"type": "local", "keyFile": key_file, "insecureLocalKey": true});
            Ok((itself("local", "a key file", config), Box::new(())))
        }
        other => bail!("{other} is not one of {}", PROVIDERS.join(", ")),
    }
}

/// Starts a store's server.
///
/// # Errors
/// There is no such type, or the server does not start.
pub async fn store(name: &str, folder: &Path) -> Result<(Side, Running)> {
    let at = folder.join(name);
    fs::create_dir_all(&at)?;
    match name {
        "s3" => of_store(aws::Versity::start(&at).await?).await,
        "gcs" => of_store(google::CloudStorage::start(&at).await?).await,
        "azure-blob" => of_store(azure::Azurite::start(&at).await?).await,
        FILESYSTEM => Ok((itself(FILESYSTEM, "a folder", Value::Null), Box::new(()))),
        MEMORY => Ok((itself(MEMORY, "a map", Value::Null), Box::new(()))),
        other => bail!("{other} is not one of {}", STORES.join(", ")),
    }
}

fn itself(name: &str, server: &str, config: Value) -> Side {
    Side { name: name.to_owned(), server: server.to_owned(), standing: "the thing itself".to_owned(), config }
}

async fn of_kms(bed: impl KmsBed + 'static) -> Result<(Side, Running)> {
    let config = bed.config(Variant::Good).await?.context("every bed has a good configuration")?;
    let (name, standing) = (bed.provider().to_owned(), bed.standing().to_string());
    Ok((Side { name, server: bed.server(), standing, config }, Box::new(bed)))
}

async fn of_store(bed: impl StoreBed + 'static) -> Result<(Side, Running)> {
    let config = bed.config(StoreVariant::Good).await?.context("every bed has a good configuration")?;
    let (name, standing) = (bed.store().to_owned(), bed.standing().to_string());
    Ok((Side { name, server: bed.server(), standing, config }, Box::new(bed)))
}

/// The configuration of a driver with a provider and a store.
#[must_use]
pub fn configuration(provider: &Side, store: &Side) -> Value {
    let mut config = json!({"clusterId": CLUSTER, "providers": {"main": provider.config}});
    if !store.config.is_null() {
        config["store"] = store.config.clone();
    }
    config
}

/// The ports of all servers: what a guest has to reach.
#[must_use]
pub fn ports<'a>(sides: impl IntoIterator<Item = &'a Side>) -> Vec<u16> {
    fn collect(value: &Value, ports: &mut BTreeSet<u16>) {
        match value {
            Value::String(text) => ports.extend(url::Url::parse(text).ok().and_then(|url| url.port())),
            Value::Array(items) => items.iter().for_each(|item| collect(item, ports)),
            Value::Object(map) => map.values().for_each(|item| collect(item, ports)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    let mut ports = BTreeSet::new();
    sides.into_iter().for_each(|side| collect(&side.config, &mut ports));
    ports.into_iter().collect()
}
