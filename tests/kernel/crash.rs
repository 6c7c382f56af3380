//! A driver that is killed, at any step, leaves nothing that a retry does not put right.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use coffer::proto::csi::volume_capability::access_mode::Mode;
use libtest_mimic::Trial;
use testbed::{
    csi::{filesystem, ran_out},
    pause::{Pause, When},
};
use tonic::Code;

use crate::{Bed, MIB, expect_status, loops, mappings, trial};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("a_restarted_driver_serves_what_is_mounted", restarted),
        trial("a_driver_told_to_end_finishes_what_runs_and_takes_no_more", terminated),
        trial("a_busy_volume_is_not_unstaged", busy),
    ];
    // Natively nothing may stand in the way of the machine's own programs.
    if std::env::var_os("TESTBED_GUEST").is_some() {
        trials.extend([
            trial("killed_before_the_header_is_made", |bed| {
                first_stage(bed, "cryptsetup", Some("luksFormat"), When::Before)
            }),
            trial("killed_after_the_header_is_made", |bed| {
                first_stage(bed, "cryptsetup", Some("luksFormat"), When::After)
            }),
            trial("killed_before_the_first_open", |bed| first_stage(bed, "cryptsetup", Some("open"), When::Before)),
            trial("killed_after_the_first_open", |bed| first_stage(bed, "cryptsetup", Some("open"), When::After)),
            trial("killed_before_mkfs", |bed| first_stage(bed, "mkfs.ext4", None, When::Before)),
            trial("killed_after_mkfs", |bed| first_stage(bed, "mkfs.ext4", None, When::After)),
            trial("killed_before_an_unlock", |bed| unlock(bed, When::Before)),
            trial("killed_after_an_unlock", |bed| unlock(bed, When::After)),
            trial("killed_before_a_close", |bed| close(bed, When::Before)),
            trial("killed_after_a_close", |bed| close(bed, When::After)),
            trial("a_deadline_ends_a_program_that_hangs", deadline),
            trial("a_caller_that_hangs_up_leaves_nothing_half_done", hangs_up),
        ]);
    }
    trials
}

async fn restarted(mut bed: Bed) -> Result<()> {
    let (staged, target, second) = (bed.path("staged"), bed.path("target"), bed.path("second"));
    let volume = bed.driver.csi.create_filesystem("restarted", 32 * MIB, "ext4").await?;
    bed.driver.csi.stage_filesystem(&volume, &staged).await?;
    bed.driver.csi.publish(&volume, &staged, &target, filesystem("", Mode::SingleNodeMultiWriter)).await?;
    fs::write(target.join("file"), "kept")?;
    let releases = bed.driver.releases();
    bed.driver.kill();
    bed.driver.start_again().await?;
    let csi = &bed.driver.csi;
    ensure!(fs::read_to_string(target.join("file"))? == "kept");
    csi.stage_filesystem(&volume, &staged).await.context("stage again")?;
    csi.publish(&volume, &staged, &second, filesystem("", Mode::SingleNodeMultiWriter)).await?;
    csi.stats(&volume.volume_id, &target).await?;
    csi.unpublish(&volume.volume_id, &target).await?;
    csi.unpublish(&volume.volume_id, &second).await?;
    csi.unstage(&volume.volume_id, &staged).await?;
    ensure!(mappings().is_empty() && loops() == 0);
    ensure!(bed.driver.releases() == releases, "a key was asked for");
    Ok(())
}

async fn terminated(mut bed: Bed) -> Result<()> {
    let staged = bed.path("staged");
    let volume = bed.driver.csi.create_filesystem("ends", 32 * MIB, "ext4").await?;
    let csi = bed.driver.csi.clone();
    let running = tokio::spawn({
        let (csi, volume, staged) = (csi.clone(), volume.clone(), staged.clone());
        async move { csi.stage_filesystem(&volume, &staged).await }
    });
    while !bed.driver.audit().contains("begin-format") {
        ensure!(!running.is_finished(), "the stage ended too early");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bed.driver.terminate()?;
    while !bed.driver.log().contains("ending") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let late = csi.create_filesystem("late", 32 * MIB, "ext4").await;
    expect_status(late, Code::Unavailable, &[])?;
    running.await?.context("what ran was finished")?;
    ensure!(bed.driver.ended()? == Some(0), "it ended badly");
    ensure!(staged.join("lost+found").exists(), "the volume is mounted");
    bed.driver.start_again().await?;
    Ok(bed.driver.csi.unstage(&volume.volume_id, &staged).await?)
}

async fn busy(bed: Bed) -> Result<()> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let volume = csi.create_filesystem("busy", 32 * MIB, "ext4").await?;
    csi.stage_filesystem(&volume, &staged).await?;
    let held = fs::File::create(staged.join("file"))?;
    let answer = csi.unstage(&volume.volume_id, &staged).await;
    ensure!(answer.is_err(), "it was said to be unstaged while it was in use");
    drop(held);
    csi.unstage(&volume.volume_id, &staged).await?;
    ensure!(mappings().is_empty() && loops() == 0);
    Ok(())
}

async fn hangs_up(bed: Bed) -> Result<()> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let volume = csi.create_filesystem("hangs-up", 32 * MIB, "ext4").await?;
    let pause = Pause::at("mkfs.ext4", None, When::Before)?;
    let hung_up = tokio::spawn({
        let (csi, volume, staged) = (csi.clone(), volume.clone(), staged.clone());
        async move { csi.stage_filesystem(&volume, &staged).await }
    });
    pause.reached().await?;
    hung_up.abort();
    pause.go()?;
    for _ in 0..200 {
        match csi.stage_filesystem(&volume, &staged).await {
            Err(status) if status.code() == Code::Aborted => tokio::time::sleep(Duration::from_millis(50)).await,
            answer => {
                answer?;
                ensure!(bed.driver.releases() == 1, "the first stage was not finished");
                return Ok(csi.unstage(&volume.volume_id, &staged).await?);
            }
        }
    }
    anyhow::bail!("the first stage never ended")
}

