//! `coffer records show`

use std::io::{self, Write};

use crate::{
    admin::records::RECORD_TIME,
    exec::Deadline,
    key::store::{DekStore, StoreFailure, Stored},
    volume::VolumeId,
};

/// Why a record is not shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowFailure {
    /// Neither the id nor the name of a volume.
    #[error("no volume has the id or the name {0:?}; `coffer records list` shows what there is")]
    Missing(String),
    /// The store failed.
    #[error("read the record of {volume}")]
    Store {
        /// What was asked for.
        volume: String,
        /// Why.
        #[source]
        source: StoreFailure,
    },
    /// Standard output failed.
    #[error("write to standard output")]
    Output(#[from] io::Error),
}

/// Prints a volume's record as it is stored.
///
/// # Errors
/// There is none, or it is not to be trusted.
pub async fn show(store: &dyn DekStore, volume: &str, out: &mut impl Write) -> Result<(), ShowFailure> {
    let found = find(store, volume).await;
    let found = found.map_err(|source| ShowFailure::Store { volume: volume.to_owned(), source })?;
    let stored = found.ok_or_else(|| ShowFailure::Missing(volume.to_owned()))?;
    Ok(out.write_all(&stored.record.to_bytes())?)
}

/// By its id, or by the name that CreateVolume was given.
async fn find(store: &dyn DekStore, volume: &str) -> Result<Option<Stored>, StoreFailure> {
    let deadline = Deadline::within(RECORD_TIME);
    for id in volume.parse().ok().into_iter().chain([VolumeId::for_name(volume)]) {
        if let Some(stored) = store.get(&id, deadline).await? {
            return Ok(Some(stored));
        }
    }
    Ok(None)
}
