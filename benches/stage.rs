//! How long from NodeStageVolume to mounted, beside raw `cryptsetup open` and mount of the same image, in one run on
//! one kernel. Figures of different runs or machines are not to be compared; ratios within a run are.

#![allow(clippy::print_stdout, reason = "it tells its figures")]

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use coffer::{
    key::{
        cluster::ClusterKeys,
        derive,
        record::{Record, StoredKey},
    },
    proto::csi::Volume,
};
use testbed::{
    driver::{Driver, Role},
    figures::{self, median},
    guest,
    keyservice::KeyService,
};

const COFFER: &str = env!("CARGO_BIN_EXE_coffer");
const ROUNDS: usize = 25;

fn main() -> ExitCode {
    let done = if guest::has_device_mapper() {
        tokio::runtime::Runtime::new().map_err(anyhow::Error::from).and_then(|r| r.block_on(bench())).map(|()| 0)
    } else {
        guest::run_inside(&["--bench".to_owned()], Duration::from_secs(900))
    };
    match done {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

async fn bench() -> Result<()> {
    let folder = guest::folder()?;
    let (state, staged) = (folder.path().join("state"), folder.path().join("staged"));
    let mut driver = Driver::start(COFFER, &state).await?;
    let volume = driver.csi.create_filesystem("bench", 64 << 20, "ext4").await?;
    driver.csi.stage_filesystem(&volume, &staged).await?;
    driver.csi.unstage(&volume.volume_id, &staged).await?;
    let raw = Raw::new(folder.path(), &driver, &volume)?;
    println!("{}", figures::machine(&[(COFFER, "--version"), ("cryptsetup", "--version")]));
    println!("one image of 64 MiB (ext4), {ROUNDS} rounds each, in turns; medians\n");

    let embedded = compare(&raw, &driver, &volume, &staged).await?;
    let steps = steps(&driver.log());
    driver.kill();
    let keyservice = KeyService::start(COFFER, folder.path(), &state)?;
    let remote = Driver::start_as(COFFER, &state, Role::Node(keyservice.words())).await?;
    let over_tls = compare(&raw, &remote, &volume, &staged).await?;
    drop(keyservice);

    println!("{:<58} {:>9} {:>7}", "", "median", "ratio");
    let row = |what: &str, time: Duration, base: Duration| {
        println!("{what:<58} {:>6.1} ms {:>7.2}", time.as_secs_f64() * 1e3, time.as_secs_f64() / base.as_secs_f64());
    };
    for (name, figures) in [("coffer dev", &embedded), ("coffer node, key over mTLS", &over_tls)] {
        row("raw: cryptsetup open + mount(8), loop device attached", figures.raw, figures.raw);
        row("raw: cryptsetup open alone", figures.raw_open, figures.raw);
        row(&format!("NodeStageVolume, {name}"), figures.stage, figures.raw);
    }
    println!("\nwhere the time of NodeStageVolume goes (coffer dev, by its own log):");
    for (step, time) in steps {
        println!("  {step:<56} {:>6.1} ms", time.as_secs_f64() * 1e3);
    }
    Ok(())
}

struct Figures {
    raw: Duration,
    raw_open: Duration,
    stage: Duration,
}

/// Raw and staged in turns, so that a machine that changes its pace changes it for both.
async fn compare(raw: &Raw, driver: &Driver, volume: &Volume, staged: &Path) -> Result<Figures> {
    let (mut raws, mut opens, mut stages) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (whole, open) = raw.round()?;
        raws.push(whole);
        opens.push(open);
        let start = Instant::now();
        driver.csi.stage_filesystem(volume, staged).await?;
        stages.push(start.elapsed());
        driver.csi.unstage(&volume.volume_id, staged).await?;
    }
    Ok(Figures { raw: median(&raws), raw_open: median(&opens), stage: median(&stages) })
}

/// What a person would type.
struct Raw {
    file: String,
    key: String,
    target: String,
}

impl Raw {
    fn new(folder: &Path, driver: &Driver, volume: &Volume) -> Result<Self> {
        let keys = ClusterKeys::load(&driver.state_dir().join("cluster-key.json"))?;
        let record = Record::from_bytes(&fs::read(driver.record(&volume.volume_id))?)?;
        let Some(StoredKey::Derived { salt, .. }) = &record.key else { anyhow::bail!("the key is not derived") };
        let dek = derive::volume_dek(&keys.current().1.key, &salt.exactly().context("32 bytes")?, &record.binding());
        let (key, target) = (folder.join("key"), folder.join("raw"));
        fs::write(&key, dek.expose_secret())?;
        fs::create_dir(&target)?;
        let text = |path: &Path| path.display().to_string();
        Ok(Self { file: text(&driver.file(&volume.volume_id)), key: text(&key), target: text(&target) })
    }

    fn round(&self) -> Result<(Duration, Duration)> {
        let device = run("losetup", &["--find", "--show", "--direct-io=on", &self.file])?;
        let start = Instant::now();
        let perf = ["--perf-no_read_workqueue", "--perf-no_write_workqueue"];
        run("cryptsetup", &["open", "--type", "luks2", perf[0], perf[1], "--key-file", &self.key, &device, "raw"])?;
        let open = start.elapsed();
        run("mount", &["/dev/mapper/raw", &self.target])?;
        let whole = start.elapsed();
        run("umount", &[&self.target])?;
        run("cryptsetup", &["close", "raw"])?;
        run("losetup", &["--detach", &device])?;
        Ok((whole, open))
    }
}

fn run(program: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(program).args(words).output()?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The medians between the lines that a stage logs.
fn steps(log: &str) -> Vec<(String, Duration)> {
    let at = ["staging", "attached", "key released", "header authenticated", "opened", "mounted"];
    let (mut times, mut last) = (BTreeMap::<usize, Vec<Duration>>::new(), None::<(usize, jiff::Timestamp)>);
    for line in log.lines() {
        let Some((stamp, rest)) = line.split_once(' ') else { continue };
        let Ok(time) = stamp.parse::<jiff::Timestamp>() else { continue };
        let Some(step) = at.iter().position(|step| rest.contains(&format!("DEBUG {step} volume_id"))) else { continue };
        if let Some((_, then)) = last.filter(|(before, _)| *before + 1 == step) {
            times.entry(step).or_default().push(Duration::try_from(time - then).unwrap_or_default());
        }
        last = Some((step, time));
    }
    let what =
        ["", "attach the loop device", "get the key", "read and authenticate the header", "open (cryptsetup)", "mount"];
    times.into_iter().map(|(step, times)| (what[step].to_owned(), median(&times))).collect()
}
