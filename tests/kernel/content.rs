//! What a volume holds is kept, in every form, and is not readable below.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use anyhow::{Context, Result, ensure};
use coffer::proto::csi::{
    VolumeCapability,
    volume_capability::{MountVolume, access_mode::Mode},
};
use libtest_mimic::Trial;
use testbed::csi::{block, filesystem, mount, new_volume};
use tonic::Code;

use crate::{Bed, MIB, expect_status, loops, mappings, run, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("ext4_keeps_its_data_and_shows_none_of_it_below", |bed| keeps(bed, "ext4", 64)),
        trial("xfs_keeps_its_data_and_shows_none_of_it_below", |bed| keeps(bed, "xfs", 300)),
        trial("btrfs_keeps_its_data_and_shows_none_of_it_below", |bed| keeps(bed, "btrfs", 128)),
        trial("a_raw_block_volume_keeps_its_data", raw_block),
        trial("an_ext4_volume_grows_while_it_is_in_use", |bed| grows(bed, "ext4", 64)),
        trial("an_xfs_volume_grows_while_it_is_in_use", |bed| grows(bed, "xfs", 300)),
        trial("a_btrfs_volume_grows_while_it_is_in_use", |bed| grows(bed, "btrfs", 128)),
        trial("a_block_volume_grows_while_it_is_in_use", block_grows),
        trial("mount_options_and_read_only_reach_the_kernel", options),
        trial("a_volume_for_one_writer_is_published_once", one_writer),
        trial("a_group_owns_a_volume_that_was_staged_for_it", group),
        trial("the_header_is_small_and_has_room_for_three_keyslots", header),
        trial("a_device_of_the_node_becomes_a_volume", device),
        trial("a_file_system_with_errors_is_repaired_before_it_is_mounted", repaired),
        trial("the_parameters_of_a_class_reach_disk_and_kernel", class_parameters),
        trial("a_request_for_another_file_system_is_refused", other_content),
        trial("the_verbs_show_volumes_and_records_and_no_key", verbs),
    ]
}

const MARK: &[u8] = b"a text that nobody below may read";

fn writer(fs_type: &str) -> VolumeCapability {
    filesystem(fs_type, Mode::SingleNodeWriter)
}

fn holds(path: &Path, text: &[u8]) -> Result<bool> {
    Ok(fs::read(path)?.windows(text.len()).any(|window| window == text))
}

