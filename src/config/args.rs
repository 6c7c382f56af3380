//! The command line. Each flag of a role can be given as an environment variable instead.

#[cfg(all(feature = "controller", feature = "kubernetes"))]
mod controller;

#[cfg(feature = "keyservice")]
mod inventory;

#[cfg(feature = "keyservice")]
mod keys;

#[cfg(feature = "node")]
mod node;

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::{
    config::{Faults, did_you_mean},
    volume::VolumeId,
};

#[cfg(all(feature = "controller", feature = "kubernetes"))]
pub use controller::Controller;
#[cfg(feature = "keyservice")]
pub use inventory::Inventory;
#[cfg(all(feature = "keyservice", feature = "kubernetes"))]
pub use keys::Only;
#[cfg(feature = "keyservice")]
pub use keys::{EnableRotation, Keys, KeysInit, KeysRotation, NewKeys};

#[cfg(feature = "node")]
pub use node::{KeyServiceAddress, Node};

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
    /// Run CSI's Controller for the local volumes of a cluster, with keys from a key service.
    #[cfg(all(feature = "controller", feature = "kubernetes"))]
    Controller(Controller),
    /// Run the key service.
    #[cfg(feature = "keyservice")]
    Keyservice(Keyservice),
    /// Make cluster keys; see who holds the KEKs.
    #[cfg(feature = "keyservice")]
    #[command(subcommand)]
    Keys(Keys),
    /// Look at volumes.
    #[cfg(all(feature = "controller", feature = "keyservice"))]
    #[command(subcommand)]
    Volumes(Volumes),
    /// Look at key records; check, copy and restore them.
    #[cfg(feature = "keyservice")]
    #[command(subcommand)]
    Records(Records),
    /// Wrap the keys of volumes again: under a KEK's newest version, or by another provider. Disks are not touched.
    #[cfg(feature = "keyservice")]
    Rewrap(Rewrap),
    /// Compare volumes, key records and headers: what is missing, what is left over, what is under an old key.
    #[cfg(feature = "keyservice")]
    Inventory(Inventory),
    /// Check and show a configuration file.
    #[cfg(feature = "keyservice")]
    #[command(subcommand)]
    Config(Config),
    /// Ask the policies.
    #[cfg(feature = "keyservice")]
    #[command(subcommand)]
    Policy(Policy),
    /// Check the audit log.
    #[cfg(feature = "keyservice")]
    #[command(subcommand)]
    Audit(Audit),
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

/// Flags of `coffer keyservice`.
#[derive(Args, Debug)]
pub struct Keyservice {
    /// The configuration file, YAML.
    #[arg(long, env = "COFFER_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
}

/// Where providers and records are: in a state folder, in what a file says, or records in the one under providers of the
/// other.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = true)]
pub struct Where {
    /// The state folder of `coffer dev`.
    #[arg(long, env = "COFFER_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The configuration file of a key service.
    #[arg(long, env = "COFFER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Flags of `coffer rewrap`.
#[derive(Args, Debug)]
pub struct Rewrap {
    /// Providers and records.
    #[command(flatten)]
    pub place: Where,
    /// Only the records of this provider [default: every one].
    #[arg(long, value_name = "PROVIDER")]
    pub from: Option<String>,
    /// The provider that wraps from now on [default: each record's own].
    #[arg(long, value_name = "PROVIDER")]
    pub to: Option<String>,
    /// Only the record of this volume.
    #[arg(long, value_name = "ID")]
    pub volume: Option<VolumeId>,
    /// Only say what would be done.
    #[arg(long)]
    pub dry_run: bool,
}

/// `coffer config …`
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Check a file: all faults at once, exit status 64 where there are any. Nothing is asked of any network.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Show what a file, the environment and the defaults come to.
    Show {
        /// The file.
        file: PathBuf,
        /// Say where each value comes from.
        #[arg(long)]
        sources: bool,
    },
}

/// `coffer policy …`
#[derive(Debug, Subcommand)]
pub enum Policy {
    /// Say which rule a claim comes under, and what its volume's key would be.
    Explain {
        /// The configuration file.
        #[arg(long, env = "COFFER_CONFIG", value_name = "FILE")]
        config: PathBuf,
        /// The claim's StorageClass.
        #[arg(long, value_name = "NAME")]
        storage_class: Option<String>,
        /// Its namespace.
        #[arg(long, value_name = "NAME")]
        namespace: Option<String>,
        /// Its name.
        #[arg(long, value_name = "NAME")]
        claim: Option<String>,
        /// The provider that its class names.
        #[arg(long, value_name = "PROVIDER")]
        provider: Option<String>,
        /// The KEK that its class names.
        #[arg(long, value_name = "ID")]
        key_id: Option<String>,
    },
}

/// `coffer audit …`
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// Check that no line was changed, cut out, put in or moved.
    Verify {
        /// The log; `-` for standard input.
        file: PathBuf,
        /// Pass over other lines: the log is a part of a container's.
        #[arg(long)]
        mixed: bool,
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
    /// List the records.
    List {
        /// Providers and records.
        #[command(flatten)]
        place: Where,
        /// Tombstones as well.
        #[arg(long)]
        all: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a volume's key record. It holds no plaintext key.
    Show {
        /// The volume id, or the name that the volume was created with.
        volume: String,
        /// Providers and records.
        #[command(flatten)]
        place: Where,
    },
    /// Copy every record, still wrapped, into one file. With `import` this moves records to another store.
    Export {
        /// The file, which must not exist; `-` for standard output.
        file: PathBuf,
        /// Providers and records.
        #[command(flatten)]
        place: Where,
    },
    /// Restore records from an export: what is missing is created, and nothing that is there is ever overwritten.
    Import {
        /// The file; `-` for standard input.
        file: PathBuf,
        /// Providers and records.
        #[command(flatten)]
        place: Where,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
        /// Create records without opening them and checking their MACs first.
        #[arg(long)]
        no_verify: bool,
    },
    /// End well only where no volume has a key any more: before a key service is taken away.
    ExpectNone {
        /// Providers and records.
        #[command(flatten)]
        place: Where,
    },
    /// Unwrap every record's key and check its MAC.
    Verify {
        /// Providers and records.
        #[command(flatten)]
        place: Where,
        /// Print JSON.
        #[arg(long)]
        json: bool,
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
