//! The end of volumes, and of the installation.

use std::time::Duration;

use anyhow::{Result, ensure};
use coffer::kubernetes::volume_key::VolumeKey;
use serde_json::Value;

use crate::{
    install::{self, Providers},
    volumes::{POOL, read_blocks, written_in},
    world::{KEY_SERVICE, SYSTEM, TENANT, Volume, World},
};

/// The namespace that goes before its volume.
const BRIEF: &str = "brief";
/// The configuration of a key service, in its Pods.
const CONFIG: &str = "--config=/etc/coffer/config.yaml";
const ON_NODE: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(90);
/// A little longer than kubectl waits.
const NAMESPACE_GOES: Duration = Duration::from_secs(130);

/// A key in use is not deleted: the object waits for its finalizer, and goes when the volume does.
pub(crate) async fn waits(world: &mut World, volume: &Volume) -> Result<()> {
    let name = VolumeKey::name_of(&volume.id.parse()?);
    let deleted = world.kubectl(&["delete", "volumekey", &name, "--timeout=4s"]).await;
    ensure!(deleted.is_err(), "the key in use was deleted");
    let key = world.get(&["volumekey", &name]).await?;
    ensure!(!key["metadata"]["deletionTimestamp"].is_null(), "{key}");
    let says = async |world: &World| -> Result<bool> {
        let key = world.get(&["volumekey", &name]).await?;
        Ok(key["status"]["conditions"].as_array().is_some_and(|all| all.iter().any(|one| one["type"] == "Deleting")))
    };
    world.until("a condition says why it waits", SOON, says).await?;
    // The volume is as it was.
    read_blocks(world, "reads-blocks-still").await?;
    world.of_tenant(&["delete", "pvc", "device", "--timeout=60s"]).await?;
    world.gone(&format!("pv/{}", volume.pv)).await?;
    let gone = async |world: &World| -> Result<bool> {
        Ok(world.kubectl(&["get", "volumekey", &name, "--ignore-not-found", "--output=name"]).await?.trim().is_empty())
    };
    world.until("the object is gone with its key", SOON, gone).await
}

/// Who used a volume goes, and its claim: what is left is the proof that the key is gone.
pub(crate) async fn destroyed(world: &mut World, volume: &Volume) -> Result<()> {
    let pods = world.get(&["--namespace", TENANT, "pods"]).await?;
    let finished = pods["items"].as_array().into_iter().flatten().filter(|pod| pod["status"]["phase"] == "Succeeded");
    for pod in finished {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        world.of_tenant(&["delete", "pod", name, "--timeout=60s"]).await?;
    }
    world.of_tenant(&["delete", "pvc", "data", "--timeout=60s"]).await?;
    world.gone(&format!("pv/{}", volume.pv)).await?;
    expect_shredded(world, volume).await
}

/// A namespace goes with all that is in it. Its volume goes like any other.
pub(crate) async fn namespace_deleted(world: &mut World) -> Result<()> {
    world.make_namespace(BRIEF).await?;
    let volume = written_in(world, BRIEF).await?;
    world.cluster.kubectl(&["delete", "namespace", BRIEF, "--timeout=120s"], NAMESPACE_GOES).await?;
    world.gone(&format!("pv/{}", volume.pv)).await?;
    expect_shredded(world, &volume).await
}

