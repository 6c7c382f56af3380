//! VolumeKeys that somebody deletes while their keys are in use: the deletion waits, and this says why, and what to do.
//!
//! It changes no record. A condition is written by compare-and-swap on the object that was read, so that a record which
//! changes in the same moment stays as it is; any number of key services may do this at once.

use std::{pin::pin, time::Duration};

use futures::StreamExt;
use jiff::Timestamp;
use kube::{
    Api, Client, Resource,
    api::PostParams,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        events::{Event, EventType, Recorder, Reporter},
        watcher,
    },
};

use crate::{
    key::{
        record::{Record, State},
        store::kubernetes::record_in,
    },
    kubernetes::{
        FIELD_MANAGER,
        volume_key::{DELETING, KEY_IN_USE, KeyCondition, VolumeKey},
    },
    server::rpc,
};

/// Who tells Events. It has the form of a qualified name (Kubernetes API: events.k8s.io/v1, `reportingController`).
const REPORTER: &str = "coffer.csi/keyservice";
const ACTION: &str = "Delete";
const IN_USE: &str = "KeyInUse";
const NO_RECORD: &str = "RecordUnreadable";

/// How long one object may take.
const OBJECT_TIME: Duration = Duration::from_secs(30);
/// The pause before all of it is begun again after a failure.
const PAUSE: Duration = Duration::from_secs(10);

/// Why an object was not dealt with.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("watch VolumeKeys")]
    Watch(#[from] watcher::Error),
    #[error("tell that VolumeKey {name} is in use")]
    Api {
        name: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("VolumeKey {0}: the API server did not answer within {OBJECT_TIME:?}")]
    Late(String),
    #[error("the watch of VolumeKeys has ended")]
    Ended,
}

/// Watches VolumeKeys, and deals with those that are being deleted. It ends when it is dropped.
///
/// It needs `list` and `watch`, `get` and `update` of volumekeys.coffer.csi, and may be let `create` and `patch` events of
/// events.k8s.io in the namespace `default`, which is where Events of objects without a namespace are.
pub async fn watch(client: Client) {
    loop {
        let failed = follow(&client).await;
        tracing::warn!(error = rpc::message(&failed), "deleted VolumeKeys are not looked after; trying again");
        tokio::time::sleep(PAUSE).await;
    }
}

async fn follow(client: &Client) -> Failed {
    let keys: Api<VolumeKey> = Api::all(client.clone());
    let recorder = Recorder::new(client.clone(), Reporter::from(REPORTER));
    // Of objects that nobody deletes the metadata is enough.
    let metadata: Api<PartialObjectMeta<VolumeKey>> = Api::all(client.clone());
    let mut changes = pin!(watcher(metadata, watcher::Config::default()).applied_objects());
    while let Some(change) = changes.next().await {
        let metadata = match change {
            Ok(object) => object.metadata,
            Err(failed) => return failed.into(),
        };
        let (Some(name), Some(_)) = (metadata.name, metadata.deletion_timestamp) else { continue };
        match tokio::time::timeout(OBJECT_TIME, settle(&keys, &recorder, &name)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Failed::Api { name, source: Box::new(error) },
            Err(_) => return Failed::Late(name),
        }
    }
    Failed::Ended
}

/// Deals with one object that is being deleted. What is told already is not told again.
async fn settle(keys: &Api<VolumeKey>, recorder: &Recorder, name: &str) -> Result<(), kube::Error> {
    let Some(mut object) = keys.get_opt(name).await? else { return Ok(()) };
    let Some(told) = settled(&mut object) else { return Ok(()) };
    let how = PostParams { dry_run: false, field_manager: Some(FIELD_MANAGER.to_owned()) };
    match keys.replace(name, &how, &object).await {
        Ok(_) => {}
        // Changed, or gone: the watch comes by again where there is something to do.
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => return Ok(()),
        Err(error) => return Err(error),
    }
    let Settled::Waits { reason, message } = told else {
        tracing::info!(volume_key = name, "the key is destroyed: its VolumeKey is let go");
        return Ok(());
    };
    tracing::warn!(volume_key = name, "it is being deleted and waits: {message}");
    let event = Event {
        type_: EventType::Warning,
        reason: reason.to_owned(),
        note: Some(message),
        action: ACTION.to_owned(),
        secondary: None,
    };
    // The condition says the same: without the Event nothing is lost.
    if let Err(error) = recorder.publish(&event, &object.object_ref(&())).await {
        tracing::warn!(volume_key = name, %error, "no Event could be made of it");
    }
    Ok(())
}

