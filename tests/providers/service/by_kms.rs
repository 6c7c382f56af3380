//! A key service with a provider on a server, and a store in memory.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use coffer::key::{
    record::{AwsRole, Base64, KekMechanism, Record, State, StoredKey},
    service::{KeyFailure, KeyService, NewKey, Refusal},
    store::{DekStore, memory::Memory},
};
use libtest_mimic::Trial;
use serde_json::Value;
use testbed::{
    cloud::{Variant, Weather},
    conformance::{soon, store::new_key, told},
    tap::until,
};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{DiesAfterWrap, id, life};
use crate::{
    house::{House, NAME, long_cache, no_cache, offline_cache},
    kms_trials,
    servers::KmsServer,
};

pub(super) fn trials() -> Vec<Trial> {
    let servers = KmsServer::WHOLE;
    [
        kms_trials(&servers, "serves_keys_through_their_whole_life", whole_life),
        kms_trials(&servers, "lets_no_field_of_a_record_be_changed", tampered),
        kms_trials(&servers, "may_go_away_and_come_back", away),
        kms_trials(&servers, "may_die_between_wrap_and_unwrap", dies_at_work),
        kms_trials(&servers, "unwraps_once_for_a_thousand_gets_of_a_hundred_volumes", a_thousand_gets),
        kms_trials(&WITHOUT_CONTEXT, "makes_no_key_with_a_context_that_its_kek_does_not_take", context_not_taken),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Those that have a KEK which takes no context.
const WITHOUT_CONTEXT: [KmsServer; 4] =
    [KmsServer::OpenBao, KmsServer::Moto, KmsServer::KeyVault, KmsServer::ManagedHsm];

fn memory() -> Arc<dyn DekStore> {
    Arc::new(Memory::default())
}

async fn whole_life(house: House) -> Result<()> {
    let (config, store) = (house.good().await?, memory());
    let new = |volume_id: &str| house.new_key(volume_id);
    life(async || anyhow::Ok(house.open(&config).await?.service(no_cache(), store.clone())), new, &store).await?;
    house.notes.shown("keys made, released, destroyed and made again, also after a restart");
    Ok(())
}

/// Whoever can write to the store changes one field of a record: it leads to no key, by the KEK or by the MAC.
async fn tampered(house: House) -> Result<()> {
    let (store, volume) = (memory(), id("vol-1"));
    let service = house.open(&house.good().await?).await?.service(no_cache(), store.clone());
    service.create(house.new_key("vol-1"), soon()).await?;
    let whole = store.get(&volume, soon()).await?.context("a record")?.record;
    for (what, changed) in changes(&whole)? {
        ensure!(changed != whole, "{what} was not changed");
        swap(store.as_ref(), &changed).await?;
        match service.get(&volume, soon()).await {
            Ok(_) => bail!("{what}: it opened"),
            Err(failure) => {
                let refusal = failure.refusal();
                let is_final = matches!(refusal, Refusal::State | Refusal::Denied);
                ensure!(is_final, "{what}: {refusal:?}: {}", told(&failure));
            }
        }
    }
    swap(store.as_ref(), &whole).await?;
    service.get(&volume, soon()).await.context("what is whole opens")?;
    house.notes.shown("each field of a record counts");
    Ok(())
}

async fn swap(store: &dyn DekStore, record: &Record) -> Result<()> {
    let version = store.get(&record.volume_id, soon()).await?.context("a record")?.version;
    Ok(store.replace(record, version, soon()).await?)
}

fn changes(whole: &Record) -> Result<Vec<(&'static str, Record)>> {
    let Some(StoredKey::Wrapped { mechanism, kek_id, kek_mechanism, role, nonce, wrapped_dek, wrapped_inner_key }) =
        whole.key.clone()
    else {
        bail!("a KMS wraps: {:?}", whole.key)
    };
    let key = |kek_id: &str, kek_mechanism, nonce: &Base64, dek: &Base64, inner: &Base64| Record {
        key: Some(StoredKey::Wrapped {
            mechanism,
            kek_id: kek_id.to_owned(),
            kek_mechanism,
            role: role.clone(),
            nonce: nonce.clone(),
            wrapped_dek: dek.clone(),
            wrapped_inner_key: inner.clone(),
        }),
        ..whole.clone()
    };
    let flipped = |bytes: &Base64, at: usize| {
        let mut bytes = bytes.as_bytes().to_vec();
        bytes[at] ^= 0x10;
        Base64::new(bytes)
    };
    let other_mechanism = match kek_mechanism {
        KekMechanism::Symmetric => KekMechanism::RsaOaep256,
        KekMechanism::RsaOaep256 | KekMechanism::AesKeyWrap256 => KekMechanism::Symmetric,
    };
    let in_role = AwsRole {
        arn: "arn:aws:iam::111122223333:role/another".to_owned(),
        session_name: "coffer".to_owned(),
        external_id: None,
    };
    let (last_dek, last_inner) = (wrapped_dek.as_bytes().len() - 1, wrapped_inner_key.as_bytes().len() - 1);
    let (dek, inner) = (&wrapped_dek, &wrapped_inner_key);
    let renamed = format!("{kek_id}9");
    Ok(vec![
        ("KEK", key("another-key", kek_mechanism, &nonce, dek, inner)),
        ("KEK's version", key(&renamed, kek_mechanism, &nonce, dek, inner)),
        ("mechanism", key(&kek_id, other_mechanism, &nonce, dek, inner)),
        ("nonce", key(&kek_id, kek_mechanism, &flipped(&nonce, 3), dek, inner)),
        ("first of the DEK", key(&kek_id, kek_mechanism, &nonce, &flipped(dek, 0), inner)),
        ("last of the DEK", key(&kek_id, kek_mechanism, &nonce, &flipped(dek, last_dek), inner)),
        ("last of the inner key", key(&kek_id, kek_mechanism, &nonce, dek, &flipped(inner, last_inner))),
        ("role", Record { key: whole.key.clone().map(|key| key.in_role(Some(in_role))), ..whole.clone() }),
        ("generation", Record { generation: 2, ..whole.clone() }),
        ("LUKS UUID", Record { luks_uuid: Uuid::from_u128(5), ..whole.clone() }),
        ("context", Record { context: [("team".to_owned(), "red".to_owned())].into(), ..whole.clone() }),
        ("node", Record { node: Some("n2".to_owned()), ..whole.clone() }),
        ("tenant", Record { tenant: Some("another".to_owned()), ..whole.clone() }),
        ("StorageClass", Record { storage_class: Some("another".to_owned()), ..whole.clone() }),
        ("state", Record { state: State::Formatting, ..whole.clone() }),
        ("attempt", Record { format_attempt: 9, ..whole.clone() }),
        ("MAC", Record { mac: None, ..whole.clone() }),
    ])
}

async fn away(house: House) -> Result<()> {
    let (config, store) = (house.good().await?, memory());
    let provider = house.open(&config).await?;
    let plain = provider.service(no_cache(), store.clone());
    let patient = house.open(&config).await?.service(offline_cache(), store.clone());
    for name in ["used", "unused"] {
        plain.create(house.new_key(name), soon()).await.context("create")?;
    }
    let used = patient.get(&id("used"), soon()).await.context("get")?;

    let is_stopped = house.bed.outage(true).await?;
    if !is_stopped {
        house.notes.not_shown("a server that ends and starts again (it forgets its keys; its answers are cut off)");
        house.bed.forecast().always(Some(Weather::Reset));
    }
    let created = plain.create(house.new_key("new"), soon()).await;
    expect_away(created.err().context("a key was made without the KMS")?, &config)?;
    ensure!(store.get(&id("new"), soon()).await?.is_none(), "something is stored of a key that was not made");
    let got = plain.get(&id("used"), soon()).await;
    expect_away(got.err().context("a key was released without the KMS")?, &config)?;
    let kept = patient.get(&id("used"), soon()).await.context("expiryOffline")?;
    ensure!(kept.dek.expose_secret() == used.dek.expose_secret(), "expiryOffline gives another key");
    let got = patient.get(&id("unused"), soon()).await;
    expect_away(got.err().context("a key that nobody unwrapped was released")?, &config)?;
    plain.destroy(&id("unused"), 1, soon()).await.context("a key is destroyed without the KMS")?;

    if is_stopped {
        ensure!(house.bed.outage(false).await?, "the server does not come back");
        house.notes.shown("the server ended and started again");
    } else {
        house.bed.forecast().always(None);
    }
    until("the KMS to be back", async || Ok(plain.get(&id("used"), soon()).await.is_ok())).await?;
    plain.create(house.new_key("new"), soon()).await.context("create when the KMS is back")?;
    let back = plain.get(&id("used"), soon()).await.context("get when the KMS is back")?;
    ensure!(back.dek.expose_secret() == used.dek.expose_secret(), "another key came back");
    plain.get(&id("new"), soon()).await.context("get the new key")?;
    house.notes.shown("an outage: nothing half done, expiryOffline, and back without a restart");
    Ok(())
}

/// Unavailable, naming the provider and where it was looked for.
fn expect_away(failure: KeyFailure, config: &Value) -> Result<()> {
    let text = told(&failure);
    ensure!(failure.refusal() == Refusal::Unavailable, "{:?}: {text}", failure.refusal());
    let endpoint = endpoint(config)?;
    ensure!(text.contains(NAME) && text.contains(endpoint), "{text:?} names no {NAME}, or no {endpoint}");
    Ok(())
}

/// Host and port of the server that a provider is configured with.
fn endpoint(config: &Value) -> Result<&str> {
    let one = ["endpoint", "vaultUrl", "address"].iter().find_map(|key| config.get(key)?.as_str());
    let first = config.get("endpoints").and_then(|all| all.get(0)).and_then(Value::as_str);
    let url = one.or(first).with_context(|| format!("an endpoint in {config}"))?;
    Ok(url.split_once("://").map_or(url, |(_, rest)| rest).trim_end_matches('/'))
}

async fn dies_at_work(house: House) -> Result<()> {
    let (store, provider) = (memory(), house.open(&house.good().await?).await?);
    let forecast = house.bed.forecast().clone();
    // Its tokens are there: what fails is what is looked at.
    provider.kms.describe(None, soon()).await?;
    forecast.forget();
    let dies = Arc::new(DiesAfterWrap { kms: provider.kms.clone(), forecast: forecast.clone() });
    let created = provider.service_with(dies, no_cache(), store.clone()).create(house.new_key("vol-1"), soon()).await;
    forecast.always(None);
    let failure = created.err().context("a key was made that nobody saw open")?;
    ensure!(failure.refusal() == Refusal::Unavailable, "{:?}: {}", failure.refusal(), told(&failure));
    ensure!(forecast.requests().len() >= 2, "it died before it wrapped: {:?}", forecast.requests());
    ensure!(store.get(&id("vol-1"), soon()).await?.is_none(), "a key is stored that nobody saw open");
    let service = provider.service(no_cache(), store.clone());
    service.create(house.new_key("vol-1"), soon()).await.context("the retry")?;
    service.get(&id("vol-1"), soon()).await.context("get after the retry")?;
    house.notes.shown("a KMS that dies between wrap and unwrap leaves nothing");
    Ok(())
}

async fn a_thousand_gets(house: House) -> Result<()> {
    const VOLUMES: usize = 100;
    let (store, provider) = (memory(), house.open(&house.good().await?).await?);
    let service = Arc::new(provider.service(long_cache(), store));
    for number in 0..VOLUMES {
        service.create(house.new_key(&format!("vol-{number}")), soon()).await.context("create")?;
    }
    house.bed.forecast().forget();
    let mut getters = JoinSet::new();
    for start in 0..10 {
        let service = service.clone();
        getters.spawn(async move {
            for number in 0..VOLUMES {
                // Each begins elsewhere, so that some ask at once and some later.
                let volume = id(&format!("vol-{}", (number + 10 * start) % VOLUMES));
                service.get(&volume, soon()).await?;
            }
            Ok::<_, KeyFailure>(())
        });
    }
    while let Some(got) = getters.join_next().await {
        got?.context("get")?;
    }
    let requests = house.bed.forecast().requests();
    let is_unwrap = |request: &String| {
        let request = request.to_lowercase();
        // AWS names what it is asked for in a header.
        house.bed.provider() == "aws-kms" || request.contains("decrypt") || request.contains("unwrap")
    };
    let unwraps = requests.iter().filter(|request| is_unwrap(request)).count();
    // Those of several volumes can go together in one request.
    let fits = if house.bed.provider() == "transit" { (1..=VOLUMES).contains(&unwraps) } else { unwraps == VOLUMES };
    ensure!(fits, "1,000 gets are {unwraps} unwraps of {} requests", requests.len());
    house.notes.shown("1,000 gets of 100 volumes are 100 unwraps at most");
    Ok(())
}

/// The server of an RSA or AES Key Wrap KEK never asks for the context again: a volume that wants one gets no such key.
async fn context_not_taken(house: House) -> Result<()> {
    let rsa = house.bed.config(Variant::Rsa).await?;
    let keks = [("the good KEK", Some(house.good().await?)), ("an RSA KEK", rsa)];
    let mut refused = 0;
    for (what, config) in keks {
        let Some(config) = config else { continue };
        let (store, provider) = (memory(), house.open(&config).await?);
        if provider.kms.describe(None, soon()).await?.mechanism.takes_context() {
            continue;
        }
        let service = provider.service(no_cache(), store.clone());
        let failure =
            service.create(new_key("vol-1"), soon()).await.err().with_context(|| format!("{what} took it"))?;
        let text = told(&failure);
        ensure!(failure.refusal() == Refusal::State, "{what}: {:?}: {text}", failure.refusal());
        ensure!(text.contains("takes no context") && text.contains("(team)"), "{what}: {text}");
        ensure!(store.get(&id("vol-1"), soon()).await?.is_none(), "{what}: something is stored");
        service.create(NewKey { context: BTreeMap::new(), ..new_key("vol-1") }, soon()).await.context(what)?;
        service.get(&id("vol-1"), soon()).await.context(what)?;
        refused += 1;
    }
    ensure!(refused > 0, "it has no KEK that takes no context");
    house.notes.shown("a context that the KEK does not take is refused");
    Ok(())
}