async fn keeps(bed: Bed, fs_type: &str, mib: u64) -> Result<()> {
    let (csi, staged, target) = (&bed.driver.csi, bed.path("staged"), bed.path("target"));
    let volume = csi.create_filesystem("keeps", mib * MIB, fs_type).await?;
    ensure!(volume.capacity_bytes.unsigned_abs() == mib * MIB, "{volume:?}");
    for round in 0..2 {
        csi.stage(&volume, &staged, writer(fs_type)).await?;
        csi.stage(&volume, &staged, writer(fs_type)).await.context("stage again")?;
        csi.publish(&volume, &staged, &target, writer(fs_type)).await?;
        csi.publish(&volume, &staged, &target, writer(fs_type)).await.context("publish again")?;
        if round == 0 {
            fs::write(target.join("file"), MARK)?;
        }
        ensure!(fs::read(target.join("file"))? == MARK, "round {round}");
        let stats = csi.stats(&volume.volume_id, &target).await?;
        ensure!(stats.usage.len() == 2 && stats.usage[0].total > 0, "{stats:?}");
        ensure!(stats.volume_condition.is_some_and(|condition| !condition.abnormal));
        csi.unpublish(&volume.volume_id, &target).await?;
        csi.unpublish(&volume.volume_id, &target).await.context("unpublish again")?;
        ensure!(!target.exists(), "the target stays");
        csi.unstage(&volume.volume_id, &staged).await?;
        csi.unstage(&volume.volume_id, &staged).await.context("unstage again")?;
        ensure!(mappings().is_empty() && loops() == 0, "{:?} and {} loop devices stay", mappings(), loops());
    }
    let file = bed.driver.file(&volume.volume_id);
    ensure!(!holds(&file, MARK)?, "the text is readable below");
    // One key for each time that the volume was not staged yet.
    ensure!(bed.driver.releases() == 2, "{} releases\n{}", bed.driver.releases(), bed.driver.audit());
    csi.delete(&volume.volume_id).await?;
    csi.delete(&volume.volume_id).await.context("delete again")?;
    ensure!(!file.exists(), "the file stays");
    ensure!(fs::read_to_string(bed.driver.record(&volume.volume_id))?.contains(r#""state": "destroyed""#));
    expect_status(csi.stage_filesystem(&volume, &staged).await, Code::NotFound, &[])
}

async fn raw_block(bed: Bed) -> Result<()> {
    let (csi, staged, target) = (&bed.driver.csi, bed.path("staged"), bed.path("target"));
    let capability = block(Mode::SingleNodeWriter);
    let volume = csi.create(new_volume("raw", 16 * MIB, capability.clone())).await?;
    csi.stage(&volume, &staged, capability.clone()).await?;
    csi.publish(&volume, &staged, &target, capability.clone()).await?;
    csi.publish(&volume, &staged, &target, capability.clone()).await.context("publish again")?;
    run("dd", &["if=/proc/version", &format!("of={}", target.display()), "bs=4096", "count=1", "conv=fsync"])?;
    let stats = csi.stats(&volume.volume_id, &target).await?;
    ensure!(stats.usage[0].total.unsigned_abs() == 16 * MIB, "{stats:?}");
    expect_status(csi.unstage(&volume.volume_id, &staged).await, Code::FailedPrecondition, &["unpublish"])?;
    csi.unpublish(&volume.volume_id, &target).await?;
    csi.unstage(&volume.volume_id, &staged).await?;
    ensure!(mappings().is_empty() && loops() == 0);
    ensure!(!holds(&bed.driver.file(&volume.volume_id), b"Linux version")?, "the text is readable below");

    let reader = block(Mode::SingleNodeReaderOnly);
    csi.stage(&volume, &staged, reader.clone()).await?;
    csi.publish(&volume, &staged, &target, reader).await?;
    ensure!(fs::read(&target)?.starts_with(b"Linux version"), "the text is gone");
    let written =
        run("dd", &["if=/dev/zero", &format!("of={}", target.display()), "bs=4096", "count=1", "oflag=direct"]);
    ensure!(written.is_err() && fs::read(&target)?.starts_with(b"Linux version"), "a reader may write");
    csi.unpublish(&volume.volume_id, &target).await?;
    Ok(csi.unstage(&volume.volume_id, &staged).await?)
}

async fn grows(bed: Bed, fs_type: &str, mib: u64) -> Result<()> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let volume = csi.create_filesystem("grows", mib * MIB, fs_type).await?;
    csi.stage(&volume, &staged, writer(fs_type)).await?;
    fs::write(staged.join("file"), MARK)?;
    let total = async || anyhow::Ok(csi.stats(&volume.volume_id, &staged).await?.usage[0].total.unsigned_abs());
    let (before, id) = (total().await?, &volume.volume_id);
    expect_status(csi.expand(id, &staged, 2 * mib * MIB).await, Code::OutOfRange, &[])?;
    ensure!(csi.expand_file(id, 2 * mib * MIB).await? == 2 * mib * MIB);
    ensure!(csi.expand(id, &staged, 2 * mib * MIB).await? == 2 * mib * MIB);
    csi.expand(id, &staged, 2 * mib * MIB).await.context("expand again")?;
    ensure!(total().await? > before + mib * MIB / 2, "{} is not more than {before}", total().await?);
    csi.unstage(id, &staged).await?;
    csi.stage(&volume, &staged, writer(fs_type)).await?;
    ensure!(fs::read(staged.join("file"))? == MARK);
    Ok(csi.unstage(id, &staged).await?)
}

async fn block_grows(bed: Bed) -> Result<()> {
    let (csi, staged, target) = (&bed.driver.csi, bed.path("staged"), bed.path("target"));
    let capability = block(Mode::SingleNodeWriter);
    let volume = csi.create(new_volume("grows", 16 * MIB, capability.clone())).await?;
    csi.stage(&volume, &staged, capability.clone()).await?;
    csi.publish(&volume, &staged, &target, capability).await?;
    csi.expand_file(&volume.volume_id, 32 * MIB).await?;
    csi.expand(&volume.volume_id, &target, 32 * MIB).await?;
    let stats = csi.stats(&volume.volume_id, &target).await?;
    ensure!(stats.usage[0].total.unsigned_abs() == 32 * MIB, "{stats:?}");
    csi.unpublish(&volume.volume_id, &target).await?;
    Ok(csi.unstage(&volume.volume_id, &staged).await?)
}

async fn options(bed: Bed) -> Result<()> {
    let (csi, staged, target) = (&bed.driver.csi, bed.path("staged"), bed.path("target"));
    let volume = csi.create_filesystem("options", 64 * MIB, "ext4").await?;
    let flags = vec!["noatime,nodev".to_owned(), "data=ordered".to_owned()];
    let capability = mount(MountVolume { mount_flags: flags, ..Default::default() }, Mode::SingleNodeWriter);
    csi.stage(&volume, &staged, capability.clone()).await?;
    fs::write(staged.join("file"), MARK)?;
    let mounted = |path: &Path| run("findmnt", &["-n", "-o", "OPTIONS", &path.display().to_string()]);
    ensure!(mounted(&staged)?.contains("nodev") && mounted(&staged)?.contains("noatime"), "{}", mounted(&staged)?);
    let mut request = testbed::csi::publish(&volume, &staged, &target, capability.clone());
    request.readonly = true;
    csi.node.clone().node_publish_volume(request.clone()).await?;
    csi.node.clone().node_publish_volume(request).await.context("publish again")?;
    ensure!(mounted(&target)?.starts_with("ro,") && mounted(&target)?.contains("nodev"), "{}", mounted(&target)?);
    ensure!(fs::write(target.join("file"), "").is_err() && fs::read(target.join("file"))? == MARK);
    expect_status(csi.publish(&volume, &staged, &target, capability).await, Code::AlreadyExists, &["read-only"])?;
    csi.unpublish(&volume.volume_id, &target).await?;
    csi.unstage(&volume.volume_id, &staged).await?;

    let reader = filesystem("", Mode::SingleNodeReaderOnly);
    csi.stage(&volume, &staged, reader.clone()).await?;
    csi.stage(&volume, &staged, reader.clone()).await.context("stage again")?;
    expect_status(csi.stage_filesystem(&volume, &staged).await, Code::AlreadyExists, &["read-only"])?;
    csi.publish(&volume, &staged, &target, reader).await?;
    ensure!(fs::write(target.join("file"), "").is_err());
    csi.unpublish(&volume.volume_id, &target).await?;
    csi.unstage(&volume.volume_id, &staged).await?;

    let flags = vec!["no_such_option".to_owned()];
    let wrong = mount(MountVolume { mount_flags: flags, ..Default::default() }, Mode::SingleNodeWriter);
    expect_status(csi.stage(&volume, &staged, wrong).await, Code::Internal, &["mount volume", "kernel log"])?;
    ensure!(mappings().is_empty() && loops() == 0, "a stage that failed leaves the volume open");
    Ok(csi.delete(&volume.volume_id).await?)
}

async fn one_writer(bed: Bed) -> Result<()> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let volume = csi.create_filesystem("writers", 64 * MIB, "ext4").await?;
    let (first, second) = (bed.path("first"), bed.path("second"));
    let check = async |mode: Mode| {
        csi.stage(&volume, &staged, filesystem("", mode)).await?;
        csi.publish(&volume, &staged, &first, filesystem("", mode)).await?;
        let answer = csi.publish(&volume, &staged, &second, filesystem("", mode)).await;
        csi.unpublish(&volume.volume_id, &first).await?;
        csi.unpublish(&volume.volume_id, &second).await?;
        csi.unstage(&volume.volume_id, &staged).await?;
        anyhow::Ok(answer)
    };
    expect_status(check(Mode::SingleNodeSingleWriter).await?, Code::FailedPrecondition, &["one writer", "first"])?;
    Ok(check(Mode::SingleNodeMultiWriter).await??)
}

