//! Records as objects of the Kubernetes API server: one `VolumeKey` a record.
//!
//! A record is created by POST, which makes no object twice, and replaced by PUT with the `resourceVersion` that was
//! read (Kubernetes API concepts: resource versions). What is read is what etcd has, and not what a cache had. A live
//! record's object has a finalizer, so that deleting the object takes no key away; the write that destroys the key
//! takes the finalizer off. Nothing is ever deleted by us.

mod failure;

use std::{
    collections::VecDeque,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client,
    api::{ListParams, ObjectList, PostParams},
};
use tokio::time::Instant;

use crate::{
    exec::Deadline,
    key::{
        calls::{CallSettings, Calls},
        record::{Record, RecordFault, State},
        service::KeyInfo,
        store::{DekStore, Listed, Refused, StoreFailure, Stored, Version},
    },
    kubernetes::{
        FIELD_MANAGER,
        volume_key::{DELETING, KEY_IN_USE, KeyCondition, KeyState, VolumeKey, VolumeKeySpec, VolumeKeyStatus},
    },
    volume::VolumeId,
};

use failure::{failure, is_missing, out_of_order};

/// Who is asked, for people.
const PLACE: &str = "the Kubernetes API";
const GET: &str = "get volumekeys.coffer.csi";
const CREATE: &str = "create volumekeys.coffer.csi";
const UPDATE: &str = "update volumekeys.coffer.csi";
const LIST: &str = "list volumekeys.coffer.csi";

/// The most objects that are asked for at once.
const PAGE: usize = 500;
/// So many lists are remembered where they were, each so long: a list that goes on later begins at the front, and passes
/// over what it has seen.
const CURSORS: usize = 64;
const CURSOR_TIME: Duration = Duration::from_secs(60);

/// Records as objects of the API server.
pub struct VolumeKeys {
    api: Api<VolumeKey>,
    calls: Calls,
    cursors: Mutex<VecDeque<Cursor>>,
}

/// Where a list was: after an object, and the API server's own word for it.
struct Cursor {
    after: String,
    token: String,
    at: Instant,
}

impl fmt::Debug for VolumeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolumeKeys").finish_non_exhaustive()
    }
}

impl VolumeKeys {
    /// The records of a cluster. Nobody is asked anything yet.
    #[must_use]
    pub fn new(client: Client) -> Self {
        let calls = Calls::new(PLACE, CallSettings::default());
        Self { api: Api::all(client), calls, cursors: Mutex::default() }
    }

    /// Asks whether there is such a store, as a read of any record does.
    ///
    /// # Errors
    /// The API server does not answer or does not let us, or has no such custom resource.
    pub async fn check(&self, deadline: Deadline) -> Result<(), StoreFailure> {
        let params = ListParams { limit: Some(1), ..ListParams::default() };
        self.calls.make(deadline, |_| self.page_once(&params)).await.map(drop)
    }

    async fn read(&self, name: &str, deadline: Deadline) -> Result<Option<VolumeKey>, StoreFailure> {
        self.calls.make(deadline, |_| self.read_once(name)).await
    }

    async fn read_once(&self, name: &str) -> Result<Option<VolumeKey>, StoreFailure> {
        match self.api.get(name).await {
            Ok(object) => Ok(Some(object)),
            Err(kube::Error::Api(status)) if is_missing(&status, name) => Ok(None),
            Err(error) => Err(failure(GET, error)),
        }
    }

    async fn create_once(&self, object: &VolumeKey, volume_id: &VolumeId) -> Result<(), StoreFailure> {
        match self.api.create(&as_us(), object).await {
            Ok(_) => Ok(()),
            // Also where it is being deleted: until it is gone, its key is not lost.
            Err(kube::Error::Api(status)) if status.is_already_exists() => Err(StoreFailure::Exists(volume_id.clone())),
            Err(error) => Err(failure(CREATE, error)),
        }
    }

