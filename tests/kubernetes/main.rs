//! What Coffer does at a real API server: who may have which key, records and local volumes as custom resources, an
//! inventory of them, the chart. One API server for the whole run; each test has names of its own.
//!
//! `cargo test --test kubernetes` runs them, with a part of a name only those that have it.

mod authority;
mod chart;
mod inventory;
mod local;
mod store;

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use testbed::kube::ApiServer;

/// Most of a test's time is a wait.
const AT_ONCE: usize = 4;
/// A test that takes longer hangs.
const TEST_TIME: Duration = Duration::from_secs(180);

/// What the tests run on.
pub(crate) struct Bed {
    pub(crate) server: Arc<ApiServer>,
    pub(crate) runtime: tokio::runtime::Handle,
}

impl Bed {
    /// A test with the API server that all share.
    pub(crate) fn trial<T, F>(&self, name: &str, test: T) -> Trial
    where
        T: FnOnce(Arc<ApiServer>) -> F + Send + 'static,
        F: Future<Output = Result<()>>,
    {
        let (server, runtime) = (self.server.clone(), self.runtime.clone());
        Trial::test(name, move || {
            let ended = runtime.block_on(async { tokio::time::timeout(TEST_TIME, test(server)).await });
            let ended = ended.context("it did not end in time").flatten();
            ended.map_err(|error| Failed::from(format!("{error:?}")))
        })
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let folder = tempfile::tempdir()?;
    let server = runtime.block_on(async {
        let server = ApiServer::start(folder.path()).await?;
        server.install_resources().await?;
        anyhow::Ok(Arc::new(server))
    })?;
    let bed = Bed { server, runtime: runtime.handle().clone() };
    let trials = [
        authority::trials(&bed),
        store::trials(&bed),
        local::trials(&bed),
        inventory::trials(&bed),
        chart::trials(&bed),
    ];
    let conclusion = libtest_mimic::run(arguments, trials.into_iter().flatten().collect());
    // What tests left running ends before the server that it talks to.
    runtime.shutdown_timeout(Duration::from_secs(2));
    Ok(conclusion.exit_code())
}
