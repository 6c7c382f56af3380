//! What is kept of the volumes and the attachments of a cluster: who holds what, and nothing else. An object of which
//! there is nothing to keep, because it is another driver's, takes no memory.

use std::{collections::HashMap, fmt::Debug, sync::Arc};

use k8s_openapi::api::{
    core::v1::{CSIPersistentVolumeSource, NodeSelectorTerm, PersistentVolume},
    storage::v1::VolumeAttachment,
};
use kube::Resource;
use serde::de::DeserializeOwned;

/// By which a PersistentVolume requires a node. It is the key of the topology that a node tells of (CSI, NodeGetInfo).
const NODE_KEY: &str = "coffer.csi/node";

/// The CSI drivers whose volumes have keys here.
#[derive(Clone, Debug)]
pub struct Drivers(Arc<[Arc<str>]>);

impl Drivers {
    /// These.
    #[must_use]
    pub fn named(names: &[String]) -> Self {
        Self(names.iter().map(|name| Arc::from(name.as_str())).collect())
    }

    /// A driver's name, where it is one of them.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<str>> {
        self.0.iter().find(|driver| ***driver == *name).cloned()
    }
}

/// What is kept of the objects of a kind.
pub trait Index: Debug + Send + Sync + 'static {
    /// The objects.
    type Object: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static;

    /// Nothing yet, of the volumes of these drivers.
    fn of_drivers(drivers: Drivers) -> Self;

    /// An object is there, or has changed.
    fn apply(&mut self, object: &Self::Object);

    /// An object is gone.
    fn remove(&mut self, object: &Self::Object);
}

/// PersistentVolumes, by their name and by what their driver calls them.
#[derive(Debug)]
pub struct Volumes {
    drivers: Drivers,
    by_name: HashMap<Box<str>, Volume>,
    names: HashMap<Box<str>, Vec<Box<str>>>,
}

#[derive(Debug)]
struct Volume {
    handle: Box<str>,
    driver: Arc<str>,
    nodes: Box<[Box<str>]>,
}

impl Volumes {
    /// The names of the PersistentVolumes with a volume id.
    #[must_use]
    pub fn named(&self, volume_id: &str) -> &[Box<str>] {
        self.names.get(volume_id).map_or(&[][..], Vec::as_slice)
    }

    /// Whether a node holds a volume: one of its PersistentVolumes requires the node, or is attached to it.
    #[must_use]
    pub fn are_held(&self, volume_id: &str, node: &str, attachments: &Attachments) -> bool {
        self.named(volume_id).iter().any(|name| {
            self.by_name.get(name).is_some_and(|volume| {
                volume.nodes.iter().any(|one| **one == *node) || attachments.hold(name, &volume.driver, node)
            })
        })
    }

    fn forget(&mut self, name: &str) {
        let Some(Volume { handle, .. }) = self.by_name.remove(name) else { return };
        let Some(names) = self.names.get_mut(&handle) else { return };
        names.retain(|other| **other != *name);
        if names.is_empty() {
            self.names.remove(&handle);
        }
    }
}

impl Index for Volumes {
    type Object = PersistentVolume;

    fn of_drivers(drivers: Drivers) -> Self {
        Self { drivers, by_name: HashMap::new(), names: HashMap::new() }
    }

    fn apply(&mut self, object: &PersistentVolume) {
        let Some(name) = object.metadata.name.as_deref() else { return };
        self.forget(name);
        let Some(csi) = csi(object) else { return };
        let Some(driver) = self.drivers.find(&csi.driver) else { return };
        let handle: Box<str> = csi.volume_handle.as_str().into();
        add(&mut self.names, &handle, name.into());
        let nodes = required_nodes(object).map(Box::from).collect();
        self.by_name.insert(name.into(), Volume { handle, driver, nodes });
    }

    fn remove(&mut self, object: &PersistentVolume) {
        if let Some(name) = object.metadata.name.as_deref() {
            self.forget(name);
        }
    }
}

/// VolumeAttachments that are not about to go, by the PersistentVolume.
#[derive(Debug)]
pub struct Attachments {
    drivers: Drivers,
    by_volume: HashMap<Box<str>, Vec<Attachment>>,
}

#[derive(Debug)]
struct Attachment {
    name: Box<str>,
    driver: Arc<str>,
    node: Box<str>,
}

impl Attachments {
    fn hold(&self, volume: &str, driver: &str, node: &str) -> bool {
        let attachments = self.by_volume.get(volume).map_or(&[][..], Vec::as_slice);
        attachments.iter().any(|attachment| *attachment.driver == *driver && *attachment.node == *node)
    }
}

