//! Lists as they may be, and what is found in them.

use jiff::ToSpan;
use uuid::Uuid;

use super::*;
use crate::{
    admin::inventory::{
        held::tests::{CLUSTER, record as prepared},
        lists::{Cluster, Named},
    },
    key::{record::RecordFault, store::Refused},
};

/// A record that is older than any volume is in the making.
async fn record(volume_id: &str) -> Record {
    Record { created_at: Timestamp::now() - 1.hour(), ..prepared(volume_id, ("a", 1)).await }
}

fn persistent(handle: &str) -> Persistent {
    Persistent {
        name: format!("pv-{handle}"),
        driver: DRIVER.to_owned(),
        handle: handle.to_owned(),
        claim: Some(format!("shop/{handle}")),
        is_device: false,
        is_leaving: false,
    }
}

fn local(name: &str) -> Local {
    Local {
        name: name.to_owned(),
        node: "n1".to_owned(),
        created: Some(Timestamp::now() - 1.hour()),
        is_made: true,
        is_failed: false,
        message: String::new(),
        is_leaving: false,
    }
}

fn file(name: &str, holds: Holds) -> PoolFile {
    let volume_id = name.parse().expect("an id");
    PoolFile { named: Named { volume_id, path: format!("/pool/{name}").into(), bytes: 4096 }, holds }
}

fn nowhere<T>() -> Looked<T> {
    Looked::Passed("nobody asks".to_owned())
}

fn lists(records: Vec<Record>, persistent: Vec<Persistent>, local: Vec<Local>) -> Lists {
    let cluster = Cluster { persistent: Looked::At(persistent), local: Looked::At(local) };
    Lists { cluster_id: CLUSTER, records, refused: Vec::new(), cluster, files: nowhere() }
}

fn pool(records: Vec<Record>, files: Vec<PoolFile>) -> Lists {
    Lists {
        cluster: Cluster::passed("nobody asks"),
        files: Looked::At(files),
        ..lists(records, Vec::new(), Vec::new())
    }
}

fn found(lists: &Lists) -> Found {
    compare(lists, Timestamp::now())
}

fn told(found: &Found) -> Vec<(Kind, &str)> {
    found.findings.iter().map(|finding| (finding.kind, finding.volume_id.as_deref().unwrap_or("-"))).collect()
}

#[tokio::test]
async fn what_has_its_record_its_volume_and_its_local_volume_is_not_told() {
    let records = vec![record("v-1").await, record("v-2").await, record("v-3").await.tombstone()];
    let on_device = Persistent { is_device: true, ..persistent("v-2") };
    let found = found(&lists(records, vec![persistent("v-1"), on_device], vec![local("v-1")]));
    assert!(found.findings.is_empty() && found.remarks.is_empty(), "{found:?}");
    assert_eq!(found.unseen.len(), 1, "that no pool was read is told: {found:?}");
}

#[tokio::test]
async fn a_volume_nobody_has_the_key_of_is_told_with_the_reason() {
    let foreign = Record { cluster_id: Uuid::from_u128(9), ..record("v-foreign").await };
    let records = vec![record("v-dead").await.tombstone(), foreign];
    let ids = ["v-dead", "v-foreign", "v-none"];
    let locals = ids.map(local).to_vec();
    let found = found(&lists(records, ids.map(persistent).to_vec(), locals));
    assert_eq!(told(&found), ids.map(|id| (Kind::VolumeWithoutRecord, id)));
    let [dead, foreign, none] = found.findings.as_slice() else { panic!("{found:?}") };
    assert!(dead.what.contains("claim shop/v-dead: its key was destroyed"), "{dead:?}");
    assert!(!dead.next.contains("import"), "no backup of a record brings a destroyed key back: {dead:?}");
    assert!(foreign.what.contains("is of cluster"), "{foreign:?}");
    assert!(none.what.contains("no key record") && none.next.contains("coffer records import"), "{none:?}");
    assert!(found.remarks.iter().any(|remark| remark.contains("1 records are of another cluster")), "{found:?}");
}

#[tokio::test]
async fn what_is_being_made_or_deleted_is_counted_and_no_finding() {
    let young = prepared("v-young", ("a", 1)).await;
    let released = Persistent { is_leaving: true, ..persistent("v-leaving") };
    let waiting = Local { is_leaving: true, ..local("v-leaving") };
    let new = Local { created: Some(Timestamp::now()), ..local("v-new") };
    let found = found(&lists(vec![young, record("v-new").await], vec![released], vec![waiting, new]));
    assert!(found.findings.is_empty(), "{found:?}");
    let remarks = found.remarks.join("\n");
    for part in
        ["1 PersistentVolumes are being deleted", "wait for node n1 (v-leaving)", "may be in the making (v-young)"]
    {
        assert!(remarks.contains(part), "{part} is not in:\n{remarks}");
    }
}

#[tokio::test]
async fn a_key_without_volume_is_told_once_it_is_old_enough() {
    let ready = Record { state: State::Ready, tenant: None, node: Some("n1".to_owned()), ..record("v-ready").await };
    let lists = lists(vec![record("v-1").await, ready, record("v-gone").await.tombstone()], Vec::new(), Vec::new());
    let cluster = found(&lists);
    assert_eq!(told(&cluster), [(Kind::RecordWithoutVolume, "v-1"), (Kind::RecordWithoutVolume, "v-ready")]);
    let [prepared, ready] = cluster.findings.as_slice() else { panic!("{cluster:?}") };
    assert!(prepared.what.contains("prepared") && prepared.next.contains("no user has written"), "{prepared:?}");
    assert!(ready.what.contains("bound to node n1") && ready.next.starts_with("keep it as long"), "{ready:?}");
    assert!(ready.what.starts_with("no PersistentVolume and no LocalVolume"), "{ready:?}");

    // Where volumes should have been read and were not, nothing is missed.
    let failed = Lists { cluster: Cluster::failed("it is away"), ..lists };
    let failed = found(&failed);
    assert!(failed.findings.is_empty(), "{failed:?}");
    assert_eq!(failed.unseen.iter().filter(|unseen| unseen.is_failure).count(), 2, "{failed:?}");
    assert!(failed.remarks.iter().any(|remark| remark.contains("was not looked at")), "{failed:?}");
}

