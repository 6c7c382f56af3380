//! `coffer records …`, one file a verb, and how every record is read.

pub mod export;
pub mod import;
pub mod list;
pub mod show;
pub mod verify;

mod file;

use std::time::Duration;

use crate::{
    admin::progress::Progress,
    exec::Deadline,
    key::{
        record::Record,
        service::{KeyFailure, Refusal},
        store::{DekStore, StoreFailure},
    },
};

/// Whether a verb does what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It does.
    Real,
    /// It only says what it would do.
    DryRun,
}

impl Effect {
    /// What `--dry-run`, or its absence, asks for.
    #[must_use]
    pub fn of(dry_run: bool) -> Self {
        if dry_run { Self::DryRun } else { Self::Real }
    }
}

/// How many records are worked on at once.
pub(crate) const AT_ONCE: usize = 8;
/// How long the work on one record may take.
pub(crate) const RECORD_TIME: Duration = Duration::from_secs(60);
/// How many records are read at once, and how long that may take.
const PAGE: usize = 1000;
const PAGE_TIME: Duration = Duration::from_secs(300);

/// Every record of a store, in the order of the volume ids. What is no record is left out, and told in the log.
pub(crate) async fn all(store: &dyn DekStore, progress: &mut Progress) -> Result<Vec<Record>, StoreFailure> {
    let mut records: Vec<Record> = Vec::new();
    progress.begin(None);
    loop {
        let after = records.last().map(|record| record.volume_id.clone());
        let page = store.list(after.as_ref(), PAGE, Deadline::within(PAGE_TIME)).await?;
        let is_last = page.len() < PAGE;
        records.extend(page);
        progress.at(records.len(), || format!("{} records read", records.len()));
        if is_last {
            break;
        }
    }
    progress.done();
    records.sort_unstable_by(|a, b| a.volume_id.cmp(&b.volume_id));
    Ok(records)
}

/// Whether a failure to open a record says nothing of the record: its KMS is away, or does not let us.
pub(crate) fn is_unknown(failure: &KeyFailure) -> bool {
    matches!(failure.refusal(), Refusal::Unavailable | Refusal::Deadline | Refusal::Denied)
}
