//! A driver with little memory, for itself and what it starts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use super::{KEPT, closed};
use crate::{Bed, MIB, mappings};

pub(super) async fn little(bed: Bed) -> Result<()> {
    let mut volumes = Vec::new();
    for number in 0..10 {
        let volume = bed.driver.csi.create_filesystem(&format!("volume {number}"), 16 * MIB, "ext4").await?;
        volumes.push((volume, bed.path(&format!("staged-{number}"))));
    }
    let limit = MemoryLimit::of(bed.driver.pid()?, 64 * MIB)?;
    let mut stages = JoinSet::new();
    for (volume, staged) in volumes.clone() {
        let csi = bed.driver.csi.clone();
        stages.spawn(async move { csi.stage_filesystem(&volume, &staged).await });
    }
    while let Some(answer) = stages.join_next().await {
        answer?.with_context(|| limit.events())?;
    }
    ensure!(mappings().len() == volumes.len(), "{:?}", mappings());
    for (volume, staged) in &volumes {
        fs::write(staged.join("file"), KEPT)?;
        bed.driver.csi.unstage(&volume.volume_id, staged).await?;
    }
    closed(0)?;
    ensure!(limit.events().contains("oom_kill 0"), "a program was killed for its memory: {}", limit.events());
    Ok(())
}

const CGROUPS: &str = "/sys/fs/cgroup";

/// A bound on the memory of a process and of what it starts. The process has no bound any more when this is dropped.
struct MemoryLimit {
    folder: PathBuf,
}

impl MemoryLimit {
    fn of(process: u32, bytes: u64) -> Result<Self> {
        fs::write(Path::new(CGROUPS).join("cgroup.subtree_control"), "+memory")?;
        let limit = Self { folder: Path::new(CGROUPS).join("test-memory") };
        fs::create_dir(&limit.folder)?;
        fs::write(limit.folder.join("memory.max"), bytes.to_string())?;
        fs::write(limit.folder.join("cgroup.procs"), process.to_string())?;
        Ok(limit)
    }

    fn events(&self) -> String {
        fs::read_to_string(self.folder.join("memory.events")).unwrap_or_default().replace('\n', ", ")
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let inside = fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        for process in inside.lines() {
            let _ = fs::write(Path::new(CGROUPS).join("cgroup.procs"), process);
        }
        let _ = fs::remove_dir(&self.folder);
    }
}
