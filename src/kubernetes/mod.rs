//! What Coffer keeps in Kubernetes: its custom resources, and how the API server is reached.
//!
//! The types of the resources make their definitions, and `charts/coffer/templates/crds` holds what they make; a test
//! compares the two. Who holds a volume is not decided here but in `keyservice/kubernetes`.

#[cfg(feature = "node")]
pub mod events;
#[cfg(feature = "node")]
pub mod keeper;
pub mod local_pool;
pub mod local_volume;
#[cfg(feature = "controller")]
pub mod pools;
#[cfg(feature = "keyservice")]
pub mod release;
pub mod volume_key;

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Client, Config, CustomResourceExt};

use local_pool::LocalPool;
use local_volume::LocalVolume;

/// The group of Coffer's custom resources.
pub const GROUP: &str = "coffer.csi";
/// Their version.
pub const VERSION: &str = "v1";
/// How long the API server may say nothing on a connection on which something is asked. A watch is not so long without a
/// word, because bookmarks come each minute.
const READ_TIME: Duration = Duration::from_secs(90);
/// Who has written, as `managedFields` tell it.
pub const FIELD_MANAGER: &str = "coffer";

/// Why there is no connection to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ClientFault {
    /// There is no kubeconfig, and this is no pod.
    #[error("find the Kubernetes API server by KUBECONFIG, or by the pod's service account")]
    Inferred(#[source] Box<kube::config::InferConfigError>),
    /// Certificates, tokens or addresses that make no connection.
    #[error("prepare connections to the Kubernetes API server")]
    Built(#[source] Box<kube::Error>),
}

/// A client of the API server: by a kubeconfig where there is one, else as the pod's service account. Nobody is asked
/// anything yet. Its own retries are off, because whoever calls knows its deadline and what may be asked again.
///
/// # Errors
/// Neither is there, or one does not hold what it should.
pub async fn client() -> Result<Client, ClientFault> {
    client_that_waits(READ_TIME).await
}

/// The same, where a connection may say nothing for so long while something is asked on it.
///
/// # Errors
/// As there.
pub async fn client_that_waits(time: Duration) -> Result<Client, ClientFault> {
    let mut config = Config::infer().await.map_err(|fault| ClientFault::Inferred(Box::new(fault)))?;
    config.default_retry = false;
    // A connection that fell silent is no answer. Without this, a watch that is begun again on one waits until TCP gives up
    // after a quarter of an hour.
    config.read_timeout = Some(time);
    Client::try_from(config).map_err(|fault| ClientFault::Built(Box::new(fault)))
}

/// The definitions of all custom resources, as the chart installs them.
#[must_use]
pub fn custom_resources() -> Vec<CustomResourceDefinition> {
    let mut all = vec![volume_key::definition(), LocalVolume::crd(), LocalPool::crd()];
    for resource in &mut all {
        let metadata = &mut resource.metadata;
        let labels = metadata.labels.get_or_insert_default();
        labels.insert("app.kubernetes.io/name".to_owned(), "coffer".to_owned());
        // With the definition all of its objects go, keys for one: uninstalling the chart leaves it where it is.
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert("helm.sh/resource-policy".to_owned(), "keep".to_owned());
    }
    all
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    const WRITE: &str = "COFFER_WRITE_CRDS";

    #[test]
    fn every_definition_is_ours_and_outlives_the_chart() {
        let names: Vec<_> = custom_resources().into_iter().filter_map(|resource| resource.metadata.name).collect();
        assert_eq!(names, ["volumekeys.coffer.csi", "localvolumes.coffer.csi", "localpools.coffer.csi"]);
        for resource in custom_resources() {
            let spec = &resource.spec;
            assert_eq!((spec.group.as_str(), spec.scope.as_str()), (GROUP, "Cluster"));
            assert!(spec.versions.iter().all(|version| version.name == VERSION && version.schema.is_some()));
            let annotations = resource.metadata.annotations.unwrap_or_default();
            assert_eq!(annotations.get("helm.sh/resource-policy").map(String::as_str), Some("keep"));
        }
    }

    #[test]
    fn a_volume_key_has_no_status_of_its_own_to_write() {
        let definition = volume_key::definition();
        assert!(definition.spec.versions.iter().all(|version| version.subresources.is_none()));
        assert_eq!(volume_key::VolumeKey::crd_name(), definition.metadata.name.unwrap_or_default());
    }

    #[cfg(feature = "keyservice")]
    #[test]
    fn the_charts_definitions_are_those_of_the_types() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/coffer/templates/crds");
        for resource in custom_resources() {
            let path = folder.join(format!("{}.yaml", resource.spec.names.plural));
            let yaml = serde_saphyr::to_string(&resource).expect("a definition can be written");
            assert!(!yaml.contains("{{"), "{}: the chart would take this for a template", path.display());
            let wanted =
                format!("# Made from src/kubernetes: {WRITE}=1 cargo test --lib the_charts_definitions\n{yaml}");
            if std::env::var_os(WRITE).is_some() {
                fs::create_dir_all(&folder).expect("a folder");
                fs::write(&path, &wanted).expect("a file");
            }
            let found = fs::read_to_string(&path).unwrap_or_default();
            assert!(found == wanted, "{} is not what its type says; make it again with {WRITE}=1", path.display());
        }
    }
}
