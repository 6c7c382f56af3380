//! The flags of `coffer node`, and those by which every role finds its key service.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

use crate::config::args::unix_path;

/// Flags of `coffer node`.
#[derive(Args, Debug)]
pub struct Node {
    /// Socket on which CSI is served.
    #[arg(long, env = "COFFER_LISTEN", value_name = "unix://PATH", value_parser = unix_path)]
    pub listen: PathBuf,
    /// Name of this node [default: the host's name].
    #[arg(long, env = "COFFER_NODE_ID", value_name = "NAME")]
    pub node_id: Option<String>,
    /// Folder of local volumes.
    #[arg(long, env = "COFFER_POOL_DIR", value_name = "DIR", default_value = "/var/lib/coffer/volumes")]
    pub pool_dir: PathBuf,
    /// Serve CSI's Controller for local volumes as well.
    #[cfg(feature = "controller")]
    #[arg(long, env = "COFFER_PROVISION_LOCAL")]
    pub provision_local: bool,
    /// Make, grow and remove the local volumes that the cluster has for this node, as its API server says.
    #[cfg(feature = "kubernetes")]
    #[arg(long, env = "COFFER_LOCAL_VOLUMES")]
    pub local_volumes: bool,
    /// The key service.
    #[command(flatten)]
    pub keys: KeyServiceAddress,
    /// Folder in which the kubelet looks for plugins: the driver registers itself there [default: it does not].
    #[arg(long, env = "COFFER_REGISTRATION_DIR", value_name = "DIR")]
    pub registration_dir: Option<PathBuf>,
    /// The CSI socket's path as the kubelet sees it [default: the path of --listen].
    #[arg(long, env = "COFFER_REGISTRATION_SOCKET", value_name = "PATH", requires = "registration_dir")]
    pub registration_socket: Option<PathBuf>,
    /// Address on which health and metrics are served, HOST:PORT [default: they are not].
    #[arg(long, env = "COFFER_HTTP", value_name = "ADDRESS")]
    pub http: Option<SocketAddr>,
}

/// Where a key service listens, and what proves who asks it.
#[derive(Args, Clone, Debug)]
pub struct KeyServiceAddress {
    /// Where the key service listens: unix://PATH or https://HOST:PORT.
    #[arg(long, env = "COFFER_KEY_SERVICE", value_name = "ADDRESS")]
    pub key_service: String,
    /// Certificate that is shown to the key service, PEM (https only).
    #[arg(long, env = "COFFER_TLS_CERTIFICATE", value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// Private key of that certificate, PEM (https only).
    #[arg(long, env = "COFFER_TLS_PRIVATE_KEY", value_name = "FILE")]
    pub tls_private_key: Option<PathBuf>,
    /// Authority of the key service's certificate, PEM (https only).
    #[arg(long, env = "COFFER_TLS_AUTHORITY", value_name = "FILE")]
    pub tls_authority: Option<PathBuf>,
    /// Token of the ServiceAccount that proves who asks, read for each request (https only; in place of a certificate).
    #[arg(long, env = "COFFER_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}
