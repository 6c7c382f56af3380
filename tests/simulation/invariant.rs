//! What must never happen, each by its name, and what is remembered to see it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use coffer::{
    key::{
        cluster::ClusterKeys,
        derive,
        record::{Record, State, StoredKey},
    },
    secret::Dek,
    volume::hex,
};

use crate::{
    header,
    world::{Machine, World},
};

/// The invariants, by the names under which a violation is told.
pub(crate) const ALL: [&str; 12] = [
    OPENS_WITH_ITS_DATA,
    NO_SECOND_FORMAT,
    NO_SECOND_MKFS,
    KEY_IS_STORED,
    ONE_KEY,
    REFUSAL_CHANGES_NOTHING,
    DESTROYED_IS_GONE,
    NOTHING_LEFT_OPEN,
    NO_KEY_IN_THE_CLEAR,
    READY_IS_FINAL,
    RETRIES_REACH_THE_GOAL,
    ONLY_ITS_NODE,
];
pub(crate) const OPENS_WITH_ITS_DATA: &str = "a volume that was ever ready opens with its data";
pub(crate) const NO_SECOND_FORMAT: &str = "no second luksFormat";
pub(crate) const NO_SECOND_MKFS: &str = "no second mkfs";
pub(crate) const KEY_IS_STORED: &str = "no key in use that is not stored";
pub(crate) const ONE_KEY: &str = "no two keys for one volume";
pub(crate) const REFUSAL_CHANGES_NOTHING: &str = "a refusal changes nothing";
pub(crate) const DESTROYED_IS_GONE: &str = "a destroyed key never opens again";
pub(crate) const NOTHING_LEFT_OPEN: &str = "nothing is left open, mapped or looped after unstage";
pub(crate) const NO_KEY_IN_THE_CLEAR: &str = "no plaintext key outside its types";
pub(crate) const READY_IS_FINAL: &str = "a ready record is only ever destroyed";
pub(crate) const RETRIES_REACH_THE_GOAL: &str = "retries reach the goal";
pub(crate) const ONLY_ITS_NODE: &str = "a key goes only to the node that holds the volume";

/// The cluster key of every world.
pub(crate) static CLUSTER_KEY: LazyLock<(tempfile::TempDir, ClusterKeys)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let keys = ClusterKeys::generate();
    keys.save_new(&folder.path().join("cluster-key.json")).expect("a new file");
    (folder, keys)
});

/// What the invariants remember of the past.
#[derive(Clone, Default)]
pub(crate) struct Ghost {
    deks: BTreeMap<(String, u32), [u8; 32]>,
    destroyed: BTreeSet<[u8; 32]>,
    /// Volumes whose record was ever ready, since it was last made.
    pub(crate) ready: BTreeSet<String>,
    /// The last user's data that was flushed before the user was told so.
    pub(crate) acknowledged: BTreeMap<String, u64>,
    /// Volumes whose disk has lied since the last request for them began: what a lie leads to is no fault of the flow.
    pub(crate) lied: BTreeSet<String>,
    /// What was violated first.
    pub(crate) violation: Option<String>,
}

impl World {
    pub(crate) fn violated(&mut self, invariant: &'static str, how: impl FnOnce() -> String) {
        if self.ghost.violation.is_none() {
            let text = format!("{invariant}: {}", how());
            self.tell(|| format!("     VIOLATED {text}"));
            self.ghost.violation = Some(text);
        }
    }

    /// A record was stored in the place of another.
    pub(crate) fn stored(&mut self, old: Option<&Record>, new: &Record) {
        let (id, generation) = (new.volume_id.to_string(), new.generation);
        if old.is_some_and(|old| old.state == State::Ready && old.generation == generation)
            && !matches!(new.state, State::Ready | State::Destroyed)
        {
            self.violated(READY_IS_FINAL, || format!("the record of {id} became {}", new.state));
        }
        match (new.state, dek(new)) {
            (State::Destroyed, _) => {
                self.ghost.destroyed.extend(self.ghost.deks.get(&(id.clone(), generation)));
                self.ghost.ready.remove(&id);
                self.ghost.acknowledged.remove(&id);
            }
            (state, Some(dek)) => {
                let known = *self.ghost.deks.entry((id.clone(), generation)).or_insert(dek);
                if known != dek {
                    self.violated(ONE_KEY, || format!("{id}, generation {generation}"));
                }
                let text = String::from_utf8_lossy(&new.to_bytes()).into_owned();
                self.expect_no_key(&text, "a record");
                if state == State::Ready {
                    self.ghost.ready.insert(id);
                }
            }
            (_, None) => self.violated(KEY_IS_STORED, || format!("the record of {id} leads to no key")),
        }
    }

