//! Keys and their records: every store and every KMS against one list each, the state machine, and what tampering
//! does.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use coffer::{
    exec::Deadline,
    key::{
        cluster::ClusterKeys,
        derive::Tag,
        embedded::Embedded,
        kms::{Kms, KmsFailure, local::Local},
        providers::{Provider, Providers},
        record::{Record, RecordFault, State, StoredKey},
        service::{Attempt, KeyFailure, KeyService, NewKey},
        store::{DekStore, StoreFailure, filesystem::Filesystem, memory::Memory},
    },
    secret::{InnerKey, LocalKek},
    volume::{Content, FsType, Parameters, VolumeId},
};
use proptest::{prop_assert, proptest, test_runner::Config};
use tokio::task::JoinSet;
use uuid::Uuid;

fn soon() -> Deadline {
    Deadline::within(Duration::from_secs(30))
}

fn id(text: &str) -> VolumeId {
    text.parse().expect("a volume id")
}

fn new(volume_id: &str) -> NewKey {
    NewKey {
        volume_id: id(volume_id),
        name: format!("name of {volume_id}"),
        parameters: Parameters::of(Content::Filesystem(FsType::Ext4)),
        node: Some("n1".to_owned()),
        tenant: None,
        provider: None,
        context: BTreeMap::new(),
    }
}

fn local(byte: u8) -> Arc<dyn Kms> {
    Arc::new(Local::new(LocalKek::born(|kek| kek.fill(byte))))
}

/// A key service over a store: by a cluster key, or by a KMS.
fn services(store: &Arc<dyn DekStore>) -> [(&'static str, Embedded); 2] {
    let service = |provider: Provider| {
        let providers = Providers { by_name: [("main".to_owned(), provider)].into(), default: "main".to_owned() };
        Embedded::new(Uuid::from_u128(1), providers, store.clone())
    };
    [("derived", service(Provider::Cluster(cluster_keys()))), ("wrapped", service(Provider::Kms(local(7))))]
}

/// The same cluster key each time.
fn cluster_keys() -> ClusterKeys {
    ClusterKeys::load(&vectors().join("cluster-key.json")).expect("the vector is a cluster key")
}

fn vectors() -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    // A checkout makes files that the world can read, which a cluster key must not be.
    fs::set_permissions(folder.join("cluster-key.json"), fs::Permissions::from_mode(0o600)).expect("chmod");
    folder
}

/// A record as a key service makes it.
async fn record(volume_id: &str) -> Record {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    let [(_, service), _] = services(&store);
    service.create(new(volume_id), soon()).await.expect("a new key");
    store.get(&id(volume_id), soon()).await.expect("it answers").expect("it is there").record
}

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

/// What every KMS does.
async fn wraps(kms: Arc<dyn Kms>) {
    let key = InnerKey::random();
    let wrapped = kms.wrap(&key, b"aad", soon()).await.expect("wrapped");
    assert_eq!(wrapped.kek_id, kms.describe(soon()).await.expect("described"));
    let opened = kms.unwrap(&wrapped, b"aad", soon()).await.expect("unwrapped");
    assert_eq!(opened.expose_secret(), key.expose_secret());
    assert!(matches!(kms.unwrap(&wrapped, b"other", soon()).await, Err(KmsFailure::Mismatch)));
    assert_ne!(kms.wrap(&key, b"aad", soon()).await.expect("wrapped").bytes, wrapped.bytes, "a nonce came twice");
    for bit in 0..wrapped.bytes.len() * 8 {
        let mut flipped = wrapped.clone();
        flipped.bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(kms.unwrap(&flipped, b"aad", soon()).await, Err(KmsFailure::Mismatch)), "bit {bit}");
    }
    for length in 0..wrapped.bytes.len() {
        let mut cut = wrapped.clone();
        cut.bytes.truncate(length);
        assert!(kms.unwrap(&cut, b"aad", soon()).await.is_err(), "{length} bytes");
    }
    let mut other = wrapped;
    other.kek_id.push('x');
    assert!(matches!(kms.unwrap(&other, b"aad", soon()).await, Err(KmsFailure::NoSuchKek { .. })));
}

#[tokio::test]
async fn the_local_kms_wraps() {
    wraps(local(1)).await;
}

