//! `coffer records …`

use std::{io::Write, time::Duration};

use crate::{
    admin::StateDir,
    exec::Deadline,
    key::store::{DekStore, filesystem::Filesystem},
    volume::VolumeId,
};

/// Why a record is not shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowFailure {
    /// Neither the id nor the name of a volume.
    #[error("no volume has the id or the name {0:?}; `coffer volumes list` shows what there is")]
    Missing(String),
    /// The store failed.
    #[error("read the record of {volume}")]
    Store {
        /// What was asked for.
        volume: String,
        /// Why.
        #[source]
        source: crate::key::store::StoreFailure,
    },
    /// Standard output failed.
    #[error("write to standard output")]
    Output(#[source] std::io::Error),
}

/// `coffer records show`: prints a volume's record as it is stored.
///
/// # Errors
/// There is none, or it is not to be trusted.
pub async fn show(state_dir: &StateDir, volume: &str, out: &mut impl Write) -> Result<(), ShowFailure> {
    let failed = |source| ShowFailure::Store { volume: volume.to_owned(), source };
    let missing = || ShowFailure::Missing(volume.to_owned());
    if !Filesystem::holds_records(&state_dir.records()).map_err(failed)? {
        return Err(missing());
    }
    let store = Filesystem::open(&state_dir.records()).map_err(failed)?;
    let deadline = Deadline::within(Duration::from_secs(60));
    for id in volume.parse().ok().into_iter().chain([VolumeId::for_name(volume)]) {
        if let Some(stored) = store.get(&id, deadline).await.map_err(failed)? {
            return out.write_all(&stored.record.to_bytes()).map_err(ShowFailure::Output);
        }
    }
    Err(missing())
}
