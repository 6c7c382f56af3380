//! A node that gets all its volumes back at once and has little memory, and a node that stages and unstages for a long
//! time: no call may fail or be late, nothing may be killed, and nothing may grow or be left behind. Where one of these
//! does not hold, the bench fails.
//!
//! How often one volume is staged and unstaged can be said: `cargo bench --bench storm -- --cycles=60`, or the variable
//! `BENCH_CYCLES`.

#![allow(clippy::print_stdout, reason = "it tells its figures")]

use std::{
    env,
    fmt::Display,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use coffer::{
    key::cluster::ClusterKeys,
    proto::csi::{Volume, volume_capability::access_mode::Mode},
};
use testbed::{
    csi,
    driver::{Driver, Role},
    figures::{self, Process},
    guest,
    keyservice::KeyService,
};
use tokio::task::JoinSet;
use tonic::Request;

const COFFER: &str = env!("CARGO_BIN_EXE_coffer");

/// Volumes that are unlocked at once.
const VOLUMES: usize = 100;
const VOLUME_BYTES: u64 = 16 << 20;
/// Volumes that are made at once, beforehand.
const MADE_AT_ONCE: usize = 4;
/// How long each call may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// What the driver and all that it starts may have, in bytes. There is no swap.
const MEMORY: u64 = 64 << 20;
/// What a driver with nothing to do may have, in KiB.
const IDLE_KIB: u64 = 10 * 1024;

const CYCLES: u32 = 300;
/// Cycles after which a driver has all that it needs.
const WARM_UP: u32 = 20;
/// What it may have more at the end than after the warm-up, in KiB.
const GROWTH_KIB: u64 = 256;
/// Threads for blocking work come and go; a thread kept at each cycle would be far more than these.
const MORE_THREADS: usize = 8;
/// How long what a call has let go of may take to be gone: a connection that is made anew, or a device.
const SETTLE_TIME: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let done = asked_cycles().and_then(|cycles| {
        if guest::has_device_mapper() {
            return tokio::runtime::Runtime::new()?.block_on(bench(cycles)).map(|()| 0);
        }
        let words = ["--bench".to_owned(), format!("--cycles={cycles}")];
        guest::run_inside(&words, Duration::from_secs(1200 + 3 * u64::from(cycles)))
    });
    match done {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// By a word, which goes into a guest as well, or by the variable, which does not.
fn asked_cycles() -> Result<u32> {
    let word = env::args().find_map(|word| word.strip_prefix("--cycles=").map(str::to_owned));
    let asked = word.or_else(|| env::var("BENCH_CYCLES").ok());
    let cycles = asked.map_or(Ok(CYCLES), |text| text.parse::<u32>()).context("the number of cycles")?;
    ensure!(cycles > WARM_UP, "there have to be more than {WARM_UP} cycles");
    Ok(cycles)
}

async fn bench(cycles: u32) -> Result<()> {
    println!("{}\n", figures::machine(&[(COFFER, "--version"), ("cryptsetup", "--version")]));
    let folder = guest::folder()?;
    let state = folder.path().join("state");
    fs::create_dir(&state)?;
    ClusterKeys::generate().save_new(&state.join("cluster-key.json"))?;
    let keyservice = KeyService::start(COFFER, folder.path(), &state)?;
    let role = Role::Node(keyservice.words());

    let mut driver = Driver::start_as(COFFER, &state, role.clone()).await?;
    let volumes = make(&driver, folder.path()).await?;
    driver.kill();
    let mut faults = storm(folder.path(), &state, role, &volumes).await?;

    // Another driver finds all that the storm has left, also where it went wrong.
    driver.start_again().await?;
    for (volume, staged) in &volumes {
        let unstaged = driver.csi.unstage(&volume.volume_id, staged).await;
        faults.extend(unstaged.err().map(|status| format!("unstaged after the storm: {}", status.message())));
    }
    driver.kill();
    driver.start_again().await?;
    let (volume, staged) = volumes.first().context("there are volumes")?;
    let endured = endure(&driver, volume, staged, cycles).await;
    faults.extend(endured.unwrap_or_else(|error| vec![format!("{error:#}")]));
    if faults.is_empty() {
        return Ok(());
    }
    let log = driver.log();
    let told: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).take(5).collect();
    bail!("what must hold does not:\n  {}\nthe log begins with\n{}", faults.join("\n  "), told.join("\n"))
}

/// Volumes that are finished and not staged, each with a path for it.
async fn make(driver: &Driver, folder: &Path) -> Result<Vec<(Volume, PathBuf)>> {
    let (start, mut volumes) = (Instant::now(), Vec::new());
    for number in 0..VOLUMES {
        let volume = driver.csi.create_filesystem(&format!("volume {number}"), VOLUME_BYTES, "ext4").await?;
        volumes.push((volume, folder.join(format!("staged-{number}"))));
    }
    for some in volumes.chunks(MADE_AT_ONCE) {
        let mut firsts = JoinSet::new();
        for (volume, staged) in some.iter().cloned() {
            let csi = driver.csi.clone();
            firsts.spawn(async move {
                csi.stage_filesystem(&volume, &staged).await?;
                csi.unstage(&volume.volume_id, &staged).await
            });
        }
        while let Some(made) = firsts.join_next().await {
            made?.context("make a volume")?;
        }
    }
    println!("{VOLUMES} volumes made in {:.0} s\n", start.elapsed().as_secs_f64());
    Ok(volumes)
}

/// All volumes at once, under little memory. What it returns is what did not hold.
async fn storm(folder: &Path, state: &Path, role: Role, volumes: &[(Volume, PathBuf)]) -> Result<Vec<String>> {
    let group = Arc::new(Group::new()?);
    let driver = Driver::start_as(&group.program(folder)?, state, role).await?;
    let pid = driver.pid()?;
    group.expect(pid)?;
    let idle = Process::of(pid)?;
    let watch = Watch::over(&group);
    let calls = stage_all(&driver, volumes).await?;
    let seen = watch.end()?;
    // A driver that was killed has nothing any more.
    let after = Process::of(pid).ok();
    let mounts = figures::mounts()?;
    let mounted = volumes.iter().filter(|(_, staged)| mounts.contains(&staged.display().to_string())).count();
    let peak = group.only("memory.peak").unwrap_or(seen.memory);
    let killed = group.named("memory.events", "oom_kill").context("the cgroup counts what was killed in it")?;
    let slowest = figures::percentile(&calls.times, 100);

    let row = |what: &str, figure: String| println!("  {what:<60} {figure:>12}");
    let (seconds, mib) = (
        |time: Duration| format!("{:.1} s", time.as_secs_f64()),
        |bytes: u64| format!("{:.1} MiB", (bytes >> 10) as f64 / 1024.0),
    );
    let kib = |kib: Option<u64>| kib.map_or("gone".to_owned(), |kib| format!("{kib} KiB"));
    let (size, deadline) = (VOLUME_BYTES >> 20, DEADLINE.as_secs());
    println!("{VOLUMES} volumes of {size} MiB (ext4) unlocked at once by coffer node, within {deadline} s each;");
    println!("it and all that it starts have {} and no swap:", mib(MEMORY));
    row("calls that succeeded", (calls.times.len() - calls.failures.len()).to_string());
    row("all calls", seconds(calls.total));
    row("median call", seconds(figures::median(&calls.times)));
    row("slowest call", seconds(slowest));
    row("memory at most, with files that can be dropped (memory.peak)", mib(peak));
    row("memory without those (anon, shmem), most seen", mib(seen.kept));
    row("programs at one time, most seen", seen.programs.to_string());
    row("killed for want of memory (oom_kill)", killed.to_string());
    row("coffer node alone (VmRSS), idle", kib(Some(idle.resident)));
    row("coffer node alone (VmRSS), after the storm", kib(after.map(|after| after.resident)));
    row("coffer node alone, at most (VmHWM)", kib(after.map(|after| after.most_resident)));
    println!();
    let first = calls.failures.first().map_or("", String::as_str);
    Ok(broken([
        (calls.failures.is_empty(), format!("{} calls failed, one with {first}", calls.failures.len())),
        (slowest <= DEADLINE, format!("a call took {}", seconds(slowest))),
        (mounted == VOLUMES, format!("{mounted} volumes are mounted, not {VOLUMES}")),
        (killed == 0, format!("{killed} processes were killed for want of memory")),
        (after.is_some(), "the driver is gone after the storm".to_owned()),
        (idle.resident <= IDLE_KIB, format!("an idle driver has {} KiB, not {IDLE_KIB} or less", idle.resident)),
    ]))
}

/// What does not hold.
fn broken(checks: impl IntoIterator<Item = (bool, String)>) -> Vec<String> {
    checks.into_iter().filter(|(holds, _)| !holds).map(|(_, fault)| fault).collect()
}

struct Calls {
    total: Duration,
    times: Vec<Duration>,
    failures: Vec<String>,
}

async fn stage_all(driver: &Driver, volumes: &[(Volume, PathBuf)]) -> Result<Calls> {
    let (start, mut running) = (Instant::now(), JoinSet::new());
    for (volume, staged) in volumes {
        let mut node = driver.csi.node.clone();
        let capability = csi::filesystem("", Mode::SingleNodeWriter);
        let mut request = Request::new(csi::stage(volume, staged, capability));
        request.set_timeout(DEADLINE);
        running.spawn(async move {
            let asked = Instant::now();
            let answer = node.node_stage_volume(request).await;
            (asked.elapsed(), answer.err().map(|status| format!("{:?}: {}", status.code(), status.message())))
        });
    }
    let (mut times, mut failures) = (Vec::new(), Vec::new());
    while let Some(call) = running.join_next().await {
        let (time, failure) = call?;
        times.push(time);
        failures.extend(failure);
    }
    Ok(Calls { total: start.elapsed(), times, failures })
}

const CGROUPS: &str = "/sys/fs/cgroup";
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A cgroup (cgroups(7), version 2) with little memory. It goes when this is dropped and nothing runs in it.
struct Group(PathBuf);

impl Group {
    fn new() -> Result<Self> {
        let handed_down = fs::write(Path::new(CGROUPS).join("cgroup.subtree_control"), "+memory");
        handed_down.context("limit memory: this needs root, and cgroups of version 2 with the memory controller")?;
        let group = Self(Path::new(CGROUPS).join(format!("coffer-bench-{}", std::process::id())));
        fs::create_dir(&group.0).with_context(|| format!("make {}", group.0.display()))?;
        fs::write(group.0.join("memory.max"), MEMORY.to_string())?;
        // A kernel without swap has no limit for it.
        let swap = group.0.join("memory.swap.max");
        if swap.exists() {
            fs::write(swap, "0")?;
        }
        Ok(group)
    }

    /// A program that is `coffer` inside, from its first page of memory on.
    fn program(&self, folder: &Path) -> Result<String> {
        let script = folder.join("coffer-in-a-cgroup");
        let enter = format!("echo 0 > {}/cgroup.procs", self.0.display());
        fs::write(&script, format!("#!/bin/sh\n{enter} && exec '{COFFER}' \"$@\"\n"))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(script.display().to_string())
    }

    fn expect(&self, pid: u32) -> Result<()> {
        let inside = fs::read_to_string(self.0.join("cgroup.procs"))?;
        ensure!(inside.lines().any(|line| line == pid.to_string()), "the driver is not in its cgroup");
        Ok(())
    }

    /// The only number of a file.
    fn only(&self, file: &str) -> Option<u64> {
        fs::read_to_string(self.0.join(file)).ok()?.trim().parse().ok()
    }

    /// The number behind a name in a file.
    fn named(&self, file: &str, name: &str) -> Option<u64> {
        let text = fs::read_to_string(self.0.join(file)).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What still runs in it keeps it.
        let _ = fs::remove_dir(&self.0);
    }
}

/// The most that was seen in a cgroup.
#[derive(Default)]
struct Seen {
    /// Processes beside the driver.
    programs: usize,
    /// Bytes of any kind.
    memory: u64,
    /// Bytes that cannot be dropped without swap.
    kept: u64,
}

/// A thread that looks at a cgroup again and again: not every kernel says how much and how many there were at most.
struct Watch {
    running: Sender<()>,
    thread: JoinHandle<Seen>,
}

impl Watch {
    fn over(group: &Arc<Group>) -> Self {
        let ((running, ended), group) = (mpsc::channel(), group.clone());
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                let inside = fs::read_to_string(group.0.join("cgroup.procs")).unwrap_or_default();
                let part = |name| group.named("memory.stat", name).unwrap_or_default();
                seen.programs = seen.programs.max(inside.lines().count().saturating_sub(1));
                seen.memory = seen.memory.max(group.only("memory.current").unwrap_or_default());
                seen.kept = seen.kept.max(part("anon") + part("shmem"));
            }
            seen
        });
        Self { running, thread }
    }

    fn end(self) -> Result<Seen> {
        drop(self.running);
        self.thread.join().map_err(|_| anyhow!("looking at the cgroup broke off"))
    }
}