async fn group(bed: Bed) -> Result<()> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let volume = csi.create_filesystem("group", 64 * MIB, "ext4").await?;
    let grouped = MountVolume { volume_mount_group: "4321".to_owned(), ..Default::default() };
    csi.stage(&volume, &staged, mount(grouped, Mode::SingleNodeWriter)).await?;
    let folder = fs::metadata(&staged)?;
    ensure!(folder.gid() == 4321 && folder.mode() & 0o2070 == 0o2070, "{folder:?}");
    fs::write(staged.join("file"), "")?;
    ensure!(fs::metadata(staged.join("file"))?.gid() == 4321);
    Ok(csi.unstage(&volume.volume_id, &staged).await?)
}

async fn header(bed: Bed) -> Result<()> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let volume = csi.create_filesystem("header", 64 * MIB, "ext4").await?;
    csi.stage_filesystem(&volume, &staged).await?;
    let attached = run("losetup", &["--noheadings", "--output", "DIO,AUTOCLEAR", "--list"])?;
    ensure!(attached.split_whitespace().collect::<Vec<_>>() == ["1", "1"], "no direct I/O or no autoclear: {attached}");
    csi.unstage(&volume.volume_id, &staged).await?;
    let file = bed.driver.file(&volume.volume_id);
    ensure!(fs::metadata(&file)?.len() == 65 * MIB, "the header takes more than a MiB of its own");
    let text = file.display().to_string();
    let dump = run("cryptsetup", &["luksDump", &text])?;
    for expected in ["offset: 1048576", "cipher: aes-xts-plain64", "sector: 4096", "PBKDF:      pbkdf2", "512 bits"] {
        ensure!(dump.contains(expected), "{expected} is not in\n{dump}");
    }
    // The keyslots that a change of keys needs fit in beside the first, without its key being known here.
    let copy = bed.path("copy");
    fs::copy(&file, &copy)?;
    let (keys, copy) = (bed.path("key"), copy.display().to_string());
    let record: serde_json::Value = serde_json::from_slice(&fs::read(bed.driver.record(&volume.volume_id))?)?;
    ensure!(dump.contains(record["luksUuid"].as_str().context("a record has a UUID")?), "{dump}");
    let key = crate::refusal::dek(&bed.driver, &volume.volume_id)?;
    fs::write(&keys, key.expose_secret())?;
    let keys = keys.display().to_string();
    for slot in ["second", "third"] {
        let new = bed.path(slot);
        fs::write(&new, slot)?;
        let words =
            ["luksAddKey", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file"];
        let words: Vec<_> =
            words.into_iter().chain([keys.as_str(), copy.as_str(), new.to_str().unwrap_or("")]).collect();
        run("cryptsetup", &words)?;
    }
    Ok(())
}

