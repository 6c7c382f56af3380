//! Export and import: a whole file or none, nothing overwritten, and nobody else's records.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use async_trait::async_trait;
use coffer::{
    admin::{
        Place, Trail,
        answer::Print,
        records::{
            Effect,
            export::{ExportFailure, export},
            import::{Check, FileFault, ImportFailure, import},
            verify::{VerifyFailure, verify},
        },
    },
    exec::Deadline,
    key::{
        binding::Binding,
        kms::{Kek, Kms, KmsFailure, Wrapped},
        store::{DekStore, filesystem::Filesystem, memory::Memory},
    },
    secret::InnerKey,
};
use uuid::Uuid;

use crate::{
    CLUSTER, Written, cluster, deks, id, local, of, one, place, providers, quiet, records, seeded, soon, tamper,
    untold, wraps,
};

async fn exported(place: &Place, to: &Path) -> String {
    let mut out = Vec::new();
    export(place, to, &mut quiet(), &mut out).await.expect("exported");
    String::from_utf8(out).expect("text")
}

async fn imported(place: &Place, from: &Path, effect: Effect) -> (String, Result<(), ImportFailure>) {
    imported_with(place, from, (effect, Check::Mac), &untold()).await
}

async fn imported_with(
    place: &Place,
    from: &Path,
    how: (Effect, Check),
    trail: &Trail,
) -> (String, Result<(), ImportFailure>) {
    let mut out = Vec::new();
    let ended = import(place, from, how, trail, &mut quiet(), &mut out).await;
    (String::from_utf8(out).expect("text"), ended)
}

/// The file of these lines as an export ends it.
fn sealed(lines: &[&str]) -> String {
    use sha2::{Digest, Sha256};
    let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let sum = coffer::volume::hex(&Sha256::digest(body.as_bytes()));
    format!("{body}{{\"sha256\":\"{sum}\"}}\n")
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

    let bare = place(of([("a", wraps(local(7)))]), Arc::new(Memory::default()));
    let (told, ended) = imported(&bare, &file, Effect::Real).await;
    ended.expect("imported");
    assert!(told.contains("provider b is not configured: 1 volumes"), "{told}");
    assert!(told.contains("2 were not opened before"), "{told}");
}

#[tokio::test]
async fn a_record_that_does_not_fit_its_mac_is_not_imported() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (from, file) = (seeded().await, folder.path().join("records.jsonl"));
    exported(&from, &file).await;
    let text = fs::read_to_string(&file).expect("text");
    let changed = text.replace("name of vol-ready", "name of another");
    let lines: Vec<&str> = changed.lines().collect();
    assert_ne!(text, changed);
    fs::write(&file, sealed(&lines[..lines.len() - 1])).expect("written");

    let (to, written) = (place(providers(), Arc::new(Memory::default())), Written::default());
    let (told, ended) = imported(&to, &file, Effect::DryRun).await;
    assert!(matches!(ended, Err(ImportFailure::Incomplete { differ: 0, failed: 1 })), "{ended:?}");
    assert!(told.contains("4 of 5 would be imported") && told.contains("vol-ready: "), "{told}");
    assert!(records(to.store.as_ref()).await.is_empty());
    let (told, ended) = imported_with(&to, &file, (Effect::Real, Check::Mac), &written.trail(usize::MAX)).await;
    assert!(matches!(ended, Err(ImportFailure::Incomplete { differ: 0, failed: 1 })), "{ended:?}");
    assert!(told.contains("vol-ready: ") && told.contains("do not match its MAC"), "{told}");
    assert!(told.contains("4 of 5 imported, 0 there already, 0 differ, 1 failed"), "{told}");
    assert!(to.store.get(&id("vol-ready"), soon()).await.expect("it answers").is_none());
    let lines = written.lines();
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert!(
        lines.iter().any(|line| line.starts_with("vol-ready: the record of volume vol-ready is refused")),
        "{lines:?}"
    );
    assert!(lines.iter().any(|line| line.starts_with("vol-b is under local:") && line.ends_with(" of b")), "{lines:?}");

    let (told, ended) = imported_with(&to, &file, (Effect::Real, Check::Nothing), &written.trail(usize::MAX)).await;
    ended.expect("nobody looks");
    assert!(told.contains("1 of 5 imported, 4 there already") && told.contains("1 were not opened before"), "{told}");
    // What is there already is not written down again.
    assert_eq!(written.lines().len(), 6, "{:?}", written.lines());
}

#[tokio::test]
async fn nothing_is_imported_that_cannot_be_written_down() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (from, file) = (seeded().await, folder.path().join("records.jsonl"));
    exported(&from, &file).await;
    let to = place(providers(), Arc::new(Memory::default()));
    let full = Written::default().trail(0);
    let how = (Effect::Real, Check::Mac);
    let (told, ended) = imported_with(&to, &file, how, &full).await;
    assert!(matches!(ended, Err(ImportFailure::Incomplete { differ: 0, failed: 5 })), "{ended:?}");
    assert!(told.contains("write the audit log"), "{told}");
    let to = place(providers(), Arc::new(Memory::default()));
    let (told, _) = imported_with(&to, &file, how, &full).await;
    assert!(told.contains("an earlier line could not be written"), "{told}");
    assert!(records(to.store.as_ref()).await.is_empty(), "a record was made that nobody would hear of");
}

