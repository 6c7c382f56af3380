//! The roles that serve: each is put together here, from its configuration to its listeners, and runs until told to
//! end.

#[cfg(all(feature = "controller", feature = "kubernetes"))]
mod controller;
#[cfg(all(feature = "controller", feature = "keyservice"))]
mod dev;
#[cfg(feature = "keyservice")]
mod keyservice;
#[cfg(feature = "node")]
mod node;
#[cfg(feature = "node")]
mod socket;

use std::path::Path;

use anyhow::{Context, Result};
use coffer::server::{Reach, listen_unix};
#[cfg(feature = "keyservice")]
use coffer::{
    admin::place::Trial,
    config::file::FileConfig,
    keyservice::audit::{Audit, file},
};
use tokio::net::UnixListener;
#[cfg(feature = "keyservice")]
use tokio::task::JoinSet;

#[cfg(all(feature = "controller", feature = "kubernetes"))]
pub(crate) use controller::controller;
#[cfg(all(feature = "controller", feature = "keyservice"))]
pub(crate) use dev::dev;
#[cfg(feature = "keyservice")]
pub(crate) use keyservice::keyservice;
#[cfg(feature = "node")]
pub(crate) use node::node;

fn listen(path: &Path, reach: Reach) -> Result<UnixListener> {
    listen_unix(path, reach).with_context(|| format!("listen on {}", path.display()))
}

/// The audit log: on standard output, and in a file where one is named.
#[cfg(feature = "keyservice")]
fn audit(path: Option<&Path>) -> Result<Audit> {
    let audit = Audit::to(std::io::stdout());
    let Some(path) = path else { return Ok(audit) };
    Ok(audit.and_to(file(path).with_context(|| format!("open audit log {}", path.display()))?))
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
