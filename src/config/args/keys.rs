//! The command line of `coffer keys`.

use std::{path::PathBuf, time::Duration};

#[cfg(feature = "kubernetes")]
use clap::ValueEnum;
use clap::{Args, Subcommand};
use jiff::{Span, SpanRelativeTo};

use super::Where;
#[cfg(feature = "kubernetes")]
use crate::kubernetes::volume_key::is_label;

/// `coffer keys …`
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Make a cluster key, once: one that exists is never overwritten.
    Init(KeysInit),
    /// Show each provider: its KEK, whether it can be used, and the records under it.
    Status {
        /// Providers and records.
        #[command(flatten)]
        place: Where,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the KEKs that records name.
    List {
        /// Providers and records.
        #[command(flatten)]
        place: Where,
        /// Only what does not fit: KEKs that no provider has, providers that no record needs.
        #[arg(long)]
        orphans: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// What a KMS does with a KEK by its own timer.
    #[command(subcommand)]
    Rotation(KeysRotation),
}

/// `coffer keys rotation …`
#[derive(Debug, Subcommand)]
pub enum KeysRotation {
    /// Have the KMS rotate a provider's KEK by itself from now on; nothing else in Coffer switches that on.
    Enable(EnableRotation),
}

/// Flags of `coffer keys rotation enable`.
#[derive(Args, Clone, Debug)]
pub struct EnableRotation {
    /// The provider [default: the one of new volumes].
    pub provider: Option<String>,
    /// Providers and records.
    #[command(flatten)]
    pub place: Where,
    /// Another KEK of the provider than the configured one, as its KMS names it.
    #[arg(long, value_name = "KEK")]
    pub key_id: Option<String>,
    /// How often, such as 90d [default: where it is on, as often as now; else 365d].
    #[arg(long, value_name = "DURATION", value_parser = period)]
    pub period: Option<Duration>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Flags of `coffer keys init`.
#[derive(Args, Clone, Debug)]
pub struct KeysInit {
    /// Where the key is made.
    #[command(flatten)]
    pub at: NewKeys,
    /// Name of the installation: the Secrets are called NAME-cluster-key, NAME-authority and NAME-keyservice-tls, and the
    /// ConfigMap NAME-authority.
    #[cfg(feature = "kubernetes")]
    #[arg(long, value_name = "NAME", default_value = "coffer", conflicts_with = "state_dir", value_parser = label)]
    pub name: String,
    /// A name by which the key service is called, and so one that its certificate is for: a Service such as
    /// SERVICE.NAMESPACE.svc, which stands for its shorter and longer forms as well; a host; an address. As many as there
    /// are [default: NAME-keyservice.NAMESPACE.svc].
    #[cfg(feature = "kubernetes")]
    #[arg(long = "service-name", value_name = "HOST", conflicts_with = "state_dir", value_parser = host)]
    pub service_names: Vec<String>,
    /// Make this alone [default: all of it].
    #[cfg(feature = "kubernetes")]
    #[arg(long, value_name = "WHAT", conflicts_with = "state_dir")]
    pub only: Option<Only>,
}

/// Where keys are made: exactly one of these.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct NewKeys {
    /// Folder that gets the key, as cluster-key.json.
    #[arg(long, env = "COFFER_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Namespace that gets the key as a Secret, with the certificates that the key service and its clients need.
    #[cfg(feature = "kubernetes")]
    #[arg(long, value_name = "NAMESPACE", value_parser = label)]
    pub kubernetes: Option<String>,
}

/// A part of what `coffer keys init --kubernetes` makes.
#[cfg(feature = "kubernetes")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Only {
    /// The cluster key: where certificates come from elsewhere.
    ClusterKey,
    /// Authority and certificate: where a KMS holds the KEK.
    Certificates,
}

/// A length of time in days, weeks or hours. A month is of no one length.
fn period(text: &str) -> Result<Duration, String> {
    let length = text.parse::<Span>().and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()));
    let period = length.ok().and_then(|length| Duration::try_from(length).ok()).filter(|period| !period.is_zero());
    period.ok_or_else(|| "expected a length of time such as 90d, 13w or 2160h".to_owned())
}

/// A DNS label (RFC 1123, section 2.1), as names of namespaces are.
#[cfg(feature = "kubernetes")]
fn label(text: &str) -> Result<String, String> {
    if is_label(text) {
        return Ok(text.to_owned());
    }
    Err("expected 1 to 63 of a-z, 0-9 and -, with neither end a -".to_owned())
}

/// The name of a host, or an address.
#[cfg(feature = "kubernetes")]
fn host(text: &str) -> Result<String, String> {
    let is_name = text.len() <= 253 && text.split('.').all(is_label);
    if is_name || text.parse::<std::net::IpAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    Err("expected a host such as coffer-keyservice.coffer-system.svc, or an address".to_owned())
}

#[cfg(all(test, feature = "kubernetes"))]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Words {
        #[command(subcommand)]
        verb: Keys,
    }

    fn init(words: &[&str]) -> Result<KeysInit, String> {
        match Words::try_parse_from(["coffer", "init"].iter().chain(words)) {
            Ok(Words { verb: Keys::Init(init) }) => Ok(init),
            Ok(other) => Err(format!("{other:?}")),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_key_is_made_in_one_place_exactly() {
        assert!(init(&["--state-dir", "d"]).is_ok());
        let made = init(&["--kubernetes", "coffer-system", "--service-name", "a.b.svc", "--service-name", "10.0.0.1"]);
        let made = made.expect("it is well");
        assert_eq!((made.name.as_str(), made.service_names.len(), made.only), ("coffer", 2, None));
        let refused = |words: &[&str], why: &str| {
            let told = init(words).expect_err("it is refused");
            assert!(told.contains(why), "{words:?}: {told}");
        };
        refused(&[], "--kubernetes");
        refused(&["--state-dir", "d", "--kubernetes", "n"], "cannot be used with");
        refused(&["--state-dir", "d", "--name", "other"], "cannot be used with");
        refused(&["--state-dir", "d", "--service-name", "a"], "cannot be used with");
        refused(&["--kubernetes", "Coffer"], "1 to 63 of a-z");
        refused(&["--kubernetes", "n", "--service-name", "a_b"], "expected a host");
        refused(&["--kubernetes", "n", "--only", "keys"], "cluster-key");
    }

    #[test]
    fn a_period_is_a_length_of_time_and_has_a_unit() {
        let days = |count: u64| Ok(Duration::from_secs(count * 24 * 3600));
        for (text, count) in [("90d", 90), ("13w", 91), ("2160h", 90), ("P90D", 90), ("90 days", 90), ("1d 24h", 2)] {
            assert_eq!(period(text), days(count), "{text}");
        }
        for text in ["", "90", "0d", "-90d", "3mo", "1y", "often"] {
            assert!(period(text).is_err(), "{text}");
        }
    }
}
