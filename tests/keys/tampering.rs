//! What an edited, exchanged or foreign record does: nothing.

use std::{fs, path::Path, sync::Arc};

use coffer::key::{
    cluster::ClusterKeys,
    derive::Tag,
    embedded::Embedded,
    providers::{KmsProvider, Provider, Providers},
    record::{Record, StoredKey},
    service::{Attempt, KeyFailure, KeyService},
    store::{DekStore, filesystem::Filesystem, memory::Memory},
};
use proptest::{prop_assert, proptest, test_runner::Config};
use uuid::Uuid;

use crate::{cluster_keys, id, local, new, services, soon};

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
        ("derived", Provider::Kms(KmsProvider::new(local(7)))),
        ("wrapped", Provider::Kms(KmsProvider::new(local(8)))),
        ("wrapped", Provider::Cluster(cluster_keys())),
    ];
    for (kind, provider) in others {
        let failed = open(provider).get(&id(kind), soon()).await.expect_err("another KEK");
        assert!(matches!(failed, KeyFailure::Record { .. } | KeyFailure::Unwrap { .. }), "{kind}: {failed:?}");
    }
    let elsewhere = Embedded::new(
        Uuid::from_u128(2),
        Providers {
            by_name: [("main".to_owned(), Provider::Kms(KmsProvider::new(local(7))))].into(),
            default: "main".to_owned(),
        },
        store.clone(),
    );
    let failed = elsewhere.get(&id("wrapped"), soon()).await.expect_err("another cluster");
    assert!(failed.to_string().contains("refused"), "{failed}");
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
        let golden = include_bytes!("../vectors/records/golden-derived.json");
        let mut changed = golden.to_vec();
        let length = changed.len();
        changed[at % length] = with;
        if let Ok(record) = Record::from_bytes(&changed) {
            prop_assert!(record.to_bytes() == changed);
        }
    }
}