/// Stages until nobody else is at work on the volume any more.
async fn stage(bed: &Bed, volume: &coffer::proto::csi::Volume) -> Result<()> {
    for _ in 0..100 {
        match bed.driver.csi.stage_filesystem(volume, &bed.path("staged")).await {
            // What the killed driver had started still runs.
            Err(status) if status.code() == Code::Aborted => tokio::time::sleep(Duration::from_millis(50)).await,
            answer => return Ok(answer?),
        }
    }
    anyhow::bail!("the volume stays busy")
}

/// Unstages when nobody else is at closing the volume any more.
async fn unstage(bed: &Bed, volume_id: &str) -> Result<()> {
    for _ in 0..100 {
        match bed.driver.csi.unstage(volume_id, &bed.path("staged")).await {
            Err(status) if status.code() == Code::Aborted => tokio::time::sleep(Duration::from_millis(50)).await,
            answer => return Ok(answer?),
        }
    }
    anyhow::bail!("the volume stays busy")
}

async fn killed_at(bed: &mut Bed, pause: &Pause, volume: &coffer::proto::csi::Volume) -> Result<()> {
    let running = tokio::spawn({
        let (csi, volume, staged) = (bed.driver.csi.clone(), volume.clone(), bed.path("staged"));
        async move { csi.stage_filesystem(&volume, &staged).await }
    });
    pause.reached().await?;
    bed.driver.kill();
    ensure!(running.await?.is_err(), "a killed driver answered");
    bed.driver.start_again().await
}

async fn first_stage(mut bed: Bed, program: &str, word: Option<&str>, when: When) -> Result<()> {
    let staged = bed.path("staged");
    let volume = bed.driver.csi.create_filesystem("first", 32 * MIB, "ext4").await?;
    let pause = Pause::at(program, word, when)?;
    killed_at(&mut bed, &pause, &volume).await?;
    // The program that the killed driver had started goes on at once, or only after the next stage has begun.
    pause.go()?;
    stage(&bed, &volume).await?;
    fs::write(staged.join("file"), "kept")?;
    bed.driver.csi.unstage(&volume.volume_id, &staged).await?;
    stage(&bed, &volume).await?;
    ensure!(fs::read_to_string(staged.join("file"))? == "kept");
    bed.driver.csi.unstage(&volume.volume_id, &staged).await?;
    ensure!(mappings().is_empty() && loops() == 0, "{:?}, {} loop devices", mappings(), loops());
    Ok(())
}

async fn unlock(mut bed: Bed, when: When) -> Result<()> {
    let staged = bed.path("staged");
    let volume = bed.driver.csi.create_filesystem("unlock", 32 * MIB, "ext4").await?;
    bed.driver.csi.stage_filesystem(&volume, &staged).await?;
    fs::write(staged.join("file"), "kept")?;
    bed.driver.csi.unstage(&volume.volume_id, &staged).await?;
    let pause = Pause::at("cryptsetup", Some("open"), when)?;
    killed_at(&mut bed, &pause, &volume).await?;
    pause.go()?;
    stage(&bed, &volume).await?;
    ensure!(fs::read_to_string(staged.join("file"))? == "kept");
    bed.driver.csi.unstage(&volume.volume_id, &staged).await?;
    ensure!(mappings().is_empty() && loops() == 0);
    Ok(())
}

async fn close(mut bed: Bed, when: When) -> Result<()> {
    let staged = bed.path("staged");
    let volume = bed.driver.csi.create_filesystem("close", 32 * MIB, "ext4").await?;
    bed.driver.csi.stage_filesystem(&volume, &staged).await?;
    fs::write(staged.join("file"), "kept")?;
    let pause = Pause::at("dmsetup", Some("remove"), when)?;
    let running = tokio::spawn({
        let (csi, id, staged) = (bed.driver.csi.clone(), volume.volume_id.clone(), staged.clone());
        async move { csi.unstage(&id, &staged).await }
    });
    pause.reached().await?;
    bed.driver.kill();
    ensure!(running.await?.is_err(), "a killed driver answered");
    bed.driver.start_again().await?;
    pause.go()?;
    unstage(&bed, &volume.volume_id).await?;
    ensure!(mappings().is_empty() && loops() == 0, "{:?}, {} loop devices", mappings(), loops());
    stage(&bed, &volume).await?;
    ensure!(fs::read_to_string(staged.join("file"))? == "kept");
    Ok(bed.driver.csi.unstage(&volume.volume_id, &staged).await?)
}

async fn deadline(bed: Bed) -> Result<()> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let volume = csi.create_filesystem("hangs", 32 * MIB, "ext4").await?;
    let pause = Pause::at("mkfs.ext4", None, When::Before)?;
    let answer = csi.stage_within(&volume, &staged, Duration::from_secs(3)).await;
    ensure!(answer.as_ref().is_err_and(ran_out), "{answer:?}");
    pause.reached().await?;
    stage(&bed, &volume).await.context("the program was killed, and a retry works")?;
    ensure!(bed.driver.log().contains("mkfs.ext4 did not end before the deadline"), "{}", bed.driver.log());
    Ok(csi.unstage(&volume.volume_id, &staged).await?)
}
