//! How an inventory is told: findings with what to do, then how much of everything there is, then what is no finding.

use std::io::{self, Write};

use serde::Serialize;

use crate::admin::{
    answer::{self, Print, plain},
    inventory::{
        finding::{Finding, Found, Kind, Unseen},
        lists::{Holds, Lists, Looked},
    },
};

/// How much there is; none where it was not looked at.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Counts {
    /// Records that have a key.
    records: usize,
    tombstones: usize,
    persistent_volumes: Option<usize>,
    local_volumes: Option<usize>,
    files: Option<usize>,
    /// Files whose header has the record's UUID and MAC.
    authenticated_headers: Option<usize>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told<'a> {
    counts: Counts,
    findings: &'a [Finding],
    not_looked_at: &'a [Unseen],
    remarks: &'a [String],
}

pub(super) fn tell(lists: &Lists, found: &Found, print: Print, out: &mut impl Write) -> io::Result<()> {
    let counts = Counts::of(lists);
    match print {
        Print::Json => {
            let Found { findings, unseen, remarks } = found;
            answer::json(&Told { counts, findings, not_looked_at: unseen, remarks }, out)
        }
        Print::Table => table(lists, &counts, found, out),
    }
}

impl Counts {
    fn of(lists: &Lists) -> Self {
        let (records, files) = (lists.records.iter().filter(|record| record.key.is_some()).count(), lists.files.at());
        Self {
            records,
            tombstones: lists.records.len() - records,
            persistent_volumes: lists.cluster.persistent.at().map(Vec::len),
            local_volumes: lists.cluster.local.at().map(Vec::len),
            files: files.map(Vec::len),
            authenticated_headers: files.map(|files| files.iter().filter(|file| file.holds == Holds::Own).count()),
        }
    }

    fn rows(&self) -> [(&'static str, Option<usize>); 6] {
        [
            ("records with a key", Some(self.records)),
            ("tombstones", Some(self.tombstones)),
            ("PersistentVolumes", self.persistent_volumes),
            ("LocalVolumes", self.local_volumes),
            ("files of the pool", self.files),
            ("authenticated headers", self.authenticated_headers),
        ]
    }
}

fn table(lists: &Lists, counts: &Counts, found: &Found, out: &mut impl Write) -> io::Result<()> {
    let rows: Vec<_> = found.findings.iter().map(cells).collect();
    if !rows.is_empty() {
        answer::table(["FINDING", "VOLUME", "WHAT", "NEXT"], &rows, out)?;
        writeln!(out)?;
    }
    let looked_at = counts.rows().map(|(what, count)| (what, count.ok_or("not looked at")));
    let looked_for = Kind::ALL.map(|kind| {
        let count = found.findings.iter().filter(|finding| finding.kind == kind).count();
        (kind.told(), if count > 0 || is_looked_for(kind, lists) { Ok(count) } else { Err("not looked for") })
    });
    let rows = looked_at.into_iter().chain(looked_for).map(|(what, count)| {
        let count = count.map_or_else(str::to_owned, |count| count.to_string());
        [what.to_owned(), count]
    });
    answer::table(["SUMMARY", "COUNT"], &rows.collect::<Vec<_>>(), out)?;
    for Unseen { what, why, .. } in &found.unseen {
        writeln!(out, "not looked at: {}: {}", plain(what), plain(why))?;
    }
    found.remarks.iter().try_for_each(|remark| writeln!(out, "{}", plain(remark)))
}

fn cells(finding: &Finding) -> [String; 4] {
    let Finding { kind, volume_id, what, next } = finding;
    let volume_id = volume_id.clone().unwrap_or_else(|| "-".to_owned());
    [kind.told().to_owned(), volume_id, what.clone(), next.clone()]
}

/// Whether there is enough to see it by.
fn is_looked_for(kind: Kind, lists: &Lists) -> bool {
    let (persistent, local) = (lists.cluster.persistent.at().is_some(), lists.cluster.local.at().is_some());
    let files = lists.files.at().is_some();
    match kind {
        Kind::VolumeWithoutRecord => persistent,
        Kind::RecordWithoutVolume => persistent || files && !matches!(lists.cluster.persistent, Looked::Failed(_)),
        Kind::VolumeWithoutLocalVolume | Kind::LocalVolumeWithoutVolume => persistent && local,
        Kind::LocalVolumeFailed => local,
        Kind::FileWithoutRecord | Kind::OtherHeader => files,
        Kind::RecordUnreadable
        | Kind::ProviderMissing
        | Kind::ProviderNotPolicys
        | Kind::OldKey
        | Kind::ProviderNotDefault => true,
    }
}