    /// A volume's record is from a backup: from before it was finished.
    pub(crate) fn turn_back(&mut self, volume: &str) {
        let id = volume.parse().expect("an id");
        let mut record = Record::from_bytes(&self.records[&id]).expect("a whole record");
        (record.state, record.header_mac, record.format_attempt) = (State::Prepared, None, 0);
        record.authenticate(&Dek::born(|key| *key = dek(&record).expect("it has a key")));
        self.records.insert(id, record.to_bytes());
    }

    /// A program was given a key for a volume, and whether it opened something with it.
    pub(crate) fn used(&mut self, machine: usize, volume: &str, key: &[u8], opened: bool) {
        let stored = volume.parse().ok().and_then(|id| self.records.get(&id));
        let record = stored.and_then(|bytes| Record::from_bytes(bytes).ok());
        if record.as_ref().and_then(|record| record.node.as_deref()) != Some(node_id(machine).as_str()) {
            self.violated(ONLY_ITS_NODE, || format!("{volume} on node {machine}"));
        }
        if record.as_ref().and_then(dek).is_none_or(|dek| dek != key) {
            self.violated(KEY_IS_STORED, || volume.to_owned());
        }
        if opened && <[u8; 32]>::try_from(key).is_ok_and(|key| self.ghost.destroyed.contains(&key)) {
            self.violated(DESTROYED_IS_GONE, || volume.to_owned());
        }
    }

    /// The driver is about to write to a volume's raw device.
    pub(crate) fn expect_writable(&mut self, volume: &str, disk: u64, machine: usize, offset: u64) {
        if self.ghost.ready.contains(volume) {
            self.violated(NO_SECOND_FORMAT, || format!("{volume} is ready, and is written to at {offset}"));
        }
        let key = volume.parse().ok().and_then(|id| self.records.get(&id));
        let key = key.and_then(|bytes| dek(&Record::from_bytes(bytes).ok()?));
        let slot = self.machines[machine].disks.get(&disk).and_then(header::slot_of_disk);
        let opens = key.zip(slot).is_some_and(|(key, slot)| header::open(&slot, &key).is_some());
        if opens && offset < header::MARK_OFFSET && !self.ghost.lied.contains(volume) {
            self.violated(NO_SECOND_FORMAT, || format!("the header of {volume} opens, and is written over"));
        }
    }

    /// A file system is about to be made in a volume.
    pub(crate) fn expect_makeable(&mut self, volume: &str, disk: u64, machine: usize) {
        let mark = self.machines[machine].disks.get(&disk).and_then(|disk| disk.read(header::MARK_OFFSET, 64));
        let marked = mark.is_some_and(|mark| mark.iter().any(|byte| *byte != 0));
        if self.ghost.ready.contains(volume) || (marked && !self.ghost.lied.contains(volume)) {
            self.violated(NO_SECOND_MKFS, || volume.to_owned());
        }
    }

    /// A text that others can read.
    pub(crate) fn expect_no_key(&mut self, text: &str, place: &str) {
        use base64::Engine;
        let found = self.ghost.deks.values().any(|dek| {
            let half = &hex(dek)[..32];
            let base64 = base64::prelude::BASE64_STANDARD.encode(dek);
            text.contains(half) || text.contains(&base64[..20])
        });
        if found {
            self.violated(NO_KEY_IN_THE_CLEAR, || place.to_owned());
        }
    }
}

/// The name of a machine's node.
pub(crate) fn node_id(machine: usize) -> String {
    format!("node-{machine}")
}

/// The DEK that a record leads to.
fn dek(record: &Record) -> Option<[u8; 32]> {
    let Some(StoredKey::Derived { cluster_key_version, salt, .. }) = &record.key else { return None };
    let version = CLUSTER_KEY.1.version(*cluster_key_version)?;
    Some(*derive::volume_dek(&version.key, &salt.exactly()?, &record.binding()).expose_secret())
}

/// What of a volume's bytes and state a refusal must leave alone.
pub(crate) fn untouched(
    world: &World,
    machine: &Machine,
    volume: &str,
    mapper: &str,
) -> (u64, Option<Vec<u8>>, Option<String>) {
    let disk = machine.files.get(volume).and_then(|disk| machine.disks.get(disk));
    let record = volume.parse().ok().and_then(|id| world.records.get(&id)).cloned();
    (disk.map_or(0, |disk| disk.writes), record, machine.left_open(volume, mapper))
}