/// What is left of a volume: a tombstone and a line of the audit log, and no file.
async fn expect_shredded(world: &mut World, volume: &Volume) -> Result<()> {
    expect_tombstone(world, volume).await?;
    let selector = "--selector=app.kubernetes.io/component=keyservice";
    let lines = world.kubectl(&["logs", "--namespace", SYSTEM, selector, "--tail=-1"]).await?;
    let id = format!(r#""volumeId":"{}""#, volume.id);
    let receipt = |line: &&str| line.contains(r#""operation":"destroy","result":"ok""#) && line.contains(&id);
    ensure!(lines.lines().any(|line| receipt(&line)), "no line of the audit log tells that the key was destroyed");
    // The node removes the file after the PersistentVolume is gone.
    let is_gone = format!("! ls {POOL} | grep -qF '{}'", volume.id);
    let waits = format!("for _ in $(seq 40); do {{ {is_gone}; }} && exit 0; sleep 1; done; ls {POOL}; exit 1");
    world.cluster.node(&volume.node)?.run(&waits, ON_NODE).await.map(drop)
}

/// Wherever records lie, the key service reads this one and finds no key in it.
async fn expect_tombstone(world: &World, volume: &Volume) -> Result<()> {
    let show = ["exec", "--namespace", SYSTEM, KEY_SERVICE, "--", "/coffer", "records", "show", &volume.id, CONFIG];
    let record: Value = serde_json::from_str(&world.kubectl(&show).await?)?;
    let (id, state) = (&volume.id, &record["state"]);
    ensure!(state == "destroyed" && record["key"].is_null(), "the record of {id} is {state}");
    expect_destroyed_resource(world, volume).await
}

/// The VolumeKey says the same, where records are such.
async fn expect_destroyed_resource(world: &World, volume: &Volume) -> Result<()> {
    match world.providers {
        Providers::TransitS3 => Ok(()),
        Providers::ClusterKey => {
            let name = VolumeKey::name_of(&volume.id.parse()?);
            let state = world.kubectl(&["get", "volumekey", &name, "--output=jsonpath={.status.state}"]).await?;
            ensure!(state.trim() == "destroyed", "the VolumeKey of {} is {state:?}", volume.id);
            Ok(())
        }
    }
}

pub(crate) async fn uninstall_refused(world: &mut World) -> Result<()> {
    let removed = world.helm(&["uninstall", "coffer", "--namespace", SYSTEM, "--wait", "--timeout=120s"]).await;
    ensure!(removed.is_err(), "it was uninstalled while volumes exist");
    world.rolled_out(KEY_SERVICE).await
}

/// All claims go, and then Coffer. The volume is one whose key was destroyed long before.
pub(crate) async fn uninstalled(world: &mut World, volume: &Volume) -> Result<()> {
    world.of_tenant(&["delete", "statefulset", "set", "--cascade=foreground", "--timeout=60s"]).await?;
    world.of_tenant(&["delete", "pvc", "--all", "--timeout=60s"]).await?;
    let none = async |world: &World| -> Result<bool> {
        Ok(world.kubectl(&["get", "pv", "--output=name"]).await?.trim().is_empty())
    };
    world.until("all volumes are gone", SOON, none).await?;
    removed(world, volume).await
}

/// Another installation of the same name finds what was kept.
pub(crate) async fn installed_again(world: &mut World, volume: &Volume) -> Result<()> {
    let key = cluster_key(world).await?;
    install::install(world).await?;
    ensure!(cluster_key(world).await? == key, "the installation has made another cluster key");
    expect_tombstone(world, volume).await
}

/// Uninstalls: nothing runs any more and nothing is mapped, and keys and tombstones are kept.
pub(crate) async fn removed(world: &mut World, volume: &Volume) -> Result<()> {
    let key = cluster_key(world).await?;
    world.helm(&["uninstall", "coffer", "--namespace", SYSTEM, "--wait", "--timeout=150s"]).await?;
    ensure!(cluster_key(world).await? == key, "the cluster key is not the one that was there");
    expect_definitions(world).await?;
    expect_destroyed_resource(world, volume).await?;
    let none = async |world: &World| -> Result<bool> {
        Ok(world.kubectl(&["get", "pods", "--namespace", SYSTEM, "--output=name"]).await?.trim().is_empty())
    };
    world.until("all Pods of Coffer are gone", SOON, none).await?;
    for node in &world.cluster.nodes {
        node.run("! dmsetup table | grep -q ' crypt ' && test -z \"$(losetup -a)\"", ON_NODE).await?;
    }
    Ok(())
}

/// The cluster key as its Secret has it, where there is one. It is compared, and never shown.
async fn cluster_key(world: &World) -> Result<Option<String>> {
    match world.providers {
        Providers::TransitS3 => Ok(None),
        Providers::ClusterKey => {
            let secret = ["get", "secret", "--namespace", SYSTEM, "coffer-cluster-key", "--output=jsonpath={.data}"];
            let data = world.kubectl(&secret).await?;
            ensure!(data.contains("cluster-key.json"), "the Secret coffer-cluster-key has no cluster key");
            Ok(Some(data))
        }
    }
}

/// The custom resources are defined, and nobody takes them away.
async fn expect_definitions(world: &World) -> Result<()> {
    for name in ["volumekeys.coffer.csi", "localvolumes.coffer.csi", "localpools.coffer.csi"] {
        let definition = world.get(&["customresourcedefinition", name]).await?;
        ensure!(definition["metadata"]["deletionTimestamp"].is_null(), "{name} is being taken away");
    }
    Ok(())
}
