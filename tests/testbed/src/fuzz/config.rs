//! What a person may write: a configuration file, a command line, an environment.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use coffer::config::{
    args::{Coffer, Ended, Verb},
    file::{FileConfig, ProviderConfig},
};
use serde_json::{Map, Value, json};

use crate::fuzz::file;

/// The configuration file of a key service. What is accepted is complete, leads to absolute paths, and means the same
/// when it is written in another way; each fault names the file.
pub fn configuration(bytes: &[u8]) -> bool {
    let file = file(bytes);
    let config = match FileConfig::load(file.path()) {
        Ok(config) => config,
        Err(faults) => {
            assert!(faults.to_string().starts_with(&file.path().display().to_string()), "{faults}");
            return false;
        }
    };
    assert!(config.providers.contains_key(&config.default_provider), "the default provider is one of them");
    let cluster_keys = config.providers.values().filter(|one| matches!(one, ProviderConfig::ClusterKey { .. })).count();
    assert!(cluster_keys == 1 || cluster_keys == 0 && config.cluster_id.is_some(), "the installation is known");
    assert!(paths(&config).all(Path::is_absolute), "paths begin at the root or at the file's folder");
    // JSON is YAML, as long as every character stands for itself and no key is too long for one line.
    let text = format!("{:#}", written(&config));
    let plain = text.bytes().all(|byte| byte == b'\n' || (0x20..0x7f).contains(&byte));
    if plain && config.providers.keys().all(|name| name.len() < 256) {
        let again = crate::fuzz::file(text.as_bytes());
        assert_eq!(FileConfig::load(again.path()), Ok(config), "it means the same when it is written again");
    }
    true
}

fn paths(config: &FileConfig) -> impl Iterator<Item = &Path> {
    let providers = config.providers.values().map(|provider| match provider {
        ProviderConfig::ClusterKey { file } => file,
        ProviderConfig::Local { key_file, .. } => key_file,
    });
    let tls = config.tls.iter().map(|tls| &tls.files);
    providers
        .chain(config.unix.iter().map(|unix| &unix.path))
        .chain(tls.flat_map(|files| [&files.certificate, &files.private_key, &files.authority]))
        .chain(&config.store)
        .chain(&config.audit_log)
        .map(PathBuf::as_path)
}

/// A configuration as a file that means it.
fn written(config: &FileConfig) -> Value {
    let provider = |provider: &ProviderConfig| match provider {
        ProviderConfig::ClusterKey { file } => json!({"type": "cluster-key", "file": file}),
        ProviderConfig::Local { key_file, salt } => {
            json!({"type": "local", "keyFile": key_file, "salt": salt, "insecureLocalKey": true})
        }
    };
    let providers: Map<String, Value> =
        config.providers.iter().map(|(name, one)| (name.clone(), provider(one))).collect();
    let unix = config.unix.as_ref().map(|unix| json!({"path": unix.path, "allowedUids": unix.allowed_uids}));
    let tls = config.tls.as_ref().map(|tls| {
        json!({
            "address": tls.address,
            "certificate": tls.files.certificate,
            "privateKey": tls.files.private_key,
            "clientAuthority": tls.files.authority,
        })
    });
    json!({
        "listen": {"unix": unix, "tls": tls},
        "providers": providers,
        "defaultProvider": config.default_provider,
        "clusterId": config.cluster_id.map(|id| id.to_string()),
        "store": config.store.as_ref().map(|path| json!({"type": "filesystem", "path": path})),
        "auditLog": config.audit_log,
    })
}

/// A command line, a word in each line, and behind an empty line the names in an environment. What is accepted has
/// absolute sockets; what is refused is refused in words.
pub fn arguments(bytes: &[u8]) -> bool {
    let mut lines = bytes.split(|byte| *byte == b'\n').map(|line| OsStr::from_bytes(line).to_owned());
    let mut words = vec![OsString::from("coffer")];
    words.extend(lines.by_ref().take_while(|line| !line.is_empty()));
    match Coffer::read(words, lines) {
        Ok(coffer) => {
            let listen = match &coffer.verb {
                Verb::Dev(dev) => dev.listen.as_ref(),
                Verb::Node(node) => Some(&node.listen),
                Verb::Keyservice(_) | Verb::Keys(_) | Verb::Volumes(_) | Verb::Records(_) => None,
            };
            assert!(listen.is_none_or(|path| path.is_absolute()), "a socket's path is absolute");
            true
        }
        Err(Ended::Told(text)) => {
            assert!(!text.is_empty(), "help and version are told");
            true
        }
        Err(Ended::Faults(faults)) => {
            assert!(!faults.to_string().is_empty(), "a refusal has a reason");
            false
        }
    }
}
