//! The roles that serve: each is put together here, from its configuration to its listeners, and runs until told to
//! end.

#[cfg(all(feature = "controller", feature = "keyservice"))]
mod dev;
#[cfg(feature = "keyservice")]
mod keyservice;
#[cfg(feature = "node")]
mod node;
#[cfg(feature = "keyservice")]
mod providers;

use std::path::Path;

use anyhow::{Context, Result};
use coffer::server::{Reach, listen_unix};
use tokio::net::UnixListener;

#[cfg(all(feature = "controller", feature = "keyservice"))]
pub(crate) use dev::dev;
#[cfg(feature = "keyservice")]
pub(crate) use keyservice::keyservice;
#[cfg(feature = "node")]
pub(crate) use node::node;

fn listen(path: &Path, reach: Reach) -> Result<UnixListener> {
    listen_unix(path, reach).with_context(|| format!("listen on {}", path.display()))
}
