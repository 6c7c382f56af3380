//! Export and import: a whole file or none, nothing overwritten, and nobody else's records.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use coffer::{
    admin::{
        Place,
        records::{
            Effect,
            export::{ExportFailure, export},
            import::{FileFault, ImportFailure, import},
        },
    },
    key::store::{DekStore, filesystem::Filesystem, memory::Memory},
};
use uuid::Uuid;

use crate::{CLUSTER, deks, id, of, one, place, providers, quiet, records, seeded, soon, tamper};

async fn exported(place: &Place, to: &Path) -> String {
    let mut out = Vec::new();
    export(place, to, &mut quiet(), &mut out).await.expect("exported");
    String::from_utf8(out).expect("text")
}

async fn imported(place: &Place, from: &Path, effect: Effect) -> (String, Result<(), ImportFailure>) {
    let mut out = Vec::new();
    let ended = import(place, from, effect, &mut quiet(), &mut out).await;
    (String::from_utf8(out).expect("text"), ended)
}

#[tokio::test]
async fn records_move_to_another_store_byte_by_byte() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (from, file) = (seeded().await, folder.path().join("records.jsonl"));
    let told = exported(&from, &file).await;
    assert!(told.contains("5 records") && told.contains("still wrapped"), "{told}");
    assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&file).expect("text");
    assert_eq!(text.lines().count(), 7);
    assert!(
        text.starts_with(&format!(r#"{{"format":"coffer-records","version":1,"clusterId":"{CLUSTER}","count":5}}"#))
    );
    assert_eq!(exported(&from, Path::new("-")).await, text);

    let store: Arc<dyn DekStore> = Arc::new(Filesystem::open(&folder.path().join("records")).expect("a new folder"));
    let to = place(providers(), store);
    let (told, ended) = imported(&to, &file, Effect::DryRun).await;
    ended.expect("it could be imported");
    assert!(told.contains("5 of 5 would be imported"), "{told}");
    assert!(records(to.store.as_ref()).await.is_empty());
    let (told, ended) = imported(&to, &file, Effect::Real).await;
    ended.expect("imported");
    assert!(told.contains("5 of 5 imported, 0 there already"), "{told}");
    assert_eq!(records(to.store.as_ref()).await, records(from.store.as_ref()).await);
    assert_eq!(deks(&to.store).await, deks(&from.store).await);
    let (told, ended) = imported(&to, &file, Effect::Real).await;
    ended.expect("nothing to do");
    assert!(told.contains("0 of 5 imported, 5 there already"), "{told}");
}

#[tokio::test]
async fn what_is_there_is_never_overwritten() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (place, file) = (seeded().await, folder.path().join("records.jsonl"));
    exported(&place, &file).await;
    let again = export(&place, &file, &mut quiet(), &mut Vec::new()).await;
    assert!(matches!(again, Err(ExportFailure::Exists(_))), "{again:?}");

    // Destroyed after the export: the import must not bring the key back.
    let stored = place.store.get(&id("vol-a"), soon()).await.expect("it answers").expect("it is there");
    place.store.replace(&stored.record.tombstone(), stored.version, soon()).await.expect("destroyed");
    let changed = tamper(place.store.as_ref(), "vol-b", |record| record.name = "another".to_owned()).await;
    let (told, ended) = imported(&place, &file, Effect::Real).await;
    assert!(matches!(ended, Err(ImportFailure::Incomplete { differ: 2, failed: 0 })), "{ended:?}");
    assert!(told.contains("vol-a: differs: here generation 1, destroyed, no key; in the file"), "{told}");
    assert!(told.contains("vol-b: differs in what"), "{told}");
    assert!(one(place.store.as_ref(), "vol-a").await.key.is_none());
    assert_eq!(one(place.store.as_ref(), "vol-b").await, changed);
}

#[tokio::test]
async fn a_torn_or_changed_file_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (from, file) = (seeded().await, folder.path().join("records.jsonl"));
    exported(&from, &file).await;
    let whole = fs::read(&file).expect("a file");
    let to = place(providers(), Arc::new(Memory::default()));
    let refused = async |bytes: &[u8]| {
        fs::write(&file, bytes).expect("written");
        let (_, ended) = imported(&to, &file, Effect::Real).await;
        match ended {
            Err(ImportFailure::File { source, .. }) => source,
            other => panic!("expected a refusal, not {other:?}"),
        }
    };
    for length in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
        let fault = refused(&whole[..length]).await;
        assert!(matches!(fault, FileFault::Torn | FileFault::Foreign), "{length} bytes: {fault}");
    }
    for at in (0..whole.len()).step_by(61) {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        refused(&changed).await;
    }
    // Files that are whole, and are not what an export makes.
    let sealed = |lines: &[&str]| {
        use sha2::{Digest, Sha256};
        let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let sum = coffer::volume::hex(&Sha256::digest(body.as_bytes()));
        format!("{body}{{\"sha256\":\"{sum}\"}}\n")
    };
    let text = String::from_utf8(whole.clone()).expect("text");
    let lines: Vec<&str> = text.lines().collect();
    let two = lines[0].replace("\"count\":5", "\"count\":2");
    let twice = refused(sealed(&[two.as_str(), lines[1], lines[1]]).as_bytes()).await;
    assert!(matches!(twice, FileFault::Twice { line: 3, .. }), "{twice}");
    let count = refused(sealed(&[two.as_str(), lines[1]]).as_bytes()).await;
    assert!(matches!(count, FileFault::Count { count: 2, found: 1 }), "{count}");
    let torn = refused(sealed(&[two.as_str(), lines[1], "{}"]).as_bytes()).await;
    assert!(matches!(torn, FileFault::Record { line: 3, .. }), "{torn}");
    let later = refused(b"{\"format\":\"coffer-records\",\"version\":2,\"kind\":\"of its own\"}\n").await;
    assert!(matches!(later, FileFault::Version(2)), "{later}");
    assert!(records(to.store.as_ref()).await.is_empty(), "a refused file has left something behind");
}

#[tokio::test]
async fn the_file_of_another_cluster_is_refused_and_a_missing_provider_is_told() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (from, file) = (seeded().await, folder.path().join("records.jsonl"));
    exported(&from, &file).await;
    let mut other = place(providers(), Arc::new(Memory::default()));
    other.cluster_id = Uuid::from_u128(2);
    let (_, ended) = imported(&other, &file, Effect::Real).await;
    assert!(matches!(ended, Err(ImportFailure::OtherCluster { .. })), "{ended:?}");
    assert!(records(other.store.as_ref()).await.is_empty());

    let bare = place(of([("a", crate::wraps(crate::local(7)))]), Arc::new(Memory::default()));
    let (told, ended) = imported(&bare, &file, Effect::Real).await;
    ended.expect("imported");
    assert!(told.contains("provider b is not configured: 1 volumes"), "{told}");
}
