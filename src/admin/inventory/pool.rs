//! The files of a pool on this machine, and what they begin with, held against the records of their names. Files are
//! read and nothing else: the driver that has the pool may be at work.
//!
//! A finished volume's header is compared as a stage does it: UUID, MAC and metadata. The MAC is under a key that the
//! volume's own leads to, so the record is opened for it, and its key dropped again. Where that is not possible the UUID
//! alone was compared, which anybody could have written there, and it is said so.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use futures::{StreamExt, stream};

use crate::{
    admin::{
        Place,
        inventory::lists::{Holds, Looked, Named, PoolFile},
        progress::Progress,
        records::{AT_ONCE, RECORD_TIME},
    },
    exec::Deadline,
    key::{
        envelope::Kept,
        record::{Record, State},
    },
    node::{
        block::blocking,
        header::{
            Header, HeaderFault, Layout, bears,
            found::{Found, SIGNATURE_BYTES, examine},
        },
    },
    server::rpc,
    volume::VolumeId,
};

const NOT_NAMED: &str = "no folder is named: --pool-dir names the pool of this machine";

/// The files of a pool that have a volume's name, in the order of their names. What has another name is none of ours.
pub(super) async fn list(pool: Option<&Path>) -> Looked<Vec<Named>> {
    let Some(folder) = pool.map(Path::to_owned) else { return Looked::Passed(NOT_NAMED.to_owned()) };
    let place = folder.display().to_string();
    match blocking(move || names(&folder)).await {
        Ok(names) => Looked::At(names),
        Err(error) => Looked::Failed(format!("list {place}: {error}")),
    }
}

/// Looks at what each file begins with. One that was removed since it was listed is passed over.
pub(super) async fn look(
    place: &Place,
    names: Looked<Vec<Named>>,
    records: &[Record],
    progress: &mut Progress,
) -> Looked<Vec<PoolFile>> {
    let names = match names {
        Looked::At(names) => names,
        Looked::Passed(why) => return Looked::Passed(why),
        Looked::Failed(why) => return Looked::Failed(why),
    };
    let by_id: BTreeMap<&VolumeId, &Record> = records.iter().map(|record| (&record.volume_id, record)).collect();
    let (of, mut done, mut files) = (names.len(), 0, Vec::with_capacity(names.len()));
    progress.begin(Some(of));
    let work = stream::iter(names).map(|named| {
        let record = by_id.get(&named.volume_id).copied();
        file(place, named, record)
    });
    let mut work = work.buffered(AT_ONCE);
    while let Some(file) = work.next().await {
        files.extend(file);
        done += 1;
        progress.at(done, || format!("{done} of {of} files read"));
    }
    progress.done();
    Looked::At(files)
}

fn names(folder: &Path) -> io::Result<Vec<Named>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Some(volume_id) = entry.file_name().to_str().and_then(|name| name.parse::<VolumeId>().ok()) else {
            continue;
        };
        let metadata = match entry.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        if metadata.is_file() && volume_id.file_name().is_some() {
            names.push(Named { volume_id, path: entry.path(), bytes: metadata.len() });
        }
    }
    names.sort_unstable_by(|a, b| a.volume_id.cmp(&b.volume_id));
    Ok(names)
}

async fn file(place: &Place, named: Named, record: Option<&Record>) -> Option<PoolFile> {
    let length = record.map_or(SIGNATURE_BYTES, |record| Layout::of(&record.parameters).header_bytes());
    let path = named.path.clone();
    let holds = match blocking(move || start_of(&path, length)).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => Holds::Unread(error.to_string()),
        Ok(area) => match record.filter(|record| record.key.is_some() && record.cluster_id == place.cluster_id) {
            Some(record) => compared(place, record, &area).await,
            None => Holds::Unmatched(examine(&area).to_string()),
        },
    };
    Some(PoolFile { named, holds })
}

/// As much of a file's start as there is, up to a length.
fn start_of(path: &Path, length: usize) -> io::Result<Vec<u8>> {
    let mut area = Vec::with_capacity(length);
    File::open(path)?.take(length as u64).read_to_end(&mut area)?;
    Ok(area)
}

async fn compared(place: &Place, record: &Record, area: &[u8]) -> Holds {
    let (found, is_ours) = (examine(area), bears(area, record.luks_uuid));
    let is_unfinished = match record.state {
        State::Prepared => is_ours || found == Found::Zeros,
        // What was being written when it broke off is known by no signature.
        State::Formatting => is_ours || matches!(found, Found::Zeros | Found::Unknown),
        State::Ready | State::Destroyed => false,
    };
    if is_unfinished {
        return Holds::Unfinished;
    }
    let Some(tag) = record.header_tag().filter(|_| is_ours) else {
        return Holds::Other(HeaderFault::Foreign(found).to_string());
    };
    // What a cache remembers would show nothing: the KMS is asked.
    let dek = match place.providers.open(record, Kept::New, Deadline::within(RECORD_TIME)).await {
        Ok(dek) => dek,
        Err(failure) => return Holds::UuidAlone(rpc::message(&failure)),
    };
    if let Err(fault) = record.verify(&dek) {
        return Holds::UuidAlone(format!("the record: {fault}"));
    }
    match Header::authenticate(area, record.luks_uuid, &record.parameters, tag, &dek) {
        Ok(_) => Holds::Own,
        Err(fault) => Holds::Other(fault.to_string()),
    }
}
