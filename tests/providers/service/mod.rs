//! A whole key service over a provider or a store on a server: keys are made, released, destroyed and made again, also
//! by a process that was just started; and nothing is half done when the KMS or the store goes away.

mod by_kms;
mod by_store;

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use coffer::{
    exec::Deadline,
    key::{
        binding::Binding,
        kms::{Kek, Kms, KmsFailure, Wrapped},
        record::State,
        service::{KeyFailure, KeyService, NewKey},
        store::DekStore,
    },
    secret::InnerKey,
    volume::VolumeId,
};
use libtest_mimic::Trial;
use testbed::{
    cloud::{Forecast, Weather},
    conformance::soon,
};

pub(crate) fn trials() -> Vec<Trial> {
    by_store::trials().into_iter().chain(by_kms::trials()).collect()
}

fn id(text: &str) -> VolumeId {
    text.parse().expect("a volume id")
}

/// The life of a key. `start` gives a key service as a process that was just started has it; `new` is what is asked for.
async fn life<S: KeyService>(
    start: impl AsyncFn() -> Result<S>,
    new: impl Fn(&str) -> NewKey,
    store: &Arc<dyn DekStore>,
) -> Result<()> {
    let (volume, service) = (id("vol-1"), start().await?);
    let missing = service.get(&volume, soon()).await;
    ensure!(matches!(missing, Err(KeyFailure::Missing(_))), "{missing:?}");
    let made = service.create(new("vol-1"), soon()).await.context("create")?;
    ensure!((made.state, made.generation) == (State::Prepared, 1), "{made:?}");
    ensure!(service.create(new("vol-1"), soon()).await.context("create again")? == made, "it was made twice");
    let first = service.get(&volume, soon()).await.context("get")?;
    ensure!(first.info == made, "{:?}", first.info);

    let restarted = start().await?;
    let again = restarted.get(&volume, soon()).await.context("get after a restart")?;
    ensure!(again.info == made, "{:?}", again.info);
    ensure!(again.dek.expose_secret() == first.dek.expose_secret(), "a restart gives another key");
    ensure!(restarted.create(new("vol-1"), soon()).await.context("create after a restart")? == made, "made twice");
    let formatting = restarted.begin_format(&volume, 1, soon()).await.context("begin to format")?;
    ensure!((formatting.state, formatting.format_attempt) == (State::Formatting, 1), "{formatting:?}");
    let after = service.get(&volume, soon()).await.context("get while it is formatted")?;
    ensure!(after.dek.expose_secret() == first.dek.expose_secret(), "a change of state gives another key");

    service.destroy(&volume, 1, soon()).await.context("destroy")?;
    let gone = restarted.get(&volume, soon()).await;
    ensure!(matches!(gone, Err(KeyFailure::Destroyed(_))), "{gone:?}");
    let tombstone = store.get(&volume, soon()).await?.context("a tombstone")?.record;
    ensure!(tombstone.state == State::Destroyed && tombstone.key.is_none(), "{tombstone:?}");
    let second = restarted.create(new("vol-1"), soon()).await.context("create after it was destroyed")?;
    ensure!((second.state, second.generation) == (State::Prepared, 2), "{second:?}");
    let other = service.get(&volume, soon()).await.context("get the second key")?;
    ensure!(other.dek.expose_secret() != first.dek.expose_secret(), "the destroyed key came back");
    Ok(())
}

/// A KMS that goes away as soon as it has wrapped.
struct DiesAfterWrap {
    kms: Arc<dyn Kms>,
    forecast: Forecast,
}

#[async_trait]
impl Kms for DiesAfterWrap {
    async fn describe(&self, kek: Option<&str>, deadline: Deadline) -> Result<Kek, KmsFailure> {
        self.kms.describe(kek, deadline).await
    }

    async fn wrap(
        &self,
        key: &InnerKey,
        kek: Option<&str>,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<Wrapped, KmsFailure> {
        let wrapped = self.kms.wrap(key, kek, binding, deadline).await?;
        self.forecast.always(Some(Weather::Reset));
        Ok(wrapped)
    }

    async fn unwrap(
        &self,
        wrapped: &Wrapped,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<InnerKey, KmsFailure> {
        self.kms.unwrap(wrapped, binding, deadline).await
    }
}
