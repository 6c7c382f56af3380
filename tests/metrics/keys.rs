//! Keys, the calls to a KMS, its cache, the store and the records, counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
};

use async_trait::async_trait;
use coffer::{
    exec::Deadline,
    key::{
        binding::Binding,
        cluster::ClusterKeys,
        embedded::Embedded,
        kms::{
            ByHand, Kek, Kms, KmsFailure, Periods, Rotation, Wrapped, guarded::Guarded, local::Local, rotation,
            settings::Common,
        },
        providers::{KmsProvider, Provider, Providers},
        service::{KeyService, NewKey},
        store::{
            DekStore,
            census::{self, Group},
            measured::Measured as MeasuredStore,
            memory::Memory,
        },
    },
    secret::{InnerKey, LocalKek},
    telemetry::metrics,
    volume::VolumeId,
};
use testbed::conformance::{soon, store::new_key};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{until, value};

fn id(text: &str) -> VolumeId {
    text.parse().expect("a volume id")
}

fn new(volume_id: &str, provider: &str) -> NewKey {
    NewKey { provider: Some(provider.to_owned()), ..new_key(volume_id) }
}

/// A key service with two providers, `derived` and `wrapped`.
fn service(store: Arc<dyn DekStore>) -> Embedded {
    let key_file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/cluster-key.json");
    // A checkout makes files that the world can read, which a cluster key must not be.
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).expect("chmod");
    let cluster = Provider::Cluster(ClusterKeys::load(&key_file).expect("the vector is a cluster key"));
    let local = Arc::new(Local::new(LocalKek::born(|kek| kek.fill(7))));
    let guarded = Guarded::new(local, "wrapped", Common::default());
    let kms = Provider::Kms(KmsProvider::new(Arc::new(guarded)));
    let by_name = [("derived".to_owned(), cluster), ("wrapped".to_owned(), kms)].into();
    Embedded::new(Uuid::from_u128(1), Providers { by_name, default: "derived".to_owned() }, store)
}

/// A KMS that rotates its KEK by itself, or not.
struct Timer(Local, Rotation);

#[async_trait]
impl Kms for Timer {
    async fn describe(&self, kek: Option<&str>, deadline: Deadline) -> Result<Kek, KmsFailure> {
        self.0.describe(kek, deadline).await
    }

    async fn wrap(
        &self,
        key: &InnerKey,
        kek: Option<&str>,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<Wrapped, KmsFailure> {
        self.0.wrap(key, kek, binding, deadline).await
    }

    async fn unwrap(
        &self,
        wrapped: &Wrapped,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<InnerKey, KmsFailure> {
        self.0.unwrap(wrapped, binding, deadline).await
    }

    fn rotation_periods(&self, _: Option<&str>) -> Result<Periods, ByHand> {
        Ok(Periods::days(1, 365))
    }

    async fn rotation(&self, _: Option<&str>, _: Deadline) -> Result<Rotation, KmsFailure> {
        Ok(self.1)
    }
}

#[tokio::test]
async fn how_keks_are_rotated_is_told_of_those_that_a_kms_rotates() {
    metrics::start();
    let local = || Local::new(LocalKek::born(|kek| kek.fill(7)));
    let of = |name: &str, kms: Arc<dyn Kms>| (name.to_owned(), Provider::Kms(KmsProvider::new(kms)));
    let next: jiff::Timestamp = "2027-11-26T08:00:00Z".parse().expect("a time");
    let by_name = [
        of("rotated", Arc::new(Timer(local(), Rotation::On { period: None, next: Some(next) }))),
        of("left", Arc::new(Timer(local(), Rotation::Off))),
        of("by-hand", Arc::new(local())),
    ];
    let providers = Providers { by_name: by_name.into(), default: "left".to_owned() };
    let end = CancellationToken::new();
    let kept = tokio::spawn(rotation::keep(providers.rotating(), end.clone()));
    let on = |provider: &'static str| value("coffer_kek_rotation", &[("provider", provider)]);
    until("both", || (on("rotated"), on("left")) == (Some(1.0), Some(0.0))).await;
    assert_eq!(on("by-hand"), None);
    let when = value("coffer_kek_rotates_seconds", &[("provider", "rotated")]);
    assert_eq!(when, Some(next.as_second() as f64));
    end.cancel();
    kept.await.expect("it ends");
}

#[tokio::test]
async fn keys_kms_cache_store_and_records_are_counted() {
    metrics::start();
    let memory: Arc<dyn DekStore> = Arc::new(Memory::default());
    let service = service(Arc::new(MeasuredStore::new(memory.clone())));
    for volume_id in ["a", "b"] {
        service.create(new(volume_id, "derived"), soon()).await.expect("a new key");
    }
    service.create(new("c", "wrapped"), soon()).await.expect("a new key");
    service.destroy(&id("b"), 1, soon()).await.expect("destroyed");
    for _ in 0..3 {
        service.get(&id("c"), soon()).await.expect("a key");
    }

    let kms = |operation: &'static str| {
        value("coffer_kms_calls_total", &[("provider", "wrapped"), ("operation", operation), ("result", "ok")])
    };
    // The KEK is tried, the key wrapped and unwrapped again, and read once by whoever asks three times.
    assert_eq!((kms("describe"), kms("wrap"), kms("unwrap")), (Some(1.0), Some(2.0), Some(3.0)));
    let timed = value("coffer_kms_seconds_count", &[("provider", "wrapped"), ("operation", "unwrap")]);
    assert_eq!(timed, Some(3.0));
    let cache =
        |result: &'static str| value("coffer_cache_requests_total", &[("provider", "wrapped"), ("result", result)]);
    assert_eq!((cache("miss"), cache("hit"), cache("offline")), (Some(1.0), Some(2.0), None));
    assert_eq!(value("coffer_store_calls_total", &[("operation", "create"), ("result", "ok")]), Some(3.0));
    assert_eq!(value("coffer_store_seconds_count", &[("operation", "create")]), Some(3.0));

    let group = |state: &str, provider: &str, key_version: &str| Group {
        state: state.to_owned(),
        provider: provider.to_owned(),
        key_version: key_version.to_owned(),
    };
    let counted = census::count(memory.as_ref()).await.expect("the store answers");
    let version = service.describe(&id("a"), soon()).await.expect("described").expect("a record").kek_id;
    let version = version.strip_prefix("cluster-key:v").expect("a version").to_owned();
    let expected = [
        (group("prepared", "derived", &version), 1),
        (group("destroyed", "derived", ""), 1),
        (group("prepared", "wrapped", ""), 1),
    ];
    assert_eq!(counted, BTreeMap::from(expected));

    let end = CancellationToken::new();
    // As if one of the two had been taken out of the configuration.
    let configured = BTreeSet::from(["derived".to_owned()]);
    let kept = tokio::spawn(census::keep(memory, configured, end.clone()));
    let destroyed = [("state", "destroyed"), ("provider", "derived"), ("key_version", "")];
    until("the census", || value("coffer_records", &destroyed) == Some(1.0)).await;
    until("the missing provider", || value("coffer_records_without_provider", &[("provider", "wrapped")]) == Some(1.0))
        .await;
    assert_eq!(value("coffer_records_without_provider", &[("provider", "derived")]), None);
    until("its time", || value("coffer_records_counted_seconds", &[]).is_some_and(|time| time > 1.7e9)).await;
    end.cancel();
    kept.await.expect("it ends");
}
