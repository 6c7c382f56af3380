//! The power fails: at every named step of the work on a volume, and at random moments.
//!
//! This side boots a guest on a disk, waits until it says that the power may be cut, kills it, and boots it again on
//! the same disk to see what is left. What the guest does is in [`table`] and [`moments`].

pub(crate) mod life;
mod moments;
mod table;

use std::{fs, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Failed, Trial};
use rustix::mount::{MountFlags, mount_remount};
use testbed::guest::{Disk, Guest, POOL};

use crate::power::life::Random;

/// A guest that takes longer hangs.
const TIME: Duration = Duration::from_secs(300);
const CUT: &str = "power may be cut now";
const BROKE_OFF: &str = "the work broke off";
/// How often the power is cut at a random moment.
const ROUNDS: usize = 6;

pub(crate) fn trials() -> Vec<Trial> {
    let trial = |name: &'static str, test: fn() -> Result<()>| {
        Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:?}"))))
    };
    vec![
        trial("a_power_cut_at_any_step_is_put_right", cut_at_every_step),
        trial("power_cuts_at_random_moments_lose_nothing_that_was_acknowledged", cut_at_random_moments),
    ]
}

fn cut_at_every_step() -> Result<()> {
    let disk = Disk::new(2)?;
    let mut guest = boot(&disk, "stop")?;
    guest.wait_for(CUT, TIME)?;
    guest.cut_power();
    finish(boot(&disk, "put-right")?)
}

fn cut_at_random_moments() -> Result<()> {
    let (disk, mut random) = (Disk::new(2)?, Random::seeded()?);
    for round in 0..ROUNDS {
        let mut guest = boot(&disk, "work")?;
        guest.wait_for(CUT, TIME).with_context(|| format!("round {round}"))?;
        // Any moment will do: nothing is waited for.
        std::thread::sleep(random.time(200..3000));
        if guest.wait_for(BROKE_OFF, Duration::ZERO).is_ok() {
            // It tells why.
            finish(guest)?;
            bail!("round {round}: the work broke off before the power was cut");
        }
        guest.cut_power();
    }
    finish(boot(&disk, "end")?)?;
    println!("crash points: {ROUNDS}");
    Ok(())
}

fn boot(disk: &Disk, step: &str) -> Result<Guest> {
    let program = std::env::current_exe()?.display().to_string();
    disk.boot(&[program, format!("--power-step={step}")])
}

fn finish(guest: Guest) -> Result<()> {
    let status = guest.finish(TIME)?;
    ensure!(status == 0, "the guest's work ended with status {status}");
    Ok(())
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
    keep_back()?;
    match step {
        "stop" => table::stop().await,
        "put-right" => table::put_right().await,
        "work" => moments::work().await,
        "end" => moments::end().await,
        other => bail!("{other:?} is no step"),
    }
}

/// What is written stays in the guest's memory until somebody flushes it.
fn keep_back() -> Result<()> {
    fs::write("/proc/sys/vm/dirty_writeback_centisecs", "0")?;
    fs::write("/proc/sys/vm/dirty_expire_centisecs", "8640000")?;
    mount_remount(POOL, MountFlags::empty(), c"commit=3600").context("mount the pool again")
}
