//! What Pods do with volumes.

use std::{fs, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use coffer::{
    exec::Deadline,
    key::service::{KeyService, Refusal},
    keyservice::{
        client::{Address, Remote},
        token::Token,
    },
    server::tls::ClientTls,
};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};

use crate::{
    install::{PROVIDER, STRICT},
    world::{CLASS, SYSTEM, TENANT, Volume, World, text},
};

/// What only the owner of a volume may read.
const MARK: &str = "only the owner of this volume reads this line";
/// Where drivers keep the files of volumes.
pub(crate) const POOL: &str = "/var/lib/coffer/volumes";
const SHELL: &str = "localhost/shell:test";
const ON_NODE: Duration = Duration::from_secs(60);
/// A StorageClass that asks for another provider, and that provider.
const ELSEWHERE: &str = "elsewhere";
const TOLD: Duration = Duration::from_secs(120);

/// A claim.
fn claim(name: &str, mode: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": { "name": name },
        "spec": claim_spec(mode),
    })
}

fn claim_spec(mode: &str) -> Value {
    json!({
        "storageClassName": CLASS,
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": mode,
        "resources": { "requests": { "storage": "64Mi" } },
    })
}

/// A Pod that does something with a volume at /data, and ends.
fn once(name: &str, volume: Value, script: &str) -> Value {
    pod(name, volume, "volumeMounts", json!([{ "name": "data", "mountPath": "/data" }]), script)
}

fn pod(name: &str, mut volume: Value, field: &str, place: Value, script: &str) -> Value {
    volume["name"] = "data".into();
    let command = json!(["sh", "-ec", script]);
    let mut container = json!({ "name": "main", "image": SHELL, "imagePullPolicy": "Never", "command": command });
    container[field] = place;
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": { "restartPolicy": "Never", "containers": [container], "volumes": [volume] },
    })
}

fn of_claim(name: &str) -> Value {
    json!({ "persistentVolumeClaim": { "claimName": name } })
}

pub(crate) async fn written(world: &mut World) -> Result<Volume> {
    written_in(world, TENANT).await
}

/// A Pod of a namespace writes to the volume of a claim there, and completes.
pub(crate) async fn written_in(world: &World, namespace: &str) -> Result<Volume> {
    let writer = once("writer", of_claim("data"), &format!("echo {MARK} > /data/text && sync"));
    world.apply_in(namespace, &[claim("data", "Filesystem"), writer]).await?;
    world.wait_in(namespace, "pvc/data", "jsonpath={.status.phase}=Bound").await?;
    world.completes_in(namespace, "writer").await?;
    world.volume_in(namespace, "data").await
}

pub(crate) async fn holds_no_marker(world: &mut World, volume: &Volume) -> Result<()> {
    let search = format!(
        "cd {POOL} && ls -l && grep -rqaF LUKS . && ! grep -rqaF '{MARK}' . && test -n \"$(find . -type f -size +32M)\""
    );
    world.cluster.node(&volume.node)?.run(&search, ON_NODE).await.map(drop)
}

/// Another Pod reads what the first one wrote.
pub(crate) async fn read(world: &World, name: &str) -> Result<()> {
    world.apply(&[once(name, of_claim("data"), &format!("grep -qxF '{MARK}' /data/text"))]).await?;
    world.completes(name).await
}

pub(crate) async fn stateful_set(world: &mut World) -> Result<()> {
    let labels = json!({ "app": "set" });
    let apart = json!([{ "topologyKey": "kubernetes.io/hostname", "labelSelector": { "matchLabels": labels } }]);
    let object = json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": { "name": "set" },
        "spec": {
            "replicas": 2,
            "serviceName": "set",
            "podManagementPolicy": "Parallel",
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "securityContext": { "runAsNonRoot": true, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000 },
                    "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": apart } },
                    "containers": [{
                        "name": "main",
                        "image": SHELL,
                        "imagePullPolicy": "Never",
                        "command": ["sh", "-ec", "hostname > /data/name && exec sleep 1000000"],
                        "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
                    }],
                },
            },
            "volumeClaimTemplates": [{ "metadata": { "name": "data" }, "spec": claim_spec("Filesystem") }],
        },
    });
    world.apply(&[object]).await?;
    world.wait("statefulset/set", "jsonpath={.status.readyReplicas}=2").await?;
    for pod in ["set-0", "set-1"] {
        let said = world.execute(pod, "id -u && stat -c %g /data && cat /data/name").await?;
        ensure!(said.split_whitespace().eq(["1000", "2000", pod]), "{pod} said {said}");
    }
    Ok(())
}

pub(crate) async fn block(world: &mut World) -> Result<Volume> {
    world.apply(&[claim("device", "Block")]).await?;
    let write = format!("printf '{MARK}' | dd of=/dev/data bs=512 seek=100 conv=notrunc,fsync");
    on_device(world, "writes-blocks", &write).await?;
    read_blocks(world, "reads-blocks").await?;
    world.volume("device").await
}

/// Another Pod reads what was written to the raw block volume.
pub(crate) async fn read_blocks(world: &World, name: &str) -> Result<()> {
    on_device(world, name, &format!("dd if=/dev/data bs=512 skip=100 count=1 | grep -qF '{MARK}'")).await
}

async fn on_device(world: &World, name: &str, script: &str) -> Result<()> {
    let place = json!([{ "name": "data", "devicePath": "/dev/data" }]);
    world.apply(&[pod(name, of_claim("device"), "volumeDevices", place, script)]).await?;
    world.completes(name).await?;
    world.of_tenant(&["delete", "pod", name, "--timeout=60s"]).await.map(drop)
}

