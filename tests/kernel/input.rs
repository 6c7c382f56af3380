//! Bad input: the right code, no panic, and nothing touched outside the folders that were given.

use std::{collections::HashMap, fs, os::unix::fs::symlink};

use anyhow::{Result, ensure};
use coffer::proto::csi::{
    CapacityRange, ListVolumesRequest, NodeExpandVolumeRequest, ProbeRequest, Topology, TopologyRequirement,
    VolumeCapability, VolumeContentSource,
    volume_capability::{AccessMode, MountVolume, access_mode::Mode},
};
use libtest_mimic::Trial;
use testbed::csi::{filesystem, mount, new_volume, publish, stage};
use tonic::Code;

use crate::{Bed, MIB, expect_status, loops, mappings, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("every_bad_field_is_refused", fields),
        trial("targets_that_are_links_or_not_empty_are_refused", targets),
        trial("ids_that_look_like_paths_touch_nothing", ids),
        trial("two_drivers_on_one_folder_are_refused", second_driver),
    ]
}

fn writer() -> VolumeCapability {
    filesystem("", Mode::SingleNodeWriter)
}

async fn fields(bed: Bed) -> Result<()> {
    let csi = &bed.driver.csi;
    let volume = csi.create_filesystem("fields", 16 * MIB, "ext4").await?;
    let (staged, target) = (bed.path("staged"), bed.path("target"));
    let bad_paths = ["", "relative", "/", "/a/../b", "/a\0b", &format!("/{}", "x".repeat(5000))];
    let bad_ids = ["", "a\0b", "a\nb", &"x".repeat(600)];
    let no_mode = VolumeCapability { access_mode: None, ..writer() };
    let no_type = VolumeCapability { access_type: None, ..writer() };
    let odd_mode = VolumeCapability { access_mode: Some(AccessMode { mode: 99 }), ..writer() };
    let flags = MountVolume { mount_flags: vec!["bind".to_owned()], ..Default::default() };
    let group = MountVolume { volume_mount_group: "wheel".to_owned(), ..Default::default() };
    let bad_capabilities = [
        None,
        Some(no_mode),
        Some(no_type),
        Some(odd_mode),
        Some(filesystem("zfs", Mode::SingleNodeWriter)),
        Some(filesystem("../ext4", Mode::SingleNodeWriter)),
        Some(filesystem("", Mode::Unknown)),
        Some(filesystem("", Mode::MultiNodeMultiWriter)),
        Some(filesystem("", Mode::MultiNodeReaderOnly)),
        Some(mount(flags, Mode::SingleNodeWriter)),
        Some(mount(group, Mode::SingleNodeWriter)),
    ];
    let invalid = Code::InvalidArgument;
    let secrets = HashMap::from([("passphrase".to_owned(), "marked-secret".to_owned())]);
    let mut asked = 0;

    let good = stage(&volume, &staged, writer());
    let mut stages = Vec::new();
    stages.extend(bad_ids.map(|id| {
        let mut bad = good.clone();
        bad.volume_id = id.to_owned();
        bad
    }));
    stages.extend(bad_paths.map(|path| {
        let mut bad = good.clone();
        bad.staging_target_path = path.to_owned();
        bad
    }));
    stages.extend(bad_capabilities.clone().map(|capability| {
        let mut bad = good.clone();
        bad.volume_capability = capability;
        bad
    }));
    for (key, value) in [("source", "remote"), ("sauce", "local"), ("device", "relative"), ("source", "device")] {
        let mut bad = good.clone();
        bad.volume_context = HashMap::from([(key.to_owned(), value.to_owned())]);
        stages.push(bad);
    }
    stages.push({
        let mut bad = good.clone();
        bad.secrets = secrets.clone();
        bad
    });
    for bad in stages {
        expect_status(csi.node.clone().node_stage_volume(bad).await, invalid, &[])?;
        asked += 1;
    }

    let good = publish(&volume, &staged, &target, writer());
    let mut publishes = Vec::new();
    publishes.extend(bad_ids.map(|id| {
        let mut bad = good.clone();
        bad.volume_id = id.to_owned();
        bad
    }));
    publishes.extend(bad_paths.map(|path| {
        let mut bad = good.clone();
        bad.target_path = path.to_owned();
        bad
    }));
    publishes.extend(bad_paths.map(|path| {
        let mut bad = good.clone();
        bad.staging_target_path = path.to_owned();
        bad
    }));
    publishes.extend(bad_capabilities.clone().map(|capability| {
        let mut bad = good.clone();
        bad.volume_capability = capability;
        bad
    }));
    publishes.push({
        let mut bad = good.clone();
        bad.secrets = secrets.clone();
        bad
    });
    for bad in publishes {
        expect_status(csi.node.clone().node_publish_volume(bad).await, invalid, &[])?;
        asked += 1;
    }
    expect_status(csi.node.clone().node_publish_volume(good).await, Code::FailedPrecondition, &["not staged"])?;

    for path in bad_paths {
        let path = std::path::Path::new(path);
        expect_status(csi.unstage(&volume.volume_id, path).await, invalid, &[])?;
        expect_status(csi.unpublish(&volume.volume_id, path).await, invalid, &[])?;
        // At a relative path there is no volume.
        let code = if path == std::path::Path::new("relative") { Code::NotFound } else { invalid };
        expect_status(csi.stats(&volume.volume_id, path).await, code, &[])?;
        expect_status(csi.expand(&volume.volume_id, path, 1).await, code, &[])?;
        asked += 4;
    }
    for id in bad_ids {
        expect_status(csi.unstage(id, &staged).await, invalid, &[])?;
        expect_status(csi.unpublish(id, &target).await, invalid, &[])?;
        expect_status(csi.stats(id, &staged).await, invalid, &[])?;
        expect_status(csi.expand(id, &staged, 1).await, invalid, &[])?;
        expect_status(csi.expand_file(id, 1).await, invalid, &[])?;
        expect_status(csi.delete(id).await, invalid, &[])?;
        asked += 6;
    }
    let range = |required_bytes, limit_bytes| Some(CapacityRange { required_bytes, limit_bytes });
    let request = NodeExpandVolumeRequest {
        volume_id: volume.volume_id.clone(),
        volume_path: staged.display().to_string(),
        capacity_range: range(-1, 0),
        ..Default::default()
    };
    expect_status(csi.node.clone().node_expand_volume(request).await, invalid, &["negative"])?;

    let good = new_volume("bad", 16 * MIB, writer());
    let mut creates = Vec::new();
    creates.extend(["", "a\0b", &"x".repeat(129)].map(|name| {
        let mut bad = good.clone();
        bad.name = name.to_owned();
        bad
    }));
    creates.extend([range(-1, 0), range(0, -1), range(10, 5)].map(|range| {
        let mut bad = good.clone();
        bad.capacity_range = range;
        bad
    }));
    creates.extend(bad_capabilities.into_iter().flatten().map(|capability| {
        let mut bad = good.clone();
        bad.volume_capabilities = vec![capability];
        bad
    }));
    creates.push({
        let mut bad = good.clone();
        bad.volume_capabilities.clear();
        bad
    });
    creates.push({
        let mut bad = good.clone();
        bad.secrets = secrets;
        bad
    });
    creates.push({
        let mut bad = good.clone();
        bad.volume_content_source = Some(VolumeContentSource::default());
        bad
    });
    creates.push({
        let mut bad = good.clone();
        bad.mutable_parameters.insert("a".to_owned(), "b".to_owned());
        bad
    });
    for bad in creates {
        expect_status(csi.create(bad).await, invalid, &[])?;
        asked += 1;
    }
    let mut narrow = good.clone();
    narrow.capacity_range = range(4096, 8192);
    expect_status(csi.create(narrow).await, Code::OutOfRange, &["at least"])?;
    let mut elsewhere = good.clone();
    let requisite = vec![Topology { segments: HashMap::from([("coffer.csi/node".to_owned(), "other".to_owned())]) }];
    elsewhere.accessibility_requirements = Some(TopologyRequirement { requisite, preferred: Vec::new() });
    expect_status(csi.create(elsewhere).await, Code::ResourceExhausted, &["elsewhere"])?;
    for token in ["nonsense", "after:", "after:a\0b"] {
        let request = ListVolumesRequest { starting_token: token.to_owned(), ..Default::default() };
        expect_status(csi.controller.clone().list_volumes(request).await, Code::Aborted, &["token"])?;
    }
    let request = ListVolumesRequest { max_entries: -1, ..Default::default() };
    expect_status(csi.controller.clone().list_volumes(request).await, invalid, &[])?;
    expect_status(csi.expand_file("vol-unknown", MIB).await, Code::NotFound, &["vol-unknown"])?;

    csi.identity.clone().probe(ProbeRequest {}).await?;
    ensure!(!bed.driver.log().contains("panicked"), "{}", bed.driver.log());
    ensure!(!bed.driver.log().contains("marked-secret"), "a secret was logged");
    ensure!(mappings().is_empty() && loops() == 0 && !staged.exists() && !target.exists());
    ensure!(fs::read_dir(bed.driver.state_dir().join("records"))?.count() == 1);
    println!("bad requests refused: {asked}");
    Ok(())
}

