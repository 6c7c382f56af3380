//! What is around every provider: calls that are made again where that helps ([`Calls`]), a cache of unwrapped keys, and
//! the trial of a KEK before it wraps.
//!
//! | | |
//! |---|---|
//! | `expiryAny` | an unwrapped key is used so long without asking the KMS |
//! | `expiryUnused` | it is forgotten so long after its last use |
//! | `expiryOffline` | while the KMS does not answer, a key that it unwrapped no longer ago is used |
//!
//! Only what a record holds is kept, under a hash of the wrapped bytes and everything they are bound to: a new key is
//! unwrapped for comparison past the cache. Concurrent misses of one key make one call. A key is wiped when its time is
//! over: the cache is swept every second.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use moka::future::Cache;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::{task::AbortHandle, time::Instant};
use uuid::Uuid;

use crate::{
    exec::Deadline,
    key::{
        binding::{Binding, Fields},
        calls::{Calls, Transient},
        kms::{
            ByHand, Kek, Kms, KmsFailure, Periods, Rotation, Wrapped,
            settings::{CacheSettings, Common, Validate},
        },
        service::Refusal,
    },
    secret::InnerKey,
};

const CACHE_LABEL: &str = "coffer/v1/unwrap-cache";
/// How often what is too old is looked for and wiped.
const SWEEP: Duration = Duration::from_secs(1);
/// How long a KEK that was tried is trusted.
const TRIED_FOR: Duration = Duration::from_secs(600);

/// A provider with everything around it.
pub struct Guarded {
    kms: Arc<dyn Kms>,
    name: String,
    calls: Calls,
    fresh: Option<Keys>,
    offline: Option<Keys>,
    validate: Validate,
    cluster_id: Uuid,
    context: BTreeMap<String, String>,
    tried: tokio::sync::Mutex<Option<Instant>>,
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("calls", &self.calls).finish_non_exhaustive()
    }
}

impl Guarded {
    /// A provider of a name, as it is configured.
    #[must_use]
    pub fn new(kms: Arc<dyn Kms>, name: &str, common: Common) -> Self {
        let CacheSettings { expiry_any, expiry_unused, expiry_offline, entries } = common.cache;
        Self {
            kms,
            name: name.to_owned(),
            calls: Calls::new(format!("provider {name}"), common.calls),
            fresh: Keys::new(entries, expiry_any, Some(expiry_unused)),
            offline: Keys::new(entries, expiry_offline, None),
            validate: common.validate,
            cluster_id: Uuid::nil(),
            context: common.context,
            tried: tokio::sync::Mutex::default(),
        }
    }

    /// The same in an installation, whose id a KEK's policy may ask for when the KEK is tried.
    #[must_use]
    pub fn of_cluster(self, cluster_id: Uuid) -> Self {
        Self { cluster_id, ..self }
    }

    /// Tries the configured KEK: describes it, wraps a key that nobody uses, and unwraps it again. It creates nothing.
    ///
    /// # Errors
    /// The KEK cannot be used, or the KMS cannot be asked.
    pub async fn validate(&self, deadline: Deadline) -> Result<(), KmsFailure> {
        *self.tried.lock().await = None;
        self.expect_tried(deadline).await
    }

    /// Tries the KEK unless it was tried a while ago. Of those who come at once, one does.
    async fn expect_tried(&self, deadline: Deadline) -> Result<(), KmsFailure> {
        let mut tried = self.tried.lock().await;
        if tried.is_some_and(|when| when.elapsed() < TRIED_FOR) {
            return Ok(());
        }
        let volume_id = "coffer-trial".parse().expect("it is a volume id");
        let binding = Binding {
            cluster_id: self.cluster_id,
            volume_id: &volume_id,
            generation: 1,
            luks_uuid: Uuid::nil(),
            context: &self.context,
        };
        self.describe(None, deadline).await?;
        let key = InnerKey::random();
        let wrapped = self.wrapped(&key, None, &binding, deadline).await?;
        let again = self.unwrap_again(&wrapped, &binding, deadline).await?;
        if !bool::from(again.expose_secret().ct_eq(key.expose_secret())) {
            return Err(KmsFailure::Mismatch);
        }
        *tried = Some(Instant::now());
        Ok(())
    }

