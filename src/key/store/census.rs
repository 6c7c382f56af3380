//! How many key records there are, by state, provider and version of the cluster key: for metrics, and to tell aloud of
//! records whose provider is not configured any more.
//!
//! Every replica of the key service counts, page by page and never often: a store of objects is read once for each
//! record. What is counted may have changed meanwhile; nothing is decided by it, and nobody waits for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio_util::sync::CancellationToken;

use crate::{
    exec::Deadline,
    key::{
        record::{Record, State, StoredKey},
        store::{DekStore, StoreFailure},
    },
};

/// The shortest pause between two counts.
const PAUSE: Duration = Duration::from_secs(300);
/// How soon a first count that failed is begun again: a store may be away when the program starts.
const RETRY: Duration = Duration::from_secs(30);
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
        Self { state: REFUSED.to_owned(), provider: String::new(), key_version: String::new() }
    }

    /// Whether its records have a key, which their provider opens.
    fn has_key(&self) -> bool {
        self.state != REFUSED && self.state != State::Destroyed.to_string()
    }
}

const REFUSED: &str = "refused";

/// Counts the records again and again, until the end, keeps the metrics that `coffer_records` is one of, and tells of
/// records whose provider is not among those that are configured. A count that fails leaves the metrics as they are, with
/// a warning.
pub async fn keep(store: Arc<dyn DekStore>, configured: BTreeSet<String>, end: CancellationToken) {
    let (mut told, mut missing) = (BTreeMap::new(), BTreeMap::new());
    loop {
        let counted = tokio::select! {
            () = end.cancelled() => return,
            counted = count(store.as_ref()) => counted,
        };
        let pause = match counted {
            Ok(groups) => {
                let records = groups.values().sum::<u32>();
                missing = tell_missing(without_provider(&groups, &configured), &missing);
                told = tell(groups, &told);
                PAUSE.max(PAUSE_FOR_EACH.saturating_mul(records))
            }
            Err(failure) => {
                tracing::warn!(error = %failure, "the records could not be counted");
                if told.is_empty() { RETRY } else { PAUSE }
            }
        };
        tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Counts the records until that has worked once, and tells of those whose provider is not among the configured ones: for
/// whoever serves no metrics.
pub async fn once(store: Arc<dyn DekStore>, configured: BTreeSet<String>) {
    loop {
        match count(store.as_ref()).await {
            Ok(groups) => {
                tell_missing(without_provider(&groups, &configured), &BTreeMap::new());
                return;
            }
            Err(failure) => tracing::warn!(error = %failure, "the records could not be counted"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The records with a key whose provider is not configured: how many, by their provider.
#[must_use]
pub fn without_provider(groups: &BTreeMap<Group, u32>, configured: &BTreeSet<String>) -> BTreeMap<String, u32> {
    let mut missing = BTreeMap::new();
    for (group, count) in groups {
        if group.has_key() && !configured.contains(&group.provider) {
            *missing.entry(group.provider.clone()).or_insert(0) += count;
        }
    }
    missing
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

/// Tells of records without a provider: in the log when there are more or fewer of them than before, and in the metric.
fn tell_missing(missing: BTreeMap<String, u32>, before: &BTreeMap<String, u32>) -> BTreeMap<String, u32> {
    let gone = before.keys().filter(|provider| !missing.contains_key(*provider)).map(|provider| (provider, 0));
    for (provider, count) in missing.iter().map(|(provider, count)| (provider, *count)).chain(gone) {
        metrics::gauge!("coffer_records_without_provider", "provider" => provider.clone()).set(f64::from(count));
        if before.get(provider) == Some(&count) {
            continue;
        }
        if count == 0 {
            tracing::info!(provider, "no record needs this provider any more, which is not configured");
            continue;
        }
        tracing::error!(
            provider,
            records = count,
            "records need a provider that is not configured: their volumes do not open. Configure it again as it was; to \
             do without it for good, move its records while it is there: coffer rewrap --from {provider} --to OTHER"
        );
    }
    missing
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

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{
            Mutex, PoisonError,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use async_trait::async_trait;

    use super::*;
    use crate::{
        key::store::{Listed, Stored, Version, memory::Memory},
        volume::VolumeId,
    };

    fn group(state: &str, provider: &str) -> Group {
        Group { state: state.to_owned(), provider: provider.to_owned(), key_version: String::new() }
    }

    #[test]
    fn records_without_a_provider_are_those_that_have_a_key() {
        let groups = BTreeMap::from([
            (group("ready", "main"), 7),
            (group("ready", "gone"), 2),
            (group("prepared", "gone"), 1),
            (group("destroyed", "gone"), 4),
            (group("destroyed", "long-gone"), 5),
            (Group::refused(), 6),
        ]);
        let configured = BTreeSet::from(["main".to_owned(), "spare".to_owned()]);
        assert_eq!(without_provider(&groups, &configured), BTreeMap::from([("gone".to_owned(), 3)]));
    }

    /// What was logged.
    #[derive(Clone, Default)]
    struct Book(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Book {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_provider_that_is_gone_is_told_aloud_and_again_when_the_number_changes() {
        let book = Book::default();
        let writer = book.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            let mut before = BTreeMap::new();
            for counts in [Some(2), Some(2), Some(3), None, None] {
                let missing = counts.map(|count| ("gone".to_owned(), count)).into_iter().collect();
                before = tell_missing(missing, &before);
            }
        });
        let told = String::from_utf8(book.0.lock().unwrap_or_else(PoisonError::into_inner).clone()).expect("text");
        let lines: Vec<_> = told.lines().collect();
        assert_eq!(lines.len(), 3, "{told}");
        for (line, count) in lines.iter().zip(["records=2", "records=3"]) {
            assert!(line.contains("ERROR") && line.contains("provider=\"gone\"") && line.contains(count), "{line}");
            assert!(line.contains("Configure it again") && line.contains("coffer rewrap --from gone --to"), "{line}");
        }
        assert!(lines[2].contains("INFO") && lines[2].contains("provider=\"gone\""), "{told}");
    }

    /// A store that is away for its first lists.
    struct Waking {
        inner: Memory,
        lists: AtomicUsize,
    }

    #[async_trait]
    impl DekStore for Waking {
        async fn get(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<Option<Stored>, StoreFailure> {
            self.inner.get(volume_id, deadline).await
        }

        async fn create(&self, record: &Record, deadline: Deadline) -> Result<(), StoreFailure> {
            self.inner.create(record, deadline).await
        }

        async fn replace(&self, record: &Record, version: Version, deadline: Deadline) -> Result<(), StoreFailure> {
            self.inner.replace(record, version, deadline).await
        }

        async fn list(
            &self,
            after: Option<&VolumeId>,
            limit: usize,
            deadline: Deadline,
        ) -> Result<Listed, StoreFailure> {
            if self.lists.fetch_add(1, Ordering::SeqCst) < 2 {
                return Err(StoreFailure::unreachable("the store", "connection refused"));
            }
            self.inner.list(after, limit, deadline).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_away_at_the_start_is_counted_when_it_is_back() {
        let store = Arc::new(Waking { inner: Memory::default(), lists: AtomicUsize::new(0) });
        once(store.clone(), BTreeSet::new()).await;
        assert_eq!(store.lists.load(Ordering::SeqCst), 3);
    }
}