    async fn replace_once(&self, object: &VolumeKey, name: &str, volume_id: &VolumeId) -> Result<(), StoreFailure> {
        match self.api.replace(name, &as_us(), object).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_conflict() || is_missing(&status, name) => {
                Err(StoreFailure::Stale(volume_id.clone()))
            }
            Err(error) => Err(failure(UPDATE, error)),
        }
    }

    async fn page_once(&self, params: &ListParams) -> Result<ObjectList<VolumeKey>, StoreFailure> {
        let expired = match self.api.list(params).await {
            Ok(page) => return Ok(page),
            Err(kube::Error::Api(status)) if status.code == 410 => status,
            Err(error) => return Err(failure(LIST, error)),
        };
        // The list as it was is not kept any more. The answer says how to go on from the same name in the list as it is.
        let Some(token) = expired.metadata.as_ref().and_then(|metadata| metadata.continue_.clone()) else {
            return Err(failure(LIST, kube::Error::Api(expired)));
        };
        let params = ListParams { continue_token: Some(token), ..params.clone() };
        self.api.list(&params).await.map_err(|error| failure(LIST, error))
    }

    fn cursors(&self) -> MutexGuard<'_, VecDeque<Cursor>> {
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn token_after(&self, name: &str) -> Option<String> {
        let cursors = self.cursors();
        let newest = cursors.iter().rev().find(|cursor| cursor.after == name);
        newest.filter(|cursor| cursor.at.elapsed() < CURSOR_TIME).map(|cursor| cursor.token.clone())
    }

    fn remember(&self, after: String, token: String) {
        let mut cursors = self.cursors();
        if cursors.len() == CURSORS {
            cursors.pop_front();
        }
        cursors.push_back(Cursor { after, token, at: Instant::now() });
    }
}

