//! The demonstration: Coffer's main job on a real kernel, a line a step. `make demo` runs it, and so does every test
//! run, so that what it shows stays true.

#![allow(clippy::print_stdout, reason = "it shows what happens")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use testbed::{
    cloud::plan::{self, Side},
    driver::{Driver, NODE, Role},
    guest::{self, Disk},
};

const COFFER: &str = env!("CARGO_BIN_EXE_coffer");
const MIB: u64 = 1 << 20;
const GUEST_TIME: Duration = Duration::from_secs(300);
const MARK: &str = "a text that only the owner may read";

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let mut asked = Asked { provider: None, store: None, inside: None };
    let mut left = words.iter();
    while let Some(word) = left.next() {
        match (word.as_str(), left.next()) {
            ("--provider", Some(name)) => asked.provider = Some(name.clone()),
            ("--store", Some(name)) => asked.store = Some(name.clone()),
            ("--inside", Some(file)) => asked.inside = Some(file.into()),
            ("--nocapture", None) => {}
            // A filter for other tests, or a list, is not for us.
            _ => return ExitCode::SUCCESS,
        }
    }
    let start = Instant::now();
    let runtime = tokio::runtime::Runtime::new().expect("a process can have threads");
    match runtime.block_on(demonstrate(&asked)) {
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

/// What the words ask for.
struct Asked {
    provider: Option<String>,
    store: Option<String>,
    /// In a guest: the file that says what was started for it.
    inside: Option<PathBuf>,
}

/// Starts what is asked for, and shows it on a kernel with device-mapper.
async fn demonstrate(asked: &Asked) -> Result<i32> {
    if let Some(file) = &asked.inside {
        let (provider, store): (Side, Side) = serde_json::from_slice(&fs::read(file)?)?;
        guest::reach_host(&plan::ports([&provider, &store])).await?;
        return show(Some((provider, store))).await.map(|()| 0);
    }
    const BOOTING: &str =
        "This machine has no device-mapper: booting user-mode Linux, a whole kernel as an ordinary process.";
    let natively = guest::has_device_mapper();
    if asked.provider.is_none() && asked.store.is_none() {
        if natively {
            return show(None).await.map(|()| 0);
        }
        println!("{BOOTING}");
        return guest::run_inside(&[], GUEST_TIME);
    }
    let disk = Disk::new(8)?.with_network()?;
    let store = asked.store.as_deref().unwrap_or(plan::FILESYSTEM);
    ensure!(store != plan::MEMORY, "the store memory forgets everything with its process; it is for tests");
    let (provider, _kms) = plan::provider(asked.provider.as_deref().unwrap_or("local"), disk.work()).await?;
    let (store, _objects) = plan::store(store, disk.work()).await?;
    for (what, side) in [("provider", &provider), ("store", &store)] {
        println!("{what} {}: {} ({})", side.name, side.server, side.standing);
    }
    if natively {
        return show(Some((provider, store))).await.map(|()| 0);
    }
    let file = disk.work().join("plan.json");
    fs::write(&file, serde_json::to_vec(&(provider, store))?)?;
    let command = [std::env::current_exe()?.display().to_string(), "--inside".to_owned(), file.display().to_string()];
    println!("{BOOTING}");
    let guest = disk.boot(&command)?;
    // Servers of ours live in this program: they must be heard while the guest runs.
    tokio::task::spawn_blocking(move || guest.finish(GUEST_TIME)).await?
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

async fn show(plan: Option<(Side, Side)>) -> Result<()> {
    let folder = guest::folder()?;
    let state = folder.path().join("state");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("Linux {}, dm-crypt, LUKS2; state folder {}", kernel.trim(), state.display());
    let mut steps = Steps { number: 0, last: Instant::now() };

    let driver = match &plan {
        None => Driver::start(COFFER, &state).await?,
        Some((provider, store)) => {
            let file = folder.path().join("coffer.yaml");
            fs::create_dir_all(&state)?;
            fs::write(&file, serde_json::to_vec_pretty(&plan::configuration(provider, store))?)?;
            let words = ["dev".into(), "--state-dir".into(), state.clone().into(), "--config".into(), file.into()];
            Driver::start_as(COFFER, &state, Role::Node(words.into())).await?
        }
    };
    let (csi, staged) = (&driver.csi, folder.path().join("staged"));
    steps.done(&match &plan {
        None => "made a cluster key, once, and started `coffer dev` on it: CSI is ready".to_owned(),
        Some((provider, store)) => {
            format!("started `coffer dev` with provider {} and store {}: CSI is ready", provider.name, store.name)
        }
    });

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
    if let Some((provider, store)) = &plan {
        let release: serde_json::Value = serde_json::from_str(release)?;
        println!("KEK:          {} in {} ({})", release["kekId"], provider.server, provider.standing);
        let place = if store.config.is_null() { state.join("records").display().to_string() } else { place(store) };
        println!("wrapped DEK:  {place} in {} ({})", store.server, store.standing);
        println!("data:         {} (LUKS2), one file a volume", state.join("volumes").display());
    }
    Ok(())
}

/// Where the records of a store of objects lie.
fn place(store: &Side) -> String {
    let text = |key: &str| store.config[key].as_str().unwrap_or_default().to_owned();
    let bucket = if store.config["bucket"].is_null() { text("container") } else { text("bucket") };
    format!("{bucket}/{}v1/{}/", text("prefix"), plan::CLUSTER)
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
