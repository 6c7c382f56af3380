//! `coffer records import`: puts the records of an export back, where none are. What is there is never overwritten.
//!
//! A file's checksum authenticates nothing. So each record is opened before it is created, and its MAC checked: one that
//! was changed since it was exported is refused now, and not when its volume is wanted. Where its KMS cannot be asked it
//! is created all the same, and told: a key service checks the MAC of each key that it gives out, and an import has to be
//! possible before everything else is back.

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
        Place, Trail,
        answer::plain,
        progress::Progress,
        records::{AT_ONCE, Effect, RECORD_TIME, file, is_unknown},
    },
    exec::Deadline,
    key::{
        envelope::Kept,
        record::Record,
        service::{KeyFailure, KeyInfo},
        store::StoreFailure,
    },
    server::rpc,
    volume::VolumeId,
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
        /// How many could not be read or written, or do not fit their MAC.
        failed: usize,
    },
    /// Standard output failed.
    #[error("write to standard output")]
    Output(#[from] io::Error),
}

/// Whether a record is opened before it is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// It is, and its MAC has to fit.
    Mac,
    /// Nobody is asked.
    Nothing,
}

impl Check {
    /// What `--no-verify`, or its absence, asks for.
    #[must_use]
    pub fn of(no_verify: bool) -> Self {
        if no_verify { Self::Nothing } else { Self::Mac }
    }
}

enum Outcome {
    Created,
    /// Created, and not opened before.
    Unverified,
    Same,
    Differs(String),
}

