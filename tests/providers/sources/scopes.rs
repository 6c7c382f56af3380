//! A KEK of its own for each namespace or StorageClass, by a whole key service as a configuration makes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use coffer::{
    admin::Place,
    config::file::FileConfig,
    key::{
        embedded::Embedded,
        service::{KeyFailure, KeyService, NewKey, Refusal},
    },
};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use testbed::{
    cloud::{
        KmsBed, Variant, Weather,
        aws::{MiniStackKms, MotoKms},
    },
    conformance::{soon, store::new_key, told},
};
use tokio::task::JoinSet;

use super::{config, notes, records};
use crate::{
    house::{CLUSTER, read_config},
    trial,
};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("aws_kms_on_moto_has_a_kek_for_each_namespace".to_owned(), namespaces),
        trial("aws_kms_on_moto_makes_one_kek_for_racing_creators".to_owned(), race),
        trial("aws_kms_on_moto_has_a_kek_for_each_class".to_owned(), classes),
        trial("aws_kms_on_moto_shows_by_its_tag_a_kek_whose_making_was_not_answered".to_owned(), lost_answer),
        trial("aws_kms_on_moto_opens_what_was_made_before_the_scope".to_owned(), switched_on_later),
        trial("aws_kms_on_ministack_refuses_a_scopes_kek_that_is_switched_off".to_owned(), switched_off),
    ]
}

/// The good configuration with a KEK for each of a scope.
pub(super) fn scoped(good: &Value, scope: &str) -> Result<Value> {
    let mut scoped = good.clone();
    scoped.as_object_mut().context("keys and values")?.remove("keyId");
    scoped["keyScope"] = scope.into();
    scoped["keyPrefix"] = "fleet".into();
    scoped["keyTags"] = json!({ "team": "storage" });
    Ok(scoped)
}

/// A key service, as a process that was just started has it.
async fn opened(folder: &Path, config: &Value) -> Result<Embedded> {
    std::fs::create_dir_all(folder.join("records"))?;
    let file: FileConfig = read_config(folder, config, &records(folder))?;
    let place = Place::of_config(&file, None).await?;
    Ok(Embedded::new(place.cluster_id, place.providers, place.store))
}

/// A volume of a namespace.
pub(super) fn of(namespace: &str, volume_id: &str) -> NewKey {
    NewKey { tenant: Some(namespace.to_owned()), ..new_key(volume_id) }
}

/// A volume of a class.
fn of_class(class: &str, volume_id: &str) -> NewKey {
    NewKey { storage_class: Some(class.to_owned()), ..new_key(volume_id) }
}

fn alias(whose: &str) -> String {
    format!("alias/fleet-{CLUSTER}-{whose}")
}

/// Makes a key, and says the KEK that it is under.
pub(super) async fn made(service: &Embedded, new: NewKey) -> Result<String> {
    let volume_id = new.volume_id.clone();
    let info = service.create(new, soon()).await.with_context(|| format!("create {volume_id}"))?;
    Ok(info.kek_id)
}

pub(super) async fn opens(service: &Embedded, volume_id: &str) -> Result<()> {
    let volume_id = volume_id.parse().expect("a volume id");
    service.get(&volume_id, soon()).await.map(drop).with_context(|| format!("open {volume_id}"))
}

/// The names of the KEKs that Coffer made.
pub(super) fn ours(aliases: impl IntoIterator<Item = String>) -> BTreeSet<String> {
    aliases.into_iter().filter(|alias| alias.starts_with("alias/fleet-")).collect()
}

