//! What it costs to ask who calls and who holds the volume: GetKey by a token and the API server's watches, beside the
//! same by a client certificate, in the same process; the first GetKey of a token; and what the index of a cluster with
//! 10,000 attached volumes takes.

#![allow(clippy::print_stdout, reason = "it tells its figures")]

use std::{
    collections::BTreeMap,
    fs,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use coffer::{
    exec::Deadline,
    key::service::{KeyService, NewKey},
    keyservice::kubernetes::{Attachments, Drivers, Index, Volumes},
    volume::{Content, FsType, Parameters, VolumeId},
};
use k8s_openapi::api::{core::v1::PersistentVolume, storage::v1::VolumeAttachment};
use kube::{Api, api::PostParams};
use serde_json::json;
use testbed::{
    figures::{self, Process},
    kube::{
        ApiServer,
        keys::{Callers, KeyServer, settings},
    },
};
use tokio::task::JoinSet;

/// Volumes with a key, attached to the node that asks.
const VOLUMES: usize = 100;
/// How many ask at the same time.
const CALLERS: [usize; 2] = [1, 64];
/// How often each way takes its turn, so that what changes on the machine meanwhile hits all.
const ROUNDS: usize = 3;
/// How long a turn is.
const ROUND_TIME: Duration = Duration::from_secs(3);
/// Tokens whose first request is measured.
const FIRST: usize = 20;
/// Attached volumes of a large cluster, and its nodes.
const ATTACHMENTS: usize = 10_000;
const NODES: usize = 500;

const NAMESPACE: &str = "bench";
const DRIVER: &str = "attached.csi";

fn main() -> ExitCode {
    let run = || {
        memory()?;
        tokio::runtime::Runtime::new()?.block_on(authority())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// What the index of many attached volumes takes: objects as an API server lists them go in one by one.
fn memory() -> Result<()> {
    let drivers = Drivers::named(&[DRIVER.to_owned()]);
    let (mut volumes, mut attachments) = (Volumes::of_drivers(drivers.clone()), Attachments::of_drivers(drivers));
    let resident = || Ok::<_, anyhow::Error>(Process::of(std::process::id())?.anonymous);
    let before = resident()?;
    for number in 0..ATTACHMENTS {
        let (volume, attachment) = objects(number)?;
        volumes.apply(&volume);
        attachments.apply(&attachment);
    }
    let after = resident()?;
    let kib = after.saturating_sub(before);
    println!("{}\n", figures::machine(&[]));
    println!("index of {ATTACHMENTS} VolumeAttachments and as many PersistentVolumes: {kib} KiB (RssAnon)");
    let asked: Vec<_> = (0..ATTACHMENTS).map(|number| (handle(number), node(number))).collect();
    let start = Instant::now();
    for (handle, node) in &asked {
        ensure!(volumes.are_held(handle, node, &attachments), "{handle} is not held by {node}");
    }
    println!("who holds a volume, looked up in it: {} ns\n", start.elapsed().as_nanos() / asked.len() as u128);
    Ok(())
}

fn handle(number: usize) -> String {
    format!("vol-0{number:016x}")
}

fn node(number: usize) -> String {
    format!("ip-10-0-{}-{}.eu-central-1.compute.internal", number % NODES / 250, number % NODES % 250)
}

/// An attached volume as it is in a cluster, with what provisioner and attacher write beside it.
fn objects(number: usize) -> Result<(PersistentVolume, VolumeAttachment)> {
    let name = format!("pvc-00000000-0000-4000-8000-{number:012x}");
    let volume = json!({
        "metadata": {
            "name": name, "uid": name, "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": { "pv.kubernetes.io/provisioned-by": DRIVER },
            "finalizers": ["kubernetes.io/pv-protection", "external-attacher/attached-csi"],
        },
        "spec": {
            "capacity": { "storage": "10Gi" }, "accessModes": ["ReadWriteOnce"], "storageClassName": "encrypted",
            "claimRef": { "namespace": "shop", "name": format!("data-{number}"), "uid": name },
            "csi": { "driver": DRIVER, "volumeHandle": handle(number), "volumeAttributes": { "a": "b" } },
        },
        "status": { "phase": "Bound" },
    });
    let attachment = json!({
        "metadata": {
            "name": format!("csi-{number:064x}"), "uid": name, "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["external-attacher/attached-csi"],
        },
        "spec": { "attacher": DRIVER, "nodeName": node(number), "source": { "persistentVolumeName": name } },
        "status": { "attached": true, "attachmentMetadata": { "devicePath": "/dev/xvdba" } },
    });
    Ok((serde_json::from_value(volume)?, serde_json::from_value(attachment)?))
}

async fn authority() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let place = |name: &str| {
        let place = folder.path().join(name);
        fs::create_dir(&place).map(|()| place)
    };
    let server = ApiServer::start(&place("kubernetes")?).await?;
    let ids: Arc<[VolumeId]> = (0..VOLUMES).map(|number| Ok(handle(number).parse()?)).collect::<Result<_>>()?;
    attach(&server).await?;
    server.pod(NAMESPACE, "coffer-node", "node", "n1").await?;
    let token = server.token(NAMESPACE, "coffer-node", "coffer", Some("node")).await?;

    let certified = KeyServer::start(&place("certified")?, Callers::Certified)?;
    let settings = settings(NAMESPACE, Duration::from_secs(10), 1_000_000);
    let start = Instant::now();
    let bearers = KeyServer::start(&place("bearers")?, Callers::Bearers(Box::new((server.client(), settings))))?;
    bearers.synced().await?;
    println!("key service, from its start until its watches know of everything: {} ms", start.elapsed().as_millis());
    for service in [&certified, &bearers] {
        keys(service, &ids).await?;
    }
    first(&server, &bearers, &ids).await?;
    let sides: [(&'static str, Arc<dyn KeyService>); 2] = [
        ("by certificate: the record's node alone", Arc::new(certified.certified()?)),
        ("by token: confirmed, and held by the watches", Arc::new(bearers.remote(&token)?)),
    ];
    rates(&sides, &ids).await
}

/// The volumes as objects at the API server, attached to the node that asks.
async fn attach(server: &ApiServer) -> Result<()> {
    let (volumes, attachments) = (Api::all(server.client()), Api::all(server.client()));
    for number in 0..VOLUMES {
        let (mut volume, mut attachment) = objects(number)?;
        (volume.metadata.uid, volume.metadata.resource_version) = (None, None);
        (attachment.metadata.uid, attachment.metadata.resource_version) = (None, None);
        attachment.spec.node_name = "n1".to_owned();
        volumes.create(&PostParams::default(), &volume).await.context("make a PersistentVolume")?;
        attachments.create(&PostParams::default(), &attachment).await.context("make a VolumeAttachment")?;
    }
    Ok(())
}

async fn keys(service: &KeyServer, ids: &[VolumeId]) -> Result<()> {
    for id in ids {
        let new = NewKey {
            volume_id: id.clone(),
            name: id.to_string(),
            parameters: Parameters::of(Content::Filesystem(FsType::Ext4)),
            node: None,
            tenant: None,
            storage_class: None,
            claim: None,
            provider: None,
            key_id: None,
            context: BTreeMap::new(),
        };
        service.keys().create(new, soon()).await?;
    }
    Ok(())
}

fn soon() -> Deadline {
    Deadline::within(Duration::from_secs(20))
}

/// The first request of a token: a connection, a review by the API server, and a key.
async fn first(server: &ApiServer, service: &KeyServer, ids: &[VolumeId]) -> Result<()> {
    let id = ids.first().context("there are volumes")?;
    let mut times = Vec::new();
    for _ in 0..FIRST {
        let token = server.token(NAMESPACE, "coffer-node", "coffer", Some("node")).await?;
        let remote = service.remote(&token)?;
        let start = Instant::now();
        remote.get(id, soon()).await?;
        times.push(start.elapsed());
    }
    let millis = |percent| figures::percentile(&times, percent).as_secs_f64() * 1e3;
    println!(
        "first GetKey of a token, connection and review and all: p50 {:.1} ms, p99 {:.1} ms\n",
        millis(50),
        millis(99)
    );
    Ok(())
}

/// Both ways in turns, by the number of callers. The first is what the other is compared with.
async fn rates(sides: &[(&'static str, Arc<dyn KeyService>)], ids: &Arc<[VolumeId]>) -> Result<()> {
    println!("{:<48} {:>7} {:>10} {:>9} {:>9} {:>9}", "", "callers", "keys/s", "p50", "p99", "p50 more");
    for callers in CALLERS {
        let mut loads: Vec<_> = sides.iter().map(|_| (Duration::ZERO, Vec::new())).collect();
        for _ in 0..ROUNDS {
            for ((took, times), (what, service)) in loads.iter_mut().zip(sides) {
                let (more, of_turn) = turn(service, ids, callers).await.context(*what)?;
                *took += more;
                times.extend(of_turn);
            }
        }
        let micros = |times: &[Duration], percent| figures::percentile(times, percent).as_secs_f64() * 1e6;
        let own = loads.first().map_or(0.0, |(_, times)| micros(times, 50));
        for ((took, times), (what, _)) in loads.iter().zip(sides) {
            let (rate, p50, p99) = (times.len() as f64 / took.as_secs_f64(), micros(times, 50), micros(times, 99));
            println!("{what:<48} {callers:>7} {rate:>10.0} {p50:>6.0} µs {p99:>6.0} µs {:>6.0} µs", p50 - own);
        }
    }
    println!(
        "  {ROUNDS} turns of {} s each; {VOLUMES} volumes; callers and key services in one process, over TLS on \
         loopback, audit in memory.",
        ROUND_TIME.as_secs()
    );
    Ok(())
}

/// Callers that each ask again as soon as they have an answer. One call that fails ends it all.
async fn turn(
    service: &Arc<dyn KeyService>,
    ids: &Arc<[VolumeId]>,
    callers: usize,
) -> Result<(Duration, Vec<Duration>)> {
    // What is only slow the first time is not measured.
    service.get(ids.first().context("there are volumes")?, soon()).await?;
    let (start, mut asking) = (Instant::now(), JoinSet::new());
    for caller in 0..callers {
        let (service, ids) = (service.clone(), ids.clone());
        asking.spawn(async move {
            let mut times = Vec::new();
            // Each begins with another volume.
            for id in ids.iter().cycle().skip(caller) {
                if start.elapsed() > ROUND_TIME {
                    break;
                }
                let asked = Instant::now();
                service.get(id, soon()).await?;
                times.push(asked.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(answered) = asking.join_next().await {
        times.extend(answered??);
    }
    Ok((start.elapsed(), times))
}
