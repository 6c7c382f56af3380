//! How many key records there are, by state, provider and version of the cluster key, for metrics.
//!
//! Every replica of the key service counts, page by page and never often: a store of objects is read once for each
//! record. What is counted may have changed meanwhile; nothing is decided by it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio_util::sync::CancellationToken;

use crate::{
    exec::Deadline,
    key::{
        record::{Record, StoredKey},
        store::{DekStore, StoreFailure},
    },
};

/// The shortest pause between two counts.
const PAUSE: Duration = Duration::from_secs(300);
/// How much of a pause each record makes at least: so many reads a second are what counting may cost.
const PAUSE_FOR_EACH: Duration = Duration::from_millis(500);
/// Records of a page.
const PAGE: usize = 500;
/// How long a page may take.
const PAGE_TIME: Duration = Duration::from_secs(120);

/// What records are counted by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// The record's state, or `refused` for what lies among records and is none.
    pub state: String,
    /// The provider that made the key; empty for what is refused.
    pub provider: String,
    /// The version of the cluster key that it is derived from; empty where it is wrapped, or destroyed.
    pub key_version: String,
}

impl Group {
    fn of(record: &Record) -> Self {
        let key_version = match &record.key {
            Some(StoredKey::Derived { cluster_key_version, .. }) => cluster_key_version.to_string(),
            Some(StoredKey::Wrapped { .. }) | None => String::new(),
        };
        Self { state: record.state.to_string(), provider: record.provider.clone(), key_version }
    }

    fn refused() -> Self {
        Self { state: "refused".to_owned(), provider: String::new(), key_version: String::new() }
    }
}

/// Counts the records again and again, until the end, and keeps the metrics `coffer_records` and
/// `coffer_records_counted_seconds`. A count that fails leaves them as they are, with a warning.
pub async fn keep(store: Arc<dyn DekStore>, end: CancellationToken) {
    let mut told = BTreeMap::new();
    loop {
        let counted = tokio::select! {
            () = end.cancelled() => return,
            counted = count(store.as_ref()) => counted,
        };
        let pause = match counted {
            Ok(groups) => {
                let records = groups.values().sum::<u32>();
                told = tell(groups, &told);
                PAUSE.max(PAUSE_FOR_EACH.saturating_mul(records))
            }
            Err(failure) => {
                tracing::warn!(error = %failure, "the records could not be counted");
                PAUSE
            }
        };
        tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Counts the records once.
///
/// # Errors
/// The store does not answer.
pub async fn count(store: &dyn DekStore) -> Result<BTreeMap<Group, u32>, StoreFailure> {
    let (mut groups, mut after) = (BTreeMap::new(), None);
    loop {
        let page = store.list(after.as_ref(), PAGE, Deadline::within(PAGE_TIME)).await?;
        for group in page.records.iter().map(Group::of).chain(page.refused.iter().map(|_| Group::refused())) {
            *groups.entry(group).or_insert(0) += 1;
        }
        let is_last = page.records.len() < PAGE;
        match page.records.into_iter().next_back() {
            Some(last) if !is_last => after = Some(last.volume_id),
            _ => return Ok(groups),
        }
    }
}

/// Sets the metrics. A group that is there no more is zero, and not what it was.
fn tell(groups: BTreeMap<Group, u32>, before: &BTreeMap<Group, u32>) -> BTreeMap<Group, u32> {
    let gone = before.keys().filter(|group| !groups.contains_key(*group)).map(|group| (group, 0));
    for (Group { state, provider, key_version }, count) in
        groups.iter().map(|(group, count)| (group, *count)).chain(gone)
    {
        metrics::gauge!(
            "coffer_records",
            "state" => state.clone(),
            "provider" => provider.clone(),
            "key_version" => key_version.clone()
        )
        .set(f64::from(count));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    metrics::gauge!("coffer_records_counted_seconds").set(now.as_secs_f64());
    groups
}