async fn namespaces() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = MotoKms::start(folder.path()).await?;
    let config = scoped(&config(&bed, Variant::Good).await?, "namespace")?;
    let service = opened(folder.path(), &config).await?;
    let blue = made(&service, of("team-blue", "vol-1")).await?;
    let again = made(&service, of("team-blue", "vol-2")).await?;
    let red = made(&service, of("team-red", "vol-3")).await?;
    ensure!(blue == again && blue != red, "{blue}, {again}, {red}");
    let aliases = bed.aliases().await?;
    ensure!(ours(aliases.keys().cloned()) == BTreeSet::from([alias("team-blue"), alias("team-red")]), "{aliases:?}");
    for (whose, arn) in [("team-blue", &blue), ("team-red", &red)] {
        let key = &aliases[&alias(whose)];
        ensure!(arn.ends_with(&format!(":key/{key}")), "{whose}: {arn} is not {key}");
        let tags = bed.tags(key).await?;
        let expected = [("coffer-alias".to_owned(), alias(whose)), ("team".to_owned(), "storage".to_owned())];
        ensure!(tags == BTreeMap::from(expected), "{whose}: {tags:?}");
    }
    let restarted = opened(folder.path(), &config).await?;
    for volume in ["vol-1", "vol-2", "vol-3"] {
        opens(&restarted, volume).await?;
    }
    let third = made(&restarted, of("team-blue", "vol-4")).await?;
    ensure!(third == blue, "a restart makes another KEK: {third}");

    let failure = service.create(new_key("vol-5"), soon()).await.err().context("a key for no namespace")?;
    ensure!(failure.refusal() == Refusal::State, "{:?}: {}", failure.refusal(), told(&failure));
    let expected = "provider main has a key for each namespace, and the namespace of volume vol-5 is not known; run \
                    external-provisioner with --extra-create-metadata, which passes it on";
    ensure!(matches!(failure, KeyFailure::Forbidden(_)) && told(&failure) == expected, "{}", told(&failure));
    ensure!(ours(bed.aliases().await?.into_keys()).len() == 2, "something was made for no namespace");
    notes(&bed).shown("a KEK for each namespace, with its tags");
    Ok(())
}

/// Eight processes at once make the first volume of a namespace.
async fn race() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = MotoKms::start(folder.path()).await?;
    let config = scoped(&config(&bed, Variant::Good).await?, "namespace")?;
    let other = opened(folder.path(), &config).await?;
    made(&other, of("team-red", "vol-red")).await?;
    let mut processes = Vec::new();
    for _ in 0..8 {
        processes.push(Arc::new(opened(folder.path(), &config).await?));
    }
    let mut creators = JoinSet::new();
    for (number, service) in processes.into_iter().enumerate() {
        creators.spawn(async move {
            let kek = made(&service, of("team-blue", &format!("vol-{number}"))).await;
            (service, kek)
        });
    }
    let (mut services, mut keks) = (Vec::new(), BTreeSet::new());
    while let Some(made) = creators.join_next().await {
        let (service, kek) = made?;
        keks.insert(kek?);
        services.push(service);
    }
    let aliases = bed.aliases().await?;
    ensure!(ours(aliases.keys().cloned()) == BTreeSet::from([alias("team-blue"), alias("team-red")]), "{aliases:?}");
    let winner = &aliases[&alias("team-blue")];
    let is_winner = keks.len() == 1 && keks.iter().all(|kek| kek.ends_with(&format!(":key/{winner}")));
    ensure!(is_winner, "{keks:?} in place of {winner} alone");
    services.push(Arc::new(opened(folder.path(), &config).await?));
    for service in &services {
        for number in 0..8 {
            opens(service, &format!("vol-{number}")).await?;
        }
        opens(service, "vol-red").await.context("another namespace's volume")?;
    }
    made(&services[0], of("team-blue", "vol-8")).await?;
    notes(&bed).shown("one KEK for a namespace whose first volumes are made at once by eight processes");
    Ok(())
}

/// CreateKey knows no token by which a second call finds the KEK of a first one whose answer was lost.
async fn lost_answer() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = MotoKms::start(folder.path()).await?;
    let config = scoped(&config(&bed, Variant::Good).await?, "namespace")?;
    let service = opened(folder.path(), &config).await?;
    // There is no alias; the KEK is made, and nobody hears of it.
    bed.forecast().set(vec![Weather::Fair, Weather::Lost]);
    let kek = made(&service, of("team-blue", "vol-1")).await?;
    opens(&service, "vol-1").await?;

    let aliases = bed.aliases().await?;
    let named = &aliases[&alias("team-blue")];
    ensure!(kek.ends_with(&format!(":key/{named}")), "{kek} is not {named}");
    let (mut of_alias, wanted) = (Vec::new(), ("coffer-alias".to_owned(), alias("team-blue")));
    for key in bed.keys().await? {
        if bed.tags(&key).await?.into_iter().any(|tag| tag == wanted) {
            of_alias.push(key);
        }
    }
    ensure!(of_alias.len() == 2 && of_alias.contains(named), "{of_alias:?} were made for the alias of {named}");
    of_alias.retain(|key| key != named);
    ensure!(aliases.values().all(|key| *key != of_alias[0]), "{of_alias:?} has an alias: {aliases:?}");
    notes(&bed).shown("a KEK whose making was not answered: the next one is used, and the first is known by its tag");
    Ok(())
}

