//! Local volumes of a cluster: the controller asks through custom resources, nodes make, grow and remove files, and
//! whoever is away, or breaks off, neither loses a volume nor leaves one behind.

mod breaks;
mod house;
mod placing;

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use coffer::{
    csi::node::topology,
    kubernetes::{
        local_pool::LocalPool,
        local_volume::{LocalVolume, Phase},
    },
    proto::csi::{GetCapacityRequest, GetPluginCapabilitiesRequest, ListVolumesRequest},
    volume::VolumeId,
};
use k8s_openapi::api::events::v1::Event;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
    runtime::wait::await_condition,
};
use libtest_mimic::Trial;
use testbed::kube::ApiServer;
use tonic::Code;

use crate::Bed;
use house::{House, MIB, with_header};

/// Longer than anything takes that happens.
const PATIENT: Duration = Duration::from_secs(60);
/// Long enough for an answer that a node has not answered.
const BRIEF: Duration = Duration::from_secs(4);

pub(crate) fn trials(bed: &Bed) -> Vec<Trial> {
    let own = vec![
        bed.trial("a_local_volume_is_made_by_its_node_and_goes_with_its_key", life),
        bed.trial("a_node_that_is_away_makes_the_volume_when_it_comes_back", away_at_first),
        bed.trial(
            "a_volume_deleted_while_its_node_is_away_loses_its_key_at_once_and_its_file_later",
            deleted_while_away,
        ),
        bed.trial("a_volume_that_no_node_has_seen_goes_at_once", never_seen),
        bed.trial("a_deleted_object_of_a_live_volume_stays_with_its_file", deleted_by_hand),
        bed.trial("a_volume_grows_and_what_does_not_fit_is_taken_back", growing),
    ];
    [own, placing::trials(bed), breaks::trials(bed)].into_iter().flatten().collect()
}

fn is_gone(found: Option<&LocalVolume>) -> bool {
    found.is_none()
}

async fn life(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let (mut node, name) = (house.node("life-1"), "pvc-life");
    node.start().await?;
    let told = house.csi.identity.clone().get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await?.into_inner();
    ensure!(told.capabilities.len() == 3, "controller, topology and growth: {:?}", told.capabilities);

    let volume = house.create(name, "life-1", 16 * MIB, PATIENT).await?;
    ensure!(volume.accessible_topology == [topology("life-1")], "{volume:?}");
    ensure!(volume.capacity_bytes.unsigned_abs() == 16 * MIB, "{volume:?}");
    node.expect_file(name, with_header(16 * MIB))?;
    let object = house.object(name).await?.context("there is an object")?;
    ensure!(object.phase() == Phase::Ready && object.has_finalizer(), "{object:?}");
    let record = house.record(name).await?.context("there is a record")?;
    ensure!(record.node.as_deref() == Some("life-1"), "{record:?}");

    let again = house.create(name, "life-1", 16 * MIB, PATIENT).await?;
    ensure!(again == volume, "{again:?} and {volume:?}");
    let other = house.create(name, "life-1", 32 * MIB, PATIENT).await.expect_err("another size");
    ensure!(other.code() == Code::AlreadyExists, "{other:?}");

    let request = ListVolumesRequest::default();
    let listed = house.csi.controller.clone().list_volumes(request).await?.into_inner().entries;
    let [entry] = listed.as_slice() else { anyhow::bail!("{listed:?}") };
    let listed = entry.volume.as_ref().context("an entry has a volume")?;
    ensure!(listed.volume_id == volume.volume_id && listed.capacity_bytes == volume.capacity_bytes, "{listed:?}");

    let capacity = async |node: &str| {
        let request = GetCapacityRequest { accessible_topology: Some(topology(node)), ..Default::default() };
        anyhow::Ok(house.csi.controller.clone().get_capacity(request).await?.into_inner().available_capacity)
    };
    let told = await_condition(Api::<LocalPool>::all(house.client.clone()), "life-1", |pool: Option<&LocalPool>| {
        pool.and_then(|pool| pool.status.as_ref()).is_some_and(|status| status.available_bytes > 0)
    });
    tokio::time::timeout(PATIENT, told).await.context("the node does not tell its room")??;
    ensure!(capacity("life-1").await? > 0, "a node with room");
    ensure!(capacity("life-nobody").await? == 0, "a node that there is not");

    house.csi.delete(&volume.volume_id).await?;
    ensure!(house.record(name).await?.is_none(), "its key is destroyed");
    house.until(name, "its end", is_gone).await?;
    node.expect_no_file(name)?;
    house.csi.delete(&volume.volume_id).await?;
    let receipt = event(&house, name, "KeyDestroyed").await?.context("the PersistentVolume's event")?;
    ensure!(receipt.note.is_some_and(|note| note.contains(&volume.volume_id)), "the receipt names the volume");
    node.stop().await
}

async fn away_at_first(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let (mut node, name) = (house.node("away-1"), "pvc-away");
    let waited = house.create(name, "away-1", 16 * MIB, BRIEF).await.expect_err("nobody is there");
    ensure!(waited.code() == Code::DeadlineExceeded, "{waited:?}");
    ensure!(waited.message().contains("node away-1 has not made the file"), "it is the controller's own: {waited:?}");
    node.start().await?;
    house.create(name, "away-1", 16 * MIB, PATIENT).await?;
    node.expect_file(name, with_header(16 * MIB))?;
    let record = house.record(name).await?.context("there is a record")?;
    ensure!(record.generation == 1, "the key is the one that was made at first: {record:?}");
    Ok(())
}