#[tokio::test]
async fn a_key_is_made_once_and_the_same_request_finds_it() {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    for (kind, service) in services(&store) {
        let first = service.create(new(kind), soon()).await.expect("a new key");
        assert_eq!(first.state, State::Prepared);
        assert_eq!(service.create(new(kind), soon()).await.expect("the same"), first);
        let other = NewKey { parameters: Parameters::of(Content::Block), ..new(kind) };
        assert!(matches!(
            service.create(other, soon()).await,
            Err(KeyFailure::Differs { what: "content or encryption", .. })
        ));
        let elsewhere = NewKey { node: Some("n2".to_owned()), ..new(kind) };
        assert!(matches!(service.create(elsewhere, soon()).await, Err(KeyFailure::Differs { what: "node", .. })));
        let one = service.get(&id(kind), soon()).await.expect("a key").dek;
        let again = service.get(&id(kind), soon()).await.expect("a key").dek;
        assert_eq!(one.expose_secret(), again.expose_secret());
    }
    assert!(matches!(services(&store)[0].1.get(&id("missing"), soon()).await, Err(KeyFailure::Missing(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn twenty_concurrent_creators_agree_on_one_record_and_one_key() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for kind in 0..2 {
        let mut creators = JoinSet::new();
        for _ in 0..20 {
            // Each has a store of its own on the one folder, as a process of its own would have.
            let store: Arc<dyn DekStore> = Arc::new(Filesystem::open(folder.path()).expect("a folder"));
            let [derived, wrapped] = services(&store);
            let service = if kind == 0 { derived.1 } else { wrapped.1 };
            creators.spawn(async move {
                let name = format!("raced-{kind}");
                let info = service.create(new(&name), soon()).await.expect("one record for all");
                let key = service.get(&id(&name), soon()).await.expect("a key");
                (info.luks_uuid, key.dek.expose_secret().to_vec())
            });
        }
        let mut seen = std::collections::BTreeSet::new();
        while let Some(made) = creators.join_next().await {
            seen.insert(made.expect("no panic"));
        }
        assert_eq!(seen.len(), 1);
    }
}

#[tokio::test]
async fn a_record_goes_from_prepared_to_ready_and_a_later_attempt_fences_off_an_earlier_one() {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    for (kind, service) in services(&store) {
        let (volume, header) = (id(kind), Tag::from_bytes([3; 32]));
        service.create(new(kind), soon()).await.expect("a new key");
        let attempt = |number| Attempt { generation: 1, number };
        let early = service.mark_ready(&volume, attempt(0), header, soon()).await;
        assert!(matches!(early, Err(KeyFailure::State { state: State::Prepared, .. })), "{early:?}");
        assert_eq!(service.begin_format(&volume, 1, soon()).await.expect("begun").format_attempt, 1);
        assert_eq!(service.begin_format(&volume, 1, soon()).await.expect("begun again").format_attempt, 2);
        let late = service.mark_ready(&volume, attempt(1), header, soon()).await;
        assert!(matches!(late, Err(KeyFailure::Superseded(_))), "{late:?}");
        assert!(matches!(service.begin_format(&volume, 2, soon()).await, Err(KeyFailure::Superseded(_))));
        let ready = service.mark_ready(&volume, attempt(2), header, soon()).await.expect("ready");
        assert_eq!((ready.state, ready.header_tag), (State::Ready, Some(header)));
        assert_eq!(service.mark_ready(&volume, attempt(2), header, soon()).await.expect("the same again"), ready);
        let other = service.mark_ready(&volume, attempt(2), Tag::from_bytes([4; 32]), soon()).await;
        assert!(matches!(other, Err(KeyFailure::State { state: State::Ready, .. })), "{other:?}");
        let back = service.begin_format(&volume, 1, soon()).await;
        assert!(matches!(back, Err(KeyFailure::State { state: State::Ready, .. })), "{back:?}");
    }
}

#[tokio::test]
async fn a_destroyed_key_never_opens_again() {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    for (kind, service) in services(&store) {
        let volume = id(kind);
        service.create(new(kind), soon()).await.expect("a new key");
        let old = service.get(&volume, soon()).await.expect("a key").dek;
        service.destroy(&volume, soon()).await.expect("destroyed");
        service.destroy(&volume, soon()).await.expect("destroyed already");
        assert!(matches!(service.get(&volume, soon()).await, Err(KeyFailure::Destroyed(_))));
        assert!(matches!(service.begin_format(&volume, 1, soon()).await, Err(KeyFailure::Destroyed(_))));
        assert!(service.describe(&volume, soon()).await.expect("it answers").is_none());
        let tombstone = store.get(&volume, soon()).await.expect("it answers").expect("it is there").record;
        assert!(tombstone.key.is_none() && tombstone.mac.is_none() && tombstone.state == State::Destroyed);
        // The id can be used again, for another key.
        assert_eq!(service.create(new(kind), soon()).await.expect("a new key").generation, 2);
        let new = service.get(&volume, soon()).await.expect("a key").dek;
        assert_ne!(new.expose_secret(), old.expose_secret());
        service.destroy(&volume, soon()).await.expect("destroyed");
    }
    services(&store)[0].1.destroy(&id("missing"), soon()).await.expect("nothing to destroy");
}

#[tokio::test]
async fn a_list_leaves_out_tombstones_and_has_whole_pages() {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    let [(_, service), _] = services(&store);
    for number in 0..10 {
        service.create(new(&format!("vol-{number}")), soon()).await.expect("a new key");
    }
    for number in [0, 3, 4, 5, 9] {
        service.destroy(&id(&format!("vol-{number}")), soon()).await.expect("destroyed");
    }
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = service.list(after.as_ref(), 2, soon()).await.expect("a page");
        assert!(page.infos.len() == 2 || page.next.is_none(), "{page:?}");
        seen.extend(page.infos.iter().map(|info| info.volume_id.to_string()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["vol-1", "vol-2", "vol-6", "vol-7", "vol-8"]);
}

/// Every record of two volumes, of each kind, in a folder.
async fn two_volumes(folder: &Path) -> Arc<dyn DekStore> {
    let store: Arc<dyn DekStore> = Arc::new(Filesystem::open(folder).expect("a folder"));
    for (kind, service) in services(&store) {
        for volume in ["a", "b"] {
            let name = format!("{kind}-{volume}");
            service.create(new(&name), soon()).await.expect("a new key");
            service.begin_format(&id(&name), 1, soon()).await.expect("begun");
            let attempt = Attempt { generation: 1, number: 1 };
            service.mark_ready(&id(&name), attempt, Tag::from_bytes([9; 32]), soon()).await.expect("ready");
        }
    }
    store
}

#[tokio::test]
async fn every_single_bit_of_a_record_counts() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = two_volumes(folder.path()).await;
    for (kind, service) in services(&store) {
        let path = folder.path().join(format!("{kind}-a.json"));
        let whole = fs::read(&path).expect("a record");
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, flipped).expect("written");
            let read = service.get(&id(&format!("{kind}-a")), soon()).await;
            assert!(read.is_err(), "{kind}: bit {bit} of {} makes no difference", whole.len() * 8);
        }
        fs::write(&path, whole).expect("written");
        service.get(&id(&format!("{kind}-a")), soon()).await.expect("the record is whole again");
    }
}

#[tokio::test]
async fn a_record_does_not_open_for_another_volume() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = two_volumes(folder.path()).await;
    for (kind, service) in services(&store) {
        let (a, b) = (format!("{kind}-a"), format!("{kind}-b"));
        let path = folder.path().join(format!("{a}.json"));
        let read = fs::read_to_string(folder.path().join(format!("{b}.json"))).expect("a record");
        fs::write(&path, &read).expect("swapped");
        assert!(service.get(&id(&a), soon()).await.is_err());
        fs::write(&path, read.replace(&b, &a)).expect("swapped and renamed inside");
        let failed = service.get(&id(&a), soon()).await.expect_err("bound to b");
        assert!(matches!(failed, KeyFailure::Record { .. } | KeyFailure::Unwrap { .. }), "{failed:?}");
    }
}

#[tokio::test]
async fn a_record_opens_only_with_its_own_kek() {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    for (kind, service) in services(&store) {
        service.create(new(kind), soon()).await.expect("a new key");
    }
    let open = |provider: Provider| {
        let providers = Providers { by_name: [("main".to_owned(), provider)].into(), default: "main".to_owned() };
        Embedded::new(Uuid::from_u128(1), providers, store.clone())
    };
    let others = [
        ("derived", Provider::Cluster(ClusterKeys::generate())),
        ("derived", Provider::Kms(local(7))),
        ("wrapped", Provider::Kms(local(8))),
        ("wrapped", Provider::Cluster(cluster_keys())),
    ];
    for (kind, provider) in others {
        let failed = open(provider).get(&id(kind), soon()).await.expect_err("another KEK");
        assert!(matches!(failed, KeyFailure::Record { .. } | KeyFailure::Unwrap { .. }), "{kind}: {failed:?}");
    }
    let elsewhere = Embedded::new(
        Uuid::from_u128(2),
        Providers { by_name: [("main".to_owned(), Provider::Kms(local(7)))].into(), default: "main".to_owned() },
        store.clone(),
    );
    let failed = elsewhere.get(&id("wrapped"), soon()).await.expect_err("another cluster");
    assert!(failed.to_string().contains("refused"), "{failed}");
}

#[tokio::test]
async fn reserved_context_and_unknown_providers_are_refused() {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    let [(_, service), _] = services(&store);
    let reserved = NewKey { context: [("volume".to_owned(), "x".to_owned())].into(), ..new("a") };
    assert!(matches!(service.create(reserved, soon()).await, Err(KeyFailure::Invalid(_))));
    let unknown = NewKey { provider: Some("aws".to_owned()), ..new("a") };
    let refused = service.create(unknown, soon()).await.expect_err("unknown").to_string();
    assert!(refused.contains("\"aws\" is not configured; there are: main"), "{refused}");
}

/// Records that earlier versions wrote open for ever.
#[tokio::test]
async fn golden_records_open() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut read = 0;
    for entry in fs::read_dir(vectors().join("records")).expect("golden records") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("copied");
        read += 1;
    }
    assert_eq!(read, 3);
    let store: Arc<dyn DekStore> = Arc::new(Filesystem::open(folder.path()).expect("a folder"));
    let [(_, derived), (_, wrapped)] = services(&store);
    let expect = |hex: &str, dek: &coffer::secret::Dek| {
        assert_eq!(hex, dek.expose_secret().iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    };
    let deks = fs::read_to_string(vectors().join("records.deks")).expect("the golden keys");
    let golden = |name: &str| deks.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).expect("a line");
    let key = derived.get(&id("golden-derived"), soon()).await.expect("it opens");
    assert_eq!(key.info.state, State::Ready);
    expect(golden("golden-derived"), &key.dek);
    let key = wrapped.get(&id("golden-wrapped"), soon()).await.expect("it opens");
    assert_eq!(key.info.state, State::Formatting);
    expect(golden("golden-wrapped"), &key.dek);
    assert!(matches!(derived.get(&id("golden-destroyed"), soon()).await, Err(KeyFailure::Destroyed(_))));
}