/// A KMS that is away.
struct Away;

#[async_trait]
impl Kms for Away {
    async fn describe(&self, _: Option<&str>, _: Deadline) -> Result<Kek, KmsFailure> {
        Err(KmsFailure::unreachable("the KMS", "it is away"))
    }

    async fn wrap(&self, _: &InnerKey, _: Option<&str>, _: &Binding<'_>, _: Deadline) -> Result<Wrapped, KmsFailure> {
        Err(KmsFailure::unreachable("the KMS", "it is away"))
    }

    async fn unwrap(&self, _: &Wrapped, _: &Binding<'_>, _: Deadline) -> Result<InnerKey, KmsFailure> {
        Err(KmsFailure::unreachable("the KMS", "it is away"))
    }
}

#[tokio::test]
async fn a_kms_that_is_away_keeps_no_record_from_coming_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (from, file) = (seeded().await, folder.path().join("records.jsonl"));
    exported(&from, &file).await;
    let away = of([("cluster", cluster()), ("a", wraps(Away)), ("b", wraps(local(8)))]);
    let to = place(away, Arc::new(Memory::default()));
    let (told, ended) = imported(&to, &file, Effect::Real).await;
    ended.expect("imported");
    assert!(told.contains("5 of 5 imported") && told.contains("2 were not opened before"), "{told}");
    assert_eq!(records(to.store.as_ref()).await, records(from.store.as_ref()).await);
}

/// A folder with the seeded records and three files that are none.
async fn with_strangers(folder: &Path) -> Place {
    let (from, file) = (seeded().await, folder.join("all.jsonl"));
    exported(&from, &file).await;
    let records = folder.join("records");
    let store: Arc<dyn DekStore> = Arc::new(Filesystem::open(&records).expect("a new folder"));
    let to = place(providers(), store);
    imported(&to, &file, Effect::Real).await.1.expect("imported");
    let whole = fs::read(records.join("vol-a.json")).expect("a record");
    fs::write(records.join("vol-torn.json"), &whole[..whole.len() / 2]).expect("torn");
    fs::write(records.join("vol-other.json"), &whole).expect("another's");
    fs::write(records.join("foreign.json"), "{}").expect("foreign");
    fs::write(records.join("notes.txt"), "not named as a record").expect("written");
    to
}

#[tokio::test]
async fn what_is_no_record_is_named_and_the_export_has_all_others() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (place, file) = (with_strangers(folder.path()).await, folder.path().join("records.jsonl"));
    let mut out = Vec::new();
    let ended = export(&place, &file, &mut quiet(), &mut out).await;
    assert!(matches!(ended, Err(ExportFailure::Refused { count: 3 })), "{ended:?}");
    let told = String::from_utf8(out).expect("text");
    for name in ["vol-torn.json is refused", "vol-other.json is refused", "foreign.json is refused", "5 records of"] {
        assert!(told.contains(name), "{name} is not in {told}");
    }
    assert!(told.contains("it is the record of volume vol-a") && !told.contains("notes.txt"), "{told}");
    let other = crate::place(providers(), Arc::new(Memory::default()));
    imported(&other, &file, Effect::Real).await.1.expect("the export is whole");
    assert_eq!(records(other.store.as_ref()).await, records(place.store.as_ref()).await);
    // Where the file is standard output, it is nothing but the file.
    let mut out = Vec::new();
    let ended = export(&place, Path::new("-"), &mut quiet(), &mut out).await;
    assert!(matches!(ended, Err(ExportFailure::Refused { count: 3 })), "{ended:?}");
    assert_eq!(out, fs::read(&file).expect("a file"));
}

#[tokio::test]
async fn verify_counts_what_is_no_record_and_opens_all_others() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = with_strangers(folder.path()).await;
    let mut out = Vec::new();
    let ended = verify(&place, Print::Json, &mut quiet(), &mut out).await;
    assert!(matches!(ended, Err(VerifyFailure::Bad { bad: 0, of: 4, refused: 3 })), "{ended:?}");
    let rows: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
    let rows = rows.as_array().expect("rows");
    assert_eq!(rows.iter().filter(|row| row["finding"] == "ok").count(), 4, "{rows:?}");
    let refused: Vec<_> = rows.iter().filter(|row| row["finding"] == "no-record").collect();
    assert_eq!(refused.len(), 3, "{rows:?}");
    assert!(refused.iter().all(|row| row["volumeId"].is_null() && row["place"].is_string()), "{refused:?}");
    let mut out = Vec::new();
    assert!(verify(&place, Print::Table, &mut quiet(), &mut out).await.is_err());
    let told = String::from_utf8(out).expect("text");
    assert!(told.contains("4 of 4 records open\n3 objects") && told.contains("vol-torn.json"), "{told}");
}
