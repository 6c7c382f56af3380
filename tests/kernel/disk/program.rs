//! Programs of the system that are killed, and that hang.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use coffer::proto::csi::Volume;
use rustix::process::{Pid, Signal, kill_process_group};
use testbed::{
    csi::ran_out,
    pause::{Pause, When},
};
use tonic::{Code, Status};

use super::{closed, read, within, write};
use crate::{Bed, MIB, expect_status};

pub(super) async fn killed(bed: Bed) -> Result<()> {
    let volume = bed.driver.csi.create_filesystem("killed", 16 * MIB, "ext4").await?;
    let at = async |program: &'static str, word: Option<&'static str>, when: When, step: &'static str| {
        let answer = paused(&bed, &volume, (program, word, when), || kill(program)).await?;
        expect_status(answer, Code::Internal, &[step, &volume.volume_id, program, "signal"]).context(step)?;
        closed(0)
    };
    at("cryptsetup", Some("luksFormat"), When::Before, "make the LUKS header of").await?;
    at("cryptsetup", Some("open"), When::After, "open volume").await?;
    at("mkfs.ext4", None, When::Before, "make the file system of").await?;
    write(&bed, &volume).await?;
    at("cryptsetup", Some("open"), When::After, "open volume").await?;
    read(&bed, &volume).await
}

pub(super) async fn hangs(bed: Bed) -> Result<()> {
    let volume = bed.driver.csi.create_filesystem("hangs", 16 * MIB, "ext4").await?;
    write(&bed, &volume).await?;
    let pause = Pause::at("cryptsetup", Some("open"), When::Before)?;
    let answer = within(&bed, &volume, Duration::from_secs(2)).await;
    ensure!(answer.as_ref().is_err_and(ran_out), "{answer:?}");
    pause.reached().await?;
    read(&bed, &volume).await.context("a retry works")?;
    ensure!(waiting("cryptsetup")?.is_none(), "the program that hung still runs");
    ensure!(bed.driver.log().contains("cryptsetup did not end before the deadline"), "{}", bed.driver.log());
    Ok(())
}

/// Stages a volume, and does something while one of its programs stands still.
pub(super) async fn paused(
    bed: &Bed,
    volume: &Volume,
    (program, word, when): (&str, Option<&str>, When),
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<Result<(), Status>> {
    let pause = Pause::at(program, word, when)?;
    let running = tokio::spawn({
        let (csi, volume, staged) = (bed.driver.csi.clone(), volume.clone(), bed.path("staged"));
        async move { csi.stage_filesystem(&volume, &staged).await }
    });
    pause.reached().await?;
    meanwhile()?;
    pause.go()?;
    Ok(running.await?)
}

/// The process group of a paused program: the script in its way, and what that has started.
fn waiting(program: &str) -> Result<Option<Pid>> {
    let script = format!("/usr/local/sbin/{program}");
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(id) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        // A process that ends while we look does not wait.
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if words.split(|byte| *byte == 0).any(|word| word == script.as_bytes()) {
            return Ok(Pid::from_raw(id));
        }
    }
    Ok(None)
}

/// `kill -9` of a paused program.
fn kill(program: &str) -> Result<()> {
    Ok(kill_process_group(waiting(program)?.context("the program does not run")?, Signal::KILL)?)
}
