//! Records as objects of a bucket: what S3, Google Cloud Storage and Azure Blob Storage have in common.
//!
//! ```text
//! <prefix>v1/<cluster id>/<name>.json      one object a record; several clusters can share a bucket
//! <prefix>v1/probe                         shows that the store honours preconditions
//! ```
//! `<name>` is a volume id that is safe as a file's name, or `=` and the SHA-256 of another. A record is created by the
//! service's own create-only precondition and replaced by its own compare-and-swap. Nothing is ever deleted, so no
//! permission to delete is needed: a destroyed key is a tombstone.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::{
    exec::Deadline,
    key::{
        calls::Calls,
        record::{Record, RecordFault},
        store::{DekStore, Listed, Refused, StoreFailure, Stored, Version, settings::ObjectPlace},
    },
    volume::{VolumeId, hex},
};

/// An object as it was read.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What the service calls this content: an ETag or a generation, as text.
    pub tag: String,
}

/// What a conditional write came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It was written.
    Written,
    /// The condition did not hold: something is there already, or is there no more, or is another.
    Refused,
}

/// A bucket of one of the services: conditional writes, reads, and names in order. One attempt a call.
#[async_trait]
pub trait Bucket: Send + Sync {
    /// Bucket or container and service, for people.
    fn place(&self) -> String;

    /// Makes the bucket, where it is missing.
    ///
    /// # Errors
    /// The service does not answer, or refuses.
    async fn create_bucket(&self) -> Result<(), StoreFailure>;

    /// Reads an object; none where there is none. A bucket that is missing is an error and not none.
    ///
    /// # Errors
    /// The service does not answer, or refuses.
    async fn get(&self, name: &str) -> Result<Option<Object>, StoreFailure>;

    /// Writes an object where there is none.
    ///
    /// # Errors
    /// The service does not answer, or refuses for another reason than the condition.
    async fn put_new(&self, name: &str, bytes: Vec<u8>) -> Result<Put, StoreFailure>;

    /// Writes an object where the content of this tag lies.
    ///
    /// # Errors
    /// The service does not answer, or refuses for another reason than the condition.
    async fn put_over(&self, name: &str, tag: &str, bytes: Vec<u8>) -> Result<Put, StoreFailure>;

    /// At most `limit` names that begin with `prefix` and come after `after`, in the order of their bytes.
    ///
    /// # Errors
    /// The service does not answer, or refuses.
    async fn names(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, StoreFailure>;
}

/// Records in a bucket.
pub struct Objects {
    bucket: Arc<dyn Bucket>,
    calls: Calls,
    place: ObjectPlace,
    cluster_id: Uuid,
    checked: OnceCell<()>,
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Objects").field("place", &self.bucket.place()).finish_non_exhaustive()
    }
}

const SUFFIX: &str = ".json";
const PROBE: &str = "v1/probe";
const PROBE_BYTES: &[u8] =
    b"Coffer writes this object once, and tries to write it again, to see that the store honours preconditions.\n";
/// A tag that no object has.
const NO_TAG: &str = "\"00000000000000000000000000000000\"";
/// Objects that are read at once for a list.
const READERS: usize = 16;

impl Objects {
    /// The records of one cluster in a bucket.
    #[must_use]
    pub fn new(bucket: Arc<dyn Bucket>, place: ObjectPlace, cluster_id: Uuid) -> Self {
        let calls = Calls::new(bucket.place(), place.calls.clone());
        Self { bucket, calls, place, cluster_id, checked: OnceCell::new() }
    }

    /// Makes sure, once, that the bucket is there and that the store honours preconditions. Every write does it first,
    /// so that a store which was away when the program started is found out, too.
    ///
    /// # Errors
    /// The bucket is missing, the store ignores preconditions, or it cannot be asked.
    pub async fn check(&self, deadline: Deadline) -> Result<(), StoreFailure> {
        self.checked.get_or_try_init(|| self.probe(deadline)).await.copied()
    }

    async fn probe(&self, deadline: Deadline) -> Result<(), StoreFailure> {
        let probe = format!("{}{PROBE}", self.place.prefix);
        let create = || self.calls.make(deadline, |_| self.bucket.put_new(&probe, PROBE_BYTES.to_vec()));
        let first = match create().await {
            Err(StoreFailure::NoBucket { .. }) if self.place.create_if_missing => {
                tracing::info!(place = self.bucket.place(), "the bucket is missing; making it");
                self.calls.make(deadline, |_| self.bucket.create_bucket()).await?;
                create().await?
            }
            first => first?,
        };
        let no = |what| StoreFailure::NoPreconditions { place: self.bucket.place(), what };
        // An object that was there already has refused the first attempt, which is all that is to be seen.
        if first == Put::Written && create().await? == Put::Written {
            return Err(no("wrote over an object that was to be created"));
        }
        let swap = || self.calls.make(deadline, |_| self.bucket.put_over(&probe, NO_TAG, PROBE_BYTES.to_vec()));
        match swap().await? {
            Put::Written => Err(no("replaced an object that was not the one to be replaced")),
            Put::Refused => Ok(()),
        }
    }

