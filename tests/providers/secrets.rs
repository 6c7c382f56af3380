//! Nothing secret leaves: a marked key goes through every provider, in fair and bad weather, and is looked for in
//! whatever the program logs at its most talkative, in every error and in everything that can be printed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coffer::{
    key::{
        calls::CallSettings,
        envelope,
        kms::{Kms, KmsFailure},
    },
    secret::{Dek, InnerKey},
};
use libtest_mimic::Trial;
use serde_json::Value;
use testbed::{
    cloud::{Standing, Variant, Weather},
    conformance::{kms::Volume, soon, told},
    search::{Marks, Search},
};

use crate::{
    house::{House, long_cache, no_cache},
    kms_trials,
    log::Listening,
    servers::KmsServer,
};

pub(crate) fn trials() -> Vec<Trial> {
    kms_trials(&KmsServer::WHOLE, "lets_nothing_secret_out", nothing_leaves)
}

/// What was told by errors and can be printed.
#[derive(Default)]
struct Told(Vec<String>);

impl Told {
    fn failure(&mut self, failure: &KmsFailure) {
        self.0.push(told(failure));
        self.0.push(format!("{failure:?}\n{failure:#?}"));
    }

    fn answer<T>(&mut self, answer: Result<T, KmsFailure>) {
        if let Err(failure) = answer {
            self.failure(&failure);
        }
    }
}

async fn nothing_leaves(house: House) -> Result<()> {
    let listening = Listening::start().await;
    let (mut marks, mut said) = (Marks::default(), Told::default());
    let (key, dek) = (InnerKey::random(), Dek::random());
    marks.add("inner key", key.expose_secret());
    marks.add("DEK", dek.expose_secret());
    for variant in [Variant::Good, Variant::Rsa] {
        let Some(config) = house.bed.config(variant).await? else { continue };
        marks.add_files(&config);
        flow(&house, &config, (&key, &dek), &mut said).await.with_context(|| format!("{variant:?}"))?;
    }
    for variant in [Variant::MissingKek, Variant::WrongType, Variant::NoPermission, Variant::BadCredentials] {
        let Some(config) = house.bed.config(variant).await? else { continue };
        marks.add_files(&config);
        let (provider, volume) = (house.open(&config).await?, Volume::of("vol-1"));
        said.0.push(provider.settings.clone());
        let answer = provider.kms.wrap(&key, None, &volume.binding(), soon()).await;
        let lets_in = variant == Variant::WrongType && house.bed.standing() == Standing::Emulator;
        ensure!(answer.is_err() || lets_in, "{variant:?}: it wrapped");
        said.answer(answer);
    }
    ensure!(said.0.len() > 10, "hardly anything was said: {:?}", said.0);

    let mut search = Search::new(&marks);
    search.bytes("what the program logs", &listening.ours());
    for text in &said.0 {
        search.bytes("an error, or what is printed", text.as_bytes());
    }
    ensure!(search.found.is_empty(), "secrets got out: {:#?}\n{:#?}", search.found, said.0);

    // The other way round: it is the program's filter that keeps the libraries' lines out, and some need it.
    let all = listening.all();
    ensure!(!all.is_empty(), "no library logged a line: nobody listened");
    let mut search = Search::new(&marks);
    search.bytes("what every library logs", &all);
    if !search.found.is_empty() {
        let found: std::collections::BTreeSet<_> = search.found.iter().map(|found| found.mark.as_str()).collect();
        let found: Vec<_> = found.into_iter().collect();
        house.notes.not_shown(format!(
            "an SDK that keeps secrets by itself (without the program's filter of log lines, its own would tell: {})",
            found.join(", ")
        ));
    }
    house.notes.shown("no secret in logs, errors and what is printed");
    Ok(())
}

/// A marked key through everything that a provider does and can be asked in vain.
async fn flow(house: &House, config: &Value, (key, dek): (&InnerKey, &Dek), said: &mut Told) -> Result<()> {
    let (provider, volume, other) = (house.open(config).await?, Volume::of("vol-1"), Volume::of("vol-2"));
    let (calls, forecast) =
        (CallSettings { timeout: Duration::from_secs(2), attempts: 2, concurrency: 4 }, house.bed.forecast());
    let kms = provider.guarded(calls.clone(), long_cache());
    let wrapped = kms.wrap(key, None, &volume.binding(), soon()).await?;
    let opened = kms.unwrap(&wrapped, &volume.binding(), soon()).await?;
    ensure!(opened.expose_secret() == key.expose_secret(), "it opened to another key");
    let stored = envelope::wrap(dek, &volume.binding(), &kms, None, soon()).await?;
    let kek = kms.describe(None, soon()).await?;
    said.0.push(provider.settings.clone());
    said.0.push(format!("{kms:?} {wrapped:?} {opened:?} {stored:?} {kek:?} {:?}", provider.common));

    for weather in [
        Weather::Status(400),
        Weather::Status(401),
        Weather::Status(403),
        Weather::Status(404),
        Weather::Status(500),
        Weather::Throttled { retry_after: Some(3600) },
        Weather::Reset,
        Weather::Garbage,
    ] {
        let kms = provider.guarded(calls.clone(), no_cache());
        forecast.always(Some(weather));
        said.answer(kms.wrap(key, None, &volume.binding(), soon()).await);
        said.answer(kms.unwrap(&wrapped, &volume.binding(), soon()).await);
        said.answer(kms.describe(None, soon()).await);
        forecast.always(None);
    }
    let kms = provider.guarded(calls, no_cache());
    said.answer(kms.unwrap(&wrapped, &other.binding(), soon()).await);
    let mut changed = wrapped.clone();
    changed.bytes[0] ^= 1;
    said.answer(kms.unwrap(&changed, &volume.binding(), soon()).await);
    changed.kek_id = "another-key".to_owned();
    said.answer(kms.unwrap(&changed, &volume.binding(), soon()).await);
    if house.bed.enable(false).await? {
        said.answer(kms.wrap(key, None, &volume.binding(), soon()).await);
        house.bed.enable(true).await?;
    }
    kms.unwrap(&wrapped, &volume.binding(), soon()).await.context("fair weather again")?;
    Ok(())
}
