//! Disks that fail and things that run out: the request fails and says where, nothing changes that must not and nothing
//! stays open, and when the fault is gone the same request succeeds.

mod memory;
mod pool;
mod program;

use std::{fs, io::Write, os::unix::fs::FileExt, path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use coffer::proto::csi::{Volume, volume_capability::access_mode::Mode};
use libtest_mimic::Trial;
use testbed::{
    csi::{filesystem, new_volume, ran_out},
    dm::{Fault, FaultyDisk, loop_device_of},
    pause::When,
};
use tonic::{Code, Status};

use crate::{Bed, MIB, expect_status, loops, mappings, run, trial};

pub(crate) fn trials() -> Vec<Trial> {
    // Faults in a kernel, its memory and its programs are for a guest alone.
    if std::env::var_os("TESTBED_GUEST").is_none() {
        return Vec::new();
    }
    vec![
        trial("a_read_error_is_told_and_the_volume_opens_when_it_is_gone", read_errors),
        trial("a_write_error_ends_a_first_stage_and_a_retry_finishes_it", write_errors),
        trial("a_header_that_the_disk_drops_or_changes_is_noticed", untrue_writes),
        trial("a_volume_that_reads_wrong_is_refused_until_it_reads_right", wrong_reads),
        trial("a_slow_disk_is_waited_for_until_the_deadline", slow),
        trial("a_disk_that_goes_away_in_use_comes_back_with_what_was_synced", goes_away),
        trial("a_full_pool_ends_a_first_stage_and_takes_no_more_volumes", pool::full),
        trial("a_stage_needs_no_room_in_tmp_or_run", pool::full_tmp_and_run),
        trial("a_read_only_pool_is_told_and_serves_again_when_it_is_writable", pool::read_only),
        trial("a_killed_program_is_named_and_a_retry_works", program::killed),
        trial("an_unlock_that_hangs_is_killed_at_the_deadline", program::hangs),
        trial("a_loop_device_in_other_hands_loses_nothing", other_hands),
        trial("ten_new_volumes_are_staged_at_once_in_64_mib", memory::little),
    ]
}

const DISK: u64 = 24 * MIB;
const KEPT: &str = "kept";
/// For requests that are not to run out of time.
const LONG: Duration = Duration::from_secs(60);

async fn read_errors(bed: Bed) -> Result<()> {
    let (volume, disk) = on_disk(&bed, "reads").await?;
    write(&bed, &volume).await?;
    let (device, fails) = (text(&disk.path()), "Input/output error");
    disk.set(&Fault::Unreadable(0..MIB))?;
    refused(&bed, &volume, &disk, Code::Internal, &["read the header of", &device, fails]).await?;
    disk.set(&Fault::Unreadable(MIB..DISK))?;
    refused(&bed, &volume, &disk, Code::Internal, &["read the superblock of", "/dev/mapper/coffer-", fails]).await?;
    disk.set(&Fault::None)?;
    read(&bed, &volume).await
}

async fn write_errors(bed: Bed) -> Result<()> {
    for (name, when, texts) in [
        ("header", None, ["write the header to /dev/mapper/test-header", "Input/output error"]),
        ("inside", Some(When::Before), ["make the file system of", "mkfs.ext4 ended with status"]),
        // What fails behind mkfs is a flush, or the finish mark.
        ("mark", Some(When::After), ["/dev/mapper/", "Input/output error"]),
    ] {
        let (volume, disk) = on_disk(&bed, name).await?;
        let fail = || disk.set(&Fault::WritesFail);
        if let Some(when) = when {
            let answer = program::paused(&bed, &volume, ("mkfs.ext4", None, when), fail).await?;
            expect_status(answer, Code::Internal, &texts).context(name)?;
            closed(1)?;
        } else {
            fail()?;
            refused(&bed, &volume, &disk, Code::Internal, &texts).await?;
        }
        finished_by_a_retry(&bed, &volume, &disk).await.context(name)?;
    }
    Ok(())
}

async fn untrue_writes(bed: Bed) -> Result<()> {
    for (name, fault) in [("dropped", Fault::WritesDropped), ("changed", Fault::WritesChanged)] {
        let (volume, disk) = on_disk(&bed, name).await?;
        disk.set(&fault)?;
        let texts = [volume.volume_id.as_str(), "does not hold"];
        expect_status(within(&bed, &volume, LONG).await, Code::FailedPrecondition, &texts).context(name)?;
        closed(1)?;
        finished_by_a_retry(&bed, &volume, &disk).await.context(name)?;
    }
    Ok(())
}

async fn wrong_reads(bed: Bed) -> Result<()> {
    let (volume, disk) = on_disk(&bed, "wrong").await?;
    write(&bed, &volume).await?;
    let id = volume.volume_id.as_str();
    // dm-flakey changes nothing that is read before Linux 6.16, so wrong bytes are read from behind the disk's end.
    let mut header = fs::read(disk.file())?;
    header.truncate(usize::try_from(MIB)?);
    header[5000] ^= 1;
    fs::OpenOptions::new().write(true).open(disk.file())?.write_all_at(&header, DISK)?;
    disk.set(&Fault::Swapped(0..MIB))?;
    let texts = [id, "changed since Coffer wrote it", "put its bytes back"];
    refused(&bed, &volume, &disk, Code::FailedPrecondition, &texts).await?;
    // Zeros in place of the superblock, which are noise when they are decrypted.
    disk.set(&Fault::Swapped(MIB..MIB + 4096))?;
    refused(&bed, &volume, &disk, Code::Internal, &["mount volume", id, "kernel log"]).await?;
    disk.set(&Fault::None)?;
    read(&bed, &volume).await
}

async fn slow(bed: Bed) -> Result<()> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let (volume, disk) = on_disk(&bed, "slow").await?;
    write(&bed, &volume).await?;
    disk.set(&Fault::Slow(Duration::from_millis(200)))?;
    // The header takes one read at least, and the superblock another.
    let answer = within(&bed, &volume, Duration::from_millis(250)).await;
    ensure!(answer.as_ref().is_err_and(ran_out), "{answer:?}");
    // Still slow, and less so: opening takes many reads.
    disk.set(&Fault::Slow(Duration::from_millis(40)))?;
    stage(&bed, &volume).await.context("with more time")?;
    ensure!(bed.driver.log().contains("cryptsetup did not end before the deadline"), "{}", bed.driver.log());
    ensure!(fs::read_to_string(staged.join("file"))? == KEPT);
    disk.set(&Fault::None)?;
    csi.unstage(&volume.volume_id, &staged).await?;
    closed(1)
}

