//! The file that an export makes: JSON lines, with the number of records before them and their checksum behind them.
//!
//! ```text
//! {"format":"coffer-records","version":1,"clusterId":"…","count":2}
//! {"formatVersion":1,…}
//! {"formatVersion":1,…}
//! {"sha256":"…"}                                  over every byte before this line
//! ```
//! The checksum finds what was torn. It authenticates nothing: that is for each record's MAC, which opens with its key.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    key::record::{Record, RecordFault},
    volume::{VolumeId, hex},
};

const FORMAT: &str = "coffer-records";
const VERSION: u32 = 1;

/// Why a file is no export.
#[derive(Debug, thiserror::Error)]
pub enum FileFault {
    /// It does not begin as one.
    #[error("it is no export of key records: its first line is not one of format {FORMAT}")]
    Foreign,
    /// It is of a later version.
    #[error("it has version {0}; this program knows {VERSION}")]
    Version(u32),
    /// It does not end as one.
    #[error("it breaks off: its last line is not its checksum; fetch it again, or export again")]
    Torn,
    /// The checksum does not match.
    #[error("it was changed: its checksum is not that of its content; fetch it again, or export again")]
    Changed,
    /// A line that should be a record is not one of this cluster.
    #[error("line {line} is no record of cluster {cluster_id}")]
    Record {
        /// The line, from 1.
        line: usize,
        /// The cluster in the first line.
        cluster_id: Uuid,
        /// The finding.
        #[source]
        source: RecordFault,
    },
    /// One volume twice.
    #[error("line {line} is a second record of volume {volume_id}")]
    Twice {
        /// The line, from 1.
        line: usize,
        /// The volume.
        volume_id: VolumeId,
    },
    /// Not as many records as its first line says.
    #[error("it holds {found} records, and its first line says {count}")]
    Count {
        /// What the first line says.
        count: usize,
        /// How many there are.
        found: usize,
    },
}

/// What every version begins with.
#[derive(Deserialize)]
struct Form {
    format: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Header {
    format: String,
    version: u32,
    cluster_id: Uuid,
    count: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trailer {
    sha256: String,
}

/// The file of some records of a cluster.
pub(super) fn to_bytes(cluster_id: Uuid, records: &[Record]) -> Vec<u8> {
    let header = Header { format: FORMAT.to_owned(), version: VERSION, cluster_id, count: records.len() };
    let mut bytes = Vec::new();
    line(&mut bytes, &header);
    records.iter().for_each(|record| line(&mut bytes, record));
    let sha256 = hex(&Sha256::digest(&bytes));
    line(&mut bytes, &Trailer { sha256 });
    bytes
}

/// The cluster and the records of a file: of a whole one, or of none.
pub(super) fn from_bytes(bytes: &[u8]) -> Result<(Uuid, Vec<Record>), FileFault> {
    let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let form: Form = serde_json::from_slice(first).map_err(|_| FileFault::Foreign)?;
    if form.format != FORMAT {
        return Err(FileFault::Foreign);
    }
    if form.version != VERSION {
        return Err(FileFault::Version(form.version));
    }
    let Header { cluster_id, count, .. } = serde_json::from_slice(first).map_err(|_| FileFault::Foreign)?;
    let covered = covered(bytes)?;
    let mut records = Vec::new();
    let mut seen = BTreeSet::new();
    // Every covered line ends with a line break, so nothing follows the last one.
    let lines = covered.strip_suffix(b"\n").unwrap_or(covered).split(|byte| *byte == b'\n');
    for (line, text) in (1..).zip(lines).skip(1) {
        let record = record(text, cluster_id).map_err(|source| FileFault::Record { line, cluster_id, source })?;
        if !seen.insert(record.volume_id.clone()) {
            return Err(FileFault::Twice { line, volume_id: record.volume_id });
        }
        records.push(record);
    }
    if records.len() != count {
        return Err(FileFault::Count { count, found: records.len() });
    }
    Ok((cluster_id, records))
}

fn line(bytes: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(&mut *bytes, value).expect("it has string keys only, and a vector can be written to");
    bytes.push(b'\n');
}

/// What is before the last line, where that is the checksum of it.
fn covered(bytes: &[u8]) -> Result<&[u8], FileFault> {
    let body = bytes.strip_suffix(b"\n").ok_or(FileFault::Torn)?;
    let end = body.iter().rposition(|byte| *byte == b'\n').ok_or(FileFault::Torn)? + 1;
    let (covered, last) = body.split_at(end);
    let Trailer { sha256 } = serde_json::from_slice(last).map_err(|_| FileFault::Torn)?;
    if sha256 == hex(&Sha256::digest(covered)) { Ok(covered) } else { Err(FileFault::Changed) }
}

/// A record in one line, held to all that a stored one is held to.
fn record(text: &[u8], cluster_id: Uuid) -> Result<Record, RecordFault> {
    let record: Record = serde_json::from_slice(text).map_err(RecordFault::Unreadable)?;
    let record = Record::from_bytes(&record.to_bytes())?;
    if record.cluster_id == cluster_id { Ok(record) } else { Err(RecordFault::OtherCluster(record.cluster_id)) }
}
