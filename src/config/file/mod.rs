//! The configuration file of a key service: providers, the store, policies, listeners, the audit log. YAML.
//!
//! ```yaml
//! listen:
//!   unix: { path: /run/coffer/keyservice.sock, allowedUids: [0] }
//!   tls: { address: "127.0.0.1:7443", certificate: tls.crt, privateKey: tls.key, clientAuthority: ca.crt }
//!   http: "127.0.0.1:9811"                          # health and metrics
//! kubernetes: { nodeAccounts: [coffer-system/coffer-node] }   # callers show tokens of their ServiceAccounts
//! providers:
//!   main: { type: aws-kms, region: eu-central-1, keyId: alias/coffer }
//!   lab: { type: local, keyFile: local.key, insecureLocalKey: true }
//! defaultProvider: main
//! clusterId: 6f9c9f0e-5a5c-4f0e-9f44-0c7d3f5b7a11   # where no provider is a cluster key, which brings its own
//! store: { type: s3, bucket: coffer-keys, region: eu-central-1 }
//! policies:
//!   - { name: lab, match: { namespace: "lab-*" }, provider: lab }
//! auditLog: /var/log/coffer/audit.log               # beside standard output
//! ```
//! Paths that are not absolute begin at the folder of the file. A key that the file leaves out comes from the
//! environment, where the default provider has a variable for it, and else from the default. Secrets are never in the
//! file: it names the files that hold them.
//!
//! Each reader asks its section for its keys one by one. All that is wrong is told at once; where each value comes
//! from is kept ([`Given`]); and the readers, run over empty sections, are the [`reference()`] that
//! `docs/configuration.md` is checked against.

mod ask;
mod aws;
mod azure;
mod family;
mod google;
mod kubernetes;
mod listen;
mod policy;
mod provider;
mod reading;
mod reference;
mod section;
mod source;
mod store;
mod value;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde_json::Value;
use uuid::Uuid;

use crate::{
    config::Faults,
    key::{policy::Rule, store::Settings},
    keyservice::bearer,
};

pub use listen::{TlsConfig, UnixConfig};
pub use provider::{KmsConfig, ProviderConfig};
pub use reading::Asked;
pub use reference::reference;
pub use source::{Environment, Given, Source};

use listen::{Listen, Proof};
use provider::Providers;
use reading::Reading;
use section::Section;

/// The file's content, completed by the environment and the defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileConfig {
    /// A unix socket, where there is to be one.
    pub unix: Option<UnixConfig>,
    /// A TLS listener, where there is to be one.
    pub tls: Option<TlsConfig>,
    /// Where health and metrics are served.
    pub http: Option<SocketAddr>,
    /// How callers of a Kubernetes cluster are known, where there is one; then there is a TLS listener.
    pub kubernetes: Option<bearer::Settings>,
    /// Providers by name; at least one.
    pub providers: BTreeMap<String, ProviderConfig>,
    /// The provider of new volumes: one of them.
    pub default_provider: String,
    /// The installation, where no provider brings it.
    pub cluster_id: Option<Uuid>,
    /// Where records lie.
    pub store: Option<Settings>,
    /// The audit log.
    pub audit_log: Option<PathBuf>,
    /// The policies, in their order.
    pub policies: Vec<Rule>,
    /// What is no fault and somebody should know.
    pub warnings: Vec<String>,
    /// Every value, in the order of reading, with where it comes from.
    pub values: Vec<Given>,
}

impl FileConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with its key and what was expected.
    pub fn load(path: &Path, environment: &Environment) -> Result<Self, Faults> {
        let text = fs::read_to_string(path).map_err(|error| Faults::one(format!("{}: {error}", path.display())))?;
        Self::parse(&text, path, environment)
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// As [`FileConfig::load`].
    pub fn parse(text: &str, path: &Path, environment: &Environment) -> Result<Self, Faults> {
        // In YAML 1.1 `off` is a boolean; here it is a word.
        let options = serde_saphyr::options! { strict_booleans: true };
        let value: Value = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| Faults::one(format!("{}: it is not YAML: {error}", path.display())))?;
        let Value::Object(map) = value else {
            return Err(Faults::one(format!("{}: expected keys and values", path.display())));
        };
        let mut reading = Reading::of(path, environment);
        let config = read_top(Section::top("The file", map), &mut reading);
        let (warnings, values) = reading.finish()?;
        Ok(Self { warnings, values, ..config })
    }
}

fn read_top(mut top: Section, reading: &mut Reading<'_>) -> FileConfig {
    let proof = if top.has("kubernetes") { Proof::Token } else { Proof::Certificate };
    let Listen { unix, tls, http } = listen::read(&mut top, proof, reading);
    let kubernetes = kubernetes::read(&mut top, reading);
    // Before the providers: the name of an AWS session holds it.
    let id_is_given = top.has("clusterId");
    reading.cluster_id = top.ask("clusterId", "a UUID").optional(reading, value::parsed);
    let providers = Providers::read(&mut top, reading);
    let cluster_id = reading.cluster_id;
    let kinds = providers.by_name.values();
    match (kinds.filter(|one| matches!(one, ProviderConfig::ClusterKey { .. })).count(), cluster_id) {
        (0, None) if !providers.by_name.is_empty() && !id_is_given => {
            let what = "is missing, and no provider is a cluster key, which would bring it";
            top.fault("clusterId", what, reading);
        }
        (2.., _) => top.fault("providers", "at most one can be of type cluster-key", reading),
        _ => {}
    }
    let store = store::read(&mut top, reading);
    let audit_log = top.ask("auditLog", "a path").optional_path(reading);
    let policies = policy::read(&mut top, &providers, reading);
    top.finish(reading);
    let Providers { by_name, default, .. } = providers;
    FileConfig {
        unix,
        tls,
        http,
        kubernetes,
        providers: by_name,
        default_provider: default,
        cluster_id,
        store,
        audit_log,
        policies,
        warnings: Vec::new(),
        values: Vec::new(),
    }
}
