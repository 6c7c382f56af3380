//! Volumes beside records beside files: a plain function over what was read. Nobody is asked anything.
//!
//! Volumes were read before records, and a volume has its record before anything else of it is there; so one that is
//! being made lacks nothing. What is being deleted is counted, and what was made a moment ago is not missed.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use crate::{
    admin::inventory::{
        finding::{Finding, Found, Kind, Unseen},
        lists::{DRIVER, Holds, Lists, Local, Looked, Persistent, PoolFile},
    },
    key::record::{Record, State},
    server::rpc,
};

/// How long a volume may be in the making: external-provisioner tries again for longer, and its claim waits that long.
const YOUNG: SignedDuration = SignedDuration::from_mins(10);
/// So many volumes are named where they have one thing in common.
const NAMED: usize = 5;

const RESTORE: &str = "until its record is restored from a backup nobody reads its data: coffer records import FILE";
const DESTROYED: &str = "nothing brings the key back, and nobody reads the data again";

/// What there is for a volume's id among the records.
enum Key<'a> {
    Live(&'a Record),
    Destroyed,
    /// Another installation's, which nothing here opens.
    Foreign(&'a Record),
    Missing,
}

struct View<'a> {
    lists: &'a Lists,
    now: Timestamp,
    records: BTreeMap<&'a str, &'a Record>,
    handles: BTreeSet<&'a str>,
    locals: BTreeMap<&'a str, &'a Local>,
    files: BTreeSet<&'a str>,
}

/// What does not fit, kind by kind, and what could not be told.
pub(super) fn compare(lists: &Lists, now: Timestamp) -> Found {
    let (persistent, local, files) = (list(&lists.cluster.persistent), list(&lists.cluster.local), list(&lists.files));
    let view = View {
        lists,
        now,
        records: lists.records.iter().map(|record| (record.volume_id.as_str(), record)).collect(),
        handles: persistent.iter().map(|volume| volume.handle.as_str()).collect(),
        locals: local.iter().map(|volume| (volume.name.as_str(), volume)).collect(),
        files: files.iter().map(|file| file.named.volume_id.as_str()).collect(),
    };
    let mut found = Found::default();
    not_read(lists, &mut found);
    view.leaving(persistent, local, &mut found);
    found.findings.extend(persistent.iter().filter_map(|volume| view.persistent(volume)));
    found.findings.extend(local.iter().filter_map(|volume| view.local(volume)));
    view.records(&mut found);
    found.findings.extend(files.iter().filter_map(|file| view.file(file)));
    uncompared(files, &mut found);
    for refused in &lists.refused {
        found.findings.push(Finding {
            kind: Kind::RecordUnreadable,
            volume_id: None,
            what: rpc::message(refused),
            next: "move it away, and put the record back from a backup: coffer records import FILE".to_owned(),
        });
    }
    found
}

