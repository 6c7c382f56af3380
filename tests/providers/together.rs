//! The keys of many volumes, asked for at once: each caller gets its own answer, whosever requests go together.
//! `transit` puts many into one request; how many there were is counted where they arrive.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use coffer::{
    exec::Deadline,
    key::{
        calls::CallSettings,
        kms::{Kms, KmsFailure, Wrapped},
    },
    secret::InnerKey,
};
use futures::future::join_all;
use libtest_mimic::Trial;
use serde_json::Value;
use testbed::{
    cloud::{Forecast, Variant, Weather},
    conformance::{
        kms::{Binds, Volume},
        soon,
    },
    tap::until,
};

use crate::{
    house::{Configured, House, no_cache},
    kms_trials,
    servers::KmsServer,
};

pub(crate) fn trials() -> Vec<Trial> {
    let transit = [KmsServer::OpenBao];
    [
        kms_trials(&KmsServer::WHOLE, "opens_many_keys_at_once_and_refuses_the_wrong_ones_among_them", many),
        kms_trials(&transit, "is_asked_for_many_keys_in_few_requests", few_requests),
        kms_trials(&transit, "gives_their_keys_to_those_who_wait_for_one_who_hangs_up", hangs_up),
        kms_trials(&transit, "gives_their_keys_to_those_who_wait_for_requests_that_hang", hang),
        kms_trials(&transit, "is_asked_for_each_key_alone_where_all_together_failed", alone_again),
        kms_trials(&transit, "is_asked_for_each_key_alone_where_a_request_for_all_hangs", all_hang),
        kms_trials(&transit, "throttles_a_request_for_many_keys_and_gets_few_again", throttled),
        kms_trials(&transit, "is_asked_for_keys_under_rsa_one_by_one", rsa),
    ]
    .into_iter()
    .flatten()
    .collect()
}

const VOLUMES: usize = 48;
/// So many requests are under way before those that come wait.
const UNDER_WAY: usize = 4;

/// The time of one attempt.
fn attempt() -> Deadline {
    Deadline::within(Duration::from_secs(10))
}

/// A KMS that has wrapped the keys of many volumes.
struct Many {
    house: House,
    provider: Configured,
    kms: Arc<dyn Kms>,
    volumes: Vec<(Volume, InnerKey, Wrapped)>,
    forecast: Forecast,
}

impl Many {
    async fn start(house: House) -> Result<Self> {
        let config = house.good().await?;
        Self::under(house, config).await
    }

    async fn under(house: House, config: Value) -> Result<Self> {
        let provider = house.open(&config).await?;
        let mut volumes = Vec::new();
        for number in 0..VOLUMES {
            let (volume, key) = (Volume::of(&format!("vol-{number}")), InnerKey::random());
            let wrapped = provider.kms.wrap(&key, None, &volume.binding(), soon()).await?;
            volumes.push((volume, key, wrapped));
        }
        let forecast = house.bed.forecast().clone();
        forecast.forget();
        let kms = provider.kms.clone();
        Ok(Self { house, provider, kms, volumes, forecast })
    }

    /// A volume's key has to open.
    async fn opens(&self, number: usize) -> Result<()> {
        let (volume, key, wrapped) = &self.volumes[number];
        let opened = self.kms.unwrap(wrapped, &volume.binding(), attempt()).await;
        let opened = opened.with_context(|| format!("the key of volume {number}"))?;
        ensure!(opened.expose_secret() == key.expose_secret(), "volume {number} got another key");
        Ok(())
    }

    /// The keys of these volumes, all at once.
    async fn all_open(&self, volumes: std::ops::Range<usize>) -> Result<()> {
        join_all(volumes.map(|number| self.opens(number))).await.into_iter().collect()
    }

    fn expect_few_requests(&self) -> Result<()> {
        let requests = self.forecast.requests();
        ensure!(requests.len() < VOLUMES / 2, "{VOLUMES} keys are {} requests: {requests:#?}", requests.len());
        Ok(())
    }
}

