//! The custom resource `LocalVolume`: that a node is to have a file, and what the node says of it. The controller makes
//! and deletes it, the node that it names does the work (`keeper`).
//!
//! The finalizer says that there may be a file. The node sets it before it makes one and takes it away when there is none
//! any more, so that a node that is away neither loses a volume nor leaves one behind, and a volume that a node has never
//! seen goes at once.

#![allow(clippy::duplicated_attributes, reason = "columns of one type are no duplicates")]

use std::collections::BTreeMap;

use kube::{CustomResource, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::volume::VolumeId;

/// The finalizer that a LocalVolume has while there may be a file (Kubernetes: finalizers).
pub const FILE: &str = "coffer.csi/file";

/// The label with the node's name, for people: `kubectl get localvolumes -l coffer.csi/node=NAME`.
pub const NODE_LABEL: &str = "coffer.csi/node";

/// A file that a node is to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "coffer.csi",
    version = "v1",
    kind = "LocalVolume",
    plural = "localvolumes",
    singular = "localvolume",
    shortname = "lv",
    status = "LocalVolumeStatus",
    derive = "PartialEq",
    doc = "The file of a local volume, on the node that has it. Delete the PersistentVolumeClaim, and never this.",
    selectable = ".spec.nodeName",
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Bytes", type_ = "integer", json_path = ".status.sizeBytes"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct LocalVolumeSpec {
    /// The node, by its name. It never changes.
    #[schemars(length(min = 1, max = 253))]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self == oldSelf",
        "message": "a local volume stays on its node"
    }]))]
    pub node_name: String,
    /// The size that the file is to have, in bytes, with the LUKS header.
    #[schemars(range(min = 1))]
    pub size_bytes: i64,
}

/// What the node says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalVolumeStatus {
    /// How far the file has come.
    pub phase: Phase,
    /// The size that the file has in bytes. None where it was never made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// What stands in the way, and what to do. None where nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The generation of the resource that this is said of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// How far a file has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// It is not made yet.
    #[default]
    Pending,
    /// It is there, as large as it is to be.
    Ready,
    /// It does not fit: it is not there, or is not grown.
    Full,
    /// It cannot be made, or is gone.
    Failed,
}

impl LocalVolume {
    /// The resource of a new volume. Its name is the volume's id.
    #[must_use]
    pub fn of(volume_id: &VolumeId, node: &str, bytes: u64) -> Self {
        let spec = LocalVolumeSpec { node_name: node.to_owned(), size_bytes: signed(bytes) };
        let mut volume = Self::new(volume_id.as_str(), spec);
        volume.metadata.labels = Some(BTreeMap::from([(NODE_LABEL.to_owned(), node.to_owned())]));
        volume
    }

    /// The size that the file is to have, in bytes.
    #[must_use]
    pub fn wanted_bytes(&self) -> u64 {
        unsigned(self.spec.size_bytes)
    }

    /// The size that the file has in bytes, as the node says; none where there is no file.
    #[must_use]
    pub fn made_bytes(&self) -> Option<u64> {
        let status = self.status.as_ref()?;
        let is_there = matches!(status.phase, Phase::Ready | Phase::Full);
        status.size_bytes.map(unsigned).filter(|bytes| is_there && *bytes > 0)
    }

    /// Whether the node has ever said that the file is there.
    #[must_use]
    pub fn was_made(&self) -> bool {
        self.status.as_ref().and_then(|status| status.size_bytes).is_some_and(|bytes| bytes > 0)
    }

    /// What the node says of the file as it is asked for now; Pending where it has said nothing of that yet.
    #[must_use]
    pub fn phase(&self) -> Phase {
        let seen = self.status.as_ref().filter(|status| status.observed_generation == self.metadata.generation);
        seen.map_or(Phase::Pending, |status| status.phase)
    }

    /// What the node said last; empty where it said nothing.
    #[must_use]
    pub fn message(&self) -> &str {
        self.status.as_ref().and_then(|status| status.message.as_deref()).unwrap_or_default()
    }

    /// Whether it is being deleted.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Whether there may be a file.
    #[must_use]
    pub fn has_finalizer(&self) -> bool {
        self.finalizers().iter().any(|name| name == FILE)
    }
}

/// Bytes as Kubernetes' schemas have them.
pub(crate) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Bytes as the rest of the program has them.
pub(crate) fn unsigned(bytes: i64) -> u64 {
    u64::try_from(bytes).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;

    fn volume() -> LocalVolume {
        let mut volume = LocalVolume::of(&"vol-1".parse().expect("an id"), "n1", 4096);
        volume.metadata.generation = Some(2);
        volume
    }

    #[test]
    fn what_the_node_said_of_another_size_is_not_said_of_this_one() {
        let mut volume = volume();
        assert_eq!((volume.phase(), volume.made_bytes(), volume.message()), (Phase::Pending, None, ""));
        let said = |phase, observed| LocalVolumeStatus {
            phase,
            size_bytes: Some(4096),
            message: None,
            observed_generation: Some(observed),
        };
        volume.status = Some(said(Phase::Full, 1));
        assert_eq!((volume.phase(), volume.made_bytes()), (Phase::Pending, Some(4096)));
        volume.status = Some(said(Phase::Ready, 2));
        assert_eq!((volume.phase(), volume.made_bytes()), (Phase::Ready, Some(4096)));
        volume.status = Some(said(Phase::Failed, 2));
        assert_eq!((volume.made_bytes(), volume.was_made()), (None, true), "the file was there and is gone");
    }

    #[test]
    fn the_definition_has_a_status_of_its_own_and_a_node_that_stays() {
        let definition = serde_json::to_value(LocalVolume::crd()).expect("a definition");
        let version = &definition["spec"]["versions"][0];
        assert!(version["subresources"]["status"].is_object(), "{version}");
        assert_eq!(version["selectableFields"][0]["jsonPath"], ".spec.nodeName");
        let schema = &version["schema"]["openAPIV3Schema"]["properties"];
        assert_eq!(schema["spec"]["properties"]["nodeName"]["x-kubernetes-validations"][0]["rule"], "self == oldSelf");
        assert_eq!(schema["spec"]["required"], serde_json::json!(["nodeName", "sizeBytes"]));
        let phases = serde_json::json!(["Pending", "Ready", "Full", "Failed"]);
        assert_eq!(schema["status"]["properties"]["phase"]["enum"], phases);
    }
}
