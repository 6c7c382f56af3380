//! The flags of `coffer inventory`.

#[cfg(feature = "node")]
use std::path::PathBuf;

use clap::Args;

use super::Where;

/// Flags of `coffer inventory`.
#[derive(Args, Debug)]
pub struct Inventory {
    /// Providers and records.
    #[command(flatten)]
    pub place: Where,
    /// Ask the Kubernetes API for volumes, by KUBECONFIG or as the pod's account [default: where the configuration has a
    /// section kubernetes, or keeps records there].
    #[cfg(feature = "kubernetes")]
    #[arg(long)]
    pub kubernetes: bool,
    /// Folder of a pool on this machine, whose files are looked at [default: the one in the state folder, where one is
    /// named].
    #[cfg(feature = "node")]
    #[arg(long, env = "COFFER_POOL_DIR", value_name = "DIR")]
    pub pool_dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
