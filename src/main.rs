//! The program: words → logs → role or verb → exit status.

#[cfg(not(any(feature = "node", feature = "keyservice")))]
compile_error!("build with at least one of the features node and keyservice");

#[cfg(feature = "keyservice")]
mod operator;
mod role;

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::Result;
#[cfg(feature = "keyservice")]
use coffer::config::file::Environment;
use coffer::{
    config::{
        EXIT_FAULTS, Faults,
        args::{Coffer, Ended, Verb},
    },
    telemetry,
};
use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
    thread::{CapabilitySet, capabilities},
};
use zeroizing_alloc::ZeroAlloc;

fn main() -> ExitCode {
    let words = match Coffer::read(std::env::args_os(), std::env::vars_os().map(|(name, _)| name)) {
        Ok(words) => words,
        Err(Ended::Told(text)) => {
            // Nobody to tell it to is no failure.
            let _ = io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(Ended::Faults(faults)) => return failed(&faults.into()),
    };
    keep_memory_private();
    telemetry::start(words.log_level, words.log_format);
    let run = || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let ended = runtime.block_on(act(words.verb));
        // What hangs in the kernel keeps nobody from ending.
        runtime.shutdown_timeout(END_TIME);
        ended
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// How long files and programs may take that are still at work when the end has come.
const END_TIME: Duration = Duration::from_secs(5);

async fn act(verb: Verb) -> Result<()> {
    #[cfg(feature = "keyservice")]
    let environment = Environment::new(std::env::vars_os());
    match verb {
        #[cfg(all(feature = "controller", feature = "keyservice"))]
        Verb::Dev(args) => role::dev(args, &environment).await,
        #[cfg(feature = "node")]
        Verb::Node(args) => role::node(args).await,
        #[cfg(all(feature = "controller", feature = "kubernetes"))]
        Verb::Controller(args) => role::controller(args).await,
        #[cfg(feature = "keyservice")]
        Verb::Keyservice(args) => role::keyservice(args, &environment).await,
        #[cfg(all(feature = "controller", feature = "keyservice"))]
        Verb::Volumes(coffer::config::args::Volumes::List { state_dir, json }) => {
            Ok(coffer::admin::volumes::list(&coffer::admin::StateDir::at(&state_dir), json, &mut io::stdout()).await?)
        }
        #[cfg(feature = "keyservice")]
        Verb::Keys(verb) => operator::keys(verb, &environment).await,
        #[cfg(feature = "keyservice")]
        Verb::Records(verb) => operator::records(verb, &environment).await,
        #[cfg(feature = "keyservice")]
        Verb::Rewrap(args) => operator::rewrap(args, &environment).await,
        #[cfg(feature = "keyservice")]
        Verb::Inventory(args) => operator::inventory(args, &environment).await,
        #[cfg(feature = "keyservice")]
        Verb::Config(verb) => operator::config(verb, &environment),
        #[cfg(feature = "keyservice")]
        Verb::Policy(verb) => operator::policy(verb, &environment),
        #[cfg(feature = "keyservice")]
        Verb::Audit(verb) => operator::audit(verb),
    }
}

/// Freed memory is overwritten: it may have held a key that a library copied into a buffer of its own.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<std::alloc::System> = ZeroAlloc(std::alloc::System);

/// Keeps what is in memory off disks and away from other users' eyes, as far as the kernel lets us.
fn keep_memory_private() {
    // A core dump would hold every key. The limit does not hold for dumps into a pipe (core(5)); a process that is not
    // dumpable has none, and its /proc files are root's (PR_SET_DUMPABLE(2const)). Neither is refused to anybody.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    // Pages that are touched are never swapped. Under a limit that memory could reach, locking would fail later
    // allocations (mlockall(2)), so there it is left out.
    let may_lock = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if may_lock || getrlimit(Resource::Memlock).current.is_none() {
        let _ = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT);
    }
}

/// Tells why, and ends with 64 where the configuration is at fault, else with 1.
fn failed(error: &anyhow::Error) -> ExitCode {
    // Where standard error is gone, the status is all that is left to tell.
    let _ = writeln!(io::stderr(), "coffer: {error:#}");
    if error.is::<Faults>() { ExitCode::from(EXIT_FAULTS) } else { ExitCode::FAILURE }
}
