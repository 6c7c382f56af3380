//! `coffer records expect-none`: ends well only where no key is left that a volume may need. The chart asks it before the
//! key service goes.

use std::io::{self, Write};

use crate::{
    admin::{answer::plain, progress::Progress, records::all},
    key::store::{DekStore, StoreFailure},
};

/// So many volumes are named.
const NAMED: usize = 5;

/// Why it does not end well.
#[derive(Debug, thiserror::Error)]
pub enum ExpectFailure {
    /// There are keys.
    #[error(
        "volumes with keys: {keys} ({named}); records that cannot be read: {refused}. Without a key service nobody reads \
         these volumes: delete their PersistentVolumeClaims first"
    )]
    Left {
        /// How many live records there are.
        keys: usize,
        /// Some of their volumes.
        named: String,
        /// How many objects are refused: each may be a volume's record.
        refused: usize,
    },
    /// The store failed.
    #[error("read the key records")]
    Store(#[from] StoreFailure),
    /// Standard output failed.
    #[error("write to standard output")]
    Output(#[from] io::Error),
}

/// Looks at every record of a store. Tombstones count for nothing.
///
/// # Errors
/// There is a record with a key, or one that cannot be read; or the store fails.
pub async fn expect_none(
    store: &dyn DekStore,
    progress: &mut Progress,
    out: &mut impl Write,
) -> Result<(), ExpectFailure> {
    let found = all(store, progress).await?;
    let live: Vec<_> = found.records.iter().filter(|record| record.key.is_some()).collect();
    if live.is_empty() && found.refused.is_empty() {
        writeln!(out, "no volume has a key; {} tombstones", found.records.len())?;
        return Ok(());
    }
    let mut named: Vec<_> = live.iter().take(NAMED).map(|record| plain(record.volume_id.as_str())).collect();
    if live.len() > NAMED {
        named.push("…".to_owned());
    }
    Err(ExpectFailure::Left { keys: live.len(), named: named.join(", "), refused: found.refused.len() })
}