#[derive(Default)]
struct Tally<'a> {
    created: usize,
    unverified: usize,
    same: usize,
    differ: Vec<(&'a VolumeId, String)>,
    failed: Vec<(&'a VolumeId, String)>,
}

/// Creates the records of a file, or of standard input where `from` is `-`. The whole file is checked before anything
/// is written. A volume that was destroyed here stays destroyed. What is created, and what is not, goes to the trail; once
/// a line cannot be written, nothing more is created.
///
/// # Errors
/// The file is torn, changed or of another cluster; or a record differs from the one that is there, does not fit its MAC,
/// or cannot be stored: then the others are.
pub async fn import(
    place: &Place,
    from: &Path,
    (effect, check): (Effect, Check),
    trail: &Trail,
    progress: &mut Progress,
    out: &mut impl Write,
) -> Result<(), ImportFailure> {
    let records = read(place, from)?;
    if check == Check::Nothing {
        tracing::warn!("no record is opened before it is created: its MAC is checked when its volume is wanted");
    }
    let (of, mut tally) = (records.len(), Tally::default());
    progress.begin(Some(of));
    let work =
        stream::iter(&records).map(|record| async move { (record, noted(place, record, effect, check, trail).await) });
    let mut work = work.buffer_unordered(AT_ONCE);
    while let Some((record, outcome)) = work.next().await {
        tally.note(&record.volume_id, outcome);
        progress.at(tally.done(), || format!("{} of {of} imported, {} there already", tally.created, tally.same));
    }
    progress.done();
    for (volume_id, what) in tally.differ.iter().chain(&tally.failed) {
        writeln!(out, "{volume_id}: {}", plain(what))?;
    }
    for (provider, count) in missing_providers(place, &records) {
        let provider = plain(provider);
        writeln!(out, "provider {provider} is not configured: {count} volumes of this file need it to open")?;
    }
    if tally.unverified > 0 {
        let unverified = tally.unverified;
        writeln!(
            out,
            "{unverified} were not opened before: `coffer records verify` does it when their providers answer"
        )?;
    }
    let verb = if effect == Effect::DryRun { "would be imported" } else { "imported" };
    let (created, same, differ, failed) = (tally.created, tally.same, tally.differ.len(), tally.failed.len());
    writeln!(out, "{created} of {of} {verb}, {same} there already, {differ} differ, {failed} failed")?;
    if differ + failed == 0 { Ok(()) } else { Err(ImportFailure::Incomplete { differ, failed }) }
}

impl<'a> Tally<'a> {
    fn note(&mut self, volume_id: &'a VolumeId, outcome: Result<Outcome, KeyFailure>) {
        match outcome {
            Ok(Outcome::Created) => self.created += 1,
            Ok(Outcome::Unverified) => {
                self.created += 1;
                self.unverified += 1;
            }
            Ok(Outcome::Same) => self.same += 1,
            Ok(Outcome::Differs(how)) => self.differ.push((volume_id, how)),
            Err(failure) => self.failed.push((volume_id, rpc::message(&failure))),
        }
    }

    fn done(&self) -> usize {
        self.created + self.same + self.differ.len() + self.failed.len()
    }
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

/// Imports a record, and writes down what became of it. Where nothing changes, and nothing should, there is no line.
async fn noted(
    place: &Place,
    record: &Record,
    effect: Effect,
    check: Check,
    trail: &Trail,
) -> Result<Outcome, KeyFailure> {
    let volume_id = &record.volume_id;
    if effect == Effect::Real {
        trail.expect_whole()?;
    }
    let outcome = one(place, record, effect, check).await;
    match &outcome {
        _ if effect == Effect::DryRun => {}
        Ok(Outcome::Created | Outcome::Unverified) => trail.note(volume_id, Ok(&KeyInfo::from(record)))?,
        Ok(Outcome::Same) => {}
        Ok(Outcome::Differs(_)) => {
            let differs = KeyFailure::Differs { volume_id: volume_id.clone(), what: "record" };
            trail.note(volume_id, Err(&differs))?;
        }
        Err(failure) => trail.note(volume_id, Err(failure))?,
    }
    outcome
}

async fn one(place: &Place, record: &Record, effect: Effect, check: Check) -> Result<Outcome, KeyFailure> {
    let (store, volume_id) = (&place.store, &record.volume_id);
    let failed = |failure: StoreFailure| KeyFailure::Store { refusal: failure.refusal(), source: failure.into() };
    let mut there = store.get(volume_id, Deadline::within(RECORD_TIME)).await.map_err(failed)?;
    if there.is_none() {
        let is_verified = check == Check::Mac && fits(place, record).await?;
        let created = if is_verified { Outcome::Created } else { Outcome::Unverified };
        if effect == Effect::DryRun {
            return Ok(created);
        }
        let deadline = Deadline::within(RECORD_TIME);
        match store.create(record, deadline).await {
            Ok(()) => return Ok(created),
            // Somebody was faster, or the answer to an earlier attempt of ours was lost on its way.
            Err(failure @ StoreFailure::Exists(_)) => match store.get(volume_id, deadline).await.map_err(failed)? {
                None => return Err(failed(failure)),
                now => there = now,
            },
            Err(failure) => return Err(failed(failure)),
        }
    }
    Ok(match there {
        Some(stored) if stored.record != *record => Outcome::Differs(difference(&stored.record, record)),
        _ => Outcome::Same,
    })
}

/// Whether a record was opened, and fits its MAC. False where nobody can tell now.
async fn fits(place: &Place, record: &Record) -> Result<bool, KeyFailure> {
    // A tombstone has neither key nor MAC, and leads to nothing.
    if record.key.is_none() {
        return Ok(true);
    }
    if !place.providers.by_name.contains_key(&record.provider) {
        return Ok(false);
    }
    let dek = match place.providers.open(record, Kept::New, Deadline::within(RECORD_TIME)).await {
        Ok(dek) => dek,
        Err(failure) if is_unknown(&failure) => {
            tracing::warn!(volume_id = %record.volume_id, error = rpc::message(&failure), "not opened before");
            return Ok(false);
        }
        Err(failure) => return Err(failure),
    };
    let fault = |source| KeyFailure::Record { volume_id: record.volume_id.clone(), source };
    record.verify(&dek).map(|()| true).map_err(fault)
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