async fn device(bed: Bed) -> Result<()> {
    let (csi, staged, image) = (&bed.driver.csi, bed.path("staged"), bed.path("image"));
    fs::File::create(&image)?.set_len(80 * MIB)?;
    let device = run("losetup", &["--find", "--show", &image.display().to_string()])?.trim().to_owned();
    let mut request = new_volume("device", 64 * MIB, writer("ext4"));
    request.parameters.insert("device".to_owned(), device.clone());
    let volume = csi.create(request).await?;
    ensure!(volume.volume_context.get("device") == Some(&device) && volume.capacity_bytes.unsigned_abs() == 79 * MIB);
    csi.stage_filesystem(&volume, &staged).await?;
    fs::write(staged.join("file"), MARK)?;
    csi.unstage(&volume.volume_id, &staged).await?;
    ensure!(mappings().is_empty() && !holds(&image, MARK)?);
    csi.stage_filesystem(&volume, &staged).await?;
    ensure!(fs::read(staged.join("file"))? == MARK);
    expect_status(csi.delete(&volume.volume_id).await, Code::FailedPrecondition, &["staged"])?;
    csi.unstage(&volume.volume_id, &staged).await?;
    csi.delete(&volume.volume_id).await?;
    run("losetup", &["--detach", &device])?;
    let mut missing = volume.clone();
    missing.volume_context.insert("device".to_owned(), "/dev/no-such-device".to_owned());
    expect_status(csi.stage_filesystem(&missing, &staged).await, Code::NotFound, &["/dev/no-such-device"])
}

async fn repaired(bed: Bed) -> Result<()> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let volume = csi.create_filesystem("errors", 64 * MIB, "ext4").await?;
    csi.stage_filesystem(&volume, &staged).await?;
    fs::write(staged.join("file"), MARK)?;
    run("sync", &[])?;
    // The kernel notes an error in the superblock when it is told of one.
    let [mapping] = &mappings()[..] else { anyhow::bail!("{:?}", mappings()) };
    fs::write(format!("/sys/fs/ext4/{}/trigger_fs_error", device_name(mapping)?), "a test")?;
    let condition = csi.stats(&volume.volume_id, &staged).await?.volume_condition.context("a condition")?;
    ensure!(condition.abnormal && condition.message.contains("errors"), "{condition:?}");
    csi.unstage(&volume.volume_id, &staged).await?;
    csi.stage_filesystem(&volume, &staged).await?;
    ensure!(bed.driver.log().contains("repairing before the mount"), "{}", bed.driver.log());
    ensure!(fs::read(staged.join("file"))? == MARK);
    let condition = csi.stats(&volume.volume_id, &staged).await?.volume_condition.context("a condition")?;
    ensure!(!condition.abnormal, "{condition:?}");
    Ok(csi.unstage(&volume.volume_id, &staged).await?)
}

