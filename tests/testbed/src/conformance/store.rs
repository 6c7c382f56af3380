//! What every store of records does: it never overwrites, everybody reads the same, and a list has everything once.

use std::{collections::BTreeSet, sync::Arc};

use coffer::{
    key::{
        embedded::Embedded,
        kms::local::Local,
        providers::{KmsProvider, Provider, Providers},
        record::Record,
        service::{KeyService, NewKey},
        store::{DekStore, StoreFailure, memory::Memory},
    },
    secret::LocalKek,
    volume::{Content, FsType, Parameters, VolumeId},
};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{soon, told};

/// How many write at once in a race.
const RACERS: u32 = 20;
/// Records that are created at once for a long list.
const AT_ONCE: usize = 32;

/// What is asked for a new volume of this id.
#[must_use]
pub fn new_key(volume_id: &str) -> NewKey {
    NewKey {
        volume_id: id(volume_id),
        name: "a volume".to_owned(),
        parameters: Parameters::of(Content::Filesystem(FsType::Ext4)),
        node: Some("n1".to_owned()),
        tenant: None,
        storage_class: None,
        claim: None,
        provider: None,
        key_id: None,
        context: [("team".to_owned(), "blue".to_owned())].into(),
    }
}

/// A record as a key service makes it, with a key that nobody has.
///
/// # Panics
/// There is no record.
pub async fn record(cluster_id: Uuid, volume_id: &str) -> Record {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    let provider = Provider::Kms(KmsProvider::new(Arc::new(Local::new(LocalKek::random()))));
    let providers = Providers { by_name: [("main".to_owned(), provider)].into(), default: "main".to_owned() };
    let service = Embedded::new(cluster_id, providers, store.clone());
    service.create(new_key(volume_id), soon()).await.expect("a new key");
    read(store.as_ref(), volume_id).await
}

fn id(text: &str) -> VolumeId {
    text.parse().expect("a volume id")
}

async fn read(store: &dyn DekStore, volume_id: &str) -> Record {
    match store.get(&id(volume_id), soon()).await {
        Ok(stored) => stored.expect("it is there").record,
        Err(failure) => panic!("{volume_id} is not read: {}", told(&failure)),
    }
}

async fn created(store: &dyn DekStore, record: &Record) {
    if let Err(failure) = store.create(record, soon()).await {
        panic!("{} is not created: {}", record.volume_id, told(&failure));
    }
}

/// Runs the list on an empty store. `door` gives one more way to the same records, as another process has one. What it
/// returns was shown.
///
/// # Panics
/// The store breaks a promise.
pub async fn conforms(door: &(dyn Fn() -> Arc<dyn DekStore> + Send + Sync)) -> Vec<&'static str> {
    let cluster_id = Uuid::from_u128(1);
    let store = door();
    assert!(store.get(&id("missing"), soon()).await.expect("it answers").is_none());
    let listed = store.list(None, 10, soon()).await.expect("it answers");
    assert!(listed.records.is_empty() && listed.refused.is_empty(), "an empty store lists {listed:?}");
    let long = "x".repeat(512);
    let unicode = "ü".repeat(256);
    let names =
        ["vol-1", "a/b/../c", "ünïcode", "UPPER", ".", "..", "=x", "a b+c%20&d", long.as_str(), unicode.as_str()];
    for name in names {
        create_only(door, &record(cluster_id, name).await).await;
    }
    replace_only_what_was_read(door, &record(cluster_id, "never stored").await).await;
    racing_creators(door, cluster_id).await;
    racing_replacers(door).await;
    pages(store.as_ref(), names.len() + 1).await;
    vec![
        "create only",
        "unicode and long ids",
        "stale replace refused",
        "20 racing creators, one winner",
        "20 racing replacers, one winner",
        "pages have each record once",
    ]
}

async fn create_only(door: &(dyn Fn() -> Arc<dyn DekStore> + Send + Sync), record: &Record) {
    let (store, name) = (door(), record.volume_id.as_str());
    created(store.as_ref(), record).await;
    let mut other = record.clone();
    other.luks_uuid = Uuid::from_u128(1);
    for store in [store, door()] {
        let again = store.create(&other, soon()).await;
        assert!(matches!(again, Err(StoreFailure::Exists(_))), "{name}: {again:?}");
        assert_eq!(read(store.as_ref(), name).await, *record);
    }
}