/// What a driver and the kernel hold when no call runs.
#[derive(Clone, Copy)]
struct Held {
    process: Process,
    mappings: usize,
    loops: usize,
    mounts: usize,
}

impl Held {
    fn by(pid: u32) -> Result<Self> {
        let (mappings, mounts) = (figures::mappings()?.len(), figures::mounts()?.len());
        Ok(Self { process: Process::of(pid)?, mappings, loops: figures::loops()?, mounts })
    }

    /// Looks once nothing is left over from the last call, or the time for that is over.
    async fn settled(pid: u32, before: Option<&Self>) -> Result<Self> {
        let start = Instant::now();
        loop {
            let now = Self::by(pid)?;
            if before.is_none_or(|before| now.beyond(before).is_empty()) || start.elapsed() > SETTLE_TIME {
                return Ok(now);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What there is more of than before.
    fn beyond(&self, before: &Self) -> Vec<String> {
        let counts = [
            ("descriptors", self.process.descriptors, before.process.descriptors),
            ("child processes", self.process.children, before.process.children),
            ("mappings", self.mappings, before.mappings),
            ("loop devices", self.loops, before.loops),
            ("mounts", self.mounts, before.mounts),
        ];
        broken(counts.map(|(what, now, then)| (now <= then, format!("{now} {what} where there were {then}"))))
    }

    fn tell(&self, cycle: u32) {
        let Self { process, mappings, loops, mounts } = self;
        let Process { resident, anonymous, descriptors, threads, children, .. } = process;
        tell([&cycle, resident, anonymous, descriptors, threads, children, mappings, loops, mounts]);
    }
}

/// One line of the table of cycles.
fn tell(columns: [&dyn Display; 9]) {
    let widths: [usize; 9] = [6, 7, 8, 6, 8, 9, 9, 6, 7];
    let line: String = columns.iter().zip(widths).map(|(column, width)| format!(" {column:>width$}")).collect();
    println!(" {line}");
}

/// One volume, staged and unstaged again and again. What it returns is what did not hold.
async fn endure(driver: &Driver, volume: &Volume, staged: &Path, cycles: u32) -> Result<Vec<String>> {
    println!("{cycles} cycles of stage and unstage of one volume by coffer node; memory in KiB, open files:");
    tell([&"cycle", &"VmRSS", &"RssAnon", &"files", &"threads", &"children", &"mappings", &"loops", &"mounts"]);
    let (pid, start, mut done, mut curve) = (driver.pid()?, Instant::now(), 0, Vec::new());
    for mark in [WARM_UP].into_iter().chain((100..cycles).step_by(100)).chain([cycles]) {
        while done < mark {
            done += 1;
            let told = || format!("cycle {done}");
            driver.csi.stage_filesystem(volume, staged).await.with_context(told)?;
            driver.csi.unstage(&volume.volume_id, staged).await.with_context(told)?;
        }
        let held = Held::settled(pid, curve.first()).await?;
        held.tell(done);
        curve.push(held);
    }
    println!("  a cycle takes {:.0} ms\n", start.elapsed().as_secs_f64() * 1e3 / f64::from(cycles));
    let (Some(before), Some(after)) = (curve.first(), curve.last()) else { bail!("there was no cycle") };
    let grown = after.process.resident.saturating_sub(before.process.resident);
    let threads = after.process.threads;
    let mut faults = after.beyond(before);
    faults.extend(broken([
        (grown <= GROWTH_KIB, format!("the driver has grown by {grown} KiB, not {GROWTH_KIB} or less")),
        (threads <= before.process.threads + MORE_THREADS, format!("the driver has {threads} threads")),
    ]));
    Ok(faults)
}
