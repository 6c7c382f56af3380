//! What goes wrong in a cluster, while volumes are in use.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    install,
    volumes::read,
    world::{KEY_SERVICE, SYSTEM, TENANT, Volume, World, text},
};

const DRIVER: &str = "daemonset/coffer-node";
const ON_NODE: Duration = Duration::from_secs(60);
const BACK: Duration = Duration::from_secs(240);
/// Kills the driver of a node with all that it started.
const KILL: &str = r#"
killed=1
for process in /proc/[0-9]*; do
    words=()
    mapfile -d '' words < "$process/cmdline" 2> /dev/null
    [[ ${words[0]:-} == */coffer && ${words[1]:-} == node ]] && kill -KILL "${process#/proc/}" && killed=0
done
exit $killed
"#;

pub(crate) async fn driver_killed(world: &mut World, volume: &Volume) -> Result<()> {
    let before = restarts(&driver(world, &volume.node).await?)?;
    world.cluster.node(&volume.node)?.run(KILL, ON_NODE).await?;
    used(world).await?;
    let restarted = async |world: &World| -> Result<bool> {
        let pod = driver(world, &volume.node).await?;
        Ok(restarts(&pod)? > before && is_ready(&pod))
    };
    world.until("the driver runs again", BACK, restarted).await?;
    read(world, "after-the-kill").await
}

pub(crate) async fn upgraded(world: &mut World) -> Result<()> {
    let before = text(&driver(world, "n1").await?["metadata"]["uid"])?;
    let set = set_restarts(world).await?;
    install::helm(world, "upgrade", &["--set-string", "node.podAnnotations.upgraded=yes"]).await?;
    world.rolled_out(DRIVER).await?;
    ensure!(text(&driver(world, "n1").await?["metadata"]["uid"])? != before, "the driver is the same");
    used(world).await?;
    ensure!(set_restarts(world).await? == set, "a Pod of the tenant was restarted");
    read(world, "after-the-upgrade").await
}

pub(crate) async fn key_service_rolled(world: &mut World) -> Result<()> {
    world.kubectl(&["rollout", "restart", "--namespace", SYSTEM, KEY_SERVICE]).await?;
    read(world, "while-rolling").await?;
    world.rolled_out(KEY_SERVICE).await
}

pub(crate) async fn power_cut(world: &mut World) -> Result<()> {
    let pod = world.pod("set-0").await?;
    let (name, before) = (text(&pod["spec"]["nodeName"])?, restarts(&pod)?);
    let boot = boot_id(world, &name).await?;
    world.execute("set-0", "echo before the cut > /data/kept && sync").await?;
    let node = world.cluster.node(&name)?;
    node.cut_power();
    node.boot()?;
    let booted = async |world: &World| -> Result<bool> {
        let node = world.get(&["node", &name]).await?;
        Ok(text(&node["status"]["nodeInfo"]["bootID"])? != boot && is_ready(&node))
    };
    world.until("the node is back", BACK, booted).await?;
    let back = async |world: &World| -> Result<bool> {
        let pod = world.pod("set-0").await?;
        Ok(restarts(&pod)? > before && is_ready(&pod))
    };
    world.until("the Pod is back", BACK, back).await?;
    let kept = world.execute("set-0", "cat /data/kept").await?;
    ensure!(kept.trim() == "before the cut", "the Pod has {kept}");
    world.rolled_out(DRIVER).await?;
    used(world).await
}

/// Both Pods of the set write and read.
async fn used(world: &World) -> Result<()> {
    for pod in ["set-0", "set-1"] {
        let said = world.execute(pod, "date > /data/now && sync && cat /data/name").await?;
        ensure!(said.trim() == pod, "{pod} reads {said}");
    }
    Ok(())
}

/// The driver's Pod on a node.
async fn driver(world: &World, node: &str) -> Result<Value> {
    let field = format!("--field-selector=spec.nodeName={node}");
    let selector = "--selector=app.kubernetes.io/component=node";
    let pods = world.get(&["--namespace", SYSTEM, "pods", selector, &field]).await?;
    let pods = pods["items"].as_array().context("a list")?;
    let living = pods.iter().find(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(living.with_context(|| format!("{node} has no driver"))?.clone())
}

async fn set_restarts(world: &World) -> Result<Vec<u64>> {
    let pods = world.get(&["--namespace", TENANT, "pods", "--selector=app=set"]).await?;
    pods["items"].as_array().context("a list")?.iter().map(restarts).collect()
}

async fn boot_id(world: &World, node: &str) -> Result<String> {
    text(&world.get(&["node", node]).await?["status"]["nodeInfo"]["bootID"])
}

fn restarts(pod: &Value) -> Result<u64> {
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().context("a Pod that ran has a count of restarts")
}

/// Whether a Pod or a node says so.
fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}