async fn replace_only_what_was_read(door: &(dyn Fn() -> Arc<dyn DekStore> + Send + Sync), missing: &Record) {
    let (store, other) = (door(), door());
    let stored = store.get(&id("vol-1"), soon()).await.expect("it answers").expect("it is there");
    let mut changed = stored.record.clone();
    changed.format_attempt = 1;
    other.replace(&changed, stored.version, soon()).await.expect("replaced");
    let stale = store.replace(&stored.record, stored.version, soon()).await;
    assert!(matches!(stale, Err(StoreFailure::Stale(_))), "{stale:?}");
    let gone = store.replace(missing, stored.version, soon()).await;
    assert!(matches!(gone, Err(StoreFailure::Stale(_))), "{gone:?}");
    assert!(store.get(&missing.volume_id, soon()).await.expect("it answers").is_none(), "a replace created");
    assert_eq!(read(store.as_ref(), "vol-1").await, changed);
}

async fn racing_creators(door: &(dyn Fn() -> Arc<dyn DekStore> + Send + Sync), cluster_id: Uuid) {
    let mut creators = JoinSet::new();
    for _ in 0..RACERS {
        let (store, record) = (door(), record(cluster_id, "raced").await);
        creators.spawn(async move {
            let won = match store.create(&record, soon()).await {
                Ok(()) => Some(record.luks_uuid),
                Err(StoreFailure::Exists(_)) => None,
                Err(failure) => panic!("{}", told(&failure)),
            };
            (won, read(store.as_ref(), "raced").await.luks_uuid)
        });
    }
    let (mut winners, mut seen) = (Vec::new(), BTreeSet::new());
    while let Some(created) = creators.join_next().await {
        let (won, read) = created.expect("no panic");
        winners.extend(won);
        seen.insert(read);
    }
    assert_eq!(winners.len(), 1, "so many creators won: {winners:?}");
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), winners, "not all read the winner's record");
}

async fn racing_replacers(door: &(dyn Fn() -> Arc<dyn DekStore> + Send + Sync)) {
    let stored = door().get(&id("raced"), soon()).await.expect("it answers").expect("it is there");
    let mut replacers = JoinSet::new();
    for attempt in 1..=RACERS {
        let (store, mut record, version) = (door(), stored.record.clone(), stored.version);
        record.format_attempt = attempt;
        replacers.spawn(async move {
            match store.replace(&record, version, soon()).await {
                Ok(()) => Some(attempt),
                Err(StoreFailure::Stale(_)) => None,
                Err(failure) => panic!("{}", told(&failure)),
            }
        });
    }
    let mut winners = Vec::new();
    while let Some(replaced) = replacers.join_next().await {
        winners.extend(replaced.expect("no panic"));
    }
    assert_eq!(winners, [read(door().as_ref(), "raced").await.format_attempt]);
}

/// Each record once, in an order that does not change, whatever the size of a page.
async fn pages(store: &dyn DekStore, records: usize) {
    let whole = listed(store, 1000).await;
    assert_eq!(whole.len(), records, "{whole:?}");
    assert_eq!(whole.iter().collect::<BTreeSet<_>>().len(), records, "a record is listed twice: {whole:?}");
    for limit in [1, 4, records] {
        assert_eq!(listed(store, limit).await, whole, "pages of {limit}");
    }
}

async fn listed(store: &dyn DekStore, limit: usize) -> Vec<VolumeId> {
    let mut seen: Vec<VolumeId> = Vec::new();
    loop {
        let page = match store.list(seen.last(), limit, soon()).await {
            Ok(page) => page,
            Err(failure) => panic!("not listed: {}", told(&failure)),
        };
        assert!(page.refused.is_empty(), "records of our own are refused: {page:?}");
        let page = page.records;
        assert!(page.len() <= limit, "a page of {} records; at most {limit} were asked for", page.len());
        let is_last = page.len() < limit;
        seen.extend(page.into_iter().map(|record| record.volume_id));
        if is_last {
            return seen;
        }
    }
}

/// Fills an empty store with records, and lists them in pages of a thousand.
///
/// # Panics
/// The store breaks a promise.
pub async fn long_list_pages(store: Arc<dyn DekStore>, records: usize) {
    let template = record(Uuid::from_u128(1), "template").await;
    let mut creators = JoinSet::new();
    for number in 0..records {
        if creators.len() >= AT_ONCE {
            creators.join_next().await.expect("one is there").expect("no panic");
        }
        let (store, volume_id) = (store.clone(), id(&format!("vol-{number:05}")));
        let record = Record { volume_id, ..template.clone() };
        creators.spawn(async move { created(store.as_ref(), &record).await });
    }
    while let Some(created) = creators.join_next().await {
        created.expect("no panic");
    }
    let seen = listed(store.as_ref(), 1000).await;
    let expected: Vec<_> = (0..records).map(|number| id(&format!("vol-{number:05}"))).collect();
    assert!(seen == expected, "{} records of {records} are listed, or in another order", seen.len());
}
