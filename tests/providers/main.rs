//! Every provider and every store of objects through its official SDK, on servers that are started here: real ones,
//! emulators, and fakes of our own where nothing else can be had. Each test has a server to itself.
//!
//! At the end stands a table of what was shown on what, and of what was not, and why.

#![allow(clippy::print_stdout, reason = "a test program without a harness tells its results itself")]

mod calls;
mod google;
mod house;
mod kms;
mod log;
mod rotation;
mod secrets;
mod servers;
mod service;
mod shelf;
mod sources;
mod stores;
mod table;
mod together;

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};

use house::House;
use servers::{KmsServer, StoreServer};
use shelf::Shelf;

/// Most of a test's time is a server's start and its answers.
const AT_ONCE: usize = 4;
/// A test that takes longer hangs.
const TEST_TIME: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    log::start();
    let of_all =
        [stores::trials(), service::trials(), kms::trials(), calls::trials(), together::trials(), secrets::trials()];
    let of_some = [rotation::trials(), google::trials(), sources::trials()];
    let trials = of_all.into_iter().chain(of_some).flatten().collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        table::print();
    }
    conclusion.exit_code()
}

/// A test of its own for each of these servers of a KMS.
fn kms_trials<F>(servers: &[KmsServer], sentence: &str, test: fn(House) -> F) -> Vec<Trial>
where
    F: Future<Output = Result<()>> + 'static,
{
    let trial = |server: KmsServer| {
        trial(format!("{}_{sentence}", server.name()), async move || test(House::start(server).await?).await)
    };
    servers.iter().copied().map(trial).collect()
}

/// A test of its own for each of these servers of objects.
fn store_trials<F>(servers: &[StoreServer], sentence: &str, test: fn(Shelf) -> F) -> Vec<Trial>
where
    F: Future<Output = Result<()>> + 'static,
{
    let trial = |server: StoreServer| {
        trial(format!("{}_{sentence}", server.name()), async move || test(Shelf::start(server).await?).await)
    };
    servers.iter().copied().map(trial).collect()
}

/// A test with a runtime of its own.
fn trial(name: String, test: impl AsyncFnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let ended = runtime.block_on(async { tokio::time::timeout(TEST_TIME, test()).await });
        runtime.shutdown_background();
        let ended = ended.context("it did not end in time").flatten();
        ended.map_err(|error| Failed::from(format!("{error:?}")))
    })
}
