//! Rewrapping: what moves, what stays, who may be at work meanwhile, and what is refused.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use coffer::{
    admin::{
        Place, Trail,
        records::Effect,
        rewrap::{Asked, RewrapFailure, Sweep},
    },
    exec::Deadline,
    key::{
        embedded::Embedded,
        providers::{KmsProvider, Provider},
        record::{Record, State},
        service::KeyService,
        store::{DekStore, Listed, StoreFailure, Stored, Version},
    },
    volume::VolumeId,
};

use crate::{
    CLUSTER, LIVE, Rotating, Written, cluster, deks, id, local, new, of, one, place, providers, quiet, records, seeded,
    soon, tamper, untold, wraps,
};

fn asked(from: Option<&str>, to: Option<&str>) -> Asked {
    Asked { from: from.map(str::to_owned), to: to.map(str::to_owned), volume: None, effect: Effect::Real }
}

async fn run(place: &Place, asked: Asked) -> (String, Result<(), RewrapFailure>) {
    run_with(place, asked, &untold()).await
}

async fn run_with(place: &Place, asked: Asked, trail: &Trail) -> (String, Result<(), RewrapFailure>) {
    let mut out = Vec::new();
    let sweep = Sweep::plan(place, asked).expect("it can be done");
    let ended = sweep.run(trail, &mut quiet(), &mut out).await;
    (String::from_utf8(out).expect("text"), ended)
}

async fn rewrapped(place: &Place, asked: Asked) -> String {
    let (told, ended) = run(place, asked).await;
    ended.expect("everything is rewrapped");
    told
}

#[tokio::test]
async fn every_record_moves_and_keeps_its_key_and_everything_else() {
    let place = seeded().await;
    let (before, keys) = (records(place.store.as_ref()).await, deks(&place.store).await);
    assert_eq!(keys.len(), LIVE.len());
    let told = rewrapped(&place, asked(None, Some("b"))).await;
    assert!(told.contains("3 of 4 rewrapped, 1 skipped"), "{told}");
    let after = records(place.store.as_ref()).await;
    for (old, new) in before.iter().zip(&after) {
        if old.key.is_none() || old.provider == "b" {
            assert_eq!(old, new);
            continue;
        }
        assert_eq!(new.provider, "b");
        assert_ne!((&old.key, &old.mac), (&new.key, &new.mac));
        let moved_back =
            Record { provider: old.provider.clone(), key: old.key.clone(), mac: old.mac.clone(), ..new.clone() };
        assert_eq!(moved_back, *old, "more has changed than who wraps");
    }
    assert_eq!(deks(&place.store).await, keys);

    // A second sweep has nothing to do.
    let told = rewrapped(&place, asked(None, Some("b"))).await;
    assert!(told.contains("0 of 4 rewrapped, 4 skipped"), "{told}");
    assert_eq!(records(place.store.as_ref()).await, after);
}

#[tokio::test]
async fn only_what_is_asked_for_moves() {
    let place = seeded().await;
    let told = rewrapped(&place, asked(Some("cluster"), Some("a"))).await;
    assert!(told.contains("1 of 1 rewrapped"), "{told}");
    assert_eq!(one(place.store.as_ref(), "vol-b").await.provider, "b");
    let only = |volume: &str, from: Option<&str>| Asked { volume: Some(id(volume)), ..asked(from, Some("b")) };
    let told = rewrapped(&place, only("vol-a", None)).await;
    assert!(told.contains("1 of 1 rewrapped"), "{told}");
    assert!(matches!(run(&place, only("missing", None)).await.1, Err(RewrapFailure::Missing(_))));
    assert!(matches!(run(&place, only("vol-b", Some("a"))).await.1, Err(RewrapFailure::NotSelected(_))));
    assert!(matches!(run(&place, only("vol-gone", None)).await.1, Err(RewrapFailure::NotSelected(_))));
}

