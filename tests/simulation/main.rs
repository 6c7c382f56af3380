//! A deterministic simulation: the real create, stage, unstage, publish, expand, delete and restart flows over a world
//! in which every external effect can go wrong, in every way, alone, in pairs and at random.
//!
//! ```text
//! cargo test --test simulation                          all singles, all pairs, random schedules
//! cargo test --test simulation -- --replay SCHEDULE     one schedule with its trace
//! cargo test --test simulation -- --flow FLOW           one flow with its singles and pairs
//! cargo test --test simulation -- --mutants             deliberately broken flows, each of which must be caught
//! cargo test --test simulation -- --soak                random schedules until stopped
//! ```

#![allow(clippy::print_stdout, reason = "a test program without a harness tells its results itself")]

mod actor;
mod disk;
mod driver;
mod fault;
mod files;
mod header;
mod host;
mod invariant;
mod keys;
mod mutants;
mod programs;
mod schedules;
mod world;

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Instant,
};

use anyhow::{Result, bail, ensure};

use crate::{
    fault::Faults,
    schedules::{FLOWS, Flow, Schedule, rolls},
};

/// Schedules in all, at least.
const SCHEDULES: usize = 100_000;
/// Random schedules in any case.
const RANDOM: usize = 1_000;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let done = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--replay", schedule] => replay(schedule),
        ["--soak"] => soak(),
        ["--hunt"] => hunt(),
        ["--mutants"] => mutants::all_are_caught(),
        ["--flow", name] => one_flow(name),
        ["--random", count] => count.parse().map_err(Into::into).and_then(|count| at_random(0, Some(count))),
        ["--list", ..] => Ok(()),
        [] | ["--nocapture"] => all(),
        // A filter for other tests.
        _ => Ok(()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn all() -> Result<()> {
    let start = Instant::now();
    let ran = AtomicUsize::new(0);
    let (mut single, mut pairs) = (0, 0);
    for flow in FLOWS {
        let counted = exhaust(flow, &ran)?;
        println!(
            "simulation: {:<12} {:>3} effects, {:>5} single faults, {:>6} pairs",
            flow.name, counted.effects, counted.singles, counted.pairs
        );
        single += counted.singles;
        pairs += counted.pairs;
    }
    let random = RANDOM.max(SCHEDULES.saturating_sub(ran.load(Ordering::Relaxed)));
    at_random(0, Some(random as u64))?;
    same_twice()?;
    mutants::all_are_caught()?;
    println!(
        "simulation: {} schedules ({single} single faults, {pairs} pairs, {random} at random) in {:.0} s; {} invariants \
         held after every step",
        single + pairs + random,
        start.elapsed().as_secs_f64(),
        invariant::ALL.len()
    );
    Ok(())
}

fn one_flow(name: &str) -> Result<()> {
    let Some(flow) = FLOWS.iter().find(|flow| flow.name == name) else { bail!("there is no flow {name:?}") };
    let counted = exhaust(flow, &AtomicUsize::new(0))?;
    println!("simulation: {name}: {} single faults, {} pairs", counted.singles, counted.pairs);
    Ok(())
}

struct Counted {
    effects: usize,
    singles: usize,
    pairs: usize,
}

/// All single faults of a flow, and behind each all second ones.
fn exhaust(flow: &'static Flow, ran: &AtomicUsize) -> Result<Counted> {
    let start = flow.start()?;
    let calm = checked(flow, &start, &Faults::default())?;
    let first = flow.faults(None, &calm);
    let pairs = AtomicUsize::new(0);
    in_parallel(first.len(), |number| {
        let (at, fault) = first[number];
        let faults = Faults::one(at, fault);
        let one = checked(flow, &start, &faults)?;
        for dice in 1..rolls(fault) {
            checked(flow, &start, &faults.rolled(dice))?;
        }
        for (second, other) in flow.faults(Some(at), &one) {
            checked(flow, &start, &faults.and(second, other))?;
            pairs.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })?;
    let singles = first.iter().map(|(_, fault)| usize::try_from(rolls(*fault)).unwrap_or(1)).sum();
    let counted = Counted { effects: calm.until_reached, singles, pairs: pairs.into_inner() };
    ran.fetch_add(counted.singles + counted.pairs, Ordering::Relaxed);
    Ok(counted)
}

fn checked(flow: &'static Flow, start: &schedules::Start, faults: &Faults) -> Result<schedules::Outcome> {
    let outcome = flow.run(start, faults, false);
    if outcome.violation.is_some() {
        told(&Schedule::Flow(flow, faults.clone()))?;
    }
    Ok(outcome)
}

/// Random schedules from a seed on.
fn at_random(first: u64, count: Option<u64>) -> Result<()> {
    in_parallel(count.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX)), |number| {
        let schedule = Schedule::Random(first + number as u64);
        match schedule.run(false)?.violation {
            Some(_) => told(&schedule),
            None => Ok(()),
        }
    })
}

/// Two runs of one seed are the same run: what is printed can be replayed.
fn same_twice() -> Result<()> {
    for seed in 0..50 {
        let run = || Schedule::Random(seed).run(false);
        let (one, two) = (run()?, run()?);
        ensure!(
            (one.effects, one.fingerprint) == (two.effects, two.fingerprint),
            "random:{seed} is not the same twice"
        );
    }
    Ok(())
}

/// Runs a schedule that went wrong once more, and tells what happened.
fn told(schedule: &Schedule) -> Result<()> {
    let outcome = schedule.run(true)?;
    let from = outcome.trace.len().saturating_sub(120);
    for line in &outcome.trace[from..] {
        println!("{line}");
    }
    match outcome.violation {
        Some(violation) => {
            bail!("{violation}\nreplay it: cargo test --test simulation -- --replay '{schedule}'")
        }
        None => bail!("'{schedule}' went wrong once, and not when it was replayed"),
    }
}

fn replay(text: &str) -> Result<()> {
    let schedule: Schedule = text.parse()?;
    let outcome = schedule.run(true)?;
    outcome.trace.iter().for_each(|line| println!("{line}"));
    match outcome.violation {
        Some(violation) => bail!("{violation}"),
        None => {
            println!("every invariant held");
            Ok(())
        }
    }
}

/// What finds a broken flow: every single fault of every flow, and some random schedules.
fn hunt() -> Result<()> {
    for flow in FLOWS {
        let start = flow.start()?;
        let calm = checked(flow, &start, &Faults::default())?;
        let faults = flow.faults(None, &calm);
        in_parallel(faults.len(), |number| {
            let (at, fault) = faults[number];
            (0..rolls(fault)).try_for_each(|dice| checked(flow, &start, &Faults::one(at, fault).rolled(dice)).map(drop))
        })?;
    }
    at_random(0, Some(300))
}

fn soak() -> Result<()> {
    let first = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() << 20;
    println!("random schedules from seed {first} on, until stopped");
    at_random(first, None)
}

/// Does numbered work on every processor, and stops at the first failure.
fn in_parallel(count: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let (next, failed) = (AtomicU64::new(0), std::sync::Mutex::new(None));
    let threads = std::thread::available_parallelism().map_or(2, Into::into);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or(usize::MAX);
                    if number >= count {
                        return;
                    }
                    if number > 0 && number.is_multiple_of(100_000) {
                        println!("simulation: {number} schedules");
                    }
                    if let Err(error) = work(number) {
                        next.store(u64::MAX / 2, Ordering::Relaxed);
                        failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                        return;
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}
