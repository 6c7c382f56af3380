//! The end of volumes, and of the installation.

use std::time::Duration;

use anyhow::{Result, ensure};
use coffer::kubernetes::volume_key::VolumeKey;

use crate::{
    volumes::{POOL, read_blocks},
    world::{SYSTEM, TENANT, Volume, World},
};

const ON_NODE: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(90);

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

/// What is left of a volume: a tombstone where records are resources, and a line of the audit log.
pub(crate) async fn destroyed(world: &mut World, volume: &Volume) -> Result<()> {
    let pods = world.get(&["--namespace", TENANT, "pods"]).await?;
    let finished = pods["items"].as_array().into_iter().flatten().filter(|pod| pod["status"]["phase"] == "Succeeded");
    for pod in finished {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        world.of_tenant(&["delete", "pod", name, "--timeout=60s"]).await?;
    }
    world.of_tenant(&["delete", "pvc", "data", "--timeout=60s"]).await?;
    world.gone(&format!("pv/{}", volume.pv)).await?;

    let name = VolumeKey::name_of(&volume.id.parse()?);
    let key =
        world.kubectl(&["get", "volumekey", &name, "--ignore-not-found", "--output=jsonpath={.status.state}"]).await?;
    // With records elsewhere there is no such object.
    ensure!(["destroyed", ""].contains(&key.trim()), "the key of {} is {key}", volume.id);
    let selector = "--selector=app.kubernetes.io/component=keyservice";
    let lines = world.kubectl(&["logs", "--namespace", SYSTEM, selector, "--tail=-1"]).await?;
    let id = format!(r#""volumeId":"{}""#, volume.id);
    let receipt = |line: &&str| line.contains(r#""operation":"destroy","result":"ok""#) && line.contains(&id);
    ensure!(lines.lines().any(|line| receipt(&line)), "no line of the audit log tells that the key was destroyed");
    let gone = format!("! ls {POOL} | grep -qF '{}'", volume.id);
    world.cluster.node(&volume.node)?.run(&gone, ON_NODE).await.map(drop)
}

pub(crate) async fn uninstall_refused(world: &mut World) -> Result<()> {
    let removed = world.helm(&["uninstall", "coffer", "--namespace", SYSTEM, "--wait", "--timeout=120s"]).await;
    ensure!(removed.is_err(), "it was uninstalled while volumes exist");
    world.rolled_out("deployment/coffer-keyservice").await
}

pub(crate) async fn uninstalled(world: &mut World) -> Result<()> {
    world.of_tenant(&["delete", "statefulset", "set", "--cascade=foreground", "--timeout=60s"]).await?;
    world.of_tenant(&["delete", "pvc", "--all", "--timeout=60s"]).await?;
    let none = async |world: &World| -> Result<bool> {
        Ok(world.kubectl(&["get", "pv", "--output=name"]).await?.trim().is_empty())
    };
    world.until("all volumes are gone", SOON, none).await?;
    world.helm(&["uninstall", "coffer", "--namespace", SYSTEM, "--wait", "--timeout=150s"]).await?;
    for node in &world.cluster.nodes {
        node.run("! dmsetup table | grep -q ' crypt ' && test -z \"$(losetup -a)\"", ON_NODE).await?;
    }
    Ok(())
}
