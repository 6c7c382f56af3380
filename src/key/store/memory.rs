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
        store::{DekStore, Listed, Refused, StoreFailure, Stored, Version},
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
        let stored = |bytes: &Vec<u8>| Ok(Stored { record: read(volume_id, bytes)?, version: Version::of(bytes) });
        records.get(volume_id).map(stored).transpose()
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

    async fn list(&self, after: Option<&VolumeId>, limit: usize, _: Deadline) -> Result<Listed, StoreFailure> {
        let (records, mut listed) = (self.records(), Listed::default());
        for (id, bytes) in records.iter().filter(|(id, _)| after.is_none_or(|after| *id > after)) {
            if listed.records.len() == limit {
                break;
            }
            match Record::from_bytes(bytes) {
                Ok(record) => listed.records.push(record),
                Err(source) => listed.refused.push(Refused { place: place(id), source }),
            }
        }
        Ok(listed)
    }
}

fn read(volume_id: &VolumeId, bytes: &[u8]) -> Result<Record, StoreFailure> {
    let fault = |source| StoreFailure::Fault { volume_id: Some(volume_id.clone()), place: place(volume_id), source };
    Record::from_bytes(bytes).map_err(fault)
}

fn place(volume_id: &VolumeId) -> String {
    format!("the record of volume {volume_id} in memory")
}