    /// Makes one attempt at the KMS and counts it, also one that is given up.
    async fn counted<T>(
        &self,
        operation: &'static str,
        attempt: impl Future<Output = Result<T, KmsFailure>> + Send,
    ) -> Result<T, KmsFailure> {
        let mut counted = Attempt { provider: &self.name, operation, began: Instant::now(), result: "unanswered" };
        let result = attempt.await;
        counted.result = result.as_ref().map_or_else(KmsFailure::kind, |_| "ok");
        result
    }

    fn count_cached(&self, result: &'static str) {
        metrics::counter!("coffer_cache_requests_total", "provider" => self.name.clone(), "result" => result)
            .increment(1);
    }

    async fn wrapped(
        &self,
        key: &InnerKey,
        kek: Option<&str>,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<Wrapped, KmsFailure> {
        self.calls.make(deadline, |deadline| self.counted("wrap", self.kms.wrap(key, kek, binding, deadline))).await
    }
}

#[async_trait]
impl Kms for Guarded {
    async fn describe(&self, kek: Option<&str>, deadline: Deadline) -> Result<Kek, KmsFailure> {
        self.calls.make(deadline, |deadline| self.counted("describe", self.kms.describe(kek, deadline))).await
    }

    async fn wrap(
        &self,
        key: &InnerKey,
        kek: Option<&str>,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<Wrapped, KmsFailure> {
        // A KEK of another name is tried by being used: its new key is unwrapped again before it is stored.
        if kek.is_none() && self.validate != Validate::Off {
            self.expect_tried(deadline).await?;
        }
        self.wrapped(key, kek, binding, deadline).await
    }

    async fn unwrap(
        &self,
        wrapped: &Wrapped,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<InnerKey, KmsFailure> {
        let id = cache_id(wrapped, binding);
        let missed = AtomicBool::new(self.fresh.is_none());
        let ask = async {
            missed.store(true, Ordering::Relaxed);
            let key = self.unwrap_again(wrapped, binding, deadline).await?;
            if let Some(offline) = &self.offline {
                offline.keep(id, &key).await;
            }
            Ok(key)
        };
        let asked = match &self.fresh {
            None => ask.await,
            Some(fresh) => {
                let asked = tokio::time::timeout(deadline.left(), fresh.get_or(id, ask)).await;
                match asked.unwrap_or_else(|_| Err(KmsFailure::deadline("the cache of unwrapped keys"))) {
                    Ok(Some(key)) => Ok(key),
                    // The cache let go of it before this caller had its copy. The KMS is there: it is asked once more.
                    Ok(None) => {
                        missed.store(true, Ordering::Relaxed);
                        self.unwrap_again(wrapped, binding, deadline).await
                    }
                    // It was another caller's deadline, and this one has time left.
                    Err(KmsFailure::Deadline { .. }) if !deadline.left().is_zero() => {
                        missed.store(true, Ordering::Relaxed);
                        self.unwrap_again(wrapped, binding, deadline).await
                    }
                    Err(failure) => Err(failure),
                }
            }
        };
        let Err(failure) = &asked else {
            self.count_cached(if missed.into_inner() { "miss" } else { "hit" });
            return asked;
        };
        if let Some(offline) = &self.offline
            && failure.refusal() != Refusal::Unavailable
        {
            // What the KMS has refused is not given while it is away.
            offline.forget(id).await;
        }
        match &self.offline {
            Some(offline) if failure.is_outage() => match offline.get(id).await {
                Some(key) => {
                    self.count_cached("offline");
                    tracing::warn!(error = %failure, "a key that was unwrapped earlier is used (expiryOffline)");
                    Ok(key)
                }
                None => {
                    self.count_cached("miss");
                    asked
                }
            },
            _ => {
                self.count_cached("miss");
                asked
            }
        }
    }

    async fn unwrap_again(
        &self,
        wrapped: &Wrapped,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<InnerKey, KmsFailure> {
        self.calls.make(deadline, |deadline| self.counted("unwrap", self.kms.unwrap(wrapped, binding, deadline))).await
    }

    async fn ensure(&self, kek: &str, deadline: Deadline) -> Result<(), KmsFailure> {
        self.calls.make(deadline, |deadline| self.counted("ensure", self.kms.ensure(kek, deadline))).await
    }

    // Only verbs ask what comes from here, and a verb serves no metrics.

    fn rotation_periods(&self, kek: Option<&str>) -> Result<Periods, ByHand> {
        self.kms.rotation_periods(kek)
    }

    async fn rotation(&self, kek: Option<&str>, deadline: Deadline) -> Result<Rotation, KmsFailure> {
        self.calls.make(deadline, |deadline| self.kms.rotation(kek, deadline)).await
    }

    async fn rotate_every(&self, period: Duration, kek: Option<&str>, deadline: Deadline) -> Result<(), KmsFailure> {
        self.calls.make(deadline, |deadline| self.kms.rotate_every(period, kek, deadline)).await
    }
}

/// An attempt at a KMS that counts itself when it is dropped.
struct Attempt<'a> {
    provider: &'a str,
    operation: &'static str,
    began: Instant,
    result: &'static str,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let Self { provider, operation, began, result } = *self;
        metrics::histogram!("coffer_kms_seconds", "provider" => provider.to_owned(), "operation" => operation)
            .record(began.elapsed());
        metrics::counter!(
            "coffer_kms_calls_total",
            "provider" => provider.to_owned(),
            "operation" => operation,
            "result" => result
        )
        .increment(1);
    }
}

/// What a cached key is found by: everything that unwrapping it depends on.
fn cache_id(wrapped: &Wrapped, binding: &Binding<'_>) -> [u8; 32] {
    let fields = Fields::new(CACHE_LABEL)
        .field(&wrapped.kek_id)
        .field(wrapped.mechanism.as_str())
        .field(&wrapped.bytes)
        .field(binding.aad());
    Sha256::digest(fields.bytes()).into()
}

/// Keys that are kept for a time.
struct Keys {
    cache: Cache<[u8; 32], Arc<Kept>>,
    sweep: AbortHandle,
}

/// A key in the cache. It is wiped when the cache lets go of it, whoever still holds the entry.
struct Kept(Mutex<Option<InnerKey>>);

impl Kept {
    fn new(key: &InnerKey) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(copy(key)))))
    }

    fn copy(&self) -> Option<InnerKey> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(copy)
    }

    fn wipe(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn copy(key: &InnerKey) -> InnerKey {
    InnerKey::born(|bytes| bytes.copy_from_slice(key.expose_secret()))
}

impl Keys {
    /// None where the time, or one of the times, is zero.
    fn new(entries: u64, from_creation: Duration, from_use: Option<Duration>) -> Option<Self> {
        if from_creation.is_zero() || from_use.is_some_and(|time| time.is_zero()) || entries == 0 {
            return None;
        }
        let mut builder = Cache::builder()
            .max_capacity(entries)
            .time_to_live(from_creation)
            .eviction_listener(|_, kept: Arc<Kept>, _| kept.wipe());
        if let Some(time) = from_use {
            builder = builder.time_to_idle(time);
        }
        let cache = builder.build();
        let swept = cache.clone();
        let sweep = tokio::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                swept.run_pending_tasks().await;
            }
        });
        Some(Self { cache, sweep: sweep.abort_handle() })
    }

    async fn get(&self, id: [u8; 32]) -> Option<InnerKey> {
        self.cache.get(&id).await?.copy()
    }

    async fn forget(&self, id: [u8; 32]) {
        self.cache.invalidate(&id).await;
    }

    async fn keep(&self, id: [u8; 32], key: &InnerKey) {
        self.cache.insert(id, Kept::new(key)).await;
    }

    /// The key that is kept, or the one that `ask` gives, which is kept then. Of those who miss at once, one asks. None
    /// where the key was wiped before it was copied: its time was over, or others had its place.
    async fn get_or(
        &self,
        id: [u8; 32],
        ask: impl Future<Output = Result<InnerKey, KmsFailure>>,
    ) -> Result<Option<InnerKey>, KmsFailure> {
        let mut asked = None;
        let entry = self.cache.try_get_with(id, async {
            let key = ask.await?;
            let kept = Kept::new(&key);
            asked = Some(key);
            Ok(kept)
        });
        let kept = entry.await.map_err(|failure: Arc<KmsFailure>| KmsFailure::clone(&failure))?;
        Ok(asked.or_else(|| kept.copy()))
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.sweep.abort();
        self.cache.iter().for_each(|(_, kept)| kept.wipe());
    }
}

#[cfg(test)]
mod tests;
