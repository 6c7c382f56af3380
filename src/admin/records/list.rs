//! `coffer records list`

use std::io::{self, Write};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    admin::{
        answer::{self, Print},
        progress::Progress,
        records::all,
    },
    key::{
        record::{Derivation, Record, State, StoredKey},
        service::KeyInfo,
        store::{DekStore, StoreFailure},
    },
    volume::VolumeId,
};

/// Which records are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that have a key.
    Live,
    /// Tombstones as well.
    All,
}

impl Which {
    /// What `--all`, or its absence, asks for.
    #[must_use]
    pub fn of(all: bool) -> Self {
        if all { Self::All } else { Self::Live }
    }
}

/// Why records are not listed.
#[derive(Debug, thiserror::Error)]
pub enum ListFailure {
    /// The store failed.
    #[error("read the key records")]
    Store(#[from] StoreFailure),
    /// Standard output failed.
    #[error("write to standard output")]
    Output(#[from] io::Error),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    volume_id: VolumeId,
    name: String,
    state: State,
    generation: u32,
    provider: String,
    /// None in a tombstone.
    kek_id: Option<String>,
    mechanism: Option<&'static str>,
    created_at: Timestamp,
    namespace: Option<String>,
    claim: Option<String>,
}

/// Prints the records of a store. None of what leads to a key is among it.
///
/// # Errors
/// The store fails.
pub async fn list(
    store: &dyn DekStore,
    which: Which,
    print: Print,
    progress: &mut Progress,
    out: &mut impl Write,
) -> Result<(), ListFailure> {
    let records = all(store, progress).await?.records;
    let listed = records.iter().filter(|record| which == Which::All || record.key.is_some());
    let rows: Vec<Row> = listed.map(row).collect();
    match print {
        Print::Json => answer::json(&rows, out)?,
        Print::Table => {
            let head = ["VOLUME", "STATE", "GENERATION", "PROVIDER", "KEK", "MECHANISM", "CREATED", "CLAIM"];
            answer::table(head, &rows.iter().map(cells).collect::<Vec<_>>(), out)?;
        }
    }
    Ok(())
}

fn row(record: &Record) -> Row {
    Row {
        volume_id: record.volume_id.clone(),
        name: record.name.clone(),
        state: record.state,
        generation: record.generation,
        provider: record.provider.clone(),
        kek_id: record.key.as_ref().map(|_| KeyInfo::from(record).kek_id),
        mechanism: record.key.as_ref().map(mechanism),
        created_at: record.created_at,
        namespace: record.tenant.clone(),
        claim: record.claim.clone(),
    }
}

fn mechanism(key: &StoredKey) -> &'static str {
    match key {
        StoredKey::Derived { mechanism: Derivation::CofferV1, .. } => "coffer-v1",
        StoredKey::Derived { mechanism: Derivation::ConstellationV1, .. } => "constellation-v1",
        StoredKey::Wrapped { kek_mechanism, .. } => kek_mechanism.as_str(),
    }
}

fn cells(row: &Row) -> [String; 8] {
    let or_none = |text: Option<&str>| text.unwrap_or("-").to_owned();
    let claim = match (&row.namespace, &row.claim) {
        (None, None) => "-".to_owned(),
        (namespace, claim) => format!("{}/{}", or_none(namespace.as_deref()), or_none(claim.as_deref())),
    };
    [
        row.volume_id.to_string(),
        row.state.to_string(),
        row.generation.to_string(),
        row.provider.clone(),
        or_none(row.kek_id.as_deref()),
        or_none(row.mechanism),
        row.created_at.to_string(),
        claim,
    ]
}