impl<'a> View<'a> {
    fn key(&self, volume_id: &str) -> Key<'a> {
        match self.records.get(volume_id).copied() {
            None => Key::Missing,
            Some(record) if record.cluster_id != self.lists.cluster_id => Key::Foreign(record),
            Some(record) if record.key.is_none() => Key::Destroyed,
            Some(record) => Key::Live(record),
        }
    }

    /// Why nobody opens a volume, and what to do; none where it has a key.
    fn keyless(&self, volume_id: &str) -> Option<(String, &'static str)> {
        match self.key(volume_id) {
            Key::Live(_) => None,
            Key::Destroyed => Some(("its key was destroyed".to_owned(), DESTROYED)),
            Key::Foreign(record) => {
                Some((format!("its record is of cluster {}, and opens there alone", record.cluster_id), RESTORE))
            }
            Key::Missing => Some(("it has no key record".to_owned(), RESTORE)),
        }
    }

    /// A PersistentVolume without key or without LocalVolume. One that is about to go has lost its key before.
    fn persistent(&self, volume: &Persistent) -> Option<Finding> {
        let (id, told) = (volume.handle.as_str(), told(volume));
        if volume.is_leaving {
            return None;
        }
        if let Some((why, next)) = self.keyless(id) {
            return Some(Finding::of(Kind::VolumeWithoutRecord, id, format!("{told}: {why}"), next));
        }
        let is_local = volume.driver == DRIVER && !volume.is_device;
        if !is_local || self.lists.cluster.local.at().is_none() || self.locals.contains_key(id) {
            return None;
        }
        let next = "it does not grow, and its file stays when it is deleted, unless the LocalVolume is made again: of \
                    this name, with spec.nodeName and, as spec.sizeBytes, the size of the file there";
        let Key::Live(Record { node: Some(node), .. }) = self.key(id) else {
            return Some(Finding::of(Kind::VolumeWithoutLocalVolume, id, format!("{told} has no LocalVolume"), next));
        };
        let what = format!("{told} has no LocalVolume; its key is bound to node {node}");
        Some(Finding::of(Kind::VolumeWithoutLocalVolume, id, what, next))
    }

    /// A LocalVolume without PersistentVolume, or without its file.
    fn local(&self, volume: &Local) -> Option<Finding> {
        let (id, node, message) = (volume.name.as_str(), &volume.node, &volume.message);
        if volume.is_leaving {
            return None;
        }
        if volume.is_failed {
            let what = format!("node {node} says: {message}");
            let next = "do what it says; kubectl describe localvolume shows all of it";
            return Some(Finding::of(Kind::LocalVolumeFailed, id, what, next));
        }
        let is_young = volume.created.is_some_and(|created| self.is_young(created));
        if is_young || self.lists.cluster.persistent.at().is_none() || self.handles.contains(id) {
            return None;
        }
        let made = match (volume.is_made, message.as_str()) {
            (true, _) => String::new(),
            (false, "") => "; the node has not made the file".to_owned(),
            (false, message) => format!("; the node has not made the file: {message}"),
        };
        let (key, next) = match self.key(id) {
            Key::Live(record) => (
                described(record),
                "make its PersistentVolume again (volumeHandle: this id): to use it, or, with the reclaim policy Delete, \
                 to have key and file removed",
            ),
            Key::Destroyed => ("its key was destroyed".to_owned(), "nothing reads its file: delete the LocalVolume"),
            Key::Foreign(_) | Key::Missing => (
                "it has no key record".to_owned(),
                "restore its record from a backup (coffer records import FILE), or delete the LocalVolume, and its file \
                 goes",
            ),
        };
        let what = format!("on node {node}, without PersistentVolume; {key}{made}");
        Some(Finding::of(Kind::LocalVolumeWithoutVolume, id, what, next))
    }

    /// Keys whose volumes are nowhere.
    fn records(&self, found: &mut Found) {
        let cluster = &self.lists.cluster;
        let own = self.lists.records.iter().filter(|record| record.cluster_id == self.lists.cluster_id);
        let lost = own.filter(|record| record.key.is_some() && !self.has_volume(record.volume_id.as_str()));
        let looked = match (&cluster.persistent, &cluster.local, &self.lists.files) {
            (Looked::At(_), Looked::At(_), _) => "no PersistentVolume and no LocalVolume",
            (Looked::At(_), _, _) => "no PersistentVolume",
            (Looked::Passed(_), _, Looked::At(_)) => "no file in the pool",
            _ => {
                let remark = "whether each record has its volume was not looked at: that takes the PersistentVolumes of \
                              the cluster, or the one pool that there is";
                found.remarks.push(remark.to_owned());
                return;
            }
        };
        let (young, lost): (Vec<_>, Vec<_>) = lost.partition(|record| self.is_young(record.created_at));
        if !young.is_empty() {
            let (count, minutes) = (young.len(), YOUNG.as_mins());
            let ids: Vec<_> = young.iter().map(|record| record.volume_id.as_str()).collect();
            let names = named(&ids);
            found.remarks.push(format!(
                "{count} records are younger than {minutes} minutes and have no volume yet: they may be in the making \
                 ({names})"
            ));
        }
        let is_cluster = cluster.persistent.at().is_some();
        found.findings.extend(lost.into_iter().map(|record| self.lost(record, looked, is_cluster)));
    }

    fn lost(&self, record: &Record, looked: &str, is_cluster: bool) -> Finding {
        let id = record.volume_id.as_str();
        let file = if is_cluster && self.files.contains(id) { "; its file is in the pool" } else { "" };
        let what = format!("{looked}{file}; {}, made {}", described(record), record.created_at);
        let next = match (record.state, is_cluster) {
            (State::Prepared | State::Formatting, true) => {
                "no user has written under it, and nobody needs it: CSI's DeleteVolume for this id destroys the key"
            }
            (_, true) => {
                "keep it as long as a copy of the data is somewhere; CSI's DeleteVolume for this id destroys the key"
            }
            (State::Prepared | State::Formatting, false) => {
                "no user has written under it: CSI's CreateVolume of its name goes on, DeleteVolume destroys the key. Of \
                 a device or another pool nothing is known here"
            }
            (_, false) => {
                "put its file back from a backup, or delete the volume (CSI's DeleteVolume). Of a device or another pool \
                 nothing is known here"
            }
        };
        Finding::of(Kind::RecordWithoutVolume, id, what, next)
    }

    fn has_volume(&self, volume_id: &str) -> bool {
        let is_in_cluster = self.handles.contains(volume_id) || self.locals.contains_key(volume_id);
        // Where there is a cluster its objects are the volumes, and a file alone is what is left of one.
        is_in_cluster || self.lists.cluster.persistent.at().is_none() && self.files.contains(volume_id)
    }

    /// A file whose key nobody has, or whose header is another's.
    fn file(&self, file: &PoolFile) -> Option<Finding> {
        let (id, path, bytes) = (file.named.volume_id.as_str(), file.named.path.display(), file.named.bytes);
        match &file.holds {
            Holds::Own | Holds::UuidAlone(_) | Holds::Unfinished | Holds::Unread(_) => None,
            Holds::Other(what) => {
                let what = format!("{path}: {what}");
                let next = "nothing is opened with it and nothing was changed: put the volume's own file back, if another \
                            lies in its place; coffer records show tells the UUID of its header";
                Some(Finding::of(Kind::OtherHeader, id, what, next))
            }
            Holds::Unmatched(holds) => {
                let is_removed = self.locals.get(id).is_some_and(|local| local.is_leaving);
                if file.named.volume_id.is_ephemeral() || is_removed {
                    return None;
                }
                let (why, next) = self.keyless(id)?;
                let next = format!("{next}; if nobody needs it, delete the volume, or remove the file");
                let what = format!("{path} ({bytes} bytes) holds {holds}; {why}");
                Some(Finding::of(Kind::FileWithoutRecord, id, what, next))
            }
        }
    }

    /// What is being deleted, and whose node is still to remove a file.
    fn leaving(&self, persistent: &[Persistent], local: &[Local], found: &mut Found) {
        let leaving = persistent.iter().filter(|volume| volume.is_leaving).count();
        if leaving > 0 {
            found.remarks.push(format!("{leaving} PersistentVolumes are being deleted, with or without their keys"));
        }
        let mut waiting: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for volume in local.iter().filter(|volume| volume.is_leaving) {
            waiting.entry(&volume.node).or_default().push(&volume.name);
        }
        for (node, volumes) in waiting {
            let (count, names) = (volumes.len(), named(&volumes));
            found.remarks.push(format!("{count} LocalVolumes are being deleted and wait for node {node} ({names})"));
        }
        let ephemeral = list(&self.lists.files).iter().filter(|file| file.named.volume_id.is_ephemeral()).count();
        if ephemeral > 0 {
            found.remarks.push(format!("{ephemeral} files are those of ephemeral volumes, which have no record"));
        }
        let foreign = self.lists.records.iter().filter(|record| record.cluster_id != self.lists.cluster_id).count();
        if foreign > 0 {
            found.remarks.push(format!("{foreign} records are of another cluster and were passed over"));
        }
    }

    fn is_young(&self, made: Timestamp) -> bool {
        self.now.duration_since(made) < YOUNG
    }
}