#[tokio::test]
async fn a_dry_run_tells_and_changes_nothing() {
    let place = seeded().await;
    let before = records(place.store.as_ref()).await;
    let told = rewrapped(&place, Asked { effect: Effect::DryRun, ..asked(None, Some("b")) }).await;
    assert!(told.contains("3 of 4 would be rewrapped, 1 skipped"), "{told}");
    assert!(told.contains("vol-derived: from cluster-key:v1 of cluster to local:"), "{told}");
    assert_eq!(records(place.store.as_ref()).await, before);
}

#[tokio::test]
async fn records_under_an_older_kek_are_renewed_without_a_name() {
    let (kms, store) = (Rotating::new(), seeded().await.store);
    let providers = || of([("r", Provider::Kms(KmsProvider::new(kms.clone()))), ("cluster", cluster())]);
    let service = Embedded::new(CLUSTER, providers(), store.clone());
    service.create(new("vol-r", "r"), soon()).await.expect("a new key");
    let place = place(providers(), store);
    let only = || Asked { volume: Some(id("vol-r")), ..asked(None, None) };
    let before = one(place.store.as_ref(), "vol-r").await;
    let told = rewrapped(&place, only()).await;
    assert!(told.contains("0 of 1 rewrapped, 1 skipped"), "{told}");
    kms.rotate();
    let told = rewrapped(&place, only()).await;
    assert!(told.contains("1 of 1 rewrapped, 0 skipped"), "{told}");
    let after = one(place.store.as_ref(), "vol-r").await;
    assert_ne!(before.key, after.key);
    assert!(service.get(&id("vol-r"), soon()).await.is_ok());
    // What is derived has no wrapping to renew.
    let derived = Asked { volume: Some(id("vol-derived")), ..asked(None, None) };
    assert!(rewrapped(&place, derived).await.contains("0 of 1 rewrapped, 1 skipped"));
}

#[tokio::test]
async fn what_cannot_be_is_told_before_anything_is_read() {
    let place = seeded().await;
    let faults = |from, to| Sweep::plan(&place, asked(from, to)).expect_err("it cannot be").to_string();
    let told = faults(Some("clutser"), Some("c"));
    assert!(told.contains("--from clutser") && told.contains("did you mean cluster?"), "{told}");
    assert!(told.contains("--to c: no provider"), "{told}");
    assert!(faults(Some("a"), Some("cluster")).contains("cannot take over one that exists"));
    assert!(faults(Some("cluster"), None).contains("no wrapping to renew"));
}

#[tokio::test]
async fn a_changed_record_fails_alone_and_gets_no_new_mac() {
    let place = seeded().await;
    let changed = tamper(place.store.as_ref(), "vol-ready", |record| record.format_attempt = 7).await;
    let (told, ended) = run(&place, asked(None, Some("b"))).await;
    assert!(matches!(ended, Err(RewrapFailure::Incomplete { failed: 1, of: 4 })), "{ended:?}");
    assert!(told.contains("vol-ready: ") && told.contains("MAC"), "{told}");
    assert!(told.contains("2 of 4 rewrapped, 1 skipped, 1 failed"), "{told}");
    assert_eq!(one(place.store.as_ref(), "vol-ready").await, changed);
}

#[tokio::test]
async fn records_whose_provider_is_gone_fail_and_the_others_go_on() {
    let store = seeded().await.store;
    let place = place(of([("cluster", cluster()), ("b", wraps(local(8)))]), store);
    let (told, ended) = run(&place, asked(None, Some("b"))).await;
    assert!(matches!(ended, Err(RewrapFailure::Incomplete { failed: 2, of: 4 })), "{ended:?}");
    assert!(told.contains("vol-a: provider a, which holds its KEK, is not configured"), "{told}");
    assert_eq!(one(place.store.as_ref(), "vol-derived").await.provider, "b");
}

