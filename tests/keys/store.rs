//! Every store against one list, and what crashes and strangers leave in a folder of records.

use std::{fs, sync::Arc};

use coffer::key::{
    record::RecordFault,
    store::{DekStore, StoreFailure, filesystem::Filesystem, memory::Memory},
};
use testbed::conformance::store::{conforms, long_list_pages};

use crate::{id, record, soon};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_memory_store_does_what_every_store_does() {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    conforms(&move || store.clone()).await;
}

#[tokio::test]
async fn the_memory_store_lists_2500_records_in_pages() {
    long_list_pages(Arc::new(Memory::default()), 2500).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_filesystem_store_does_what_every_store_does() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    conforms(&|| -> Arc<dyn DekStore> { Arc::new(Filesystem::open(folder.path()).expect("a folder")) }).await;
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
    // vol-1's file holds vol-2's record, and foreign.json holds none: both are told, and neither is listed. What has not
    // the name of a record is passed over.
    fs::create_dir(folder.path().join("lost+found")).expect("a folder");
    store.create(&two, soon()).await.expect("created");
    let listed = store.list(None, 9, soon()).await.expect("it answers");
    assert_eq!(listed.records, std::slice::from_ref(&two));
    let names: Vec<_> = listed.refused.iter().map(|refused| refused.place.rsplit('/').next()).collect();
    assert_eq!(names, [Some("foreign.json"), Some("vol-1.json")]);
    assert!(matches!(listed.refused[1].source, RecordFault::OtherVolume(_)), "{listed:?}");
    let next = store.list(Some(&two.volume_id), 9, soon()).await.expect("it answers");
    assert!(next.records.is_empty() && next.refused.is_empty(), "told twice: {next:?}");
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
