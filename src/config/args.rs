//! The command line. Each flag of a role can be given as an environment variable instead.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::config::{Faults, did_you_mean};

const ENVIRONMENT_PREFIX: &str = "COFFER_";

/// Kubernetes volumes that only their owner can read.
#[derive(Debug, Parser)]
#[command(name = "coffer", version, max_term_width = 110)]
pub struct Coffer {
    /// What to tell: error, warn, info, debug or trace.
    #[arg(long, global = true, env = "COFFER_LOG_LEVEL", default_value = "info")]
    pub log_level: tracing::level_filters::LevelFilter,
    /// How to tell it.
    #[arg(long, global = true, env = "COFFER_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The form of log lines, which go to standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// What the program can be told to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run driver and key service in one process, on one machine.
    #[cfg(all(feature = "controller", feature = "keyservice"))]
    Dev(Dev),
    /// Run the driver of a node, with keys from a key service.
    #[cfg(feature = "node")]
    Node(Node),
    /// Run the key service.
    #[cfg(feature = "keyservice")]
    Keyservice(Keyservice),
    /// Make cluster keys.
    #[cfg(feature = "keyservice")]
    #[command(subcommand)]
    Keys(Keys),
    /// Look at volumes.
    #[cfg(all(feature = "controller", feature = "keyservice"))]
    #[command(subcommand)]
    Volumes(Volumes),
    /// Look at key records.
    #[cfg(feature = "keyservice")]
    #[command(subcommand)]
    Records(Records),
}

/// Flags of `coffer dev`.
#[derive(Args, Debug)]
pub struct Dev {
    /// Folder of the cluster key, the key records and the volumes.
    #[arg(long, env = "COFFER_STATE_DIR", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Socket on which CSI is served [default: unix://STATE_DIR/csi.sock].
    #[arg(long, env = "COFFER_LISTEN", value_name = "unix://PATH", value_parser = unix_path)]
    pub listen: Option<PathBuf>,
    /// Name of this node [default: the host's name].
    #[arg(long, env = "COFFER_NODE_ID", value_name = "NAME")]
    pub node_id: Option<String>,
    /// File with providers and the audit log [default: the cluster key alone, and an audit log on standard output].
    #[arg(long, env = "COFFER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

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
    /// Where the key service listens: unix://PATH or https://HOST:PORT.
    #[arg(long, env = "COFFER_KEY_SERVICE", value_name = "ADDRESS")]
    pub key_service: String,
    /// Certificate that the node shows to the key service, PEM (https only).
    #[arg(long, env = "COFFER_TLS_CERTIFICATE", value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// Private key of that certificate, PEM (https only).
    #[arg(long, env = "COFFER_TLS_PRIVATE_KEY", value_name = "FILE")]
    pub tls_private_key: Option<PathBuf>,
    /// Authority of the key service's certificate, PEM (https only).
    #[arg(long, env = "COFFER_TLS_AUTHORITY", value_name = "FILE")]
    pub tls_authority: Option<PathBuf>,
}

/// Flags of `coffer keyservice`.
#[derive(Args, Debug)]
pub struct Keyservice {
    /// The configuration file, YAML.
    #[arg(long, env = "COFFER_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
}

/// `coffer keys …`
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Make a cluster key, once: one that exists is never overwritten.
    Init {
        /// Folder that gets the key, as cluster-key.json.
        #[arg(long, env = "COFFER_STATE_DIR", value_name = "DIR")]
        state_dir: PathBuf,
    },
}