/// Makes the golden records of this version, once, when the version is new: `cargo test --test keys -- --ignored`.
#[tokio::test]
#[ignore = "it writes the golden files"]
async fn make_golden_records() {
    let folder = vectors().join("records");
    let store: Arc<dyn DekStore> = Arc::new(Filesystem::open(&folder).expect("a folder"));
    let [(_, derived), (_, wrapped)] = services(&store);
    let context = [("team".to_owned(), "blue".to_owned())].into();
    derived.create(new("golden-derived"), soon()).await.expect("a new key");
    derived.begin_format(&id("golden-derived"), 1, soon()).await.expect("begun");
    let attempt = Attempt { generation: 1, number: 1 };
    derived.mark_ready(&id("golden-derived"), attempt, Tag::from_bytes([9; 32]), soon()).await.expect("ready");
    wrapped.create(NewKey { context, ..new("golden-wrapped") }, soon()).await.expect("a new key");
    wrapped.begin_format(&id("golden-wrapped"), 1, soon()).await.expect("begun");
    derived.create(new("golden-destroyed"), soon()).await.expect("a new key");
    derived.destroy(&id("golden-destroyed"), soon()).await.expect("destroyed");
    let mut deks = String::new();
    for (name, service) in [("golden-derived", &derived), ("golden-wrapped", &wrapped)] {
        let dek = service.get(&id(name), soon()).await.expect("a key").dek;
        let hex: String = dek.expose_secret().iter().map(|byte| format!("{byte:02x}")).collect();
        deks.push_str(&format!("{name} {hex}\n"));
    }
    fs::write(vectors().join("records.deks"), deks).expect("written");
}