async fn targets(bed: Bed) -> Result<()> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let volume = csi.create_filesystem("targets", 16 * MIB, "ext4").await?;
    let (real, link, full) = (bed.path("real"), bed.path("link"), bed.path("full"));
    fs::create_dir(&real)?;
    symlink(&real, &link)?;
    fs::create_dir(&full)?;
    fs::write(full.join("file"), "kept")?;
    expect_status(csi.stage_filesystem(&volume, &link).await, Code::InvalidArgument, &["symbolic link"])?;
    expect_status(csi.stage_filesystem(&volume, &full).await, Code::FailedPrecondition, &["not empty"])?;
    expect_status(csi.stage_filesystem(&volume, &full.join("file")).await, Code::InvalidArgument, &["not a folder"])?;
    let nowhere = bed.path("no").join("where");
    expect_status(csi.stage_filesystem(&volume, &nowhere).await, Code::InvalidArgument, &["does not exist"])?;
    csi.stage_filesystem(&volume, &staged).await?;
    expect_status(csi.publish(&volume, &staged, &link, writer()).await, Code::InvalidArgument, &["symbolic link"])?;
    expect_status(csi.publish(&volume, &staged, &full, writer()).await, Code::FailedPrecondition, &["not empty"])?;
    expect_status(csi.unpublish(&volume.volume_id, &link).await, Code::InvalidArgument, &["symbolic link"])?;
    let file = csi.unpublish(&volume.volume_id, &full.join("file")).await;
    expect_status(file, Code::FailedPrecondition, &["content"])?;
    ensure!(csi.unpublish(&volume.volume_id, &full).await.is_err(), "a full folder was removed");
    ensure!(fs::read_to_string(full.join("file"))? == "kept" && real.exists() && link.exists());
    // Another mount is neither staged over nor unmounted.
    let other = bed.path("other");
    fs::create_dir(&other)?;
    crate::run("mount", &["-t", "tmpfs", "tmpfs", &other.display().to_string()])?;
    expect_status(
        csi.publish(&volume, &staged, &other, writer()).await,
        Code::FailedPrecondition,
        &["something else"],
    )?;
    expect_status(csi.unpublish(&volume.volume_id, &other).await, Code::FailedPrecondition, &["something else"])?;
    crate::run("umount", &[&other.display().to_string()])?;
    Ok(csi.unstage(&volume.volume_id, &staged).await?)
}

