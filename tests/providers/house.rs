//! A server of a KMS, and providers on it as the configuration file makes them.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use coffer::{
    config::file::{Environment, FileConfig, ProviderConfig},
    key::{
        calls::CallSettings,
        embedded::Embedded,
        kms::{
            self, Kms,
            guarded::Guarded,
            settings::{CacheSettings, Common, Validate},
        },
        providers::{KmsProvider, Provider, Providers},
        record::KekMechanism,
        service::NewKey,
        store::DekStore,
    },
};
use serde_json::{Value, json};
use testbed::{
    cloud::{KmsBed, Variant},
    conformance::{kms::Binds, soon, store::new_key},
};
use uuid::Uuid;

use crate::{servers::KmsServer, table::Notes};

/// The installation of all tests.
pub(crate) const CLUSTER: Uuid = Uuid::from_u128(0xc0ffe4);
/// The name under which each provider is configured.
pub(crate) const NAME: &str = "main";

/// A server of a KMS.
pub(crate) struct House {
    pub(crate) bed: Arc<dyn KmsBed>,
    pub(crate) notes: Notes,
    folder: tempfile::TempDir,
}

impl House {
    pub(crate) async fn start(server: KmsServer) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let bed = server.start(folder.path()).await.with_context(|| format!("start {}", server.name()))?;
        let notes = Notes::provider(bed.provider(), bed.server(), bed.standing());
        Ok(Self { bed, notes, folder })
    }

    /// The configuration of a variant; none, which is noted, where the server has no such thing.
    pub(crate) async fn config(&self, variant: Variant, what: &str) -> Result<Option<Value>> {
        let config = self.bed.config(variant).await.with_context(|| format!("{variant:?}"))?;
        if config.is_none() {
            self.notes.not_shown(what);
        }
        Ok(config)
    }

    /// The configuration with which everything works.
    pub(crate) async fn good(&self) -> Result<Value> {
        self.bed.config(Variant::Good).await?.context("a server without a good configuration")
    }

    /// A provider as it is configured, without anything around it.
    pub(crate) async fn open(&self, config: &Value) -> Result<Configured> {
        let mut file = read_config(self.folder.path(), config, &records(self.folder.path()))?;
        let Some(ProviderConfig::Kms(provider)) = file.providers.remove(NAME) else {
            bail!("it was not read as a KMS: {config}")
        };
        let settings = format!("{:?}", provider.settings);
        let kms = kms::open(provider.settings).await?;
        Ok(Configured { kms, common: provider.common, settings })
    }

    /// What is asked for a new volume of this id: with a context, unless the provider is known to take none.
    pub(crate) fn new_key(&self, volume_id: &str) -> NewKey {
        let new = new_key(volume_id);
        if self.bed.provider() == "azure-key-vault" { NewKey { context: BTreeMap::new(), ..new } } else { new }
    }

    /// What this provider's KEK binds a key to by itself.
    pub(crate) async fn binds(&self, kms: &dyn Kms) -> Result<Binds> {
        let kek = kms.describe(None, soon()).await?;
        Ok(match kek.mechanism {
            KekMechanism::RsaOaep256 | KekMechanism::AesKeyWrap256 => Binds::Nothing,
            KekMechanism::Symmetric if self.bed.provider() == "aws-kms" => Binds::AllButLuksUuid,
            KekMechanism::Symmetric => Binds::Everything,
        })
    }
}

/// A provider as its configuration makes it.
pub(crate) struct Configured {
    pub(crate) kms: Arc<dyn Kms>,
    pub(crate) common: Common,
    /// As logs would have it.
    pub(crate) settings: String,
}

impl Configured {
    /// The provider with everything around it: a new breaker, an empty cache.
    pub(crate) fn guarded(&self, calls: CallSettings, cache: CacheSettings) -> Guarded {
        guarded(self.kms.clone(), &self.common, calls, cache)
    }

    /// A key service with this provider, as a process that was just started has it.
    pub(crate) fn service(&self, cache: CacheSettings, store: Arc<dyn DekStore>) -> Embedded {
        self.service_with(self.kms.clone(), cache, store)
    }

    /// The same with something between the provider and what is around it.
    pub(crate) fn service_with(&self, kms: Arc<dyn Kms>, cache: CacheSettings, store: Arc<dyn DekStore>) -> Embedded {
        let calls = CallSettings { timeout: Duration::from_secs(5), attempts: 2, concurrency: 16 };
        let guarded = Arc::new(guarded(kms, &self.common, calls, cache));
        embedded(guarded, self.common.context.clone(), store)
    }
}

fn guarded(kms: Arc<dyn Kms>, common: &Common, calls: CallSettings, cache: CacheSettings) -> Guarded {
    // Trials of the KEK are calls that tests would have to count.
    Guarded::new(kms, NAME, Common { calls, cache, validate: Validate::Off, context: common.context.clone() })
}

/// A key service with one provider.
pub(crate) fn embedded(kms: Arc<dyn Kms>, context: BTreeMap<String, String>, store: Arc<dyn DekStore>) -> Embedded {
    let provider = Provider::Kms(KmsProvider { context, ..KmsProvider::new(kms) });
    let providers = Providers { by_name: [(NAME.to_owned(), provider)].into(), default: NAME.to_owned() };
    Embedded::new(CLUSTER, providers, store)
}

/// A cache that keeps nothing.
pub(crate) fn no_cache() -> CacheSettings {
    CacheSettings {
        expiry_any: Duration::ZERO,
        expiry_unused: Duration::ZERO,
        expiry_offline: Duration::ZERO,
        entries: 10_000,
    }
}

/// A cache that no test outlives.
pub(crate) fn long_cache() -> CacheSettings {
    let long = Duration::from_secs(3600);
    CacheSettings { expiry_any: long, expiry_unused: long, ..no_cache() }
}

/// Keys that were unwrapped are used while the KMS is away, and only then.
pub(crate) fn offline_cache() -> CacheSettings {
    CacheSettings { expiry_offline: Duration::from_secs(3600), ..no_cache() }
}

/// A folder of records, for those whose store does not matter.
fn records(folder: &Path) -> Value {
    json!({ "type": "filesystem", "path": folder.join("records") })
}

/// Reads a whole configuration file with this provider and this store.
pub(crate) fn read_config(folder: &Path, provider: &Value, store: &Value) -> Result<FileConfig> {
    let text = json!({
        "clusterId": CLUSTER,
        "providers": { NAME: provider },
        "store": store,
        "listen": { "unix": { "path": folder.join("keyservice.sock"), "allowedUids": [0] } },
    })
    .to_string();
    let path = folder.join("keyservice.yaml");
    FileConfig::parse(&text, &path, &Environment::default()).with_context(|| format!("read {text}"))
}