#[tokio::test]
async fn a_stored_record_holds_no_key_in_the_clear() {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    for (kind, service) in services(&store) {
        service.create(new(kind), soon()).await.expect("a new key");
        let dek = service.get(&id(kind), soon()).await.expect("a key").dek;
        let record = store.get(&id(kind), soon()).await.expect("it answers").expect("it is there").record;
        let text = String::from_utf8(record.to_bytes()).expect("text");
        let base64: String = coffer::key::record::Base64::new(dek.expose_secret().to_vec()).into();
        assert!(!text.contains(&base64), "{text}");
        assert!(matches!(record.key, Some(StoredKey::Derived { .. } | StoredKey::Wrapped { .. })));
    }
}

proptest! {
    #![proptest_config(Config::with_cases(2000))]

    /// Whatever bytes a store finds, reading them is a record that writes the same bytes, or a refusal.
    #[test]
    fn no_bytes_break_the_reader(bytes: Vec<u8>, at in 0usize..1200, with: u8) {
        prop_assert!(Record::from_bytes(&bytes).is_err());
        let golden = include_bytes!("vectors/records/golden-derived.json");
        let mut changed = golden.to_vec();
        let length = changed.len();
        changed[at % length] = with;
        if let Ok(record) = Record::from_bytes(&changed) {
            prop_assert!(record.to_bytes() == changed);
        }
    }
}