/// `coffer volumes …`
#[derive(Debug, Subcommand)]
pub enum Volumes {
    /// List the volumes of a state folder.
    List {
        /// The state folder.
        #[arg(long, env = "COFFER_STATE_DIR", value_name = "DIR")]
        state_dir: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// `coffer records …`
#[derive(Debug, Subcommand)]
pub enum Records {
    /// Print a volume's key record. It holds no plaintext key.
    Show {
        /// The volume id, or the name that the volume was created with.
        volume: String,
        /// The state folder.
        #[arg(long, env = "COFFER_STATE_DIR", value_name = "DIR")]
        state_dir: PathBuf,
    },
}

/// How reading the command line ended, where it gave nothing to do.
#[derive(Debug)]
pub enum Ended {
    /// Help or the version was asked for: print it and end well.
    Told(String),
    /// The command line or the environment is at fault.
    Faults(Faults),
}

impl Coffer {
    /// Reads the command line and the environment.
    ///
    /// # Errors
    /// Help is asked for, or something is at fault.
    pub fn read(
        words: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, Ended> {
        let mut faults = unknown_variables(environment);
        match Self::try_parse_from(words) {
            Err(error) if !error.use_stderr() => Err(Ended::Told(error.to_string())),
            Err(error) => {
                faults.add(error.to_string().trim().to_owned());
                Err(Ended::Faults(faults))
            }
            Ok(coffer) => faults.or(coffer).map_err(Ended::Faults),
        }
    }
}

/// A variable with our prefix that no flag has is a slip that would go unseen.
fn unknown_variables(environment: impl IntoIterator<Item = OsString>) -> Faults {
    let known = variables(&Coffer::command());
    let mut faults = Faults::default();
    for name in environment.into_iter().filter_map(|name| name.into_string().ok()) {
        if name.starts_with(ENVIRONMENT_PREFIX) && !known.contains(&name) && !is_service_link(&name) {
            let hint = did_you_mean(&name, known.iter().map(String::as_str));
            faults.add(format!("environment: {name} is not known{hint}"));
        }
    }
    faults
}

/// Kubernetes tells each pod of the services around it, in variables that begin with the services' names: a service
/// `coffer-…` makes `COFFER_…_SERVICE_HOST`, `…_SERVICE_PORT`, `…_PORT` and `…_PORT_443_TCP`.
fn is_service_link(name: &str) -> bool {
    ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT_"].iter().any(|part| name.contains(part)) || name.ends_with("_PORT")
}

fn variables(command: &clap::Command) -> Vec<String> {
    let own = command.get_arguments().filter_map(|arg| arg.get_env()).map(|name| name.to_string_lossy().into_owned());
    own.chain(command.get_subcommands().flat_map(variables)).collect()
}

/// The path of `unix://PATH`.
///
/// # Errors
/// It is not of that form, or the path is not absolute.
pub fn unix_path(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix://").map(PathBuf::from) {
        Some(path) if path.is_absolute() => Ok(path),
        _ => Err("expected unix:// and an absolute path".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str], environment: &[&str]) -> Result<Coffer, Ended> {
        Coffer::read(words.iter().map(OsString::from), environment.iter().map(OsString::from))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Coffer::command().debug_assert();
    }

    #[test]
    fn faults_of_the_command_line_and_the_environment_are_told_together() {
        let Err(Ended::Faults(faults)) =
            read(&["coffer", "dev", "--listen", "tcp://x"], &["COFFER_STATE_DIRR", "HOME"])
        else {
            panic!("expected faults")
        };
        let told = faults.to_string();
        assert!(told.contains("COFFER_STATE_DIRR is not known; did you mean COFFER_STATE_DIR?"), "{told}");
        assert!(told.contains("unix:// and an absolute path"), "{told}");
    }

    #[test]
    fn what_kubernetes_tells_of_services_is_no_fault() {
        let told = ["COFFER_KEYSERVICE_SERVICE_HOST", "COFFER_PORT", "COFFER_KEYSERVICE_PORT_7443_TCP_ADDR"];
        assert!(read(&["coffer", "keyservice", "--config", "f"], &told).is_ok());
    }

    #[test]
    fn help_is_no_fault() {
        assert!(matches!(read(&["coffer", "--help"], &[]), Err(Ended::Told(_))));
    }
}
