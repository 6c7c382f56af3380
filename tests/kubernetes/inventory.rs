//! `coffer inventory` with a real API server: the volumes of a cluster are read to the last page, with no more than the
//! chart lets the key service do, and held against records; who may not look says so.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, process::Command, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use coffer::{
    admin::{
        Place,
        answer::Print,
        inventory::{
            InventoryFailure, Sought,
            cluster::read,
            inventory,
            lists::{Cluster, DRIVER, Looked},
        },
        progress::Progress,
    },
    key::{
        embedded::Embedded,
        kms::local::Local,
        providers::{KmsProvider, Provider, Providers},
        service::KeyService,
        store::{DekStore, memory::Memory},
    },
    kubernetes::local_volume::LocalVolume,
    secret::LocalKek,
    volume::VolumeId,
};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp, ToSpan};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use testbed::{
    conformance::{soon, store::new_key},
    kube::ApiServer,
};
use uuid::Uuid;

use crate::{Bed, chart::rights::install_rights};

const CLUSTER: Uuid = Uuid::from_u128(11);
/// More than are asked for at once.
const MANY: usize = 510;
/// Objects that are made at once.
const AT_ONCE: usize = 32;

pub(crate) fn trials(bed: &Bed) -> Vec<Trial> {
    vec![
        bed.trial("an_inventory_tells_what_is_missing_and_what_is_left_over_in_a_cluster", compared),
        bed.trial("an_inventory_reads_a_cluster_to_its_last_page", paged),
        bed.trial("an_inventory_that_may_not_look_says_so", forbidden),
        bed.trial("the_program_takes_inventory_of_the_cluster_of_its_kubeconfig", program),
    ]
}

fn quiet() -> Progress {
    Progress::lines(std::io::sink())
}

fn providers() -> Providers {
    let main = Provider::Kms(KmsProvider::new(Arc::new(Local::new(LocalKek::born(|kek| kek.fill(7))))));
    Providers { by_name: [("main".to_owned(), main)].into(), default: "main".to_owned() }
}

fn place(store: Arc<dyn DekStore>) -> Place {
    Place { cluster_id: CLUSTER, providers: providers(), store, policies: Vec::new(), trials: Vec::new() }
}

/// A PersistentVolume, with what else its source and its spec have.
async fn persistent(client: &Client, name: &str, driver: &str, attributes: Value, policy: &str) -> Result<()> {
    let volume: PersistentVolume = serde_json::from_value(json!({
        "metadata": { "name": format!("pv-{name}") },
        "spec": {
            "capacity": { "storage": "1Gi" },
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": policy,
            "csi": { "driver": driver, "volumeHandle": name, "volumeAttributes": attributes },
        },
    }))?;
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    volumes.create(&PostParams::default(), &volume).await.with_context(|| format!("make pv-{name}"))?;
    Ok(())
}

async fn of_pool(client: &Client, name: &str) -> Result<()> {
    persistent(client, name, DRIVER, json!({ "source": "local" }), "Delete").await
}

async fn local(client: &Client, name: &str) -> Result<()> {
    let volume = LocalVolume::of(&id(name), "inv-node", 1 << 24);
    let volumes: Api<LocalVolume> = Api::all(client.clone());
    volumes.create(&PostParams::default(), &volume).await.with_context(|| format!("make LocalVolume {name}"))?;
    Ok(())
}

fn id(text: &str) -> VolumeId {
    text.parse().expect("a volume id")
}

/// What is told of the volumes of this test, of all that others have at the same API server.
async fn told(place: &Place, cluster: Cluster) -> Result<(Value, InventoryFailure)> {
    let mut out = Vec::new();
    let sought = Sought { cluster, pool: None };
    let ended = inventory(place, sought, Print::Json, &mut quiet(), &mut out).await;
    Ok((serde_json::from_slice(&out)?, ended.err().context("it ended well")?))
}

