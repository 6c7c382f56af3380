//! `coffer records import`: puts the records of an export back, where none are. What is there is never overwritten.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use futures::{StreamExt, stream};
use uuid::Uuid;

pub use crate::admin::records::file::FileFault;
use crate::{
    admin::{
        Place,
        answer::plain,
        progress::Progress,
        records::{AT_ONCE, Effect, RECORD_TIME, file},
    },
    exec::Deadline,
    key::{record::Record, service::KeyInfo, store::StoreFailure},
    server::rpc,
};

/// Why an import is not whole.
#[derive(Debug, thiserror::Error)]
pub enum ImportFailure {
    /// The file cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not to be trusted. Nothing was imported.
    #[error("{path} is refused, and nothing was imported")]
    File {
        /// The file.
        path: PathBuf,
        /// The finding.
        #[source]
        source: FileFault,
    },
    /// It is another installation's.
    #[error(
        "{path} is of cluster {theirs}, and this is cluster {ours}, which could open none of its records; nothing was \
         imported"
    )]
    OtherCluster {
        /// The file.
        path: PathBuf,
        /// The cluster of the file.
        theirs: Uuid,
        /// The cluster here.
        ours: Uuid,
    },
    /// Some records are not as the file has them.
    #[error("{differ} records differ from those that are there, which were left as they are; {failed} failed")]
    Incomplete {
        /// How many differ.
        differ: usize,
        /// How many could not be read or written.
        failed: usize,
    },
    /// Standard output failed.
    #[error("write to standard output")]
    Output(#[from] io::Error),
}

enum Outcome {
    Created,
    Same,
    Differs(String),
}

/// Creates the records of a file, or of standard input where `from` is `-`. The whole file is checked before anything
/// is written. A volume that was destroyed here stays destroyed.
///
/// # Errors
/// The file is torn, changed or of another cluster; or a record differs from the one that is there, or cannot be
/// stored: then the others are.
pub async fn import(
    place: &Place,
    from: &Path,
    effect: Effect,
    progress: &mut Progress,
    out: &mut impl Write,
) -> Result<(), ImportFailure> {
    let records = read(place, from)?;
    let (mut created, mut same, mut differ, mut failed) = (0, 0, Vec::new(), Vec::new());
    progress.begin(Some(records.len()));
    let work = stream::iter(&records).map(|record| async move { (record, one(place, record, effect).await) });
    let mut work = work.buffer_unordered(AT_ONCE);
    while let Some((record, outcome)) = work.next().await {
        match outcome {
            Ok(Outcome::Created) => created += 1,
            Ok(Outcome::Same) => same += 1,
            Ok(Outcome::Differs(how)) => differ.push((&record.volume_id, how)),
            Err(failure) => failed.push((&record.volume_id, rpc::message(&failure))),
        }
        let done = created + same + differ.len() + failed.len();
        progress.at(done, || format!("{created} of {} imported, {same} there already", records.len()));
    }
    progress.done();
    for (volume_id, what) in differ.iter().chain(&failed) {
        writeln!(out, "{volume_id}: {}", plain(what))?;
    }
    for (provider, count) in missing_providers(place, &records) {
        let provider = plain(provider);
        writeln!(out, "provider {provider} is not configured: {count} volumes of this file need it to open")?;
    }
    let verb = if effect == Effect::DryRun { "would be imported" } else { "imported" };
    let (differ, failed) = (differ.len(), failed.len());
    writeln!(out, "{created} of {} {verb}, {same} there already, {differ} differ, {failed} failed", records.len())?;
    if differ + failed == 0 { Ok(()) } else { Err(ImportFailure::Incomplete { differ, failed }) }
}

fn read(place: &Place, from: &Path) -> Result<Vec<Record>, ImportFailure> {
    let (path, mut bytes) = (from.to_owned(), Vec::new());
    let read =
        if from == Path::new("-") { io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes) } else { fs::read(from) };
    let bytes = read.map_err(|source| ImportFailure::Read { path: path.clone(), source })?;
    match file::from_bytes(&bytes) {
        Err(source) => Err(ImportFailure::File { path, source }),
        Ok((theirs, _)) if theirs != place.cluster_id => {
            Err(ImportFailure::OtherCluster { path, theirs, ours: place.cluster_id })
        }
        Ok((_, records)) => Ok(records),
    }
}

async fn one(place: &Place, record: &Record, effect: Effect) -> Result<Outcome, StoreFailure> {
    let (store, volume_id, deadline) = (&place.store, &record.volume_id, Deadline::within(RECORD_TIME));
    let mut there = store.get(volume_id, deadline).await?;
    if there.is_none() && effect == Effect::Real {
        match store.create(record, deadline).await {
            Ok(()) => return Ok(Outcome::Created),
            // Somebody was faster, or the answer to an earlier attempt of ours was lost on its way.
            Err(failure @ StoreFailure::Exists(_)) => match store.get(volume_id, deadline).await? {
                None => return Err(failure),
                now => there = now,
            },
            Err(failure) => return Err(failure),
        }
    }
    Ok(match there {
        None => Outcome::Created,
        Some(stored) if stored.record == *record => Outcome::Same,
        Some(stored) => Outcome::Differs(difference(&stored.record, record)),
    })
}

fn difference(here: &Record, theirs: &Record) -> String {
    let told = |record: &Record| {
        let KeyInfo { generation, state, provider, kek_id, .. } = KeyInfo::from(record);
        let kek = if kek_id.is_empty() { "no key".to_owned() } else { format!("KEK {kek_id} of {provider}") };
        format!("generation {generation}, {state}, {kek}")
    };
    let (here, theirs) = (told(here), told(theirs));
    if here == theirs {
        format!("differs in what `coffer records show` shows ({here}); left as it is")
    } else {
        format!("differs: here {here}; in the file {theirs}; left as it is")
    }
}

fn missing_providers<'a>(place: &Place, records: &'a [Record]) -> BTreeMap<&'a str, usize> {
    let mut missing = BTreeMap::new();
    for record in records.iter().filter(|record| record.key.is_some()) {
        if !place.providers.by_name.contains_key(&record.provider) {
            *missing.entry(record.provider.as_str()).or_default() += 1;
        }
    }
    missing
}
