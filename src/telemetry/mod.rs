//! What the program tells of itself: logs, and metrics.
//!
//! Logs go to standard error, for people or machines. Only our own lines are told below warnings, so that no library
//! can write a request's body.

pub mod metrics;

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Layer, filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::args::LogFormat;

/// Starts logging. Only the first call of a process counts.
pub fn start(level: LevelFilter, format: LogFormat) {
    let layer = match format {
        LogFormat::Text => {
            fmt::layer().with_writer(io::stderr).with_target(false).with_ansi(io::stderr().is_terminal()).boxed()
        }
        LogFormat::Json => fmt::layer().with_writer(io::stderr).json().boxed(),
    };
    // A second subscriber in one process is a test's.
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter(level))).try_init();
}

/// What is told at a level: our own lines, and of every library only its warnings.
#[must_use]
pub fn filter(level: LevelFilter) -> Targets {
    // An answer that it cannot read, kube-client writes down whole, and it may be a Secret or the review of a token.
    let silent = Targets::new().with_target("kube_client", LevelFilter::OFF);
    silent.with_default(LevelFilter::WARN.min(level)).with_target("coffer", level)
}
