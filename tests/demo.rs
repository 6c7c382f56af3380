//! The demonstration: Coffer's main job on a real kernel, a line a step. `make demo` runs it, and so does every test
//! run, so that what it shows stays true.

#![allow(clippy::print_stdout, reason = "it shows what happens")]

use std::{
    fs,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use testbed::{
    driver::{Driver, NODE},
    guest,
};

const COFFER: &str = env!("CARGO_BIN_EXE_coffer");
const MIB: u64 = 1 << 20;
const MARK: &str = "a text that only the owner may read";

fn main() -> ExitCode {
    // A filter for other tests, or a list, is not for us.
    if std::env::args().nth(1).is_some_and(|word| word != "--nocapture") {
        return ExitCode::SUCCESS;
    }
    let start = Instant::now();
    let status = if guest::has_device_mapper() {
        let shown = tokio::runtime::Runtime::new().map_err(anyhow::Error::from).and_then(|r| r.block_on(show()));
        shown.map(|()| 0)
    } else {
        println!("This machine has no device-mapper: booting user-mode Linux, a whole kernel as an ordinary process.");
        guest::run_inside(&[], Duration::from_secs(300))
    };
    match status {
        Ok(0) if std::env::var_os("TESTBED_GUEST").is_some() => ExitCode::SUCCESS,
        Ok(0) => {
            println!("Done in {:.1} s.", start.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Numbers the steps, and says how long each took.
struct Steps {
    number: usize,
    last: Instant,
}

impl Steps {
    fn done(&mut self, what: &str) {
        self.number += 1;
        println!("{:>2}. {what}  [{} ms]", self.number, self.last.elapsed().as_millis());
        self.last = Instant::now();
    }
}

async fn show() -> Result<()> {
    let folder = guest::folder()?;
    let state = folder.path().join("state");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("Linux {}, dm-crypt, LUKS2; state folder {}", kernel.trim(), state.display());
    let mut steps = Steps { number: 0, last: Instant::now() };

    let driver = Driver::start(COFFER, &state).await?;
    let (csi, staged) = (&driver.csi, folder.path().join("staged"));
    steps.done("made a cluster key, once, and started `coffer dev` on it: CSI is ready");

    let volume = csi.create_filesystem("demo", 64 * MIB, "ext4").await?;
    let file = driver.file(&volume.volume_id);
    steps.done(&format!("created volume {} of 64 MiB: a key record first, then a sparse file", volume.volume_id));

    csi.stage_filesystem(&volume, &staged).await?;
    steps.done(&format!("staged it on node {NODE}: LUKS2 header written, opened, ext4 made, mounted"));

    fs::write(staged.join("secret.txt"), MARK)?;
    csi.unstage(&volume.volume_id, &staged).await?;
    steps.done("wrote a marked text into it and unstaged it: unmounted, mapping closed, loop device gone");

    let raw = fs::read(&file)?;
    ensure!(!holds(&raw, MARK), "the text is in the raw file");
    steps.done(&format!("searched all {} MiB of the raw file: the text is not in it", raw.len() >> 20));

    csi.stage_filesystem(&volume, &staged).await?;
    ensure!(fs::read_to_string(staged.join("secret.txt"))? == MARK, "the text is another");
    csi.unstage(&volume.volume_id, &staged).await?;
    steps.done("staged it again: header authenticated, opened, and the text is there");

    let other = csi.create_filesystem("other", 64 * MIB, "ext4").await?;
    csi.stage_filesystem(&other, &staged).await?;
    csi.unstage(&other.volume_id, &staged).await?;
    let foreign = fs::read(driver.file(&other.volume_id))?;
    fs::write(&file, &foreign)?;
    let said = refused(&driver, &volume, &staged).await?;
    ensure!(fs::read(&file)? == foreign, "the device was changed");
    steps.done("swapped in another volume's bytes: refused, and not one byte was changed");
    println!("      it said: {said}");

    fs::write(&file, &raw)?;
    csi.stage_filesystem(&volume, &staged).await?;
    ensure!(fs::read_to_string(staged.join("secret.txt"))? == MARK, "the text is another");
    csi.unstage(&volume.volume_id, &staged).await?;
    steps.done("put the right bytes back: it opens, and the text is there");

    csi.delete(&volume.volume_id).await?;
    ensure!(!file.exists(), "the file stays");
    steps.done("deleted the volume: its key is destroyed, a tombstone stays, the file is gone");

    let again = csi.create_filesystem("demo", 64 * MIB, "ext4").await?;
    fs::write(&file, &raw)?;
    let said = refused(&driver, &again, &staged).await?;
    steps.done("made a volume of the same name and put the old raw bytes under it: they open no more");
    println!("      it said: {said}");

    let lines = driver.audit().lines().count();
    println!("The audit log has {lines} lines; the last release:");
    let audit = driver.audit();
    let release = audit.lines().rev().find(|line| line.contains(r#""release","result":"ok""#)).context("a release")?;
    println!("      {release}");
    Ok(())
}

async fn refused(driver: &Driver, volume: &coffer::proto::csi::Volume, staged: &Path) -> Result<String> {
    match driver.csi.stage_filesystem(volume, staged).await {
        Ok(()) => bail!("it was staged"),
        Err(status) => {
            ensure!(status.code() == tonic::Code::FailedPrecondition, "{status:?}");
            Ok(status.message().to_owned())
        }
    }
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
