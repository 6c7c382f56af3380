//! The custom resource `LocalPool`: how much room a node has for local volumes, as the node itself says. The controller
//! answers GetCapacity from it, and chooses by it where nothing else chooses.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The pool of a node; the resource has the node's name. There is nothing to ask of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "coffer.csi",
    version = "v1",
    kind = "LocalPool",
    plural = "localpools",
    singular = "localpool",
    no_spec,
    status = "LocalPoolStatus",
    derive = "PartialEq",
    doc = "The room that a node has for local volumes, as the node says.",
    printcolumn(name = "Available", type_ = "integer", json_path = ".status.availableBytes"),
    printcolumn(name = "Updated", type_ = "date", json_path = ".status.updated")
)]
pub struct LocalPoolFields {}

/// What the node says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalPoolStatus {
    /// Bytes that are promised to nobody.
    #[schemars(range(min = 0))]
    pub available_bytes: i64,
    /// When it was last another number (RFC 3339).
    #[schemars(extend("format" = "date-time"))]
    pub updated: String,
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;

    #[test]
    fn a_pool_has_a_status_and_nothing_else() {
        let definition = serde_json::to_value(LocalPool::crd()).expect("a definition");
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        let properties: Vec<_> = schema.as_object().expect("properties").keys().collect();
        assert_eq!(properties, ["status"]);
        assert_eq!(schema["status"]["properties"]["availableBytes"]["type"], "integer");
        let written = serde_json::to_value(LocalPool::new("n1", LocalPoolFields {})).expect("it is written");
        let read: LocalPool = serde_json::from_value(written).expect("it is read back");
        assert_eq!(read, LocalPool::new("n1", LocalPoolFields {}));
    }
}