fn list<T>(looked: &Looked<Vec<T>>) -> &[T] {
    looked.at().map_or(&[][..], Vec::as_slice)
}

fn not_read(lists: &Lists, found: &mut Found) {
    let unseen = [
        unseen("PersistentVolumes", &lists.cluster.persistent),
        unseen("LocalVolumes", &lists.cluster.local),
        unseen("headers of files", &lists.files),
    ];
    found.unseen.extend(unseen.into_iter().flatten());
}

fn unseen<T>(what: &str, looked: &Looked<T>) -> Option<Unseen> {
    let (why, is_failure) = match looked {
        Looked::At(_) => return None,
        Looked::Passed(why) => (why, false),
        Looked::Failed(why) => (why, true),
    };
    Some(Unseen { what: what.to_owned(), why: why.clone(), is_failure })
}

/// Files of which not all was compared, together where the reason is one.
fn uncompared(files: &[PoolFile], found: &mut Found) {
    let mut reasons: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for file in files {
        let (what, why) = match &file.holds {
            Holds::UuidAlone(why) => ("the MAC of the header, whose UUID is the record's, of", why),
            Holds::Unread(why) => ("the header of", why),
            Holds::Own | Holds::Unfinished | Holds::Other(_) | Holds::Unmatched(_) => continue,
        };
        reasons.entry((what, why.as_str())).or_default().push(file.named.volume_id.as_str());
    }
    for ((what, why), volumes) in reasons {
        let what = format!("{what} {}", named(&volumes));
        found.unseen.push(Unseen { what, why: why.to_owned(), is_failure: true });
    }
}

/// The first of some names.
fn named(names: &[&str]) -> String {
    let (first, more) = names.split_at(names.len().min(NAMED));
    if more.is_empty() { first.join(", ") } else { format!("{} and {} more", first.join(", "), more.len()) }
}

fn told(volume: &Persistent) -> String {
    match &volume.claim {
        Some(claim) => format!("PersistentVolume {} of claim {claim}", volume.name),
        None => format!("PersistentVolume {}", volume.name),
    }
}

fn described(record: &Record) -> String {
    let claim = match (&record.tenant, &record.claim) {
        (Some(namespace), Some(claim)) => format!(" of claim {namespace}/{claim}"),
        _ => String::new(),
    };
    let node = record.node.as_ref().map(|node| format!(", bound to node {node}")).unwrap_or_default();
    format!("its record is {}{claim}{node}", record.state)
}

#[cfg(test)]
mod tests;