async fn classes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = MotoKms::start(folder.path()).await?;
    let config = scoped(&config(&bed, Variant::Good).await?, "class")?;
    let service = opened(folder.path(), &config).await?;
    let gold = made(&service, of_class("gold.example", "vol-1")).await?;
    let silver = made(&service, of_class("silver", "vol-2")).await?;
    let again = made(&service, of_class("gold.example", "vol-3")).await?;
    ensure!(gold == again && gold != silver, "{gold}, {again}, {silver}");
    let aliases = ours(bed.aliases().await?.into_keys());
    ensure!(aliases == BTreeSet::from([alias("class-gold_example"), alias("class-silver")]), "{aliases:?}");
    let restarted = opened(folder.path(), &config).await?;
    for volume in ["vol-1", "vol-2", "vol-3"] {
        opens(&restarted, volume).await?;
    }
    let failure = service.create(of("team-blue", "vol-4"), soon()).await.err().context("a key for no class")?;
    ensure!(failure.refusal() == Refusal::State && told(&failure).contains("StorageClass"), "{}", told(&failure));
    ensure!(told(&failure).contains("name the class in its own parameter storageClass"), "{}", told(&failure));
    notes(&bed).shown("a KEK for each StorageClass");
    Ok(())
}

async fn switched_on_later() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = MotoKms::start(folder.path()).await?;
    let good = config(&bed, Variant::Good).await?;
    let before = opened(folder.path(), &good).await?;
    let old = made(&before, of("team-blue", "vol-old")).await?;
    let after = opened(folder.path(), &scoped(&good, "namespace")?).await?;
    opens(&after, "vol-old").await?;
    let new = made(&after, of("team-blue", "vol-new")).await?;
    ensure!(new != old, "{new} is the one of before");
    opens(&after, "vol-new").await?;
    // And back: what a namespace's KEK wrapped needs no scope.
    let back = opened(folder.path(), &good).await?;
    for volume in ["vol-old", "vol-new"] {
        opens(&back, volume).await?;
    }
    notes(&bed).shown("keyScope switched on later, and off again: all volumes open");
    Ok(())
}

async fn switched_off() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = MiniStackKms::start(folder.path()).await?;
    let config = scoped(&config(&bed, Variant::Good).await?, "namespace")?;
    let service = async || opened(folder.path(), &config).await;
    let first = service().await?;
    made(&first, of("team-blue", "vol-1")).await?;
    made(&first, of("team-red", "vol-2")).await?;
    let key = bed.aliases().await?.remove(&alias("team-blue")).context("an alias")?;
    bed.enable_made(&key, false).await?;
    let keks = bed.aliases().await?.len();

    let restarted = service().await?;
    let failure = restarted.create(of("team-blue", "vol-3"), soon()).await.err().context("a key under it")?;
    ensure!(failure.refusal() == Refusal::State, "{:?}: {}", failure.refusal(), told(&failure));
    ensure!(told(&failure).contains(&alias("team-blue")), "it does not name the alias: {}", told(&failure));
    let closed = restarted.get(&"vol-1".parse().expect("a volume id"), soon()).await;
    let failure = closed.err().context("a volume under it opened")?;
    ensure!(failure.refusal() == Refusal::State, "{:?}: {}", failure.refusal(), told(&failure));
    opens(&restarted, "vol-2").await.context("another namespace's volume")?;
    made(&restarted, of("team-red", "vol-4")).await?;
    ensure!(bed.aliases().await?.len() == keks, "a KEK was made in the place of one that is switched off");

    bed.enable_made(&key, true).await?;
    opens(&restarted, "vol-1").await?;
    made(&restarted, of("team-blue", "vol-3")).await?;
    notes(&bed).shown("a namespace's KEK that is switched off is refused, and not replaced");
    Ok(())
}