pub(crate) async fn expanded(world: &mut World) -> Result<()> {
    const MORE_KIB: u64 = 120 << 10;
    let before = kib(world).await?;
    ensure!(before < MORE_KIB, "the volume has {before} KiB already");
    let more = json!({ "spec": { "resources": { "requests": { "storage": "160Mi" } } } }).to_string();
    world.of_tenant(&["patch", "pvc", "data-set-0", "--patch", &more]).await?;
    world
        .until("the Pod sees a larger volume", Duration::from_secs(150), async |world| Ok(kib(world).await? > MORE_KIB))
        .await
}

/// How large the first Pod of the set sees its volume, in KiB.
async fn kib(world: &World) -> Result<u64> {
    let said = world.execute("set-0", "df -kP /data | tail -n 1").await?;
    said.split_whitespace().nth(1).and_then(|size| size.parse().ok()).with_context(|| format!("df said {said}"))
}

pub(crate) async fn inline(world: &mut World) -> Result<()> {
    let volume = json!({ "csi": { "driver": "coffer.csi", "volumeAttributes": { "size": "64Mi" } } });
    let script = "grep -q '^/dev/mapper/[^ ]* /data ' /proc/mounts && echo gone soon > /data/text && sync";
    world.apply(&[once("inline", volume, script)]).await?;
    world.completes("inline").await?;
    let node = text(&world.pod("inline").await?["spec"]["nodeName"])?;
    world.of_tenant(&["delete", "pod", "inline", "--timeout=60s"]).await?;
    let node = world.cluster.node(&node)?;
    // The kubelet unmounts what a Pod had that is over after the Pod is gone from the API server.
    let is_gone = format!("! ls {POOL} | grep -q ^eph- && ! losetup --all | grep -q eph-");
    node.run(&format!("for _ in $(seq 40); do {{ {is_gone}; }} && exit 0; sleep 1; done; ls {POOL}; exit 1"), ON_NODE)
        .await
        .map(drop)
}

/// A Pod may have a token for the key service's audience. It is its own, and no driver's.
pub(crate) async fn refused(world: &mut World, volume: &Volume) -> Result<()> {
    let authority = world.get(&["--namespace", SYSTEM, "configmap", "coffer-authority"]).await?;
    let authority_file = world.cluster.work().join("authority.crt");
    fs::write(&authority_file, text(&authority["data"]["ca.crt"])?)?;
    let selector = "app.kubernetes.io/component=keyservice";
    let pods = world.get(&["--namespace", SYSTEM, "pods", "--selector", selector]).await?;
    let address = text(&pods["items"][0]["status"]["podIP"])?;

    let server = world.cluster.server();
    let token_file = world.cluster.work().join("token");
    fs::write(&token_file, server.token(TENANT, "default", "coffer", Some("set-0")).await?)?;
    for token in [None, Some(Token::in_file(&token_file))] {
        let who = if token.is_some() { "a tenant's Pod" } else { "nobody" };
        let service = Remote::at(Address::Tls {
            authority: format!("{address}:7443"),
            name: ServerName::try_from("coffer-keyservice.coffer-system.svc")?,
            tls: Arc::new(ClientTls::trusting(authority_file.clone())?),
            token,
        });
        match service.get(&volume.id.parse()?, Deadline::within(Duration::from_secs(20))).await {
            Ok(_) => bail!("{who} got the key"),
            Err(failure) => ensure!(failure.refusal() == Refusal::Denied, "{who}: {failure}"),
        }
    }
    Ok(())
}

/// A class asks for what a policy forbids. Whoever made the claim is told so where he looks.
pub(crate) async fn forbidden(world: &mut World) -> Result<()> {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": { "name": ELSEWHERE },
        "provisioner": "coffer.csi",
        "volumeBindingMode": "WaitForFirstConsumer",
        "parameters": { "provider": ELSEWHERE },
    });
    world.cluster.apply(&class.to_string()).await?;
    let mut strict = claim(STRICT, "Filesystem");
    strict["spec"]["storageClassName"] = ELSEWHERE.into();
    // A node is chosen for a Pod that uses the claim, and the volume is asked for only then.
    world.apply(&[strict, once(STRICT, of_claim(STRICT), "exit 1")]).await?;
    world.until("an Event says what the policy forbids", TOLD, is_told).await?;
    let phase = text(&world.get(&["--namespace", TENANT, "pvc", STRICT]).await?["status"]["phase"])?;
    ensure!(phase == "Pending", "the claim that a policy forbids is {phase}");

    world.of_tenant(&["delete", "pod", STRICT, "--timeout=60s"]).await?;
    world.of_tenant(&["delete", "pvc", STRICT, "--timeout=60s"]).await?;
    world.kubectl(&["delete", "storageclass", ELSEWHERE]).await.map(drop)
}

/// Whether an Event of the forbidden claim has Coffer's own words.
async fn is_told(world: &World) -> Result<bool> {
    let words = format!(
        "policy {STRICT} gives provider {PROVIDER}, and provider {ELSEWHERE} is asked for; the policy is mandatory: \
         take that out of the StorageClass"
    );
    let claim = format!("involvedObject.kind=PersistentVolumeClaim,involvedObject.name={STRICT}");
    let field = format!("--field-selector={claim},reason=ProvisioningFailed");
    let events = world.get(&["--namespace", TENANT, "events", &field]).await?;
    let mut messages = events["items"].as_array().into_iter().flatten().filter_map(|event| event["message"].as_str());
    Ok(messages.any(|message| message.contains(&words)))
}
