//! The roles that serve: each is put together here, from its configuration to its listeners, and runs until told to
//! end.

#[cfg(all(feature = "controller", feature = "keyservice"))]
mod dev;
#[cfg(feature = "keyservice")]
mod keyservice;
#[cfg(feature = "node")]
mod node;

use std::path::Path;
#[cfg(feature = "keyservice")]
use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt};

use anyhow::{Context, Result};
use coffer::server::{Reach, listen_unix};
#[cfg(feature = "keyservice")]
use coffer::{admin::place::Trial, config::file::FileConfig, keyservice::audit::Audit};
use tokio::net::UnixListener;
#[cfg(feature = "keyservice")]
use tokio::task::JoinSet;

#[cfg(all(feature = "controller", feature = "keyservice"))]
pub(crate) use dev::dev;
#[cfg(feature = "keyservice")]
pub(crate) use keyservice::keyservice;
#[cfg(feature = "node")]
pub(crate) use node::node;

fn listen(path: &Path, reach: Reach) -> Result<UnixListener> {
    listen_unix(path, reach).with_context(|| format!("listen on {}", path.display()))
}

/// The audit log: a file that is only appended to, or standard output.
#[cfg(feature = "keyservice")]
fn audit(path: Option<&Path>) -> Result<Audit> {
    let Some(path) = path else { return Ok(Audit::to(std::io::stdout())) };
    let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    Ok(Audit::to(opened.with_context(|| format!("open audit log {}", path.display()))?))
}

/// What of a configuration does nothing, or is not wise.
#[cfg(feature = "keyservice")]
fn warn(config: &FileConfig) {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
}

/// Tries KEKs and stores while requests are served already; it ends when it is dropped.
#[cfg(feature = "keyservice")]
fn try_in_background(trials: Vec<Trial>) -> JoinSet<()> {
    trials.into_iter().map(Trial::run).collect()
}
