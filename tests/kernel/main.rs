//! Coffer on a real kernel: volumes made, opened, refused, broken off and brought back.
//!
//! Where this machine has device-mapper, and root, everything runs natively. Elsewhere this program runs itself again
//! in a guest kernel. Power cuts always take a guest.

#![allow(clippy::print_stdout, reason = "a test program without a harness tells its results itself")]

mod concurrency;
mod content;
mod crash;
mod disk;
mod ephemeral;
mod input;
mod power;
mod refusal;
mod sanity;
mod secrets;
mod steps;
mod tamper;
mod wire;
mod writelog;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use testbed::{
    driver::Driver,
    guest::{self, Part},
};

/// The program under test.
const COFFER: &str = env!("CARGO_BIN_EXE_coffer");
const MIB: u64 = 1 << 20;
/// A guest that takes longer hangs.
const GUEST_TIME: Duration = Duration::from_secs(1500);

fn main() -> ExitCode {
    if let Some(step) = std::env::args().nth(1).and_then(|word| word.strip_prefix("--power-step=").map(str::to_owned)) {
        return power::inside(&step);
    }
    let words: Vec<_> = std::env::args().skip(1).collect();
    let part = words.iter().find_map(|word| Part::of_word(word));
    let mut arguments = Arguments::from_iter(std::env::args().filter(|word| Part::of_word(word).is_none()));
    // One kernel, and in a guest one processor: tests that wait for each other's programs only look slow.
    arguments.test_threads = Some(1);
    let inside = guest::has_device_mapper();
    let on_kernel = [
        content::trials(),
        refusal::trials(),
        concurrency::trials(),
        crash::trials(),
        input::trials(),
        sanity::trials(),
        wire::trials(),
        tamper::trials(),
        steps::trials(),
        secrets::trials(),
        disk::trials(),
        ephemeral::trials(),
        writelog::trials(),
    ];
    let mut on_kernel: Vec<_> = on_kernel.into_iter().flatten().collect();
    if let Some(part) = part {
        on_kernel = part.take(on_kernel);
    }
    if inside && std::env::var_os("TESTBED_GUEST").is_none() && !mappings().is_empty() {
        println!("this machine has volumes of Coffer open, which the tests would close: {:?}", mappings());
        return ExitCode::FAILURE;
    }
    if inside || arguments.list {
        let power = if std::env::var_os("TESTBED_GUEST").is_some() { Vec::new() } else { power::trials() };
        return libtest_mimic::run(&arguments, on_kernel.into_iter().chain(power).collect()).exit_code();
    }
    // Whoever names tests waits for those alone.
    let everything = arguments.filter.is_none() && arguments.skip.is_empty();
    println!("no device-mapper here: booting {}", if everything { "two guest kernels" } else { "a guest kernel" });
    let ran = if everything { guest::run_in_parts(GUEST_TIME) } else { guest::run_inside(&words, GUEST_TIME) };
    let status = match ran {
        Ok(status) => status,
        Err(error) => {
            println!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    // Each of them has guests of its own.
    arguments.test_threads = Some(2);
    let power = libtest_mimic::run(&arguments, power::trials());
    if status == 0 && !power.has_failed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A test that needs a kernel, a runtime and a driver on a folder of its own.
fn trial<F>(name: &'static str, test: fn(Bed) -> F) -> Trial
where
    F: Future<Output = Result<()>> + 'static,
{
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(async {
            let bed = Bed::new().await?;
            let log = bed.state.path().join("state/driver.log");
            test(bed).await.map_err(|error| {
                let log = std::fs::read_to_string(log).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(25).collect();
                Failed::from(format!("{error:?}\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n")))
            })
        })
    })
}

/// A driver on a folder of its own.
struct Bed {
    driver: Driver,
    state: std::sync::Arc<tempfile::TempDir>,
}

impl Bed {
    async fn new() -> Result<Self> {
        let state = std::sync::Arc::new(guest::folder()?);
        let driver = Driver::start(COFFER, &state.path().join("state")).await?;
        Ok(Self { driver, state })
    }

    /// A path for staging or publishing, whose folder exists.
    fn path(&self, name: &str) -> PathBuf {
        self.state.path().join(name)
    }
}

impl Drop for Bed {
    /// Nothing of a test stays open, mounted or attached.
    fn drop(&mut self) {
        self.driver.kill();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = self.state.path().display().to_string();
        let targets =
            mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|target| target.starts_with(&own));
        for target in targets.collect::<Vec<_>>().into_iter().rev() {
            let _ = std::process::Command::new("umount").arg(target).output();
        }
        for name in mappings() {
            let _ = std::process::Command::new("dmsetup").args(["remove", &name]).output();
        }
    }
}

/// The open mappings of volumes.
fn mappings() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/block") else { return Vec::new() };
    let name = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("dm/name")).ok();
    let names = entries.flatten().filter_map(name).map(|name| name.trim().to_owned());
    names.filter(|name| name.starts_with("coffer-")).collect()
}

/// The loop devices that are in use.
fn loops() -> usize {
    let Ok(entries) = std::fs::read_dir("/sys/block") else { return 0 };
    entries.flatten().filter(|entry| entry.path().join("loop/backing_file").exists()).count()
}

/// Runs a program of the system and returns what it wrote.
fn run(program: &str, words: &[&str]) -> Result<String> {
    let output =
        std::process::Command::new(program).args(words).output().with_context(|| format!("start {program}"))?;
    anyhow::ensure!(
        output.status.success(),
        "{program} {}: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Fails unless an answer is an error with this code whose message holds all of these texts.
fn expect_status<T>(answer: Result<T, tonic::Status>, code: tonic::Code, texts: &[&str]) -> Result<()> {
    let Err(status) = answer else { anyhow::bail!("expected {code:?} and got success") };
    anyhow::ensure!(status.code() == code, "expected {code:?} and got {status:?}");
    for text in texts {
        anyhow::ensure!(status.message().contains(text), "{:?} lacks {text:?}", status.message());
    }
    Ok(())
}