    fn folder(&self) -> String {
        format!("{}v1/{}/", self.place.prefix, self.cluster_id)
    }

    fn name(&self, volume_id: &VolumeId) -> String {
        let folder = self.folder();
        match volume_id.file_name() {
            Some(name) => format!("{folder}{name}{SUFFIX}"),
            None => format!("{folder}={}{SUFFIX}", hex(&Sha256::digest(volume_id.as_str().as_bytes()))),
        }
    }

    async fn read(&self, name: &str, deadline: Deadline) -> Result<Option<Object>, StoreFailure> {
        self.calls.make(deadline, |_| self.bucket.get(name)).await
    }

    /// Where an object lies, for people.
    fn at(&self, name: &str) -> String {
        format!("{name} in {}", self.bucket.place())
    }

    /// The record in an object of a list, or what is wrong with it. None where the object is gone again: we never
    /// delete one, but somebody may.
    async fn listed(&self, name: String, deadline: Deadline) -> Result<Option<Result<Record, Refused>>, StoreFailure> {
        let Some(object) = self.read(&name, deadline).await? else { return Ok(None) };
        let source = match Record::from_bytes(&object.bytes) {
            Ok(record) if self.name(&record.volume_id) == name => return Ok(Some(Ok(record))),
            Ok(record) => RecordFault::OtherVolume(record.volume_id),
            Err(source) => source,
        };
        Ok(Some(Err(Refused { place: self.at(&name), source })))
    }
}

#[async_trait]
impl DekStore for Objects {
    async fn get(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<Option<Stored>, StoreFailure> {
        let name = self.name(volume_id);
        let Some(object) = self.read(&name, deadline).await? else { return Ok(None) };
        let fault = |source| StoreFailure::Fault { volume_id: Some(volume_id.clone()), place: self.at(&name), source };
        let record = Record::from_bytes(&object.bytes).map_err(fault)?;
        if record.volume_id != *volume_id {
            return Err(fault(RecordFault::OtherVolume(record.volume_id)));
        }
        Ok(Some(Stored { record, version: Version::of(&object.bytes) }))
    }

    async fn create(&self, record: &Record, deadline: Deadline) -> Result<(), StoreFailure> {
        self.check(deadline).await?;
        let (name, bytes) = (self.name(&record.volume_id), record.to_bytes());
        let put = self.calls.make(deadline, |_| self.bucket.put_new(&name, bytes.clone())).await?;
        match put {
            Put::Written => Ok(()),
            Put::Refused => Err(StoreFailure::Exists(record.volume_id.clone())),
        }
    }

    async fn replace(&self, record: &Record, version: Version, deadline: Deadline) -> Result<(), StoreFailure> {
        self.check(deadline).await?;
        let (name, bytes) = (self.name(&record.volume_id), record.to_bytes());
        let stale = || StoreFailure::Stale(record.volume_id.clone());
        // The service swaps by its own tag, which belongs to what lies there now: that has to be what was read.
        let now =
            self.read(&name, deadline).await?.filter(|now| Version::of(&now.bytes) == version).ok_or_else(stale)?;
        let swap = self.calls.make(deadline, |_| self.bucket.put_over(&name, &now.tag, bytes.clone()));
        match swap.await? {
            Put::Written => Ok(()),
            Put::Refused => Err(stale()),
        }
    }

    async fn list(&self, after: Option<&VolumeId>, limit: usize, deadline: Deadline) -> Result<Listed, StoreFailure> {
        let (folder, mut listed) = (self.folder(), Listed::default());
        let mut after = after.map(|id| self.name(id));
        // What is no record takes no place in a page, so a page may need more than one reading.
        while listed.records.len() < limit {
            let wanted = limit - listed.records.len();
            let names = self.calls.make(deadline, |_| self.bucket.names(&folder, after.as_deref(), wanted)).await?;
            let (last, is_last) = (names.last().cloned(), names.len() < wanted);
            let names = names.into_iter().filter(|name| name.ends_with(SUFFIX));
            let read: Vec<_> =
                stream::iter(names).map(|name| self.listed(name, deadline)).buffered(READERS).try_collect().await?;
            for found in read.into_iter().flatten() {
                match found {
                    Ok(record) => listed.records.push(record),
                    Err(refused) => listed.refused.push(refused),
                }
            }
            if is_last {
                break;
            }
            after = last;
        }
        Ok(listed)
    }
}