async fn class_parameters(bed: Bed) -> Result<()> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let plain = csi.create_filesystem("plain", 64 * MIB, "ext4").await?;
    csi.stage_filesystem(&plain, &staged).await?;
    let inodes = async |id: &str| anyhow::Ok(csi.stats(id, &staged).await?.usage[1].total);
    let few = inodes(&plain.volume_id).await?;
    ensure!(!run("findmnt", &["-n", "-o", "OPTIONS", &staged.display().to_string()])?.contains("discard"));
    csi.unstage(&plain.volume_id, &staged).await?;

    let mut request = new_volume("chosen", 64 * MIB, writer(""));
    for (key, value) in [
        ("fsType", "ext4"),
        ("sectorSize", "512"),
        ("discard", "true"),
        ("mkfsOptions", "-i 2048"),
        ("context", "team=blue"),
    ] {
        request.parameters.insert(key.to_owned(), value.to_owned());
    }
    let chosen = csi.create(request).await?;
    csi.stage_filesystem(&chosen, &staged).await?;
    ensure!(inodes(&chosen.volume_id).await? > few, "mkfs did not get its option");
    ensure!(run("findmnt", &["-n", "-o", "OPTIONS", &staged.display().to_string()])?.contains("discard"));
    csi.unstage(&chosen.volume_id, &staged).await?;
    let dump = run("cryptsetup", &["luksDump", &bed.driver.file(&chosen.volume_id).display().to_string()])?;
    ensure!(dump.contains("sector: 512"), "{dump}");
    ensure!(fs::read_to_string(bed.driver.record(&chosen.volume_id))?.contains(r#""team": "blue""#));
    csi.stage_filesystem(&chosen, &staged).await?;
    Ok(csi.unstage(&chosen.volume_id, &staged).await?)
}

fn device_name(mapping: &str) -> Result<String> {
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("dm/name")).is_ok_and(|name| name.trim() == mapping) {
            return Ok(entry.file_name().to_string_lossy().into_owned());
        }
    }
    anyhow::bail!("{mapping} is not there")
}

async fn other_content(bed: Bed) -> Result<()> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let volume = csi.create_filesystem("other", 64 * MIB, "ext4").await?;
    expect_status(csi.stage(&volume, &staged, writer("xfs")).await, Code::FailedPrecondition, &["ext4", "xfs"])?;
    let blocked = csi.stage(&volume, &staged, block(Mode::SingleNodeWriter)).await;
    expect_status(blocked, Code::FailedPrecondition, &["ext4", "block"])?;
    ensure!(mappings().is_empty() && loops() == 0);
    Ok(())
}

async fn verbs(bed: Bed) -> Result<()> {
    let volume = bed.driver.csi.create_filesystem("pvc-shown", 64 * MIB, "xfs").await;
    // XFS needs more, and gets it.
    let volume = volume?;
    let state = bed.driver.state_dir().display().to_string();
    let listed = run(crate::COFFER, &["volumes", "list", "--state-dir", &state])?;
    for expected in [volume.volume_id.as_str(), "prepared", "xfs", "314572800", "test-node", "pvc-shown"] {
        ensure!(listed.contains(expected), "{expected} is not in\n{listed}");
    }
    let json = run(crate::COFFER, &["volumes", "list", "--json", "--state-dir", &state])?;
    ensure!(serde_json::from_str::<serde_json::Value>(&json)?[0]["bytes"] == 300 * MIB, "{json}");
    let by_name = run(crate::COFFER, &["records", "show", "pvc-shown", "--state-dir", &state])?;
    let by_id = run(crate::COFFER, &["records", "show", &volume.volume_id, "--state-dir", &state])?;
    ensure!(by_name == by_id && by_id.contains(r#""state": "prepared""#), "{by_id}");
    let dek = crate::refusal::dek(&bed.driver, &volume.volume_id)?;
    let base64: String = coffer::key::record::Base64::new(dek.expose_secret().to_vec()).into();
    ensure!(!by_id.contains(&base64), "the record shows the key");
    Ok(())
}
