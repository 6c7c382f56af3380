//! Records that earlier versions wrote open for ever.

use std::{fs, sync::Arc};

use coffer::key::{
    derive::Tag,
    record::State,
    service::{Attempt, KeyFailure, KeyService, NewKey},
    store::{DekStore, filesystem::Filesystem},
};

use crate::{id, new, roles, services, soon, vectors};

#[tokio::test]
async fn golden_records_open() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut read = 0;
    for entry in fs::read_dir(vectors().join("records")).expect("golden records") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("copied");
        read += 1;
    }
    assert_eq!(read, 4);
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
    let key = roles::service(&store, Vec::new(), Vec::new()).get(&id("golden-role"), soon()).await.expect("it opens");
    assert_eq!(key.info.state, State::Prepared);
    expect(golden("golden-role"), &key.dek);
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
    let in_role = roles::service(&store, Vec::new(), vec![roles::rule()]);
    let blue = NewKey { tenant: Some("blue".to_owned()), ..new("golden-role") };
    in_role.create(blue, soon()).await.expect("a new key");
    derived.create(new("golden-destroyed"), soon()).await.expect("a new key");
    derived.destroy(&id("golden-destroyed"), 1, soon()).await.expect("destroyed");
    let mut deks = String::new();
    for (name, service) in [("golden-derived", &derived), ("golden-wrapped", &wrapped), ("golden-role", &in_role)] {
        let dek = service.get(&id(name), soon()).await.expect("a key").dek;
        let hex: String = dek.expose_secret().iter().map(|byte| format!("{byte:02x}")).collect();
        deks.push_str(&format!("{name} {hex}\n"));
    }
    fs::write(vectors().join("records.deks"), deks).expect("written");
}