impl Index for Attachments {
    type Object = VolumeAttachment;

    fn of_drivers(drivers: Drivers) -> Self {
        Self { drivers, by_volume: HashMap::new() }
    }

    fn apply(&mut self, object: &VolumeAttachment) {
        // What it names never changes (VolumeAttachmentSpec is immutable), so it is found again by that.
        self.remove(object);
        let (Some(name), Some(volume)) = (&object.metadata.name, &object.spec.source.persistent_volume_name) else {
            return;
        };
        let Some(driver) = self.drivers.find(&object.spec.attacher) else { return };
        if object.metadata.deletion_timestamp.is_some() {
            return;
        }
        let attachment = Attachment { name: name.as_str().into(), driver, node: object.spec.node_name.as_str().into() };
        add(&mut self.by_volume, volume, attachment);
    }

    fn remove(&mut self, object: &VolumeAttachment) {
        let (Some(name), Some(volume)) = (&object.metadata.name, &object.spec.source.persistent_volume_name) else {
            return;
        };
        let Some(attachments) = self.by_volume.get_mut(volume.as_str()) else { return };
        attachments.retain(|attachment| *attachment.name != **name);
        if attachments.is_empty() {
            self.by_volume.remove(volume.as_str());
        }
    }
}

/// Adds to a list that mostly has one item, and room for no more.
fn add<T>(lists: &mut HashMap<Box<str>, Vec<T>>, key: &str, item: T) {
    let list = match lists.get_mut(key) {
        Some(list) => list,
        None => lists.entry(key.into()).or_default(),
    };
    list.reserve_exact(1);
    list.push(item);
}

/// What a CSI driver has to say of a volume, where it is a CSI driver's.
pub(super) fn csi(volume: &PersistentVolume) -> Option<&CSIPersistentVolumeSource> {
    volume.spec.as_ref()?.csi.as_ref()
}

/// The nodes that a volume requires by their name: each is enough for one of its terms (NodeSelector: terms are ORed,
/// their requirements ANDed). A term that says anything else counts for nothing: it might not mean the node.
pub(super) fn required_nodes(volume: &PersistentVolume) -> impl Iterator<Item = &str> {
    let required = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
    required.into_iter().flat_map(|selector| &selector.node_selector_terms).flat_map(named_by)
}

