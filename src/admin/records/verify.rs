//! `coffer records verify`: opens every record, without keeping or showing any of its key, and checks its MAC. What lies
//! among the records and is none is told as well.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use futures::{StreamExt, stream};
use serde::Serialize;

use crate::{
    admin::{
        Place,
        answer::{self, Print},
        keys::current::{Currents, Standing},
        progress::Progress,
        records::{AT_ONCE, RECORD_TIME, all, is_unknown},
    },
    exec::Deadline,
    key::{
        envelope::Kept,
        record::{Record, RecordFault, State, StoredKey},
        service::KeyInfo,
        store::{Listed, Refused, StoreFailure},
    },
    server::rpc,
    volume::VolumeId,
};

/// Why not all is well.
#[derive(Debug, thiserror::Error)]
pub enum VerifyFailure {
    /// The store failed.
    #[error("read the key records")]
    Store(#[from] StoreFailure),
    /// Records that do not open, or that nobody could tell of.
    #[error(
        "{bad} of {of} records do not open or could not be checked, and {refused} objects among them are no records"
    )]
    Bad {
        /// How many do not open or could not be checked.
        bad: usize,
        /// Of how many.
        of: usize,
        /// How many objects lie where records should, and are none.
        refused: usize,
    },
    /// Standard output failed.
    #[error("write to standard output")]
    Output(#[from] io::Error),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Finding {
    Ok,
    RewrapNeeded,
    ProviderMissing,
    DoesNotOpen,
    NotChecked,
    NoRecord,
}

impl Finding {
    fn is_good(self) -> bool {
        match self {
            Self::Ok | Self::RewrapNeeded => true,
            Self::ProviderMissing | Self::DoesNotOpen | Self::NotChecked | Self::NoRecord => false,
        }
    }

    fn told(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::RewrapNeeded => "rewrap needed",
            Self::ProviderMissing => "provider missing",
            Self::DoesNotOpen => "does not open",
            Self::NotChecked => "not checked",
            Self::NoRecord => "no record",
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    /// None, as what follows from the record, where there is no record.
    volume_id: Option<VolumeId>,
    state: Option<State>,
    provider: Option<String>,
    kek_id: Option<String>,
    /// Where what is no record lies.
    place: Option<String>,
    finding: Finding,
    why: Option<String>,
}

impl From<Refused> for Row {
    fn from(Refused { place, source }: Refused) -> Self {
        let why = Some(rpc::message(&source));
        let (volume_id, state, provider, kek_id) = (None, None, None, None);
        Self { volume_id, state, provider, kek_id, place: Some(place), finding: Finding::NoRecord, why }
    }
}

/// Prints what comes of opening each record that has a key, and what lies among them and is no record.
///
/// # Errors
/// The store fails, a record does not open or cannot be checked, or something there is no record.
pub async fn verify(
    place: &Place,
    print: Print,
    progress: &mut Progress,
    out: &mut impl Write,
) -> Result<(), VerifyFailure> {
    let Listed { mut records, refused } = all(place.store.as_ref(), progress).await?;
    records.retain(|record| record.key.is_some());
    let used: BTreeSet<&str> = records.iter().map(|record| record.provider.as_str()).collect();
    let currents = Currents::ask(place, |name| used.contains(name)).await;
    let (mut rows, of) = (Vec::with_capacity(records.len()), records.len());
    progress.begin(Some(of));
    let mut work = stream::iter(&records).map(|record| check(place, &currents, record)).buffered(AT_ONCE);
    while let Some(row) = work.next().await {
        rows.push(row);
        progress.at(rows.len(), || format!("{} of {of} verified", rows.len()));
    }
    progress.done();
    let (bad, refused_count) = (rows.iter().filter(|row| !row.finding.is_good()).count(), refused.len());
    rows.extend(refused.into_iter().map(Row::from));
    match print {
        Print::Json => answer::json(&rows, out)?,
        Print::Table => {
            let head = ["VOLUME", "STATE", "PROVIDER", "FINDING", "WHY"];
            answer::table(head, &rows.iter().map(cells).collect::<Vec<_>>(), out)?;
            writeln!(out, "{} of {of} records open", of - bad)?;
            if refused_count > 0 {
                writeln!(out, "{refused_count} objects that lie where records should are none")?;
            }
        }
    }
    if bad + refused_count == 0 { Ok(()) } else { Err(VerifyFailure::Bad { bad, of, refused: refused_count }) }
}

async fn check(place: &Place, currents: &Currents, listed: &Record) -> Row {
    let (mut finding, mut why) = open(place, currents, listed).await;
    let mut record = listed.clone();
    // What was rewrapped or destroyed since it was listed may well not open any more.
    if !finding.is_good()
        && let Ok(Some(now)) = place.store.get(&listed.volume_id, Deadline::within(RECORD_TIME)).await
        && now.record != *listed
    {
        record = now.record;
        (finding, why) = open(place, currents, &record).await;
    }
    let KeyInfo { volume_id, state, provider, kek_id, .. } = KeyInfo::from(&record);
    let (volume_id, state, provider, kek_id) = (Some(volume_id), Some(state), Some(provider), Some(kek_id));
    Row { volume_id, state, provider, kek_id, place: None, finding, why }
}

async fn open(place: &Place, currents: &Currents, record: &Record) -> (Finding, Option<String>) {
    if record.cluster_id != place.cluster_id {
        return (Finding::DoesNotOpen, Some(RecordFault::OtherCluster(record.cluster_id).to_string()));
    }
    if record.key.is_none() {
        return (Finding::Ok, Some("destroyed meanwhile".to_owned()));
    }
    if !place.providers.by_name.contains_key(&record.provider) {
        return (Finding::ProviderMissing, Some(format!("provider {} is not configured", record.provider)));
    }
    // What a cache remembers would show nothing: the KMS is asked.
    let dek = match place.providers.open(record, Kept::New, Deadline::within(RECORD_TIME)).await {
        Ok(dek) => dek,
        Err(failure) => {
            let finding = if is_unknown(&failure) { Finding::NotChecked } else { Finding::DoesNotOpen };
            return (finding, Some(rpc::message(&failure)));
        }
    };
    match (record.verify(&dek), currents.standing(record)) {
        (Err(fault), _) => (Finding::DoesNotOpen, Some(fault.to_string())),
        (Ok(()), Standing::Current | Standing::NotKnown) => (Finding::Ok, None),
        (Ok(()), Standing::Older) => {
            let why = match &record.key {
                Some(StoredKey::Derived { .. }) => "an older cluster key; a provider that wraps can take it over",
                Some(StoredKey::Wrapped { .. }) | None => "another KEK than the one that wraps now",
            };
            (Finding::RewrapNeeded, Some(why.to_owned()))
        }
    }
}

fn cells(row: &Row) -> [String; 5] {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let place = row.volume_id.as_ref().map(ToString::to_string).or_else(|| row.place.clone());
    [
        or_none(place),
        or_none(row.state.map(|state| state.to_string())),
        or_none(row.provider.clone()),
        row.finding.told().to_owned(),
        row.why.clone().unwrap_or_default(),
    ]
}
