//! The installation: images, values, Helm.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};
use testbed::{
    cloud::plan::{self, Running},
    kube::{
        cluster::Cluster,
        network::{self, MACHINE},
    },
};

use crate::world::{SYSTEM, TENANT, World};

/// The provider of both installations: the chart calls its cluster key so.
pub(crate) const PROVIDER: &str = "main";
/// The tenant's claim that a policy gives this provider and no other; the policy is called so, too.
pub(crate) const STRICT: &str = "strict";

/// Who wraps keys, and where records lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Providers {
    /// What the chart makes of itself: a cluster key, and records as VolumeKey resources.
    ClusterKey,
    /// OpenBao's transit and an S3 server.
    TransitS3,
}

impl Providers {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ClusterKey => "cluster-key",
            Self::TransitS3 => "transit-s3",
        }
    }

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::ClusterKey => "a cluster key and records in Kubernetes",
            Self::TransitS3 => "OpenBao's transit and records on an S3 server",
        }
    }
}

/// Puts the images of all containers into the work folder.
pub(crate) fn images(work: &Path) -> Result<()> {
    let (folder, project) = (work.join("images"), testbed::project());
    fs::create_dir_all(&folder)?;
    for name in ["coffer.tar", "coffer-node.tar"] {
        let image = project.join("target/images").join(name);
        ensure!(image.is_file(), "there is no {}: `make images` makes it", image.display());
        // A guest that has a /tmp of its own does not see where a link leads, but sees the work folder.
        fs::copy(&image, folder.join(name)).with_context(|| format!("copy {}", image.display()))?;
    }
    let made =
        Command::new(project.join("tests/kube/images")).arg(&folder).output().context("start tests/kube/images")?;
    ensure!(made.status.success(), "tests/kube/images: {}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

/// Writes the chart's values, and starts what they name.
pub(crate) async fn values(cluster: &Cluster, providers: Providers) -> Result<(PathBuf, Vec<Running>)> {
    let image = |name: &str| json!({ "registry": "localhost", "repository": name, "tag": "test" });
    let mut values = json!({
        "images": {
            "pullPolicy": "Never",
            "provisioner": image("csi-provisioner"),
            "resizer": image("csi-resizer"),
            "test": image("shell"),
        },
        // A guest has no udev, and device-mapper's programs are not to wait for one.
        "node": { "udev": false, "extraEnv": [{ "name": "DM_DISABLE_UDEV", "value": "1" }] },
        "policies": [{
            "name": STRICT,
            "match": { "namespace": TENANT, "claim": STRICT },
            "provider": PROVIDER,
            "mandatory": true,
        }],
    });
    let mut servers = Vec::new();
    if providers == Providers::TransitS3 {
        let (kms, kms_server) = plan::provider("transit", cluster.work()).await?;
        let (store, store_server) = plan::store("s3", cluster.work()).await?;
        network::show_servers(&plan::ports([&kms, &store])).await?;
        values["clusterId"] = plan::CLUSTER.into();
        values["providers"][PROVIDER] = shown(cluster, PROVIDER, kms.config).await?;
        values["store"] = shown(cluster, "store", store.config).await?;
        servers.extend([kms_server, store_server]);
    }
    let file = cluster.work().join("values.json");
    fs::write(&file, serde_json::to_vec_pretty(&values)?)?;
    Ok((file, servers))
}

/// A part of the configuration as a Pod can use it: its files are in a Secret, and its servers at an address that nodes
/// reach.
async fn shown(cluster: &Cluster, name: &str, mut config: Value) -> Result<Value> {
    let mut files = Map::new();
    show(&mut config, name, &mut files)?;
    let secret = format!("coffer-{name}");
    let object = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": secret, "namespace": SYSTEM },
        "data": files,
    });
    cluster.apply(&object.to_string()).await?;
    config["existingSecret"] = secret.into();
    Ok(config)
}

fn show(value: &mut Value, name: &str, files: &mut Map<String, Value>) -> Result<()> {
    match value {
        Value::String(text) if Path::new(text).is_absolute() => {
            let file = Path::new(text).file_name().context("a file has a name")?.display().to_string();
            files.insert(file.clone(), BASE64_STANDARD.encode(fs::read(&*text)?).into());
            *text = format!("secrets/{name}/{file}");
        }
        Value::String(text) => *text = text.replace("127.0.0.1", &MACHINE.to_string()),
        Value::Array(items) => items.iter_mut().try_for_each(|item| show(item, name, files))?,
        Value::Object(map) => map.values_mut().try_for_each(|item| show(item, name, files))?,
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    Ok(())
}

pub(crate) async fn install(world: &mut World) -> Result<()> {
    helm(world, "install", &[]).await
}

/// Installs or upgrades, with more words, and waits until all is ready.
pub(crate) async fn helm(world: &World, verb: &str, more: &[&str]) -> Result<()> {
    let chart = testbed::project().join("charts/coffer").display().to_string();
    let values = world.values.display().to_string();
    let words = [verb, "coffer", &chart, "--namespace", SYSTEM, "--values", &values, "--wait", "--timeout=240s"];
    world.helm(&[&words[..], more].concat()).await.map(drop)
}

pub(crate) async fn test(world: &mut World) -> Result<()> {
    world.helm(&["test", "coffer", "--namespace", SYSTEM, "--timeout=150s"]).await.map(drop)
}
