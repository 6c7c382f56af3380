//! The flags of `coffer controller`.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

use crate::config::args::{KeyServiceAddress, unix_path};

/// Flags of `coffer controller`.
#[derive(Args, Debug)]
pub struct Controller {
    /// Socket on which CSI is served.
    #[arg(long, env = "COFFER_LISTEN", value_name = "unix://PATH", value_parser = unix_path)]
    pub listen: PathBuf,
    /// The key service.
    #[command(flatten)]
    pub keys: KeyServiceAddress,
    /// Address on which health and metrics are served, HOST:PORT [default: they are not].
    #[arg(long, env = "COFFER_HTTP", value_name = "ADDRESS")]
    pub http: Option<SocketAddr>,
}
