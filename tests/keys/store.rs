//! Every store against one list, and what crashes and strangers leave in a folder of records.

use std::{fs, sync::Arc};

use coffer::key::{
    record::RecordFault,
    store::{DekStore, StoreFailure, filesystem::Filesystem, memory::Memory},
};
use tokio::task::JoinSet;

use crate::{id, record, soon};

/// What every store does.
async fn conforms(store: Arc<dyn DekStore>) {
    assert!(store.get(&id("missing"), soon()).await.expect("it answers").is_none());
    assert!(store.list(None, 10, soon()).await.expect("it answers").is_empty());

    // Create only, also for ids that make no file name.
    let long = "x".repeat(512);
    for name in ["vol-1", "a/b/../c", "ünïcode", "UPPER", ".", "..", "=x", long.as_str()] {
        let record = record(name).await;
        store.create(&record, soon()).await.expect("created");
        assert!(matches!(store.create(&record, soon()).await, Err(StoreFailure::Exists(_))), "{name}");
        assert_eq!(store.get(&id(name), soon()).await.expect("it answers").expect("it is there").record, record);
    }

    // Replace only what was read.
    let stored = store.get(&id("vol-1"), soon()).await.expect("it answers").expect("it is there");
    let mut changed = stored.record.clone();
    changed.format_attempt = 1;
    store.replace(&changed, stored.version, soon()).await.expect("replaced");
    assert!(matches!(store.replace(&stored.record, stored.version, soon()).await, Err(StoreFailure::Stale(_))));
    let missing = record("never stored").await;
    assert!(matches!(store.replace(&missing, stored.version, soon()).await, Err(StoreFailure::Stale(_))));
    assert_eq!(store.get(&id("vol-1"), soon()).await.expect("it answers").expect("it is there").record, changed);

    // Twenty creators: one wins, all read the same.
    let mut creators = JoinSet::new();
    for _ in 0..20 {
        let (store, record) = (store.clone(), record("raced").await);
        creators.spawn(async move { store.create(&record, soon()).await.map(|()| record.luks_uuid) });
    }
    let mut winners = Vec::new();
    while let Some(created) = creators.join_next().await {
        match created.expect("no panic") {
            Ok(uuid) => winners.push(uuid),
            Err(StoreFailure::Exists(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }
    let read = store.get(&id("raced"), soon()).await.expect("it answers").expect("it is there").record.luks_uuid;
    assert_eq!(winners, [read]);

    // Twenty changers from one version: one wins.
    let stored = store.get(&id("raced"), soon()).await.expect("it answers").expect("it is there");
    let mut changers = JoinSet::new();
    for attempt in 1..=20 {
        let (store, mut record, version) = (store.clone(), stored.record.clone(), stored.version);
        record.format_attempt = attempt;
        changers.spawn(async move { store.replace(&record, version, soon()).await.is_ok() });
    }
    let mut won = 0;
    while let Some(changed) = changers.join_next().await {
        won += usize::from(changed.expect("no panic"));
    }
    assert_eq!(won, 1);

    // Pages, in the order of the ids, each record once.
    let mut seen = Vec::new();
    loop {
        let page = store.list(seen.last(), 4, soon()).await.expect("it answers");
        if page.is_empty() {
            break;
        }
        seen.extend(page.into_iter().map(|record| record.volume_id));
    }
    assert!(seen.is_sorted() && seen.len() == 9, "{seen:?}");
}

#[tokio::test]
async fn the_memory_store_conforms() {
    conforms(Arc::new(Memory::default())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_filesystem_store_conforms() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    conforms(Arc::new(Filesystem::open(folder.path()).expect("a new folder"))).await;
}

#[tokio::test]
async fn a_torn_or_foreign_file_is_never_read_as_a_record() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Filesystem::open(folder.path()).expect("a new folder");
    let (one, two) = (record("vol-1").await, record("vol-2").await);
    store.create(&one, soon()).await.expect("created");
    let path = folder.path().join("vol-1.json");
    let whole = fs::read(&path).expect("a file");
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).expect("torn");
        let read = store.get(&id("vol-1"), soon()).await;
        assert!(matches!(read, Err(StoreFailure::Fault { .. })), "{length} bytes were read as a record");
    }
    // A block of zeros is what some file systems leave of a file that was being written.
    fs::write(&path, vec![0; whole.len()]).expect("zeroed");
    assert!(store.get(&id("vol-1"), soon()).await.is_err());
    fs::write(&path, two.to_bytes()).expect("another's");
    let read = store.get(&id("vol-1"), soon()).await;
    assert!(matches!(read, Err(StoreFailure::Fault { source: RecordFault::OtherVolume(_), .. })), "{read:?}");
    fs::write(folder.path().join("foreign.json"), "{}").expect("foreign");
    // vol-1's file holds vol-2's record, and foreign.json holds none: neither is listed.
    store.create(&two, soon()).await.expect("created");
    let listed = store.list(None, 9, soon()).await.expect("it answers");
    assert_eq!(listed, [two]);
}

#[tokio::test]
async fn what_a_crash_left_unfinished_is_removed_and_what_is_stored_stays() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Filesystem::open(folder.path()).expect("a new folder");
    store.create(&record("vol-1").await, soon()).await.expect("created");
    fs::write(folder.path().join(".unfinished-1"), "half a rec").expect("left behind");
    let store = Filesystem::open(folder.path()).expect("the folder again");
    assert!(store.get(&id("vol-1"), soon()).await.expect("it answers").is_some());
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "one file a record and nothing else");
}