#[async_trait]
impl DekStore for VolumeKeys {
    async fn get(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<Option<Stored>, StoreFailure> {
        let name = VolumeKey::name_of(volume_id);
        let Some(object) = self.read(&name, deadline).await? else { return Ok(None) };
        let record = record_in(&object).map_err(|source| StoreFailure::Fault {
            volume_id: Some(volume_id.clone()),
            place: place_of(&name),
            source,
        })?;
        Ok(Some(Stored { record, version: version_of(&object) }))
    }

    async fn create(&self, record: &Record, deadline: Deadline) -> Result<(), StoreFailure> {
        let object = object_of(record);
        self.calls.make(deadline, |_| self.create_once(&object, &record.volume_id)).await
    }

    async fn replace(&self, record: &Record, version: Version, deadline: Deadline) -> Result<(), StoreFailure> {
        let (name, volume_id) = (VolumeKey::name_of(&record.volume_id), &record.volume_id);
        let stale = || StoreFailure::Stale(volume_id.clone());
        // The resourceVersion belongs to what lies there now: that has to be what was read.
        let now = self.read(&name, deadline).await?;
        let mut object = now.filter(|now| version_of(now) == version).ok_or_else(stale)?;
        put(record, &mut object)?;
        self.calls.make(deadline, |_| self.replace_once(&object, &name, volume_id)).await
    }

    async fn list(&self, after: Option<&VolumeId>, limit: usize, deadline: Deadline) -> Result<Listed, StoreFailure> {
        let after = after.map(VolumeKey::name_of);
        let mut token = after.as_deref().and_then(|name| self.token_after(name));
        let mut is_passing = after.is_some() && token.is_none();
        let (mut listed, mut last) = (Listed::default(), None::<String>);
        while listed.records.len() < limit {
            let wanted = if is_passing { PAGE } else { PAGE.min(limit - listed.records.len()) };
            let wanted = u32::try_from(wanted).expect("a page has at most 500 objects");
            let params = ListParams { limit: Some(wanted), continue_token: token.take(), ..ListParams::default() };
            let page = self.calls.make(deadline, |_| self.page_once(&params)).await?;
            let mut objects = page.items.into_iter();
            for object in objects.by_ref() {
                let name = object.metadata.name.clone().unwrap_or_default();
                if last.as_ref().is_some_and(|last| name <= *last) {
                    return Err(out_of_order());
                }
                // Seen on an earlier page.
                if after.as_ref().is_none_or(|after| name > *after) {
                    is_passing = false;
                    match record_in(&object) {
                        Ok(record) => listed.records.push(record),
                        Err(source) => listed.refused.push(Refused { place: place_of(&name), source }),
                    }
                }
                last = Some(name);
                if listed.records.len() == limit {
                    break;
                }
            }
            // In a page that is not read to its end, the API server's word is for what comes after it.
            let is_read = objects.next().is_none();
            token = page.metadata.continue_.filter(|token| is_read && !token.is_empty());
            if token.is_none() {
                break;
            }
        }
        if let (Some(token), Some(record)) = (token, listed.records.last()) {
            self.remember(VolumeKey::name_of(&record.volume_id), token);
        }
        Ok(listed)
    }
}

fn as_us() -> PostParams {
    PostParams { dry_run: false, field_manager: Some(FIELD_MANAGER.to_owned()) }
}

fn place_of(name: &str) -> String {
    format!("VolumeKey {name}")
}

fn version_of(object: &VolumeKey) -> Version {
    Version::of(object.spec.record.as_bytes())
}

/// The record in an object, where it is whole and its own.
///
/// # Errors
/// It is no record, or that of another volume than the object's name and spec say.
pub fn record_in(object: &VolumeKey) -> Result<Record, RecordFault> {
    let record = Record::from_bytes(object.spec.record.as_bytes())?;
    let is_its_own = object.spec.volume_id == record.volume_id.as_str()
        && object.metadata.name.as_deref() == Some(VolumeKey::name_of(&record.volume_id).as_str());
    if is_its_own { Ok(record) } else { Err(RecordFault::OtherVolume(record.volume_id)) }
}

/// The object of a record that has none.
fn object_of(record: &Record) -> VolumeKey {
    let metadata = ObjectMeta {
        name: Some(VolumeKey::name_of(&record.volume_id)),
        finalizers: (record.state != State::Destroyed).then(|| vec![KEY_IN_USE.to_owned()]),
        ..ObjectMeta::default()
    };
    let spec = VolumeKeySpec { volume_id: record.volume_id.as_str().to_owned(), record: text(record) };
    VolumeKey { metadata, spec, status: Some(status_of(record, Vec::new())) }
}

/// Puts a record in the place of the one that an object has. Whatever else the object has stays.
fn put(record: &Record, object: &mut VolumeKey) -> Result<(), StoreFailure> {
    let mut finalizers = object.metadata.finalizers.take().unwrap_or_default();
    let is_held = finalizers.iter().any(|finalizer| finalizer == KEY_IN_USE);
    let mut conditions = object.status.take().map(|status| status.conditions).unwrap_or_default();
    if record.state == State::Destroyed {
        finalizers.retain(|finalizer| finalizer != KEY_IN_USE);
        conditions.retain(|condition| condition.type_ != DELETING);
    } else if !is_held {
        // Nothing can hold it any more: the API server takes no new finalizer for an object that is being deleted.
        if object.metadata.deletion_timestamp.is_some() {
            let name = VolumeKey::name_of(&record.volume_id);
            let detail =
                format!("VolumeKey {name} is being deleted, and a key in it would be lost; wait until it is gone");
            return Err(StoreFailure::Refused { action: UPDATE, place: PLACE.to_owned(), detail });
        }
        finalizers.push(KEY_IN_USE.to_owned());
    }
    object.metadata.finalizers = (!finalizers.is_empty()).then_some(finalizers);
    object.spec.record = text(record);
    object.status = Some(status_of(record, conditions));
    Ok(())
}

fn text(record: &Record) -> String {
    String::from_utf8(record.to_bytes()).expect("JSON is UTF-8")
}

fn status_of(record: &Record, conditions: Vec<KeyCondition>) -> VolumeKeyStatus {
    let KeyInfo { kek_id, .. } = KeyInfo::from(record);
    VolumeKeyStatus {
        state: match record.state {
            State::Prepared => KeyState::Prepared,
            State::Formatting => KeyState::Formatting,
            State::Ready => KeyState::Ready,
            State::Destroyed => KeyState::Destroyed,
        },
        generation: record.generation.into(),
        provider: record.provider.clone(),
        kek_id: (!kek_id.is_empty()).then_some(kek_id),
        node: record.node.clone(),
        namespace: record.tenant.clone(),
        claim: record.claim.clone(),
        storage_class: record.storage_class.clone(),
        conditions,
    }
}
