//! The program: words → logs → role or verb → exit status.

#[cfg(not(all(feature = "controller", feature = "keyservice")))]
compile_error!("wip");

mod role;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Result;
use coffer::{
    admin::{self, StateDir},
    config::{
        EXIT_FAULTS, Faults,
        args::{Coffer, Ended, Keys, Records, Verb, Volumes},
    },
    telemetry,
};

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
    telemetry::start(words.log_level, words.log_format);
    let run = || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(act(words.verb))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

async fn act(verb: Verb) -> Result<()> {
    let out = &mut io::stdout();
    match verb {
        Verb::Dev(args) => role::dev(args).await,
        Verb::Node(args) => role::node(args).await,
        Verb::Keyservice(args) => role::keyservice(args).await,
        Verb::Keys(Keys::Init { state_dir }) => Ok(admin::keys::init(&StateDir::at(&state_dir), out)?),
        Verb::Volumes(Volumes::List { state_dir, json }) => {
            Ok(admin::volumes::list(&StateDir::at(&state_dir), json, out).await?)
        }
        Verb::Records(Records::Show { volume, state_dir }) => {
            Ok(admin::records::show(&StateDir::at(&state_dir), &volume, out).await?)
        }
    }
}

/// Tells why, and ends with 64 where the configuration is at fault, else with 1.
fn failed(error: &anyhow::Error) -> ExitCode {
    // Where standard error is gone, the status is all that is left to tell.
    let _ = writeln!(io::stderr(), "coffer: {error:#}");
    if error.is::<Faults>() { ExitCode::from(EXIT_FAULTS) } else { ExitCode::FAILURE }
}
