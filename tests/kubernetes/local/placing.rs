//! On which node a volume is made, what a full node and another choice leave behind, and two controllers at once.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use coffer::{
    exec::Deadline,
    kubernetes::{
        local_pool::{LocalPool, LocalPoolFields},
        pools::ClusterPools,
    },
    node::pool::{Needs, Placement, Pools, Wanted},
    volume::VolumeId,
};
use futures::future::join_all;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use libtest_mimic::Trial;
use serde_json::json;
use testbed::kube::ApiServer;
use tonic::Code;

use crate::{
    Bed,
    local::{
        BRIEF, PATIENT,
        house::{House, MIB, create, request, with_header},
        is_gone,
    },
};

pub(crate) fn trials(bed: &Bed) -> Vec<Trial> {
    vec![
        bed.trial("a_pool_without_room_is_refused_before_anything_is_made", known_full),
        bed.trial("a_node_that_turns_out_full_leaves_no_trace_and_another_gets_the_volume", found_full),
        bed.trial("another_choice_of_node_takes_back_what_no_node_has_seen", chosen_anew),
        bed.trial("another_choice_of_node_waits_for_the_file_of_the_first", chosen_anew_after_the_file),
        bed.trial("a_choice_without_room_takes_back_what_was_begun_elsewhere", chosen_in_vain),
        bed.trial("a_volume_that_somebody_may_know_of_is_not_moved", not_moved),
        bed.trial("two_controllers_at_once_make_one_volume", two_controllers),
        bed.trial("the_preferred_node_with_room_is_taken_else_the_roomiest", preferences),
        bed.trial("a_device_is_refused_by_a_controller_that_has_none", no_devices),
    ]
}

async fn known_full(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    tell_room(&house, "small-1", 20 * MIB).await?;
    let full = house.create("pvc-small", "small-1", 20 * MIB, PATIENT).await.expect_err("no room");
    ensure!(full.code() == Code::ResourceExhausted, "{full:?}");
    ensure!(full.message().contains("the pool of node small-1"), "{full:?}");
    ensure!(
        house.object("pvc-small").await?.is_none() && house.record("pvc-small").await?.is_none(),
        "a trace is left"
    );
    forget_room(&house, "small-1").await
}

async fn found_full(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let (mut full, mut roomy) = (house.node("full-1").without_room_for(8 * MIB), house.node("full-2"));
    let name = "pvc-full";
    full.start().await?;
    roomy.start().await?;
    let refused = house.create(name, "full-1", 16 * MIB, PATIENT).await.expect_err("no room");
    // external-provisioner has the pod scheduled again for this one.
    ensure!(refused.code() == Code::ResourceExhausted, "{refused:?}");
    ensure!(refused.message().contains("full-1"), "{refused:?}");
    ensure!(house.object(name).await?.is_none() && house.record(name).await?.is_none(), "a trace is left");
    full.expect_no_file(name)?;
    house.create(name, "full-2", 16 * MIB, PATIENT).await?;
    roomy.expect_file(name, with_header(16 * MIB))?;
    let record = house.record(name).await?.context("there is a record")?;
    ensure!(record.generation == 2 && record.node.as_deref() == Some("full-2"), "{record:?}");
    Ok(())
}

async fn chosen_anew(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let (mut other, name) = (house.node("anew-2"), "pvc-anew");
    other.start().await?;
    house.create(name, "anew-1", 16 * MIB, BRIEF).await.expect_err("nobody is there");
    house.create(name, "anew-2", 16 * MIB, PATIENT).await?;
    other.expect_file(name, with_header(16 * MIB))?;
    let record = house.record(name).await?.context("there is a record")?;
    ensure!(record.generation == 2 && record.node.as_deref() == Some("anew-2"), "{record:?}");
    // The first node comes after all, and has nothing to do with it.
    let mut first = house.node("anew-1");
    first.start().await?;
    first.stop().await?;
    first.expect_no_file(name)
}

async fn chosen_anew_after_the_file(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let (mut first, mut other, name) = (house.node("moved-1"), house.node("moved-2"), "pvc-moved");
    first.start().await?;
    other.start().await?;
    // The answer is lost on its way, and the pod is scheduled elsewhere.
    house.create(name, "moved-1", 16 * MIB, PATIENT).await?;
    first.stop().await?;
    let busy = house.create(name, "moved-2", 16 * MIB, PATIENT).await.expect_err("there is a file");
    ensure!(busy.code() == Code::Aborted && busy.message().contains("moved-1"), "{busy:?}");
    ensure!(house.record(name).await?.is_none(), "the key that nothing was written under is destroyed");
    first.expect_file(name, with_header(16 * MIB))?;
    first.start().await?;
    house.until(name, "its end", is_gone).await?;
    first.expect_no_file(name)?;
    house.create(name, "moved-2", 16 * MIB, PATIENT).await?;
    other.expect_file(name, with_header(16 * MIB))
}

async fn chosen_in_vain(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let name = "pvc-vain";
    tell_room(&house, "vain-2", MIB).await?;
    house.create(name, "vain-1", 16 * MIB, BRIEF).await.expect_err("nobody is there");
    let full = house.create(name, "vain-2", 16 * MIB, PATIENT).await.expect_err("no room");
    ensure!(full.code() == Code::ResourceExhausted && full.message().contains("vain-2"), "{full:?}");
    ensure!(house.object(name).await?.is_none() && house.record(name).await?.is_none(), "a trace is left");
    forget_room(&house, "vain-2").await
}