#[tokio::test]
async fn local_volumes_without_volume_without_file_or_missing_are_told() {
    let records = vec![record("v-alone").await, record("v-lost").await, record("v-bare").await];
    let lost = Local { is_failed: true, message: "the file is gone".to_owned(), ..local("v-lost") };
    let unmade = Local { is_made: false, message: "no room".to_owned(), ..local("v-keyless") };
    let locals = vec![local("v-alone"), lost, unmade];
    let volumes = vec![persistent("v-lost"), persistent("v-bare")];
    let all = found(&lists(records.clone(), volumes.clone(), locals));
    let wanted = [
        (Kind::VolumeWithoutLocalVolume, "v-bare"),
        (Kind::LocalVolumeWithoutVolume, "v-alone"),
        (Kind::LocalVolumeFailed, "v-lost"),
        (Kind::LocalVolumeWithoutVolume, "v-keyless"),
    ];
    assert_eq!(told(&all), wanted);
    let [bare, alone, lost, keyless] = all.findings.as_slice() else { panic!("{all:?}") };
    assert!(bare.next.contains("spec.nodeName"), "{bare:?}");
    assert!(alone.next.contains("make its PersistentVolume again"), "{alone:?}");
    assert!(lost.what.contains("node n1 says: the file is gone"), "{lost:?}");
    assert!(keyless.what.contains("has not made the file: no room"), "{keyless:?}");

    // Without one of the two lists nothing is said of what only both show.
    let cluster = Cluster { persistent: Looked::At(volumes), local: nowhere() };
    let half = found(&Lists { cluster, ..lists(records, Vec::new(), Vec::new()) });
    assert_eq!(told(&half), [(Kind::RecordWithoutVolume, "v-alone")]);
    assert!(half.findings[0].what.starts_with("no PersistentVolume;"), "{half:?}");
}

#[tokio::test]
async fn files_without_key_and_files_with_another_header_are_told() {
    let records = vec![record("v-own").await, record("v-other").await, record("v-away").await, record("v-gone").await];
    let unmatched = || Holds::Unmatched("nothing but zeros".to_owned());
    let ephemeral = format!("eph-{}", "0".repeat(32));
    let away = |name| file(name, Holds::UuidAlone("the KMS is away".to_owned()));
    let files = vec![
        file("v-own", Holds::Own),
        file("v-other", Holds::Other("it holds a boot sector".to_owned())),
        away("v-away"),
        file("v-stray", unmatched()),
        file(&ephemeral, unmatched()),
    ];
    let found = found(&pool(records, files));
    let wanted =
        [(Kind::RecordWithoutVolume, "v-gone"), (Kind::OtherHeader, "v-other"), (Kind::FileWithoutRecord, "v-stray")];
    assert_eq!(told(&found), wanted);
    let [gone, other, stray] = found.findings.as_slice() else { panic!("{found:?}") };
    assert!(gone.what.starts_with("no file in the pool"), "{gone:?}");
    assert_eq!(other.what, "/pool/v-other: it holds a boot sector");
    assert!(stray.what.contains("(4096 bytes) holds nothing but zeros; it has no key record"), "{stray:?}");
    let unseen: Vec<_> = found.unseen.iter().filter(|unseen| unseen.is_failure).collect();
    assert!(unseen.len() == 1 && unseen[0].what.ends_with("of v-away") && unseen[0].why == "the KMS is away");
    assert!(found.remarks.iter().any(|remark| remark.contains("1 files are those of ephemeral volumes")), "{found:?}");
}

#[tokio::test]
async fn a_file_alone_is_no_volume_of_a_cluster_and_one_that_is_being_removed_is_none_at_all() {
    let unmatched = |name| file(name, Holds::Unmatched("bytes".to_owned()));
    let mut lists = lists(
        vec![record("v-1").await, record("v-2").await.tombstone()],
        Vec::new(),
        vec![Local { is_leaving: true, ..local("v-2") }],
    );
    lists.files = Looked::At(vec![file("v-1", Holds::Own), unmatched("v-2")]);
    let found = found(&lists);
    assert_eq!(told(&found), [(Kind::RecordWithoutVolume, "v-1")]);
    assert!(found.findings[0].what.contains("its file is in the pool"), "{found:?}");
}

#[test]
fn what_is_no_record_is_a_finding() {
    let mut lists = lists(Vec::new(), Vec::new(), Vec::new());
    lists.refused.push(Refused { place: "vol-3.json".to_owned(), source: RecordFault::Edited });
    let found = found(&lists);
    assert_eq!(told(&found), [(Kind::RecordUnreadable, "-")]);
    assert!(found.findings[0].what.contains("vol-3.json is refused"), "{found:?}");
}

#[test]
fn a_long_list_of_names_is_cut() {
    let names = ["a", "b", "c", "d", "e", "f", "g"];
    assert_eq!(named(&names), "a, b, c, d, e and 2 more");
    assert_eq!(named(&names[..2]), "a, b");
}
