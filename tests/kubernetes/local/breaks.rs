//! Nodes and controllers that break off between any two steps: whoever comes next finds what was left, and goes on.

use std::{
    fs::{self, File},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use coffer::{
    exec::Deadline,
    key::{
        derive::Tag,
        service::{Attempt, NewKey},
    },
    kubernetes::local_volume::{FILE, LocalVolume, Phase},
    volume::{Content, FsType, Parameters, VolumeId},
};
use kube::api::{Patch, PatchParams, PostParams};
use libtest_mimic::Trial;
use serde_json::json;
use testbed::kube::ApiServer;
use tonic::Code;

use crate::{
    Bed,
    local::{
        PATIENT,
        house::{House, MIB, Node, with_header},
        is_gone,
    },
};

const BYTES: u64 = 16 * MIB;

pub(crate) fn trials(bed: &Bed) -> Vec<Trial> {
    vec![
        bed.trial("a_file_that_was_about_to_be_made_is_made", before_the_file),
        bed.trial("a_file_that_was_made_and_not_told_is_told", before_the_status),
        bed.trial("a_file_that_was_removed_and_not_told_is_told", before_the_end),
        bed.trial("a_deletion_that_broke_off_after_the_key_goes_on", after_the_key),
        bed.trial("a_file_that_is_gone_is_never_made_again", gone),
        bed.trial("a_file_is_made_for_a_volume_with_a_key_of_this_node_alone", without_key),
        bed.trial("a_node_that_is_killed_again_and_again_makes_every_volume_once", killed),
    ]
}

/// The record of a volume, as the controller makes it before anything else.
async fn record(house: &House, name: &str, node: &str) -> Result<()> {
    let new = NewKey {
        volume_id: VolumeId::for_name(name),
        name: name.to_owned(),
        parameters: Parameters::of(Content::Filesystem(FsType::Ext4)),
        node: Some(node.to_owned()),
        tenant: None,
        storage_class: None,
        claim: None,
        key_id: None,
        provider: None,
        context: Default::default(),
    };
    house.keys.create(new, soon()).await?;
    Ok(())
}

/// The object of a volume; with the finalizer where a node was about to make its file.
async fn object(house: &House, name: &str, node: &str, begun: bool) -> Result<()> {
    let mut object = LocalVolume::of(&VolumeId::for_name(name), node, with_header(BYTES));
    object.metadata.finalizers = begun.then(|| vec![FILE.to_owned()]);
    house.volumes().create(&PostParams::default(), &object).await?;
    Ok(())
}

/// The file of a volume, with its name in it.
fn file(node: &Node, name: &str) -> Result<()> {
    fs::create_dir_all(&node.folder)?;
    fs::write(node.file(name), name)?;
    Ok(File::options().write(true).open(node.file(name))?.set_len(with_header(BYTES))?)
}

fn soon() -> Deadline {
    Deadline::within(PATIENT)
}

fn is_ready(found: Option<&LocalVolume>) -> bool {
    found.is_some_and(|object| object.phase() == Phase::Ready && object.made_bytes() == Some(with_header(BYTES)))
}

async fn before_the_file(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let (mut node, name) = (house.node("break-file"), "pvc-break-file");
    record(&house, name, &node.name).await?;
    object(&house, name, &node.name, true).await?;
    node.start().await?;
    house.until(name, "its file", is_ready).await?;
    node.expect_file(name, with_header(BYTES))?;
    house.create(name, "break-file", BYTES, PATIENT).await?;
    Ok(())
}

async fn before_the_status(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let (mut node, name) = (house.node("break-status"), "pvc-break-status");
    record(&house, name, &node.name).await?;
    object(&house, name, &node.name, true).await?;
    file(&node, name)?;
    node.start().await?;
    house.until(name, "its file", is_ready).await?;
    ensure!(fs::read(node.file(name))?.starts_with(name.as_bytes()), "the file was made again");
    Ok(())
}

async fn before_the_end(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let (mut node, name) = (house.node("break-end"), "pvc-break-end");
    object(&house, name, &node.name, true).await?;
    house.csi.delete(VolumeId::for_name(name).as_str()).await?;
    ensure!(house.object(name).await?.is_some_and(|object| object.is_leaving()), "it waits for its node");
    node.start().await?;
    house.until(name, "its end", is_gone).await?;
    Ok(())
}

async fn after_the_key(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let (mut node, name) = (house.node("break-key"), "pvc-break-key");
    node.start().await?;
    let volume = house.create(name, "break-key", BYTES, PATIENT).await?;
    house.keys.destroy(&VolumeId::for_name(name), 1, soon()).await?;
    let refused = house.create(name, "break-key", BYTES, PATIENT).await.expect_err("there is a file without a key");
    ensure!(refused.code() == Code::FailedPrecondition && refused.message().contains("no key record"), "{refused:?}");
    node.expect_file(name, with_header(BYTES))?;
    house.csi.delete(&volume.volume_id).await?;
    house.until(name, "its end", is_gone).await?;
    node.expect_no_file(name)
}

async fn gone(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let (mut node, name) = (house.node("break-gone"), "pvc-break-gone");
    node.start().await?;
    house.create(name, "break-gone", BYTES, PATIENT).await?;
    let id = VolumeId::for_name(name);
    // A user has written to it, and then its disk is not mounted.
    let info = house.keys.begin_format(&id, 1, soon()).await?;
    let attempt = Attempt { generation: 1, number: info.format_attempt };
    house.keys.mark_ready(&id, attempt, Tag::from_bytes([7; 32]), soon()).await?;
    node.stop().await?;
    let away = node.folder.with_extension("unmounted");
    fs::rename(&node.folder, &away)?;
    node.start().await?;
    let told = |found: Option<&LocalVolume>| {
        found.is_some_and(|object| object.phase() == Phase::Failed && object.message().contains("mounted"))
    };
    house.until(name, "what is wrong", told).await?;
    node.expect_no_file(name)?;
    let refused = house.create(name, "break-gone", BYTES, PATIENT).await.expect_err("its file is gone");
    ensure!(refused.code() == Code::FailedPrecondition, "{refused:?}");
    node.expect_no_file(name)?;
    // Nor by a node whose object has forgotten that there was a file.
    node.stop().await?;
    let forgotten = json!({ "status": { "phase": "Pending", "sizeBytes": null } });
    house.volumes().patch_status(id.as_str(), &PatchParams::default(), &Patch::Merge(&forgotten)).await?;
    node.start().await?;
    house.until(name, "what is wrong", told).await?;
    node.expect_no_file(name)?;
    // It is mounted again.
    node.stop().await?;
    fs::remove_dir_all(&node.folder)?;
    fs::rename(&away, &node.folder)?;
    node.start().await?;
    house.until(name, "its file", is_ready).await?;
    house.create(name, "break-gone", BYTES, PATIENT).await?;
    Ok(())
}

async fn without_key(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let (mut node, keyless, other) = (house.node("break-none"), "pvc-break-none", "pvc-break-other");
    object(&house, keyless, &node.name, false).await?;
    record(&house, other, "break-elsewhere").await?;
    object(&house, other, &node.name, false).await?;
    node.start().await?;
    house.until(keyless, "why not", |found| found.is_some_and(|object| object.message().contains("no key"))).await?;
    let bound = |found: Option<&LocalVolume>| {
        found.is_some_and(|object| object.phase() == Phase::Failed && object.message().contains("break-elsewhere"))
    };
    house.until(other, "why not", bound).await?;
    node.expect_no_file(keyless)?;
    node.expect_no_file(other)?;
    // A key that comes later is a key.
    record(&house, keyless, &node.name).await?;
    house.until(keyless, "its file", is_ready).await?;
    Ok(())
}

async fn killed(server: Arc<ApiServer>) -> Result<()> {
    let house = House::build(&server)?;
    let mut node = house.node("break-killed");
    let names: Vec<_> = (0..10).map(|number| format!("pvc-killed-{number}")).collect();
    for name in &names {
        record(&house, name, &node.name).await?;
        object(&house, name, &node.name, false).await?;
    }
    // Each life is a little longer than the one before, so that they end everywhere.
    for life in 0..12 {
        node.start().await?;
        tokio::time::sleep(Duration::from_millis(20 * life)).await;
        node.kill();
    }
    node.start().await?;
    for name in &names {
        house.until(name, "its file", is_ready).await?;
        node.expect_file(name, with_header(BYTES))?;
        let object = house.object(name).await?.context("there is an object")?;
        ensure!(object.has_finalizer(), "{object:?}");
    }
    for name in &names {
        house.csi.delete(VolumeId::for_name(name).as_str()).await?;
    }
    for life in 0..12 {
        node.kill();
        node.start().await?;
        tokio::time::sleep(Duration::from_millis(20 * life)).await;
    }
    for name in &names {
        house.until(name, "its end", is_gone).await?;
        node.expect_no_file(name)?;
    }
    let left: Vec<_> = fs::read_dir(&node.folder)?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