async fn many(house: House) -> Result<()> {
    let many = Many::start(house).await?;
    let is_wrong = |number: usize| number % 10 == 7;
    let binds = many.house.binds(many.kms.as_ref()).await? != Binds::Nothing;
    many.forecast.forget();
    many.forecast.set(vec![Weather::Slow; UNDER_WAY]);
    let asked = (0..VOLUMES).map(async |number| {
        if !(is_wrong(number) && binds) {
            return many.opens(number).await;
        }
        let (_, _, wrapped) = &many.volumes[number];
        let (other, _, _) = &many.volumes[(number + 1) % VOLUMES];
        let refused = many.kms.unwrap(wrapped, &other.binding(), soon()).await;
        ensure!(matches!(refused, Err(KmsFailure::Mismatch)), "volume {number}'s key for another: {refused:?}");
        Ok(())
    });
    join_all(asked).await.into_iter().collect::<Result<()>>()?;
    if many.house.bed.provider() == "transit" {
        many.expect_few_requests()?;
    }
    many.house.notes.shown("the keys of many volumes at once, wrong ones among them");
    Ok(())
}

async fn few_requests(house: House) -> Result<()> {
    let many = Many::start(house).await?;
    many.forecast.set(vec![Weather::Slow; UNDER_WAY]);
    many.all_open(0..VOLUMES).await?;
    many.expect_few_requests()?;
    many.house.notes.shown("many keys in few requests");
    Ok(())
}

async fn hangs_up(house: House) -> Result<()> {
    let many = Many::start(house).await?;
    many.forecast.set(vec![Weather::Hang; UNDER_WAY]);
    let hanging = many.all_open(0..UNDER_WAY);
    let hang_up = async {
        tokio::select! {
            biased;
            answered = hanging => bail!("requests that hang were answered: {answered:?}"),
            arrived = until("them to arrive", async || Ok(many.forecast.requests().len() == UNDER_WAY)) => arrived,
        }
    };
    let (hung_up, others) = tokio::join!(biased; hang_up, many.all_open(UNDER_WAY..VOLUMES));
    hung_up.and(others)?;
    many.expect_few_requests()
}

async fn hang(house: House) -> Result<()> {
    let many = Many::start(house).await?;
    many.forecast.set(vec![Weather::Hang; UNDER_WAY]);
    tokio::select! {
        // Those that hang are the first.
        biased;
        answered = many.all_open(0..UNDER_WAY) => bail!("requests that hang were answered: {answered:?}"),
        others = many.all_open(UNDER_WAY..VOLUMES) => others,
    }
}

async fn alone_again(house: House) -> Result<()> {
    let many = Many::start(house).await?;
    for failed in [Weather::Status(503), Weather::Reset, Weather::Garbage] {
        many.forecast.forget();
        many.forecast.set([vec![Weather::Slow; UNDER_WAY], vec![failed]].concat());
        many.all_open(0..VOLUMES).await?;
        let requests = many.forecast.requests().len();
        ensure!(requests > VOLUMES, "{requests} requests, of which the one for many failed");
    }
    Ok(())
}

async fn all_hang(house: House) -> Result<()> {
    let many = Many::start(house).await?;
    many.forecast.set([vec![Weather::Slow; UNDER_WAY], vec![Weather::Hang]].concat());
    // None has more than its attempt's time, and the request for all of them never ends.
    many.all_open(0..VOLUMES).await?;
    let requests = many.forecast.requests().len();
    ensure!(requests > VOLUMES, "{requests} requests, of which the one for many hangs");
    Ok(())
}

async fn throttled(house: House) -> Result<()> {
    let mut many = Many::start(house).await?;
    // Whoever is throttled comes again when he was told to, together with the others, and not at once by himself.
    many.kms = Arc::new(many.provider.guarded(CallSettings::default(), no_cache()));
    many.forecast.set([vec![Weather::Slow; UNDER_WAY], vec![Weather::Throttled { retry_after: Some(1) }]].concat());
    many.all_open(0..VOLUMES).await?;
    many.expect_few_requests()
}

async fn rsa(house: House) -> Result<()> {
    let config = house.bed.config(Variant::Rsa).await?.context("OpenBao has an RSA key")?;
    let many = Many::under(house, config).await?;
    many.all_open(0..VOLUMES).await?;
    let requests = many.forecast.requests().len();
    ensure!(requests == VOLUMES, "{VOLUMES} keys are {requests} requests");
    Ok(())
}
