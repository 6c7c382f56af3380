//! The volumes of a cluster, from its API server, page by page: the PersistentVolumes of some drivers, and LocalVolumes.
//! Of each object only what is compared is kept.

use std::{error::Error, fmt::Debug, time::Duration};

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, ObjectList},
};
use serde::de::DeserializeOwned;

use crate::{
    admin::{
        inventory::lists::{Cluster, Local, Looked, Persistent},
        progress::Progress,
    },
    kubernetes::local_volume::{LocalVolume, Phase},
    server::rpc,
};

/// How many objects are asked for at once, and how long that may take.
const PAGE: u32 = 500;
const PAGE_TIME: Duration = Duration::from_secs(60);
/// The attribute of a volume that lies on a device of its node (`csi::request::CONTEXT_DEVICE`).
const DEVICE: &str = "device";
/// The phase of a PersistentVolume whose claim is gone, and what becomes of such a one (Kubernetes, Persistent Volumes).
const RELEASED: &str = "Released";
const DELETE: &str = "Delete";

/// Why a list was not read.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error("the API server did not answer within {PAGE_TIME:?}")]
    Late,
    #[error("the API server does not list {what}; may whoever asks do that?")]
    Refused {
        what: &'static str,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// No such resource is installed.
    #[error("there is no such custom resource in this cluster")]
    Absent,
}

/// Reads them: PersistentVolumes first, because each has its LocalVolume before. It needs `list` of persistentvolumes and
/// of localvolumes.coffer.csi, and tells of each that it cannot read.
pub async fn read(client: Client, drivers: &[String], progress: &mut Progress) -> Cluster {
    let volumes = Api::<PersistentVolume>::all(client.clone());
    let persistent = each(&volumes, "PersistentVolumes", progress, |volume| persistent(volume, drivers)).await;
    let local = each(&Api::<LocalVolume>::all(client), "LocalVolumes", progress, |volume| Some(local(volume))).await;
    Cluster { persistent, local }
}

async fn each<K, T>(
    api: &Api<K>,
    what: &'static str,
    progress: &mut Progress,
    keep: impl Fn(K) -> Option<T>,
) -> Looked<Vec<T>>
where
    K: Clone + DeserializeOwned + Debug,
{
    let (mut kept, mut seen, mut token) = (Vec::new(), 0, None);
    progress.begin(None);
    let looked = loop {
        let page = match tokio::time::timeout(PAGE_TIME, page(api, token)).await {
            Ok(Ok(page)) => page,
            Ok(Err(error)) => break unread(refused(what, error)),
            Err(_) => break unread(Unread::Late),
        };
        seen += page.items.len();
        kept.extend(page.items.into_iter().filter_map(&keep));
        progress.at(seen, || format!("{seen} {what} read"));
        token = page.metadata.continue_.filter(|token| !token.is_empty());
        if token.is_none() {
            break Looked::At(kept);
        }
    };
    progress.done();
    looked
}

async fn page<K>(api: &Api<K>, token: Option<String>) -> kube::Result<ObjectList<K>>
where
    K: Clone + DeserializeOwned + Debug,
{
    let params = ListParams { limit: Some(PAGE), continue_token: token, ..ListParams::default() };
    let expired = match api.list(&params).await {
        Err(kube::Error::Api(status)) if status.code == 410 => status,
        answer => return answer,
    };
    // The list as it was is not kept any more. The answer says how to go on from the same name in the list as it is.
    let Some(token) = expired.metadata.as_ref().and_then(|metadata| metadata.continue_.clone()) else {
        return Err(kube::Error::Api(expired));
    };
    api.list(&ListParams { continue_token: Some(token), ..params }).await
}

fn refused(what: &'static str, error: kube::Error) -> Unread {
    let source: Box<dyn Error + Send + Sync> = match error {
        kube::Error::Api(status) if status.code == 404 => return Unread::Absent,
        // What the API server says itself, without what is around it.
        kube::Error::Api(status) => status,
        other => Box::new(other),
    };
    Unread::Refused { what, source }
}

