//! Providers and audit log of a configuration, put together.

use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use coffer::{
    config::{
        Faults,
        file::{FileConfig, ProviderConfig},
    },
    key::{
        cluster::ClusterKeys,
        kms::local::Local as LocalKms,
        providers::{Provider, Providers},
    },
    keyservice::audit::Audit,
};
use uuid::Uuid;

/// The providers of a file, each with its key read and checked.
pub(super) fn providers(config: &FileConfig) -> Result<(Uuid, Providers), Faults> {
    let mut faults = Faults::default();
    let mut cluster_id = config.cluster_id;
    let mut by_name = std::collections::BTreeMap::new();
    for (name, provider) in &config.providers {
        let mut fault = |file: &PathBuf, what: &dyn std::fmt::Display| {
            faults.add(format!("provider {name}: {}: {what}", file.display()));
        };
        let provider = match provider {
            ProviderConfig::ClusterKey { file } => match ClusterKeys::load(file) {
                Ok(keys) => {
                    if cluster_id.is_some_and(|configured| configured != keys.cluster_id()) {
                        fault(file, &format!("it is of cluster {}, and clusterId is another", keys.cluster_id()));
                    }
                    cluster_id = Some(keys.cluster_id());
                    Provider::Cluster(keys)
                }
                Err(error) => {
                    fault(file, &error);
                    continue;
                }
            },
            ProviderConfig::Local { key_file, salt } => match LocalKms::load(key_file, salt.as_deref()) {
                Ok(local) => {
                    tracing::warn!(
                        provider = name,
                        "insecureLocalKey: whoever reads the key file reads every volume of this provider"
                    );
                    Provider::Kms(Arc::new(local))
                }
                Err(error) => {
                    fault(key_file, &error);
                    continue;
                }
            },
        };
        by_name.insert(name.clone(), provider);
    }
    let Some(cluster_id) = cluster_id else { return Err(faults) };
    faults.or((cluster_id, Providers { by_name, default: config.default_provider.clone() }))
}

/// The audit log: a file that is only appended to, or standard output.
pub(super) fn audit(path: Option<&Path>) -> Result<Audit> {
    let Some(path) = path else { return Ok(Audit::to(std::io::stdout())) };
    let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    Ok(Audit::to(opened.with_context(|| format!("open audit log {}", path.display()))?))
}