async fn compared(server: Arc<ApiServer>) -> Result<()> {
    const NAMESPACE: &str = "inventory";
    install_rights(&server, NAMESPACE, NAMESPACE, &[]).await?;
    let (client, store): (_, Arc<dyn DekStore>) = (server.client(), Arc::new(Memory::default()));
    let keys = Embedded::new(CLUSTER, providers(), store.clone());
    for name in ["inv-whole", "inv-bare", "inv-alone", "inv-failed", "inv-device", "inv-orphan"] {
        keys.create(new_key(name), soon()).await?;
    }
    let stored = store.get(&id("inv-orphan"), soon()).await?.context("it is there")?;
    let mut old = stored.record;
    old.created_at = Timestamp::now() - 1.hour();
    store.replace(&old, stored.version, soon()).await?;

    for name in ["inv-whole", "inv-bare", "inv-failed", "inv-lost", "inv-released"] {
        of_pool(&client, name).await?;
    }
    persistent(&client, "inv-device", DRIVER, json!({ "source": "device", "device": "/dev/sdb" }), "Retain").await?;
    persistent(&client, "inv-other", "other.csi", json!({}), "Delete").await?;
    for name in ["inv-whole", "inv-alone", "inv-failed", "inv-lost"] {
        local(&client, name).await?;
    }
    let failed = json!({ "status": { "phase": "Failed", "message": "the file is gone", "observedGeneration": 1 } });
    let locals: Api<LocalVolume> = Api::all(client.clone());
    locals.patch_status("inv-failed", &PatchParams::default(), &Patch::Merge(&failed)).await?;
    let released = json!({ "status": { "phase": "Released" } });
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    volumes.patch_status("pv-inv-released", &PatchParams::default(), &Patch::Merge(&released)).await?;

    // With the rights of the key service, in whose Pod the verb runs.
    let account = server.as_account(NAMESPACE, &format!("{NAMESPACE}-keyservice")).await?;
    let mut cluster = read(account, &[DRIVER.to_owned()], &mut quiet()).await;
    let locals = match &mut cluster.local {
        Looked::At(locals) => locals,
        other => bail!("{other:?}"),
    };
    let alone = locals.iter_mut().find(|volume| volume.name == "inv-alone").context("it is read")?;
    ensure!(alone.node == "inv-node" && !alone.is_made && !alone.is_leaving, "{alone:?}");
    // What was made a moment ago is not missed, and no API server takes another time.
    let is_new = |created| Timestamp::now().duration_since(created) < SignedDuration::from_mins(10);
    ensure!(alone.created.is_some_and(is_new), "{alone:?}");
    alone.created = Some(Timestamp::now() - 1.hour());

    let place = place(store);
    let (inventory, ended) = told(&place, cluster).await?;
    let all = inventory["findings"].as_array().context("findings")?;
    let own = all.iter().filter_map(|one| Some((one["volumeId"].as_str()?, one["kind"].as_str()?)));
    let own: BTreeMap<_, _> = own.filter(|(volume, _)| volume.starts_with("inv-")).collect();
    let wanted = BTreeMap::from([
        ("inv-alone", "local-volume-without-volume"),
        ("inv-bare", "volume-without-local-volume"),
        ("inv-failed", "local-volume-failed"),
        ("inv-lost", "volume-without-record"),
        ("inv-orphan", "record-without-volume"),
    ]);
    ensure!(own == wanted, "{own:?} in {inventory}");
    ensure!(matches!(ended, InventoryFailure::Found { findings, unseen: 0 } if findings >= 5), "{ended:?}");
    Ok(())
}

async fn paged(server: Arc<ApiServer>) -> Result<()> {
    let client = server.client();
    let names: Vec<_> = (0..MANY).map(|number| format!("page-{number}")).collect();
    let driver = "paged.csi";
    let made = stream::iter(&names).map(|name| persistent(&client, name, driver, json!({}), "Retain"));
    made.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    let cluster = read(client.clone(), &[driver.to_owned()], &mut quiet()).await;
    let Looked::At(found) = &cluster.persistent else { bail!("{:?}", cluster.persistent) };
    let mut found: Vec<_> = found.iter().map(|volume| volume.handle.clone()).collect();
    found.sort_unstable();
    let mut wanted = names;
    wanted.sort_unstable();
    ensure!(found == wanted, "{} of {MANY} were read", found.len());
    Ok(())
}

async fn forbidden(server: Arc<ApiServer>) -> Result<()> {
    let nobody = server.as_account("inventory-nobody", "nobody").await?;
    let cluster = read(nobody, &[DRIVER.to_owned()], &mut quiet()).await;
    let place = place(Arc::new(Memory::default()));
    let (inventory, ended) = told(&place, cluster).await?;
    ensure!(matches!(ended, InventoryFailure::Found { findings: 0, unseen: 2 }), "{ended:?}");
    let unseen = inventory["notLookedAt"].to_string();
    for part in ["does not list PersistentVolumes", "does not list LocalVolumes", "forbidden"] {
        ensure!(unseen.contains(part), "{part} is not in {unseen}");
    }
    ensure!(inventory["counts"]["persistentVolumes"].is_null(), "{inventory}");
    Ok(())
}

async fn program(server: Arc<ApiServer>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let key = folder.path().join("main.key");
    fs::write(&key, format!("{}Bwc=\n", "BwcH".repeat(10)))?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    let config = folder.path().join("coffer.yaml");
    let configuration = format!(
        "providers:\n  main: {{type: local, keyFile: main.key, insecureLocalKey: true}}\ndefaultProvider: main\nclusterId: \
         {CLUSTER}\nstore: {{type: kubernetes}}\n"
    );
    fs::write(&config, configuration)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_coffer"));
    command.args(["inventory", "--json", "--config"]).arg(&config).env("KUBECONFIG", server.kubeconfig());
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let told = String::from_utf8_lossy(&output.stderr);
    // Others have records and volumes here as well, so it need not end well.
    let inventory: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON: {told}"))?;
    let counts = &inventory["counts"];
    ensure!(counts["persistentVolumes"].is_u64() && counts["localVolumes"].is_u64(), "{inventory}: {told}");
    Ok(())
}
