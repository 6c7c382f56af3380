//! What says who holds what: PersistentVolumes, VolumeAttachments and Pods, as provisioners, the attach/detach
//! controller and kubelets make them.

use anyhow::{Context, Result};
use coffer::volume::hex;
use k8s_openapi::api::{
    core::v1::{PersistentVolume, Pod},
    storage::v1::VolumeAttachment,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Who makes them.
pub(super) struct Objects {
    pub(super) client: Client,
}

impl Objects {
    /// A PersistentVolume of a driver; with nodes, one that requires any of them.
    pub(super) async fn volume(&self, name: &str, driver: &str, handle: &str, nodes: &[&str]) -> Result<()> {
        let expression = json!({ "key": "coffer.csi/node", "operator": "In", "values": nodes });
        let affinity = match nodes {
            [] => Value::Null,
            _ => json!({ "required": { "nodeSelectorTerms": [{ "matchExpressions": [expression] }] } }),
        };
        let volume: PersistentVolume = serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": {
                "capacity": { "storage": "1Gi" },
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "csi": { "driver": driver, "volumeHandle": handle },
                "nodeAffinity": affinity,
            },
        }))?;
        self.volumes().create(&PostParams::default(), &volume).await.with_context(|| format!("make {name}"))?;
        Ok(())
    }

    /// Takes a PersistentVolume away.
    pub(super) async fn delete_volume(&self, name: &str) -> Result<()> {
        self.volumes().delete(name, &DeleteParams::default()).await?;
        // Whoever protects it from being deleted while a claim uses it has nothing to do here.
        self.volumes().patch(name, &PatchParams::default(), &without_finalizers()).await.map(drop).or_else(missing)
    }

    /// Attaches a volume to a node, as the attach/detach controller does it; returns the attachment's name.
    pub(super) async fn attach(&self, volume: &str, driver: &str, handle: &str, node: &str) -> Result<String> {
        let name = format!("csi-{}", hex(&Sha256::digest(format!("{handle}{driver}{node}").as_bytes())));
        let attachment: VolumeAttachment = serde_json::from_value(json!({
            "metadata": { "name": name, "finalizers": ["external-attacher/test"] },
            "spec": { "attacher": driver, "nodeName": node, "source": { "persistentVolumeName": volume } },
        }))?;
        self.attachments()
            .create(&PostParams::default(), &attachment)
            .await
            .with_context(|| format!("attach {volume}"))?;
        Ok(name)
    }

    /// Begins to detach: the attachment goes when its attacher is done.
    pub(super) async fn begin_detach(&self, attachment: &str) -> Result<()> {
        self.attachments().delete(attachment, &DeleteParams::default()).await?;
        let found = self.attachments().get(attachment).await?;
        found.metadata.deletion_timestamp.map(drop).context("it is not about to go")
    }

    /// Detaches.
    pub(super) async fn detach(&self, attachment: &str) -> Result<()> {
        self.begin_detach(attachment).await?;
        self.attachments().patch(attachment, &PatchParams::default(), &without_finalizers()).await?;
        Ok(())
    }

    /// A Pod that no scheduler has given a node.
    pub(super) async fn pod_without_node(&self, namespace: &str, account: &str, name: &str) -> Result<()> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": {
                "serviceAccountName": account,
                "automountServiceAccountToken": false,
                "containers": [{ "name": "main", "image": "localhost/shell:test" }],
            },
        }))?;
        Api::<Pod>::namespaced(self.client.clone(), namespace).create(&PostParams::default(), &pod).await?;
        Ok(())
    }

    /// Takes a Pod away at once.
    pub(super) async fn delete_pod(&self, namespace: &str, name: &str) -> Result<()> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        pods.delete(name, &DeleteParams::default().grace_period(0)).await?;
        Ok(())
    }

    fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    fn attachments(&self) -> Api<VolumeAttachment> {
        Api::all(self.client.clone())
    }
}

fn without_finalizers() -> Patch<Value> {
    Patch::Merge(json!({ "metadata": { "finalizers": null } }))
}

fn missing(error: kube::Error) -> Result<()> {
    match error {
        kube::Error::Api(status) if status.is_not_found() => Ok(()),
        error => Err(error.into()),
    }
}
