//! Many requests at once: one record a volume, one stage at a time for a volume, and all volumes at once.

use std::{collections::HashSet, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use tokio::task::JoinSet;
use tonic::Code;

use crate::{Bed, MIB, loops, mappings, trial};

/// Fifty stages share a processor. How long they take is for the benchmark to say.
const LONG: Duration = Duration::from_secs(900);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("twenty_creators_of_one_volume_make_one", twenty_creators),
        trial("two_stages_of_one_volume_do_not_meet", two_stages),
        trial("fifty_volumes_are_staged_at_once", fifty),
    ]
}

async fn twenty_creators(bed: Bed) -> Result<()> {
    let mut creators = JoinSet::new();
    for _ in 0..20 {
        let csi = bed.driver.csi.clone();
        creators.spawn(async move {
            loop {
                match csi.create_filesystem("shared", 32 * MIB, "ext4").await {
                    Err(busy) if busy.code() == Code::Aborted => tokio::task::yield_now().await,
                    answer => return answer,
                }
            }
        });
    }
    let mut ids = HashSet::new();
    while let Some(answer) = creators.join_next().await {
        ids.insert(answer??.volume_id);
    }
    ensure!(ids.len() == 1, "{ids:?}");
    let files = |folder: &str| anyhow::Ok(fs::read_dir(bed.driver.state_dir().join(folder))?.count());
    ensure!(files("records")? == 1 && files("volumes")? == 1, "more than one record or volume");
    Ok(())
}

async fn two_stages(bed: Bed) -> Result<()> {
    let volume = bed.driver.csi.create_filesystem("twice", 32 * MIB, "ext4").await?;
    let staged = bed.path("staged");
    let both = tokio::join!(
        bed.driver.csi.stage_filesystem(&volume, &staged),
        bed.driver.csi.stage_filesystem(&volume, &staged)
    );
    let answers = [both.0, both.1];
    ensure!(answers.iter().any(Result::is_ok), "{answers:?}");
    for status in answers.into_iter().filter_map(Result::err) {
        ensure!(status.code() == Code::Aborted, "{status:?}");
    }
    bed.driver.csi.stage_filesystem(&volume, &staged).await.context("the volume is staged now")?;
    ensure!(mappings().len() == 1 && bed.driver.releases() == 1);
    Ok(bed.driver.csi.unstage(&volume.volume_id, &staged).await?)
}

async fn fifty(bed: Bed) -> Result<()> {
    let mut volumes = Vec::new();
    for number in 0..50 {
        let volume = bed.driver.csi.create_filesystem(&format!("volume {number}"), 16 * MIB, "ext4").await?;
        volumes.push((volume, bed.path(&format!("staged-{number}"))));
    }
    for round in 0..2 {
        let mut stages = JoinSet::new();
        for (volume, staged) in volumes.clone() {
            let csi = bed.driver.csi.clone();
            stages.spawn(async move { csi.stage_within(&volume, &staged, LONG).await });
        }
        while let Some(answer) = stages.join_next().await {
            answer?.with_context(|| format!("round {round}"))?;
        }
        ensure!(mappings().len() == 50, "{} mappings", mappings().len());
        for (volume, staged) in &volumes {
            mark(round, staged.join("file"), &volume.volume_id)?;
            bed.driver.csi.unstage(&volume.volume_id, staged).await?;
        }
    }
    ensure!(mappings().is_empty() && loops() == 0);
    Ok(())
}

/// The first round writes each volume's own id into it, the second finds it there.
fn mark(round: u32, file: PathBuf, id: &str) -> Result<()> {
    if round == 0 {
        fs::write(&file, id)?;
    }
    ensure!(fs::read_to_string(&file)? == id, "another volume is mounted at {}", file.display());
    Ok(())
}
