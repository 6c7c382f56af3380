//! The power fails: in the middle of a first stage, in the middle of an unlock, and behind a finished write.

use std::{fs, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Failed, Trial};
use testbed::{
    driver::Driver,
    guest::{Disk, POOL},
    pause::{Pause, When},
};

use crate::{COFFER, MIB};

const TIME: Duration = Duration::from_secs(90);
const STOPPED: &str = "power may be cut now";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        power("power_cut_after_the_header_was_made", &["cut-luksFormat-after"]),
        power("power_cut_before_mkfs", &["cut-mkfs-before"]),
        power("power_cut_after_mkfs", &["cut-mkfs-after"]),
        power("power_cut_behind_a_synced_write", &["cut-synced"]),
        power("power_cut_in_an_unlock", &["write", "cut-open-before", "kept", "cut-open-after", "kept"]),
    ]
}

/// Boots one disk again and again; each step that is named `cut-` ends by a power cut. The last boot stages the volume
/// again, which must work, and finds what was written.
fn power(name: &'static str, steps: &'static [&'static str]) -> Trial {
    Trial::test(name, move || {
        let disk = Disk::new(2)?;
        let program = std::env::current_exe()?.display().to_string();
        for step in steps.iter().chain(&["last"]) {
            let mut guest = disk.boot(&[program.clone(), format!("--power-step={step}")])?;
            if step.starts_with("cut-") {
                guest
                    .wait_for(STOPPED, TIME)
                    .with_context(|| (*step).to_owned())
                    .map_err(|error| format!("{error:?}"))?;
                guest.cut_power();
            } else {
                let status = guest.finish(TIME).map_err(|error| format!("{step}: {error:?}"))?;
                if status != 0 {
                    return Err(Failed::from(format!("{step} ended with status {status}")));
                }
            }
        }
        Ok(())
    })
}

/// One step, in a guest.
pub(crate) fn inside(step: &str) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(act(step))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{step}: {error:?}");
            ExitCode::FAILURE
        }
    }
}

async fn act(step: &str) -> Result<()> {
    let driver = Driver::start(COFFER, &Path::new(POOL).join("state")).await?;
    let (csi, staged) = (&driver.csi, Path::new(POOL).join("staged"));
    let volume = csi.create_filesystem("power", 32 * MIB, "ext4").await?;
    let file = staged.join("file");
    let stage = csi.stage_filesystem(&volume, &staged);
    match step {
        "write" => {
            stage.await?;
            fs::write(&file, "kept")?;
        }
        "cut-synced" => {
            stage.await?;
            let written = fs::File::create(&file)?;
            std::io::Write::write_all(&mut &written, b"kept")?;
            written.sync_all()?;
            fs::File::open(&staged)?.sync_all()?;
            println!("{STOPPED}");
            std::future::pending::<()>().await;
        }
        "kept" => {
            stage.await?;
            ensure!(fs::read_to_string(&file)? == "kept");
        }
        "last" => {
            let first = fs::read_to_string(driver.record(&volume.volume_id))?.contains(r#""ready""#);
            stage.await?;
            // What was finished before the cut was written to and is kept; else the volume is new.
            ensure!(!first || fs::read_to_string(&file)? == "kept", "the file is gone");
            fs::write(&file, "again")?;
        }
        cut => {
            let (program, word, when) = match cut {
                "cut-luksFormat-after" => ("cryptsetup", Some("luksFormat"), When::After),
                "cut-mkfs-before" => ("mkfs.ext4", None, When::Before),
                "cut-mkfs-after" => ("mkfs.ext4", None, When::After),
                "cut-open-before" => ("cryptsetup", Some("open"), When::Before),
                "cut-open-after" => ("cryptsetup", Some("open"), When::After),
                other => anyhow::bail!("{other:?} is no step"),
            };
            let pause = Pause::at(program, word, when)?;
            let (_, reached) = tokio::join!(tokio::time::timeout(Duration::from_secs(60), stage), async {
                pause.reached().await?;
                println!("{STOPPED}");
                std::future::pending::<Result<()>>().await
            });
            reached?;
        }
    }
    csi.unstage(&volume.volume_id, &staged).await?;
    Ok(())
}
