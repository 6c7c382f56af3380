//! A key service with the local provider, and a store on a server.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use coffer::{
    exec::Deadline,
    key::{
        kms::{Kms, local::Local},
        record::Record,
        service::{KeyFailure, KeyService, Refusal},
        store::{DekStore, Listed, StoreFailure, Stored, Version},
    },
    secret::LocalKek,
    volume::VolumeId,
};
use libtest_mimic::Trial;
use testbed::{
    cloud::Weather,
    conformance::{soon, store::new_key, told},
    tap::until,
};

use super::{DiesAfterWrap, id, life};
use crate::{house::embedded, servers::StoreServer, shelf::Shelf, store_trials};

pub(super) fn trials() -> Vec<Trial> {
    let servers = StoreServer::ALL;
    [
        store_trials(&servers, "serves_keys_through_their_whole_life", whole_life),
        store_trials(&servers, "may_go_away_and_come_back", away),
        store_trials(&servers, "may_lose_its_answer_to_a_create", lost_answer),
        store_trials(&servers, "never_leads_to_a_key_by_another_volumes_record", foreign_record),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn local() -> Arc<dyn Kms> {
    Arc::new(Local::new(LocalKek::born(|kek| kek.fill(7))))
}

/// A key service, as a process that was just started has it.
fn on_store(store: Arc<dyn DekStore>) -> impl KeyService {
    embedded(local(), Default::default(), store)
}

async fn whole_life(shelf: Shelf) -> Result<()> {
    let place = shelf.good().await?;
    life(async || anyhow::Ok(on_store(place.records())), new_key, &place.records()).await?;
    shelf.notes.shown("keys made, released, destroyed and made again, also after a restart");
    Ok(())
}

async fn away(shelf: Shelf) -> Result<()> {
    let place = shelf.good().await?.called(|place| place.calls.attempts = 2);
    let (store, forecast) = (place.records(), shelf.bed.forecast().clone());
    let service = on_store(store);
    service.create(new_key("vol-1"), soon()).await.context("create")?;
    let first = service.get(&id("vol-1"), soon()).await.context("get")?;
    let unavailable = |failure: KeyFailure| {
        let text = told(&failure);
        ensure!(failure.refusal() == Refusal::Unavailable, "{:?}: {text}", failure.refusal());
        ensure!(text.contains(place.bucket_name()?), "{text:?} names no bucket");
        anyhow::Ok(())
    };

    forecast.always(Some(Weather::Reset));
    let created = service.create(new_key("vol-2"), soon()).await;
    let got = service.get(&id("vol-1"), soon()).await;
    let destroyed = service.destroy(&id("vol-1"), 1, soon()).await;
    forecast.always(None);
    unavailable(created.err().context("a key was made without the store")?)?;
    unavailable(got.err().context("a key was released without the store")?)?;
    unavailable(destroyed.err().context("a key was destroyed without the store")?)?;
    ensure!(place.records().get(&id("vol-2"), soon()).await?.is_none(), "something is stored");

    // It goes away when the key is made and not stored yet.
    until("the store to be back", async || Ok(service.get(&id("vol-1"), soon()).await.is_ok())).await?;
    let dies = Arc::new(DiesAfterWrap { kms: local(), forecast: forecast.clone() });
    let created = embedded(dies, Default::default(), place.records()).create(new_key("vol-2"), soon()).await;
    forecast.always(None);
    unavailable(created.err().context("a key was made without the store")?)?;
    ensure!(place.records().get(&id("vol-2"), soon()).await?.is_none(), "something is stored of it");

    service.create(new_key("vol-2"), soon()).await.context("the retry")?;
    service.get(&id("vol-2"), soon()).await.context("get after the retry")?;
    let again = service.get(&id("vol-1"), soon()).await.context("get when the store is back")?;
    ensure!(again.dek.expose_secret() == first.dek.expose_secret(), "another key came back");
    shelf.notes.shown("an outage: nothing half done, and back without a restart");
    Ok(())
}

/// A store whose answers to a create are lost on their way, so that the request is made again.
struct LosesAnswers(Arc<dyn DekStore>);

#[async_trait]
impl DekStore for LosesAnswers {
    async fn get(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<Option<Stored>, StoreFailure> {
        self.0.get(volume_id, deadline).await
    }

    async fn create(&self, record: &Record, deadline: Deadline) -> Result<(), StoreFailure> {
        self.0.create(record, deadline).await?;
        self.0.create(record, deadline).await
    }

    async fn replace(&self, record: &Record, version: Version, deadline: Deadline) -> Result<(), StoreFailure> {
        self.0.replace(record, version, deadline).await?;
        self.0.replace(record, version, deadline).await
    }

    async fn list(&self, after: Option<&VolumeId>, limit: usize, deadline: Deadline) -> Result<Listed, StoreFailure> {
        self.0.list(after, limit, deadline).await
    }
}

async fn lost_answer(shelf: Shelf) -> Result<()> {
    let place = shelf.good().await?;
    let service = on_store(Arc::new(LosesAnswers(place.records())));
    let made = service.create(new_key("vol-1"), soon()).await.context("create")?;
    let stored = place.records().get(&id("vol-1"), soon()).await?.context("it is stored")?.record;
    ensure!(made.luks_uuid == stored.luks_uuid && made.generation == 1, "{made:?} is not what is stored");
    let first = service.get(&id("vol-1"), soon()).await.context("get")?;
    let again = on_store(place.records()).get(&id("vol-1"), soon()).await.context("get by another")?;
    ensure!(first.dek.expose_secret() == again.dek.expose_secret(), "two keys for one volume");
    service.destroy(&id("vol-1"), 1, soon()).await.context("destroy")?;
    let second = service.create(new_key("vol-1"), soon()).await.context("create again")?;
    ensure!(second.generation == 2, "{second:?}");
    shelf.notes.shown("a create whose answer was lost finds its own record");
    Ok(())
}

async fn foreign_record(shelf: Shelf) -> Result<()> {
    let place = shelf.good().await?;
    let service = on_store(place.records());
    for name in ["vol-1", "vol-2"] {
        service.create(new_key(name), soon()).await.context("create")?;
    }
    let record = async |name: &str| -> Result<Record> {
        Ok(place.records().get(&id(name), soon()).await?.context("a record")?.record)
    };
    let (own, other) = (record("vol-1").await?, record("vol-2").await?);
    let renamed = Record { volume_id: own.volume_id.clone(), ..other.clone() };
    for (what, bytes) in [
        ("another volume's record", other.to_bytes()),
        ("another volume's record under our id", renamed.to_bytes()),
        ("half a record", own.to_bytes()[..200].to_vec()),
        ("nothing", Vec::new()),
    ] {
        shelf.overwrite(&place, "vol-1", &bytes).await?;
        let failure = service.get(&id("vol-1"), soon()).await.err().with_context(|| format!("{what} opened"))?;
        let fits = matches!(failure, KeyFailure::Record { .. } | KeyFailure::Unwrap { .. });
        ensure!(fits && failure.refusal() == Refusal::State, "{what}: {failure:?}");
        ensure!(told(&failure).contains("vol-1"), "{what}: {}", told(&failure));
        // Neither is a new key made in its place, which would end what it was.
        let created = service.create(new_key("vol-1"), soon()).await;
        let is_kept = matches!(created, Err(KeyFailure::Record { .. })) || what.ends_with("our id");
        ensure!(is_kept, "{what}: {created:?}");
    }
    shelf.overwrite(&place, "vol-1", &own.to_bytes()).await?;
    service.get(&id("vol-1"), soon()).await.context("what is whole opens")?;
    shelf.notes.shown("another volume's record leads to no key");
    Ok(())
}
