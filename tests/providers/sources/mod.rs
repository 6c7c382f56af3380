//! Where credentials come from, one source after the other, each really used: by a provider as its configuration makes
//! it, or by the program itself. Files are swapped as Kubernetes swaps them, while the provider is open.

mod aws;
mod azure;
mod kes;
mod mounted;
pub(crate) mod program;
mod scopes;
mod tenants;
mod transit;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use coffer::{
    config::file::ProviderConfig,
    key::kms::{self, Kms, KmsFailure, Wrapped},
    secret::InnerKey,
};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use testbed::{
    cloud::{KmsBed, Variant},
    conformance::{kms::Volume, soon},
};

use crate::{
    house::{Configured, NAME, read_config},
    table::Notes,
};

pub(crate) fn trials() -> Vec<Trial> {
    let of_aws = [aws::trials(), scopes::trials(), tenants::trials()];
    let others = [azure::trials(), transit::trials(), kes::trials(), program::trials()];
    of_aws.into_iter().chain(others).flatten().collect()
}

fn notes(bed: &impl KmsBed) -> Notes {
    Notes::provider(bed.provider(), bed.server(), bed.standing())
}

async fn config(bed: &impl KmsBed, variant: Variant) -> Result<Value> {
    bed.config(variant).await?.with_context(|| format!("no configuration for {variant:?}"))
}

/// A folder of records, as a configuration names it.
fn records(folder: &Path) -> Value {
    json!({ "type": "filesystem", "path": folder.join("records") })
}

/// A provider as it is configured, without anything around it.
pub(crate) async fn open(folder: &Path, config: &Value) -> Result<Configured> {
    let mut file = read_config(folder, config, &records(folder))?;
    let Some(ProviderConfig::Kms(provider)) = file.providers.remove(NAME) else {
        bail!("it was not read as a KMS: {config}")
    };
    let settings = format!("{:?}", provider.settings);
    let kms = kms::open(provider.settings).await?;
    Ok(Configured { kms, common: provider.common, settings })
}

/// The configuration, or the provider that it makes, is refused with these words.
async fn expect_fault(folder: &Path, config: &Value, words: &str) -> Result<()> {
    let fault = open(folder, config).await.err().with_context(|| format!("it was taken: {config}"))?;
    // The outermost words are the configuration itself.
    let told = fault.root_cause().to_string();
    ensure!(told.contains(words), "{words:?} is not in {told:?}");
    Ok(())
}

/// A key that was wrapped when everything was well.
struct Sample {
    volume: Volume,
    key: InnerKey,
    wrapped: Wrapped,
}

impl Sample {
    async fn wrapped_by(kms: &dyn Kms) -> Result<Self> {
        let (volume, key) = (Volume::of("vol-1"), InnerKey::random());
        let wrapped = kms.wrap(&key, None, &volume.binding(), soon()).await?;
        let sample = Self { volume, key, wrapped };
        sample.opens(kms).await?;
        Ok(sample)
    }

    async fn opens(&self, kms: &dyn Kms) -> Result<()> {
        let opened = kms.unwrap(&self.wrapped, &self.volume.binding(), soon()).await?;
        ensure!(opened.expose_secret() == self.key.expose_secret(), "it opened to another key");
        Ok(())
    }

    /// Why it does not open now.
    async fn failure(&self, kms: &dyn Kms) -> Result<KmsFailure> {
        let opened = kms.unwrap(&self.wrapped, &self.volume.binding(), soon()).await;
        opened.err().context("it opened")
    }
}