#[tokio::test]
async fn what_becomes_of_each_record_is_written_down_and_nothing_is_done_that_cannot_be() {
    let (place, written) = (seeded().await, Written::default());
    tamper(place.store.as_ref(), "vol-ready", |record| record.format_attempt = 7).await;
    let dry = Asked { effect: Effect::DryRun, ..asked(None, Some("b")) };
    run_with(&place, dry, &written.trail(usize::MAX)).await.1.expect("nothing is done");
    assert!(written.lines().is_empty(), "a dry run was written down: {:?}", written.lines());
    let (_, ended) = run_with(&place, asked(None, Some("b")), &written.trail(usize::MAX)).await;
    assert!(matches!(ended, Err(RewrapFailure::Incomplete { failed: 1, of: 4 })), "{ended:?}");
    let lines = written.lines();
    let begin = ["vol-a is under local:", "vol-derived is under local:", "vol-ready: the record of volume vol-ready"];
    assert_eq!(lines.len(), begin.len(), "{lines:?}");
    assert!(lines.iter().zip(begin).all(|(line, begin)| line.starts_with(begin)), "{lines:?}");
    assert!(lines[..2].iter().all(|line| line.ends_with(" of b")), "{lines:?}");

    // A log that is full: what was at work when that showed is told as failed, and nobody begins anew.
    let (place, full) = (seeded().await, Written::default().trail(0));
    let (told, ended) = run_with(&place, Asked { volume: Some(id("vol-a")), ..asked(None, Some("b")) }, &full).await;
    assert!(matches!(ended, Err(RewrapFailure::Incomplete { failed: 1, of: 1 })), "{ended:?}");
    assert!(told.contains("vol-a: write the audit log"), "{told}");
    let before = records(place.store.as_ref()).await;
    let (told, ended) = run_with(&place, asked(Some("b"), Some("a")), &full).await;
    assert!(ended.is_err() && told.contains("vol-b: write the audit log: an earlier line"), "{told}");
    assert_eq!(records(place.store.as_ref()).await, before, "a record was changed that nobody would hear of");
}

/// A store with a key service that is always a little faster.
struct Contended {
    inner: Arc<dyn DekStore>,
    service: Embedded,
    races: AtomicUsize,
}

#[async_trait]
impl DekStore for Contended {
    async fn get(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<Option<Stored>, StoreFailure> {
        self.inner.get(volume_id, deadline).await
    }

    async fn create(&self, record: &Record, deadline: Deadline) -> Result<(), StoreFailure> {
        self.inner.create(record, deadline).await
    }

    async fn replace(&self, record: &Record, version: Version, deadline: Deadline) -> Result<(), StoreFailure> {
        if self.races.load(Ordering::SeqCst) > 0 {
            self.races.fetch_sub(1, Ordering::SeqCst);
            self.service.begin_format(&record.volume_id, 1, deadline).await.expect("it can be formatted");
        }
        self.inner.replace(record, version, deadline).await
    }

    async fn list(&self, after: Option<&VolumeId>, limit: usize, deadline: Deadline) -> Result<Listed, StoreFailure> {
        self.inner.list(after, limit, deadline).await
    }
}

#[tokio::test]
async fn a_key_service_at_work_loses_nothing_to_a_sweep() {
    let inner = seeded().await.store;
    for (races, wins) in [(3, true), (1000, false)] {
        let service = Embedded::new(CLUSTER, providers(), inner.clone());
        let store = Contended { inner: inner.clone(), service, races: AtomicUsize::new(races) };
        let place = place(providers(), Arc::new(store));
        let (volume, to) = if wins { ("vol-a", "b") } else { ("vol-b", "a") };
        let (told, ended) = run(&place, Asked { volume: Some(id(volume)), ..asked(None, Some(to)) }).await;
        let record = one(inner.as_ref(), volume).await;
        // Every step of the key service is there, whoever came last.
        assert_eq!(record.state, State::Formatting);
        if wins {
            ended.expect("it is tried again");
            assert_eq!((record.provider.as_str(), record.format_attempt), (to, 3));
        } else {
            assert!(matches!(ended, Err(RewrapFailure::Incomplete { failed: 1, of: 1 })), "{ended:?}");
            assert!(told.contains("being changed by others"), "{told}");
            assert_eq!((record.provider.as_str(), record.format_attempt), ("b", 8));
        }
    }
    assert_eq!(deks(&inner).await.len(), LIVE.len());
}
