//! A store that forgets everything when the process ends: for tests.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use crate::{
    exec::Deadline,
    key::{
        record::Record,
        store::{DekStore, StoreFailure, Stored, Version},
    },
    volume::VolumeId,
};

/// Records in memory, as the bytes that a file would hold.
#[derive(Debug, Default)]
pub struct Memory(Mutex<BTreeMap<VolumeId, Vec<u8>>>);

impl Memory {
    fn records(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl DekStore for Memory {
    async fn get(&self, volume_id: &VolumeId, _: Deadline) -> Result<Option<Stored>, StoreFailure> {
        let records = self.records();
        records.get(volume_id).map(|bytes| Ok(Stored { record: read(bytes)?, version: Version::of(bytes) })).transpose()
    }

    async fn create(&self, record: &Record, _: Deadline) -> Result<(), StoreFailure> {
        let mut records = self.records();
        if records.contains_key(&record.volume_id) {
            return Err(StoreFailure::Exists(record.volume_id.clone()));
        }
        records.insert(record.volume_id.clone(), record.to_bytes());
        Ok(())
    }

    async fn replace(&self, record: &Record, version: Version, _: Deadline) -> Result<(), StoreFailure> {
        let mut records = self.records();
        match records.get_mut(&record.volume_id) {
            Some(bytes) if Version::of(bytes) == version => {
                *bytes = record.to_bytes();
                Ok(())
            }
            _ => Err(StoreFailure::Stale(record.volume_id.clone())),
        }
    }

    async fn list(&self, after: Option<&VolumeId>, limit: usize, _: Deadline) -> Result<Vec<Record>, StoreFailure> {
        let records = self.records();
        let later = records.iter().filter(|(id, _)| after.is_none_or(|after| *id > after));
        later.take(limit).map(|(_, bytes)| read(bytes)).collect()
    }
}

fn read(bytes: &[u8]) -> Result<Record, StoreFailure> {
    Record::from_bytes(bytes).map_err(|source| StoreFailure::Fault {
        volume_id: None,
        place: "a record in memory".to_owned(),
        source,
    })
}
