//! How a provider is called on a server: again where that helps, within the deadline, not at all for a moment where it
//! never answers, and once for a key that is in the cache. Requests are counted where they arrive.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use coffer::{
    exec::Deadline,
    key::{
        calls::CallSettings,
        kms::{Kms, KmsFailure, Wrapped, guarded::Guarded, settings::CacheSettings},
    },
    secret::InnerKey,
};
use libtest_mimic::Trial;
use serde_json::json;
use testbed::{
    cloud::{Forecast, Weather},
    conformance::{kms::Volume, soon, told},
    tap::until,
};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    house::{Configured, House, long_cache, no_cache, offline_cache},
    kms_trials,
    servers::KmsServer,
};

pub(crate) fn trials() -> Vec<Trial> {
    let whole = KmsServer::WHOLE;
    [
        kms_trials(&whole, "is_asked_again_where_that_helps", again),
        kms_trials(&whole, "is_left_alone_for_a_moment_after_calls_without_an_answer", breaker),
        kms_trials(&whole, "is_asked_once_for_a_key_in_the_cache", cached),
        kms_trials(&whole, "may_be_away_while_expiry_offline_lasts", offline),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A provider that has wrapped a key, so that its tokens are there and one call is one request.
struct Ready {
    house: House,
    provider: Configured,
    forecast: Forecast,
    volume: Volume,
    key: InnerKey,
    wrapped: Wrapped,
}

impl Ready {
    async fn start(house: House) -> Result<Self> {
        let mut config = house.good().await?;
        config["calls"] = json!({ "timeout": "500ms", "attempts": 10, "concurrency": 16 });
        let provider = house.open(&config).await?;
        let asked = &provider.common.calls;
        ensure!(
            *asked == CallSettings { timeout: Duration::from_millis(500), attempts: 10, concurrency: 16 },
            "it was read as {asked:?}"
        );
        let forecast = house.bed.forecast().clone();
        let (volume, key) = (Volume::of("vol-1"), InnerKey::random());
        let wrapped = provider.kms.wrap(&key, None, &volume.binding(), soon()).await?;
        provider.kms.unwrap(&wrapped, &volume.binding(), soon()).await?;
        forecast.forget();
        Ok(Self { house, provider, forecast, volume, key, wrapped })
    }

    fn guarded(&self, attempts: usize, cache: CacheSettings) -> Guarded {
        self.provider.guarded(CallSettings { timeout: Duration::from_secs(10), attempts, concurrency: 16 }, cache)
    }

    async fn unwrap(&self, kms: &Guarded, deadline: Deadline) -> Result<(), KmsFailure> {
        let opened = kms.unwrap(&self.wrapped, &self.volume.binding(), deadline).await?;
        assert_eq!(opened.expose_secret(), self.key.expose_secret(), "it opened to another key");
        Ok(())
    }

    async fn another(&self) -> Result<Wrapped> {
        Ok(self.provider.kms.wrap(&InnerKey::random(), None, &self.volume.binding(), soon()).await?)
    }

    fn requests(&self) -> usize {
        self.forecast.requests().len()
    }
}

async fn again(house: House) -> Result<()> {
    let ready = Ready::start(house).await?;
    let forecast = &ready.forecast;

    forecast.set(vec![Weather::Throttled { retry_after: Some(1) }]);
    let started = Instant::now();
    ready.unwrap(&ready.guarded(10, no_cache()), soon()).await.context("throttled once")?;
    ensure!(started.elapsed() >= Duration::from_secs(1), "it did not wait as long as it was asked to");
    ensure!(ready.requests() == 2, "throttled once: {:?}", forecast.requests());

    forecast.forget();
    forecast.set(vec![Weather::Status(503), Weather::Reset, Weather::Throttled { retry_after: None }]);
    ready.unwrap(&ready.guarded(10, no_cache()), soon()).await.context("three kinds of bad weather")?;
    ensure!(ready.requests() == 4, "three kinds of bad weather: {:?}", forecast.requests());

    forecast.set(vec![Weather::Status(500), Weather::Reset]);
    let wrapped = ready.guarded(10, no_cache()).wrap(&ready.key, None, &ready.volume.binding(), soon()).await;
    let wrapped = wrapped.context("wrap in bad weather")?;
    let opened = ready.provider.kms.unwrap(&wrapped, &ready.volume.binding(), soon()).await?;
    ensure!(opened.expose_secret() == ready.key.expose_secret(), "what was wrapped in bad weather is another key");

    // The configured attempts are short; those above have a server's usual time.
    forecast.forget();
    forecast.set(vec![Weather::Hang]);
    let started = Instant::now();
    let short = ready.provider.guarded(ready.provider.common.calls.clone(), no_cache());
    ready.unwrap(&short, soon()).await.context("no answer once")?;
    ensure!(started.elapsed() >= Duration::from_millis(500), "it did not wait for the answer");
    ensure!(ready.requests() >= 2, "no answer once: {:?}", forecast.requests());

    // So many attempts as are configured and no more: the SDK makes none of its own.
    for weather in [Weather::Status(503), Weather::Reset, Weather::Throttled { retry_after: None }] {
        forecast.forget();
        forecast.always(Some(weather.clone()));
        let answer = ready.unwrap(&ready.guarded(3, no_cache()), soon()).await;
        forecast.always(None);
        let failure = answer.err().with_context(|| format!("{weather:?} for ever: it opened"))?;
        let fits = match weather {
            Weather::Throttled { .. } => matches!(failure, KmsFailure::Throttled { .. }),
            _ => matches!(failure, KmsFailure::Unreachable { .. }),
        };
        ensure!(fits, "{weather:?} for ever: {failure:?}");
        ensure!(ready.requests() == 3, "{weather:?}: 3 attempts are {:?}", forecast.requests());
    }

    forecast.always(Some(Weather::Throttled { retry_after: None }));
    let answer = ready.unwrap(&ready.guarded(100, no_cache()), Deadline::within(Duration::from_secs(2))).await;
    forecast.always(None);
    let failure = answer.err().context("throttled for ever: it opened")?;
    let fits = matches!(failure, KmsFailure::Throttled { .. } | KmsFailure::Deadline { .. });
    ensure!(fits, "throttled for ever: {}", told(&failure));

    // Asked to wait for longer than the caller can, it says at once why.
    forecast.always(Some(Weather::Throttled { retry_after: Some(3600) }));
    let answer = ready.unwrap(&ready.guarded(10, no_cache()), soon()).await;
    forecast.always(None);
    let failure = answer.err().context("throttled for an hour: it opened")?;
    let hour = Some(Duration::from_secs(3600));
    let fits = matches!(&failure, KmsFailure::Throttled { retry_after, .. } if *retry_after == hour);
    ensure!(fits, "throttled for an hour: {failure:?}");

    for step in ["unwrap", "wrap", "describe"] {
        let kms = ready.guarded(2, no_cache());
        forecast.always(Some(Weather::Garbage));
        let failure = match step {
            "unwrap" => ready.unwrap(&kms, soon()).await.err(),
            "wrap" => kms.wrap(&ready.key, None, &ready.volume.binding(), soon()).await.err(),
            _ => kms.describe(None, soon()).await.err(),
        };
        forecast.always(None);
        let failure = failure.with_context(|| format!("{step}: garbage was taken for an answer"))?;
        let fits = matches!(failure, KmsFailure::Garbled { .. } | KmsFailure::Unreachable { .. });
        ensure!(fits, "{step}: garbage is told as {failure:?}");
    }
    ready.unwrap(&ready.guarded(2, no_cache()), soon()).await.context("fair weather again")?;
    ready.house.notes.shown("throttled (Retry-After too), 5xx, reset and no answer are retried; garbage is refused");
    Ok(())
}

async fn breaker(house: House) -> Result<()> {
    let ready = Ready::start(house).await?;
    let kms = ready.guarded(5, no_cache());
    ready.forecast.always(Some(Weather::Reset));
    let failure = ready.unwrap(&kms, soon()).await.err().context("it opened without an answer")?;
    ensure!(matches!(failure, KmsFailure::Unreachable { .. }), "{failure:?}");
    ensure!(ready.requests() == 5, "5 attempts are {:?}", ready.forecast.requests());

    ready.forecast.forget();
    ready.forecast.always(None);
    let failure = ready.unwrap(&kms, soon()).await.err().context("it was asked at once")?;
    ensure!(told(&failure).contains("asked again"), "it does not say so: {}", told(&failure));
    ensure!(ready.requests() == 0, "it was asked: {:?}", ready.forecast.requests());
    until("the breaker to close", async || Ok(ready.unwrap(&kms, soon()).await.is_ok())).await?;
    ensure!(ready.requests() == 1, "it was asked: {:?}", ready.forecast.requests());
    ready.house.notes.shown("left alone after five calls without an answer, and asked again later");
    Ok(())
}

async fn cached(house: House) -> Result<()> {
    let ready = Ready::start(house).await?;
    let kms = Arc::new(ready.guarded(3, long_cache()));
    for _ in 0..10 {
        ready.unwrap(&kms, soon()).await?;
    }
    ensure!(ready.requests() == 1, "ten uses of a key are {:?}", ready.forecast.requests());

    // Concurrent misses make one call.
    let wrapped = ready.another().await?;
    ready.forecast.forget();
    let mut askers = JoinSet::new();
    for _ in 0..16 {
        let (kms, wrapped, volume) = (kms.clone(), wrapped.clone(), ready.volume.clone());
        askers.spawn(async move { kms.unwrap(&wrapped, &volume.binding(), soon()).await.map(drop) });
    }
    while let Some(asked) = askers.join_next().await {
        asked??;
    }
    ensure!(ready.requests() == 1, "sixteen at once are {:?}", ready.forecast.requests());

    // What is cached is cached for its own volume alone.
    ready.forecast.forget();
    let other = Volume::of("vol-2");
    let _ = kms.unwrap(&ready.wrapped, &other.binding(), soon()).await;
    ensure!(ready.requests() == 1, "another volume's use is {:?}", ready.forecast.requests());

    // A new key is not in it, and neither is one that was only looked at again.
    let new = ready.another().await?;
    kms.unwrap_again(&new, &ready.volume.binding(), soon()).await?;
    ready.forecast.forget();
    kms.unwrap(&new, &ready.volume.binding(), soon()).await?;
    ensure!(ready.requests() == 1, "the first use of a new key is {:?}", ready.forecast.requests());

    // What failed is not kept either.
    let fresh = ready.guarded(1, long_cache());
    ready.forecast.set(vec![Weather::Status(503)]);
    ensure!(ready.unwrap(&fresh, soon()).await.is_err(), "one attempt in bad weather opened it");
    ready.unwrap(&fresh, soon()).await.context("the failure was kept")?;

    // It is over in time, however often it is used.
    let short = CacheSettings { expiry_any: Duration::from_secs(1), ..long_cache() };
    let kms = ready.guarded(3, short);
    ready.forecast.forget();
    until("the key's time to be over", async || {
        ready.unwrap(&kms, soon()).await?;
        Ok(ready.requests() > 1)
    })
    .await?;

    let kms = ready.guarded(3, no_cache());
    ready.forecast.forget();
    for _ in 0..3 {
        ready.unwrap(&kms, soon()).await?;
    }
    ensure!(ready.requests() == 3, "three uses without a cache are {:?}", ready.forecast.requests());
    ready.house.notes.shown("one call for a cached key, for its own volume, for a time");
    Ok(())
}

async fn offline(house: House) -> Result<()> {
    let ready = Ready::start(house).await?;
    let kms = ready.guarded(2, offline_cache());
    ready.unwrap(&kms, soon()).await?;
    ready.unwrap(&kms, soon()).await?;
    ensure!(ready.requests() == 2, "a KMS that answers is asked: {:?}", ready.forecast.requests());
    let never_used = ready.another().await?;
    for weather in [Weather::Reset, Weather::Status(503), Weather::Throttled { retry_after: None }] {
        ready.forecast.always(Some(weather.clone()));
        let used = ready.unwrap(&kms, soon()).await;
        let other = kms.unwrap(&never_used, &ready.volume.binding(), soon()).await;
        ready.forecast.always(None);
        used.with_context(|| format!("{weather:?}: a key that was unwrapped before"))?;
        let failure = other.err().with_context(|| format!("{weather:?}: a key that nobody unwrapped opened"))?;
        ensure!(failure.is_outage(), "{weather:?}: {failure:?}");
    }
    until("the KMS to be asked again", async || {
        Ok(kms.unwrap(&never_used, &ready.volume.binding(), soon()).await.is_ok())
    })
    .await?;
    // A refusal is an answer: a key that is switched off is off, whatever is in memory.
    if ready.house.bed.enable(false).await? {
        let refused = ready.unwrap(&kms, soon()).await;
        ensure!(matches!(refused, Err(KmsFailure::Unusable { .. })), "a key that is switched off: {refused:?}");
        ready.house.bed.enable(true).await?;
        ready.house.notes.shown("a key that is switched off is not served from memory");
    }
    ready.house.notes.shown("expiryOffline serves what was unwrapped, and nothing else");
    Ok(())
}