fn unread<T>(unread: Unread) -> Looked<T> {
    match unread {
        Unread::Absent => Looked::Passed(unread.to_string()),
        Unread::Late | Unread::Refused { .. } => Looked::Failed(rpc::message(&unread)),
    }
}

/// What is kept of a PersistentVolume, where it is one of these drivers.
fn persistent(volume: PersistentVolume, drivers: &[String]) -> Option<Persistent> {
    let spec = volume.spec?;
    let csi = spec.csi.filter(|csi| drivers.contains(&csi.driver))?;
    let phase = volume.status.and_then(|status| status.phase);
    let is_deleted = spec.persistent_volume_reclaim_policy.as_deref() == Some(DELETE);
    Some(Persistent {
        name: volume.metadata.name.unwrap_or_default(),
        claim: spec.claim_ref.and_then(|claim| Some(format!("{}/{}", claim.namespace?, claim.name?))),
        is_device: csi.volume_attributes.is_some_and(|attributes| attributes.contains_key(DEVICE)),
        is_leaving: volume.metadata.deletion_timestamp.is_some() || is_deleted && phase.as_deref() == Some(RELEASED),
        driver: csi.driver,
        handle: csi.volume_handle,
    })
}

fn local(volume: LocalVolume) -> Local {
    Local {
        name: volume.name_any(),
        created: volume.metadata.creation_timestamp.as_ref().map(|time| time.0),
        is_made: volume.was_made(),
        is_failed: volume.phase() == Phase::Failed,
        message: volume.message().to_owned(),
        is_leaving: volume.is_leaving(),
        node: volume.spec.node_name,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn kept(policy: &str, phase: &str, attributes: &Value) -> Option<Persistent> {
        let volume = json!({
            "metadata": { "name": "pv-1" },
            "spec": {
                "claimRef": { "namespace": "shop", "name": "data" },
                "csi": { "driver": "coffer.csi", "volumeHandle": "vol-1", "volumeAttributes": attributes },
                "persistentVolumeReclaimPolicy": policy,
            },
            "status": { "phase": phase },
        });
        persistent(serde_json::from_value(volume).expect("a PersistentVolume"), &["coffer.csi".to_owned()])
    }

    #[test]
    fn what_is_kept_of_a_persistent_volume_is_what_is_compared() {
        let pool = kept("Delete", "Bound", &json!({ "source": "local" })).expect("it is one of ours");
        assert_eq!(
            (pool.name.as_str(), pool.handle.as_str(), pool.claim.as_deref()),
            ("pv-1", "vol-1", Some("shop/data"))
        );
        assert!(!pool.is_device && !pool.is_leaving, "{pool:?}");
        let device = kept("Retain", "Released", &json!({ "source": "device", "device": "/dev/sdb" }));
        assert!(device.is_some_and(|device| device.is_device && !device.is_leaving), "it is retained");
        assert!(kept("Delete", "Released", &Value::Null).is_some_and(|volume| volume.is_leaving));
        let other = json!({ "metadata": { "name": "pv-2" }, "spec": { "csi": { "driver": "ebs.csi", "volumeHandle": "vol-1" } } });
        let other = serde_json::from_value(other).expect("a PersistentVolume");
        assert_eq!(persistent(other, &["coffer.csi".to_owned()]), None);
    }

    #[cfg(feature = "node")]
    #[test]
    fn the_attribute_of_devices_is_that_of_the_driver() {
        assert_eq!(DEVICE, crate::csi::request::CONTEXT_DEVICE);
    }

    #[test]
    fn a_resource_that_is_not_installed_is_no_failure_and_a_refusal_is_one() {
        let answer = |code| kube::Error::Api(Box::new(kube::core::Status::failure("it says no", "").with_code(code)));
        assert!(matches!(unread::<()>(refused("LocalVolumes", answer(404))), Looked::Passed(_)));
        let Looked::Failed(why) = unread::<()>(refused("LocalVolumes", answer(403))) else { panic!("it is a failure") };
        assert!(why.contains("does not list LocalVolumes") && why.contains("it says no"), "{why}");
    }
}
