//! What a person may write: a configuration file, a command line, an environment.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use coffer::{
    admin::config::as_file,
    config::{
        args::{Coffer, Ended, Verb},
        file::{Environment, FileConfig, ProviderConfig},
    },
};

use crate::fuzz::file;

/// The configuration file of a key service. What is accepted is complete, leads to absolute paths, and means the same
/// when it is shown and read again; each fault names the file.
pub fn configuration(bytes: &[u8]) -> bool {
    let (file, environment) = (file(bytes), Environment::default());
    let config = match FileConfig::load(file.path(), &environment) {
        Ok(config) => config,
        Err(faults) => {
            assert!(faults.to_string().starts_with(&file.path().display().to_string()), "{faults}");
            return false;
        }
    };
    assert!(config.providers.contains_key(&config.default_provider), "the default provider is one of them");
    let cluster_keys = config.providers.values().filter(|one| matches!(one, ProviderConfig::ClusterKey { .. })).count();
    assert!(cluster_keys == 1 || cluster_keys == 0 && config.cluster_id.is_some(), "the installation is known");
    let mut paths = config.values.iter().filter_map(|given| given.file.as_deref());
    assert!(paths.all(Path::is_absolute), "paths begin at the root or at the file's folder");
    // What is shown is YAML as long as every character stands for itself and no key is too long for one line.
    let text = as_file(&config.values);
    let plain = text.bytes().all(|byte| byte == b'\n' || (0x20..0x7f).contains(&byte));
    if plain && text.lines().all(|line| line.len() < 256) {
        let again = FileConfig::parse(&text, file.path(), &environment).expect("what is shown can be read");
        let same = FileConfig { values: Vec::new(), warnings: Vec::new(), ..config };
        let again = FileConfig { values: Vec::new(), warnings: Vec::new(), ..again };
        assert_eq!(again, same, "it means the same when it is written again");
    }
    true
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
                _ => None,
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