async fn not_moved(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let (mut node, name) = (house.node("known-1"), "pvc-known");
    node.start().await?;
    let volume = house.create(name, "known-1", 16 * MIB, PATIENT).await?;
    let persistent: Api<PersistentVolume> = Api::all(house.client.clone());
    let known = serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": { "name": name },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": { "storage": "16Mi" },
            "csi": { "driver": "coffer.csi", "volumeHandle": volume.volume_id },
            "persistentVolumeReclaimPolicy": "Retain",
        },
    }))?;
    persistent.create(&PostParams::default(), &known).await?;
    let refused = house.create(name, "known-2", 16 * MIB, PATIENT).await.expect_err("it is on another node");
    ensure!(refused.code() == Code::AlreadyExists && refused.message().contains("known-1"), "{refused:?}");
    ensure!(house.record(name).await?.is_some_and(|record| record.generation == 1), "the key is untouched");
    node.expect_file(name, with_header(16 * MIB))?;
    persistent.delete(name, &DeleteParams::default()).await?;
    Ok(())
}

async fn two_controllers(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let (mut node, second) = (house.node("two-1"), house.controller()?);
    node.start().await?;
    let names: Vec<_> = (0..6).map(|number| format!("pvc-two-{number}")).collect();
    let both = |name: &String| {
        let (first, second, asked) = (house.csi.clone(), second.clone(), request(name, "two-1", 16 * MIB));
        async move { tokio::join!(create(&first, asked.clone(), PATIENT), create(&second, asked, PATIENT)) }
    };
    for (name, (one, other)) in names.iter().zip(join_all(names.iter().map(both)).await) {
        let (one, other) = (one?, other?);
        ensure!(one == other, "{name}: {one:?} and {other:?}");
        node.expect_file(name, with_header(16 * MIB))?;
        ensure!(house.record(name).await?.is_some_and(|record| record.generation == 1), "{name} has one key");
    }
    let ids: Vec<_> = names.iter().map(|name| VolumeId::for_name(name).to_string()).collect();
    let both = |id: &String| {
        let (first, second, id) = (house.csi.clone(), second.clone(), id.clone());
        async move { tokio::join!(first.delete(&id), second.delete(&id)) }
    };
    for (one, other) in join_all(ids.iter().map(both)).await {
        one?;
        other?;
    }
    for name in &names {
        house.until(name, "its end", is_gone).await?;
        node.expect_no_file(name)?;
    }
    Ok(())
}

async fn preferences(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let (little, much, most) = (16 * MIB, 1 << 40, 1 << 60);
    for (node, room) in [("room-little", little), ("room-much", much), ("room-most", most)] {
        tell_room(&house, node, room).await?;
    }
    let pools = ClusterPools::through(house.client.clone());
    let place = async |preferred: &[&str], allowed: Option<&[&str]>, bytes: u64| {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let wanted = Wanted { preferred: names(preferred), allowed: allowed.map(names) };
        let id = VolumeId::for_name("pvc-room");
        pools.place(&id, Needs::File(bytes), &wanted, None, Deadline::within(PATIENT)).await
    };
    let chosen = async |preferred: &[&str], allowed: Option<&[&str]>, bytes: u64| match place(preferred, allowed, bytes)
        .await?
    {
        Placement::At(node) => Ok(node),
        other => Err(anyhow::anyhow!("{other:?}")),
    };
    ensure!(chosen(&[], None, MIB).await? == "room-most", "nobody asks for anything");
    ensure!(chosen(&["room-little"], None, MIB).await? == "room-little", "the preferred one");
    ensure!(chosen(&["room-little"], None, much).await? == "room-most", "it has no room");
    let allowed: &[&str] = &["room-little", "room-much"];
    ensure!(chosen(&["room-little"], Some(allowed), 17 * MIB).await? == "room-much", "the first with room");
    let away: &[&str] = &["room-gone", "room-much"];
    ensure!(chosen(&["room-gone"], Some(away), MIB).await? == "room-gone", "it may be away, or just be coming");
    let full = place(&[], Some(allowed), most).await.expect_err("none of them has room");
    ensure!(full.is_full(), "{full}");
    for node in ["room-little", "room-much", "room-most"] {
        forget_room(&house, node).await?;
    }
    Ok(())
}

async fn no_devices(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let mut asked = request("pvc-device", "device-1", 16 * MIB);
    asked.parameters.insert("device".to_owned(), "/dev/sdx".to_owned());
    let refused = create(&house.csi, asked, PATIENT).await.expect_err("there is no such device here");
    ensure!(refused.code() == Code::InvalidArgument && refused.message().contains("parameter device"), "{refused:?}");
    ensure!(house.record("pvc-device").await?.is_none(), "a trace is left");
    Ok(())
}

/// A node that is not there any more has told this.
async fn tell_room(house: &House, node: &str, bytes: u64) -> Result<()> {
    let pools: Api<LocalPool> = Api::all(house.client.clone());
    pools.create(&PostParams::default(), &LocalPool::new(node, LocalPoolFields {})).await?;
    let status = json!({ "status": { "availableBytes": bytes, "updated": jiff::Timestamp::now().to_string() } });
    pools.patch_status(node, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}

async fn forget_room(house: &House, node: &str) -> Result<()> {
    let pools: Api<LocalPool> = Api::all(house.client.clone());
    pools.delete(node, &DeleteParams::default()).await?;
    Ok(())
}