async fn ids(bed: Bed) -> Result<()> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let outside = bed.path("state/kept");
    fs::write(&outside, "kept")?;
    for id in ["../kept", "..", ".", "/etc/passwd", "a/b", "ünïcode", "VOL", "vol 1", "-"] {
        let volume = coffer::proto::csi::Volume { volume_id: id.to_owned(), ..Default::default() };
        expect_status(csi.stage_filesystem(&volume, &staged).await, Code::NotFound, &[id])?;
        expect_status(csi.expand_file(id, MIB).await, Code::NotFound, &[id])?;
        expect_status(csi.stats(id, &bed.path("state")).await, Code::NotFound, &[id])?;
        csi.unstage(id, &staged).await?;
        csi.delete(id).await?;
    }
    ensure!(fs::read_to_string(&outside)? == "kept");
    let weird = csi.create_filesystem("../../é weird/name", 16 * MIB, "ext4").await?;
    csi.stage_filesystem(&weird, &staged).await?;
    csi.unstage(&weird.volume_id, &staged).await?;
    ensure!(bed.driver.file(&weird.volume_id).exists());
    Ok(())
}

async fn second_driver(bed: Bed) -> Result<()> {
    let state = bed.driver.state_dir().display().to_string();
    let second = std::process::Command::new(crate::COFFER).args(["dev", "--state-dir", &state]).output()?;
    let told = String::from_utf8_lossy(&second.stderr).into_owned();
    ensure!(!second.status.success() && told.contains("another coffer runs"), "{told}");
    Ok(())
}
