//! A store that counts what is asked of it: how often, with what result, and how long, whichever store it is.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use tokio::time::Instant;

use crate::{
    exec::Deadline,
    key::{
        record::Record,
        store::{DekStore, Listed, StoreFailure, Stored, Version},
    },
    volume::VolumeId,
};

/// A store with its calls counted.
pub struct Measured(Arc<dyn DekStore>);

impl fmt::Debug for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Measured")
    }
}

impl Measured {
    /// Counts what is asked of a store from here on.
    #[must_use]
    pub fn new(store: Arc<dyn DekStore>) -> Self {
        Self(store)
    }
}

#[async_trait]
impl DekStore for Measured {
    async fn get(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<Option<Stored>, StoreFailure> {
        counted("get", self.0.get(volume_id, deadline)).await
    }

    async fn create(&self, record: &Record, deadline: Deadline) -> Result<(), StoreFailure> {
        counted("create", self.0.create(record, deadline)).await
    }

    async fn replace(&self, record: &Record, version: Version, deadline: Deadline) -> Result<(), StoreFailure> {
        counted("replace", self.0.replace(record, version, deadline)).await
    }

    async fn list(&self, after: Option<&VolumeId>, limit: usize, deadline: Deadline) -> Result<Listed, StoreFailure> {
        counted("list", self.0.list(after, limit, deadline)).await
    }
}

async fn counted<T>(
    operation: &'static str,
    call: impl Future<Output = Result<T, StoreFailure>> + Send,
) -> Result<T, StoreFailure> {
    let mut counted = Call { operation, began: Instant::now(), result: "unanswered" };
    let result = call.await;
    counted.result = result.as_ref().map_or_else(StoreFailure::kind, |_| "ok");
    result
}

/// A call that counts itself when it is dropped, so that one that is given up counts as well.
struct Call {
    operation: &'static str,
    began: Instant,
    result: &'static str,
}

impl Drop for Call {
    fn drop(&mut self) {
        let Self { operation, began, result } = *self;
        metrics::histogram!("coffer_store_seconds", "operation" => operation).record(began.elapsed());
        metrics::counter!("coffer_store_calls_total", "operation" => operation, "result" => result).increment(1);
    }
}
