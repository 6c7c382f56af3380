//! What a store and a key file may hold.

use std::sync::LazyLock;

use coffer::{
    key::{
        cluster::ClusterKeys,
        kms::local::Local,
        record::{Record, State},
        service::KeyInfo,
    },
    proto::keyservice as message,
    secret::Dek,
};

use crate::fuzz::file;

/// Records of this version, and what opens them.
static GOLDEN: LazyLock<[(&[u8], Dek); 3]> = LazyLock::new(|| {
    let deks = include_str!("../../../vectors/records.deks");
    let dek = |name: &str| {
        let hex = deks.lines().find_map(|line| line.strip_prefix(name)).expect("each golden record has a key").trim();
        let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hexadecimal digits");
        Dek::born(|dek| *dek = std::array::from_fn(byte))
    };
    [
        (include_bytes!("../../../vectors/records/golden-derived.json").as_slice(), dek("golden-derived ")),
        (include_bytes!("../../../vectors/records/golden-wrapped.json").as_slice(), dek("golden-wrapped ")),
        (include_bytes!("../../../vectors/records/golden-role.json").as_slice(), dek("golden-role ")),
    ]
});

/// A record in a store. What parses writes back the same bytes; no change of one passes its MAC; what it says arrives
/// at the other end of a wire; and its key can be destroyed.
pub fn record(bytes: &[u8]) -> bool {
    let record = match Record::from_bytes(bytes) {
        Ok(record) => record,
        Err(fault) => {
            assert!(!fault.to_string().is_empty(), "a refusal has a reason");
            return false;
        }
    };
    assert!(record.to_bytes() == bytes, "a record that parses is in the form that is written");
    for (golden, dek) in &*GOLDEN {
        assert!(record.verify(dek).is_err() || bytes == *golden, "a changed record passes its MAC");
    }
    let info = KeyInfo::from(&record);
    assert!(info.header_tag.is_some() || record.state != State::Ready, "a finished volume has a tag");
    // A node without a name cannot be told from none over the wire; no key service writes one.
    if info.node.as_deref() != Some("") {
        let arrived = KeyInfo::try_from(message::KeyInfo::from(info.clone())).expect("what is sent is well formed");
        assert_eq!(arrived, info);
    }
    let tombstone = record.tombstone();
    let read = Record::from_bytes(&tombstone.to_bytes()).expect("a tombstone is a whole record");
    assert_eq!(read, tombstone);
    assert!(read.state == State::Destroyed && read.key.is_none(), "a tombstone holds no key");
    true
}

/// The file of a cluster key or of a local KEK. What is whole is written and read again; no refusal shows the key.
pub fn keyfile(bytes: &[u8]) -> bool {
    let file = file(bytes);
    let local = Local::load(file.path(), None);
    let cluster = ClusterKeys::load(file.path());
    let told = [local.as_ref().err().map(ToString::to_string), cluster.as_ref().err().map(ToString::to_string)];
    for told in told.iter().flatten() {
        assert!(!told.is_empty(), "a refusal has a reason");
        let shown = |run: &&[u8]| run.len() >= 16 && told.as_bytes().windows(run.len()).any(|shown| shown == *run);
        let base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/".contains(byte);
        assert_eq!(bytes.split(|byte| !base64(byte)).find(shown), None, "a refusal shows what may be a key");
    }
    if let Ok(keys) = &cluster {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("cluster-key.json");
        keys.save_new(&path).expect("a new file can be written");
        let read = ClusterKeys::load(&path).expect("what was written is whole");
        let current = |keys: &ClusterKeys| (keys.cluster_id(), keys.current().0, *keys.current().1.key.expose_secret());
        assert!(current(&read) == current(keys), "what was written is what was read");
    }
    local.is_ok() || cluster.is_ok()
}