async fn deleted_while_away(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let (mut node, name) = (house.node("leave-1"), "pvc-leave");
    node.start().await?;
    let volume = house.create(name, "leave-1", 16 * MIB, PATIENT).await?;
    node.stop().await?;
    house.csi.delete(&volume.volume_id).await?;
    ensure!(house.record(name).await?.is_none(), "the key goes at once");
    node.expect_file(name, with_header(16 * MIB))?;
    ensure!(house.object(name).await?.is_some_and(|object| object.is_leaving()), "the node has not seen it");
    house.csi.delete(&volume.volume_id).await?;
    let busy = house.create(name, "leave-1", 16 * MIB, BRIEF).await.expect_err("the old file is still there");
    ensure!(busy.code() == Code::Aborted, "{busy:?}");
    ensure!(house.record(name).await?.is_none(), "no key for a volume that cannot be made");
    node.start().await?;
    house.until(name, "its end", is_gone).await?;
    node.expect_no_file(name)?;
    house.create(name, "leave-1", 16 * MIB, PATIENT).await?;
    let record = house.record(name).await?.context("there is a record")?;
    ensure!(record.generation == 2, "{record:?}");
    Ok(())
}

async fn never_seen(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let name = "pvc-unseen";
    house.create(name, "unseen-1", 16 * MIB, BRIEF).await.expect_err("nobody is there");
    ensure!(house.object(name).await?.is_some_and(|object| !object.has_finalizer()), "there can be no file");
    house.csi.delete(VolumeId::for_name(name).as_str()).await?;
    ensure!(house.object(name).await?.is_none(), "nobody is waited for");
    ensure!(house.record(name).await?.is_none(), "its key is destroyed");
    Ok(())
}

async fn deleted_by_hand(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let (mut node, name) = (house.node("hand-1"), "pvc-hand");
    node.start().await?;
    let volume = house.create(name, "hand-1", 16 * MIB, PATIENT).await?;
    house.volumes().delete(&volume.volume_id, &DeleteParams::default()).await?;
    let told = |found: Option<&LocalVolume>| {
        found.is_some_and(|object| object.is_leaving() && object.message().contains("delete the PersistentVolumeClaim"))
    };
    house.until(name, "what to do", told).await?;
    node.expect_file(name, with_header(16 * MIB))?;
    // Also by a node that comes anew, and by one that looks again.
    node.stop().await?;
    node.start().await?;
    let warning = tokio::time::timeout(PATIENT, async {
        loop {
            if let Some(event) = event(&house, &volume.volume_id, "KeyInUse").await? {
                return anyhow::Ok(event);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let warning = warning.await.context("no event tells it")??;
    ensure!(warning.type_.as_deref() == Some("Warning"), "{warning:?}");
    node.expect_file(name, with_header(16 * MIB))?;
    ensure!(house.record(name).await?.is_some(), "the key is untouched");
    house.csi.delete(&volume.volume_id).await?;
    house.until(name, "its end", is_gone).await?;
    node.expect_no_file(name)
}

async fn growing(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let (mut node, name) = (house.node("grow-1").without_room_for(100 * MIB), "pvc-grow");
    node.start().await?;
    let volume = house.create(name, "grow-1", 16 * MIB, PATIENT).await?;
    let grown = house.csi.expand_file(&volume.volume_id, 32 * MIB).await?;
    ensure!(grown == 32 * MIB, "{grown}");
    node.expect_file(name, with_header(32 * MIB))?;
    let same = house.csi.expand_file(&volume.volume_id, 16 * MIB).await?;
    ensure!(same == 32 * MIB, "a volume never becomes smaller: {same}");

    let full = house.csi.expand_file(&volume.volume_id, 200 * MIB).await.expect_err("no room");
    ensure!(full.code() == Code::OutOfRange && full.message().contains("grow-1"), "{full:?}");
    let back = |found: Option<&LocalVolume>| {
        found.is_some_and(|object| {
            object.phase() == Phase::Ready
                && object.wanted_bytes() == with_header(32 * MIB)
                && object.message().is_empty()
        })
    };
    house.until(name, "its old size", back).await?;
    house.csi.expand_file(&volume.volume_id, 48 * MIB).await?;
    node.expect_file(name, with_header(48 * MIB))?;

    // A node that is away grows it when it comes back.
    node.stop().await?;
    let mut asked = tonic::Request::new(coffer::proto::csi::ControllerExpandVolumeRequest {
        volume_id: volume.volume_id.clone(),
        capacity_range: Some(coffer::proto::csi::CapacityRange { required_bytes: 64 << 20, limit_bytes: 0 }),
        ..Default::default()
    });
    asked.set_timeout(BRIEF);
    let waited = house.csi.controller.clone().controller_expand_volume(asked).await.expect_err("nobody is there");
    ensure!(waited.code() == Code::DeadlineExceeded && waited.message().contains("grow-1"), "{waited:?}");
    node.expect_file(name, with_header(48 * MIB))?;
    node.start().await?;
    house.csi.expand_file(&volume.volume_id, 64 * MIB).await?;
    node.expect_file(name, with_header(64 * MIB))
}

/// An event about an object, by its reason.
async fn event(house: &House, name: &str, reason: &str) -> Result<Option<Event>> {
    let events: Api<Event> = Api::namespaced(house.client.clone(), "default");
    let listed = events.list(&ListParams::default()).await?;
    let about = |event: &Event| event.regarding.as_ref().and_then(|about| about.name.as_deref()) == Some(name);
    Ok(listed.into_iter().find(|event| about(event) && event.reason.as_deref() == Some(reason)))
}
