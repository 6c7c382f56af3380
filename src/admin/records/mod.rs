//! `coffer records …`, one file a verb, and how every record is read.

pub mod expect_none;
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
        service::{KeyFailure, Refusal},
        store::{DekStore, Listed, StoreFailure},
    },
    server::rpc,
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

/// Every record of a store, in the order of the volume ids. What is no record is beside them, and told in the log.
pub(crate) async fn all(store: &dyn DekStore, progress: &mut Progress) -> Result<Listed, StoreFailure> {
    let mut all = Listed::default();
    progress.begin(None);
    loop {
        let after = all.records.last().map(|record| record.volume_id.clone());
        let page = store.list(after.as_ref(), PAGE, Deadline::within(PAGE_TIME)).await?;
        let is_last = page.records.len() < PAGE;
        all.records.extend(page.records);
        all.refused.extend(page.refused);
        progress.at(all.records.len(), || format!("{} records read", all.records.len()));
        if is_last {
            break;
        }
    }
    progress.done();
    for refused in &all.refused {
        tracing::error!(error = rpc::message(refused), "left out");
    }
    all.records.sort_unstable_by(|a, b| a.volume_id.cmp(&b.volume_id));
    Ok(all)
}

/// Whether a failure to open a record says nothing of the record: its KMS is away, or does not let us.
pub(crate) fn is_unknown(failure: &KeyFailure) -> bool {
    matches!(failure.refusal(), Refusal::Unavailable | Refusal::Deadline | Refusal::Denied)
}