/// What became of an object that is being deleted.
#[derive(Debug, PartialEq, Eq)]
enum Settled {
    /// It stays for now, and this is why.
    Waits { reason: &'static str, message: String },
    /// There is no key in it any more: nothing holds it.
    LetGo,
}

/// Changes the object to say what there is to say; none where it says so already, or where it is not ours to hold.
fn settled(object: &mut VolumeKey) -> Option<Settled> {
    let held = object.metadata.finalizers.as_ref()?;
    if object.metadata.deletion_timestamp.is_none() || !held.iter().any(|finalizer| finalizer == KEY_IN_USE) {
        return None;
    }
    let (reason, message) = match record_in(object) {
        Ok(record) if record.state == State::Destroyed => {
            let held = object.metadata.finalizers.take().unwrap_or_default();
            object.metadata.finalizers = Some(held.into_iter().filter(|finalizer| finalizer != KEY_IN_USE).collect());
            return Some(Settled::LetGo);
        }
        Ok(record) => (IN_USE, in_use(&record)),
        Err(fault) => (
            NO_RECORD,
            format!(
                "It is kept, because its record may be needed and cannot be read: {fault}. Restore spec.record from a \
                 backup; if the volume is gone for good, remove the finalizer {KEY_IN_USE} by hand."
            ),
        ),
    };
    let status = object.status.as_mut()?;
    match status.conditions.iter_mut().find(|condition| condition.type_ == DELETING) {
        Some(condition) if condition.reason == reason && condition.message == message => return None,
        Some(condition) => {
            reason.clone_into(&mut condition.reason);
            condition.message.clone_from(&message);
        }
        None => status.conditions.push(KeyCondition {
            type_: DELETING.to_owned(),
            status: "False".to_owned(),
            reason: reason.to_owned(),
            message: message.clone(),
            last_transition_time: format!("{:.0}", Timestamp::now()),
        }),
    }
    Some(Settled::Waits { reason, message })
}

fn in_use(record: &Record) -> String {
    let volume = &record.name;
    let what = match (&record.tenant, &record.claim) {
        (Some(namespace), Some(claim)) => {
            format!("PersistentVolumeClaim {namespace}/{claim} (PersistentVolume {volume})")
        }
        _ => format!("PersistentVolume {volume}"),
    };
    format!(
        "The key is in use: without it the data of {what} could not be read again. It is kept, and this deletion waits. \
         To destroy the key, delete the {what}; the VolumeKey goes with it. Nothing else is needed, and the volume works \
         until then."
    )
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

    use super::*;
    use crate::kubernetes::volume_key::{KeyState, VolumeKeySpec, VolumeKeyStatus};

    fn object(finalizers: &[&str], is_deleted: bool) -> VolumeKey {
        VolumeKey {
            metadata: ObjectMeta {
                name: Some("vol-1".to_owned()),
                deletion_timestamp: is_deleted.then_some(Time(Timestamp::UNIX_EPOCH)),
                finalizers: Some(finalizers.iter().map(|&name| name.to_owned()).collect()),
                ..ObjectMeta::default()
            },
            spec: VolumeKeySpec { volume_id: "vol-1".to_owned(), record: "torn".to_owned() },
            status: Some(VolumeKeyStatus {
                state: KeyState::Ready,
                generation: 1,
                provider: "main".to_owned(),
                kek_id: None,
                node: None,
                namespace: None,
                claim: None,
                storage_class: None,
                conditions: Vec::new(),
            }),
        }
    }

    #[test]
    fn what_nobody_deletes_and_what_we_do_not_hold_is_left_alone() {
        for mut object in [object(&[KEY_IN_USE], false), object(&[], true), object(&["another/one"], true)] {
            assert_eq!(settled(&mut object), None);
        }
    }

    #[test]
    fn a_record_that_cannot_be_read_is_held_and_told_once() {
        let mut object = object(&["another/one", KEY_IN_USE], true);
        let Some(Settled::Waits { reason, message }) = settled(&mut object) else { panic!("it is held") };
        assert_eq!(reason, NO_RECORD);
        assert!(message.contains("Restore spec.record"), "{message}");
        let conditions = &object.status.as_ref().expect("a status").conditions;
        assert_eq!((conditions[0].type_.as_str(), conditions[0].status.as_str()), ("Deleting", "False"));
        assert_eq!(object.metadata.finalizers.as_ref().map(Vec::len), Some(2), "a finalizer was taken off");
        assert_eq!(settled(&mut object), None, "it is told twice");
    }
}