async fn goes_away(bed: Bed) -> Result<()> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let (volume, disk) = on_disk(&bed, "away").await?;
    csi.stage_filesystem(&volume, &staged).await?;
    let mut file = fs::File::create(staged.join("file"))?;
    file.write_all(KEPT.as_bytes())?;
    file.sync_all()?;
    drop(file);
    disk.set(&Fault::Gone)?;
    // The file system sees it when it has to write its journal, and takes no more from then on.
    let _ = fs::write(staged.join("lost"), "lost");
    ensure!(fs::File::open(&staged)?.sync_all().is_err(), "the disk is still there");
    ensure!(fs::write(staged.join("late"), "late").is_err(), "the file system does not see that its disk is gone");
    let mut asked = 0;
    loop {
        // The kernel counts errors a moment later.
        match csi.stats(&volume.volume_id, &staged).await {
            Err(_) => break,
            Ok(stats) if stats.volume_condition.as_ref().is_some_and(|condition| condition.abnormal) => break,
            Ok(stats) => ensure!(asked < 200, "a volume without its disk is said to be well: {stats:?}"),
        }
        asked += 1;
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    csi.unstage(&volume.volume_id, &staged).await.context("unstage without the disk")?;
    closed(1)?;
    disk.set(&Fault::None)?;
    read(&bed, &volume).await
}