fn named_by(term: &NodeSelectorTerm) -> Vec<&str> {
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let is_known = expressions.iter().all(|expression| expression.key == NODE_KEY && expression.operator == "In");
    let mut values = expressions.iter().map(|expression| expression.values.as_deref().unwrap_or_default());
    let Some(first) = values.next().filter(|_| fields.is_empty() && is_known) else { return Vec::new() };
    let rest: Vec<_> = values.collect();
    first.iter().filter(|node| rest.iter().all(|values| values.contains(node))).map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn drivers() -> Drivers {
        Drivers::named(&["coffer.csi".to_owned(), "ebs.csi".to_owned()])
    }

    fn volume(name: &str, driver: &str, handle: &str, terms: &Value) -> PersistentVolume {
        let affinity = terms.as_array().map(|terms| json!({ "required": { "nodeSelectorTerms": terms } }));
        serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": { "csi": { "driver": driver, "volumeHandle": handle }, "nodeAffinity": affinity },
        }))
        .expect("a PersistentVolume")
    }

    fn attachment(name: &str, driver: &str, volume: &str, node: &str) -> VolumeAttachment {
        serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": { "attacher": driver, "nodeName": node, "source": { "persistentVolumeName": volume } },
        }))
        .expect("a VolumeAttachment")
    }

    fn expression(operator: &str, nodes: &[&str]) -> Value {
        json!({ "key": NODE_KEY, "operator": operator, "values": nodes })
    }

    fn requires(terms: &Value) -> Vec<String> {
        required_nodes(&volume("pv", "coffer.csi", "v", terms)).map(str::to_owned).collect()
    }

    #[test]
    fn a_term_names_a_node_only_where_it_says_nothing_else() {
        let of = |expressions: Value| requires(&json!([{ "matchExpressions": expressions }]));
        assert_eq!(of(json!([expression("In", &["n1"])])), ["n1"]);
        assert_eq!(of(json!([expression("In", &["n1", "n2"]), expression("In", &["n2", "n3"])])), ["n2"]);
        for operator in ["NotIn", "Exists", "DoesNotExist", "Gt"] {
            assert!(of(json!([expression(operator, &["n1"])])).is_empty(), "{operator}");
        }
        let zone = json!({ "key": "topology.kubernetes.io/zone", "operator": "In", "values": ["n1"] });
        assert!(of(json!([zone])).is_empty());
        assert!(of(json!([expression("In", &["n1"]), zone])).is_empty());
        assert!(of(json!([])).is_empty());
        assert!(of(json!([{ "key": NODE_KEY, "operator": "In" }])).is_empty());
        assert!(requires(&Value::Null).is_empty());
        let field = json!({ "key": "metadata.name", "operator": "In", "values": ["n1"] });
        assert!(requires(&json!([{ "matchFields": [field] }])).is_empty());
        assert!(
            requires(&json!([{ "matchExpressions": [expression("In", &["n1"])], "matchFields": [field] }])).is_empty()
        );
        let two = json!([{ "matchExpressions": [zone] }, { "matchExpressions": [expression("In", &["n4"])] }]);
        assert_eq!(requires(&two), ["n4"]);
    }

    #[test]
    fn a_volume_is_held_by_the_node_that_it_requires_and_by_the_one_that_it_is_attached_to() {
        let (mut volumes, mut attachments) = (Volumes::of_drivers(drivers()), Attachments::of_drivers(drivers()));
        let local = volume("pv-1", "coffer.csi", "v-1", &json!([{ "matchExpressions": [expression("In", &["n1"])] }]));
        volumes.apply(&local);
        volumes.apply(&volume("pv-2", "ebs.csi", "v-2", &Value::Null));
        volumes.apply(&volume("pv-3", "other.csi", "v-3", &Value::Null));
        attachments.apply(&attachment("a-2", "ebs.csi", "pv-2", "n1"));
        attachments.apply(&attachment("a-3", "other.csi", "pv-3", "n1"));
        for (volume, node, is_held) in [
            ("v-1", "n1", true),
            ("v-1", "n2", false),
            ("v-2", "n1", true),
            ("v-2", "n2", false),
            ("v-3", "n1", false),
            ("v-4", "n1", false),
            ("pv-1", "n1", false),
        ] {
            assert_eq!(volumes.are_held(volume, node, &attachments), is_held, "{volume} on {node}");
        }
        // Another driver's attachment of the same PersistentVolume is none.
        attachments.apply(&attachment("a-4", "coffer.csi", "pv-2", "n2"));
        assert!(!volumes.are_held("v-2", "n2", &attachments));
    }

    #[test]
    fn what_changes_or_goes_is_not_held_any_more() {
        let (mut volumes, mut attachments) = (Volumes::of_drivers(drivers()), Attachments::of_drivers(drivers()));
        let on = |node: &str| {
            volume("pv-1", "coffer.csi", "v-1", &json!([{ "matchExpressions": [expression("In", &[node])] }]))
        };
        volumes.apply(&on("n1"));
        volumes.apply(&on("n2"));
        assert!(!volumes.are_held("v-1", "n1", &attachments) && volumes.are_held("v-1", "n2", &attachments));
        volumes.remove(&on("n2"));
        assert!(!volumes.are_held("v-1", "n2", &attachments));
        assert!(volumes.by_name.is_empty() && volumes.names.is_empty());

        volumes.apply(&volume("pv-2", "ebs.csi", "v-2", &Value::Null));
        let mut going = attachment("a-2", "ebs.csi", "pv-2", "n1");
        attachments.apply(&going);
        attachments.apply(&attachment("a-3", "ebs.csi", "pv-2", "n2"));
        going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time");
        attachments.apply(&going);
        assert!(!volumes.are_held("v-2", "n1", &attachments) && volumes.are_held("v-2", "n2", &attachments));
        attachments.remove(&attachment("a-3", "ebs.csi", "pv-2", "n2"));
        assert!(attachments.by_volume.is_empty());
    }

    #[test]
    fn a_volume_with_two_names_is_held_through_either() {
        let (mut volumes, mut attachments) = (Volumes::of_drivers(drivers()), Attachments::of_drivers(drivers()));
        volumes.apply(&volume("pv-1", "ebs.csi", "v-1", &Value::Null));
        volumes.apply(&volume("pv-2", "ebs.csi", "v-1", &Value::Null));
        attachments.apply(&attachment("a-2", "ebs.csi", "pv-2", "n1"));
        assert!(volumes.are_held("v-1", "n1", &attachments));
        volumes.remove(&volume("pv-1", "ebs.csi", "v-1", &Value::Null));
        assert!(volumes.are_held("v-1", "n1", &attachments));
    }
}
