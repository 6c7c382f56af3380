//! The custom resource `VolumeKey`: a volume's key record as an object of the API server. It holds a wrapped key and
//! no plaintext one. What it means, is in `key/record.rs`; how it is written, in `key/store/kubernetes.rs`.
//!
//! Record and status are one object without a status subresource, so that each change is one compare-and-swap by
//! `resourceVersion` and the status never tells another state than the record. The status is for people and printer
//! columns: nothing reads it to decide anything.

#![allow(clippy::duplicated_attributes, reason = "columns of one type are no duplicates")]

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResource, CustomResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::volume::{VolumeId, hex};

/// The finalizer that a VolumeKey has until its key is destroyed. Deleting the object waits for it (Kubernetes:
/// finalizers), so that no key is lost by `kubectl delete`.
pub const KEY_IN_USE: &str = "coffer.csi/key-in-use";

/// The condition that tells why a deletion does not come to its end.
pub const DELETING: &str = "Deleting";

/// The longest DNS label (RFC 1123, section 2.1), in bytes.
const LABEL_BYTES: usize = 63;

/// The key record of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "coffer.csi",
    version = "v1",
    kind = "VolumeKey",
    plural = "volumekeys",
    singular = "volumekey",
    shortname = "vk",
    status = "VolumeKeyStatus",
    derive = "PartialEq",
    doc = "The key record of an encrypted volume. It is made, changed and destroyed by Coffer's key service alone.",
    selectable = ".spec.volumeId",
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Provider", type_ = "string", json_path = ".status.provider"),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.node"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".status.namespace"),
    printcolumn(name = "Claim", type_ = "string", json_path = ".status.claim"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct VolumeKeySpec {
    /// The volume, by its CSI volume id. It never changes.
    #[schemars(length(min = 1, max = 512))]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self == oldSelf",
        "message": "a record belongs to one volume for good"
    }]))]
    pub volume_id: String,
    /// The record: JSON in the one form that Coffer writes, with a MAC over every field. The key in it is wrapped, or
    /// derived from the cluster key. Any edit makes it unreadable.
    #[schemars(length(min = 1, max = 262144))]
    pub record: String,
}

/// What the record says, for people. Coffer writes it with each change of the record and does not read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeKeyStatus {
    /// How far the volume has come.
    pub state: KeyState,
    /// Counts the keys that the volume id has had, from 1.
    pub generation: i64,
    /// The provider that holds the KEK, by its name in Coffer's configuration.
    pub provider: String,
    /// The KEK, as its provider names it. None where the key is destroyed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kek_id: Option<String>,
    /// The node that alone may have the key. None where any node that holds the volume may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The namespace of the claim, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The claim, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// The StorageClass, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// What somebody should know and can do something about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<KeyCondition>,
}

/// How far a volume has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    /// The key exists; nothing was written to a device.
    Prepared,
    /// A node formats the device, or broke off while it did.
    Formatting,
    /// The volume holds its user's data.
    Ready,
    /// The key is gone for good.
    Destroyed,
}

/// A condition, as Kubernetes has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyCondition {
    /// What it is about.
    #[serde(rename = "type")]
    pub type_: String,
    /// True, False or Unknown.
    pub status: String,
    /// Why, in one word.
    pub reason: String,
    /// Why, and what to do.
    pub message: String,
    /// When the status was last another.
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
}

impl VolumeKey {
    /// The name of a volume's object: its id where that is a DNS label, else `id-` and the SHA-256 of the id. No two
    /// volumes share one, because a hash is too long for a label.
    #[must_use]
    pub fn name_of(volume_id: &VolumeId) -> String {
        let id = volume_id.as_str();
        if is_label(id) { id.to_owned() } else { format!("id-{}", hex(&Sha256::digest(id.as_bytes()))) }
    }
}

/// The definition of the resource.
#[must_use]
pub fn definition() -> CustomResourceDefinition {
    let mut definition = VolumeKey::crd();
    for version in &mut definition.spec.versions {
        version.subresources = None;
    }
    definition
}

/// Whether a text is a DNS label: 1 to 63 of `a-z`, `0-9` and `-`, with neither end a `-`.
#[must_use]
pub fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=LABEL_BYTES).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_the_volumes_name_where_kubernetes_would_take_it_and_a_hash_otherwise() {
        let name = |id: &str| VolumeKey::name_of(&id.parse().expect("an id"));
        assert_eq!(name("vol-1"), "vol-1");
        assert_eq!(name(&"a".repeat(63)), "a".repeat(63));
        let hashed = name("UPPER");
        assert_eq!(hashed, format!("id-{}", hex(&Sha256::digest(b"UPPER"))));
        assert_eq!(name(&hashed).len(), hashed.len(), "an id that looks like a hash is hashed");
        assert_ne!(name(&hashed), hashed);
        for id in ["-a", "a-", ".", "..", "a.b", "ünïcode", "projects/p/zones/z/disks/d", &"a".repeat(64)] {
            assert!(name(id).starts_with("id-"), "{id}: {}", name(id));
        }
    }

    #[test]
    fn the_schema_has_each_field_with_its_type_and_says_what_it_is() {
        let definition = serde_json::to_value(definition()).expect("a definition");
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let spec = &schema["properties"]["spec"];
        assert_eq!(spec["required"], serde_json::json!(["record", "volumeId"]));
        assert_eq!(spec["properties"]["volumeId"]["x-kubernetes-validations"][0]["rule"], "self == oldSelf");
        let status = &schema["properties"]["status"]["properties"];
        let states = serde_json::json!(["prepared", "formatting", "ready", "destroyed"]);
        assert_eq!(status["state"]["enum"], states, "{status}");
        for (name, field) in status.as_object().expect("fields") {
            assert!(field["type"].is_string() && field["description"].is_string(), "{name}: {field}");
        }
        let columns = definition["spec"]["versions"][0]["additionalPrinterColumns"].as_array().expect("columns");
        let names: Vec<_> = columns.iter().filter_map(|column| column["name"].as_str()).collect();
        assert_eq!(names, ["State", "Provider", "Node", "Namespace", "Claim", "Age"]);
    }
}