async fn other_hands(bed: Bed) -> Result<()> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let volume = csi.create_filesystem("hands", 16 * MIB, "ext4").await?;
    let (id, file) = (volume.volume_id.as_str(), bed.driver.file(&volume.volume_id));

    // Another process has the file, and would see it from 4096 bytes on.
    let other = run("losetup", &["--find", "--show", "--offset", "4096", &text(&file)])?.trim().to_owned();
    expect_status(within(&bed, &volume, LONG).await, Code::Aborted, &[id, &other, "in another way"])?;
    // It goes now, if the driver did not take it away.
    let _ = run("losetup", &["--detach", &other]);
    closed(0)?;
    write(&bed, &volume).await?;

    // Another process detaches the device below a volume in use.
    stage(&bed, &volume).await?;
    run("losetup", &["--detach", &text(&loop_device_of(&file)?)])?;
    ensure!(fs::read_to_string(staged.join("file"))? == KEPT);
    fs::write(staged.join("more"), KEPT)?;
    csi.unstage(id, &staged).await?;
    closed(0)?;

    // Another process reads the device while the volume is unstaged.
    stage(&bed, &volume).await?;
    ensure!(fs::read_to_string(staged.join("more"))? == KEPT, "what was written through it is lost");
    let reader = fs::File::open(loop_device_of(&file)?)?;
    let answer = csi.unstage(id, &staged).await;
    if answer.is_err() {
        expect_status(answer, Code::Aborted, &[id, "detach", "somebody still has it open"])?;
    }
    drop(reader);
    csi.unstage(id, &staged).await?;
    closed(0)?;
    read(&bed, &volume).await
}

/// A new volume on a disk of its own.
async fn on_disk(bed: &Bed, name: &str) -> Result<(Volume, FaultyDisk)> {
    let disk = FaultyDisk::make(&format!("test-{name}"), &bed.path(name), DISK)?;
    let mut request = new_volume(name, 16 * MIB, filesystem("ext4", Mode::SingleNodeWriter));
    request.parameters.insert("device".to_owned(), text(&disk.path()));
    Ok((bed.driver.csi.create(request).await?, disk))
}

/// Stages a volume, once, within a time.
async fn within(bed: &Bed, volume: &Volume, time: Duration) -> Result<(), Status> {
    bed.driver.csi.stage_within(volume, &bed.path("staged"), time).await
}

/// Stages a volume when the driver has come to the end of what an earlier caller did not wait for.
async fn stage(bed: &Bed, volume: &Volume) -> Result<()> {
    for _ in 0..200 {
        match within(bed, volume, LONG).await {
            Err(status) if status.code() == Code::Aborted => tokio::time::sleep(Duration::from_millis(50)).await,
            answer => return Ok(answer?),
        }
    }
    bail!("the volume stays busy")
}

/// Stages a volume, writes its file, and unstages it.
async fn write(bed: &Bed, volume: &Volume) -> Result<()> {
    stage(bed, volume).await?;
    fs::write(bed.path("staged/file"), KEPT)?;
    Ok(bed.driver.csi.unstage(&volume.volume_id, &bed.path("staged")).await?)
}

/// Stages a volume, finds its file, and unstages it.
async fn read(bed: &Bed, volume: &Volume) -> Result<()> {
    stage(bed, volume).await?;
    ensure!(fs::read_to_string(bed.path("staged/file"))? == KEPT, "the file is another");
    bed.driver.csi.unstage(&volume.volume_id, &bed.path("staged")).await?;
    ensure!(mappings().is_empty(), "{:?} stays", mappings());
    Ok(())
}

/// A stage fails in these words; the disk stays as it was, and nothing stays open.
async fn refused(bed: &Bed, volume: &Volume, disk: &FaultyDisk, code: Code, texts: &[&str]) -> Result<()> {
    let before = fs::read(disk.file())?;
    expect_status(within(bed, volume, LONG).await, code, texts)?;
    ensure!(fs::read(disk.file())? == before, "the disk was changed");
    closed(1)
}

/// A volume whose first stage broke off is not said to be finished, and on a disk without fault the next one ends it.
async fn finished_by_a_retry(bed: &Bed, volume: &Volume, disk: &FaultyDisk) -> Result<()> {
    let record = fs::read_to_string(bed.driver.record(&volume.volume_id))?;
    ensure!(record.contains(r#""state": "formatting""#), "{record}");
    disk.set(&Fault::None)?;
    write(bed, volume).await?;
    read(bed, volume).await
}

/// No volume is open, and no file is attached but those of the test itself.
fn closed(own: usize) -> Result<()> {
    ensure!(mappings().is_empty() && loops() == own, "{:?} and {} loop devices stay", mappings(), loops());
    Ok(())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
