//! The cluster key file: the KEK of the embedded default, in every version that volumes still need.
//!
//! It is made once, by `coffer keys init`, and never again by itself: a cluster key that is lost is an error to be
//! told, because another one would open nothing.

use std::{collections::BTreeMap, io, path::Path};

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    key::{
        derive::SALT_BYTES,
        keyfile::{self, KeyFileFault},
        record,
    },
    secret::ClusterKey,
};

const FORMAT_VERSION: u32 = 1;

/// One version of the cluster key, and the salt that `constellation-v1` uses with it.
#[derive(Debug)]
pub struct Version {
    /// The key: 32 bytes.
    pub key: ClusterKey,
    /// 32 bytes, not secret.
    pub salt: [u8; SALT_BYTES],
}

/// The cluster key in its versions.
#[derive(Debug)]
pub struct ClusterKeys {
    cluster_id: Uuid,
    current: u32,
    versions: BTreeMap<u32, Version>,
}

/// Why there is no cluster key.
#[derive(Debug, thiserror::Error)]
pub enum ClusterKeyFault {
    /// The file cannot be read or written, or others can read it.
    #[error(transparent)]
    File(#[from] KeyFileFault),
    /// The file exists; it is never overwritten.
    #[error("it exists and is never overwritten: volumes may need it")]
    Exists,
    /// The file is not a cluster key file.
    #[error("it is no cluster key file: it breaks off or is wrong at line {line}, column {column}")]
    Unreadable {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// A version, a key or a salt that cannot be.
    #[error("it is no cluster key file: {0}")]
    Content(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File<'a> {
    format_version: u32,
    cluster_id: Uuid,
    current: u32,
    #[serde(borrow)]
    versions: Vec<FileVersion<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileVersion<'a> {
    version: u32,
    key: &'a str,
    salt: &'a str,
}

impl ClusterKeys {
    /// A new cluster: a random id, and version 1 of a random key.
    #[must_use]
    pub fn generate() -> Self {
        let version = Version { key: ClusterKey::random(), salt: record::random_salt() };
        Self { cluster_id: Uuid::new_v4(), current: 1, versions: BTreeMap::from([(1, version)]) }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, others can read it, or it is not whole.
    pub fn load(path: &Path) -> Result<Self, ClusterKeyFault> {
        Self::parse(&keyfile::read(path)?)
    }

    /// Writes the file, readable by its owner alone, and waits until the disk has it.
    ///
    /// # Errors
    /// The file exists, or cannot be written.
    pub fn save_new(&self, path: &Path) -> Result<(), ClusterKeyFault> {
        keyfile::create(path, &self.to_bytes()).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => ClusterKeyFault::Exists,
            _ => ClusterKeyFault::File(KeyFileFault::Io(error)),
        })
    }

    /// The installation that the key belongs to.
    #[must_use]
    pub fn cluster_id(&self) -> Uuid {
        self.cluster_id
    }

    /// The version that new volumes use.
    #[must_use]
    pub fn current(&self) -> (u32, &Version) {
        (self.current, self.versions.get(&self.current).expect("the current version is one of the versions"))
    }

    /// A version that a record names.
    #[must_use]
    pub fn version(&self, version: u32) -> Option<&Version> {
        self.versions.get(&version)
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ClusterKeyFault> {
        let content = |text: String| ClusterKeyFault::Content(text);
        let file: File<'_> = serde_json::from_slice(bytes).map_err(|error| {
            // Its own words would show what stands there, which may be the key.
            ClusterKeyFault::Unreadable { line: error.line(), column: error.column() }
        })?;
        if file.format_version != FORMAT_VERSION {
            return Err(content(format!("formatVersion {} is not {FORMAT_VERSION}", file.format_version)));
        }
        let mut versions = BTreeMap::new();
        for FileVersion { version, key, salt } in file.versions {
            let key = decode(key).and_then(|bytes| ClusterKey::take(bytes).ok());
            let salt = decode(salt).and_then(|bytes| bytes.as_slice().try_into().ok());
            let (Some(key), Some(salt)) = (key, salt) else {
                return Err(content(format!("key and salt of version {version} are 32 bytes each, in base64")));
            };
            if versions.insert(version, Version { key, salt }).is_some() {
                return Err(content(format!("version {version} is there twice")));
            }
        }
        if !versions.contains_key(&file.current) {
            return Err(content(format!("current version {} is not among the versions", file.current)));
        }
        Ok(Self { cluster_id: file.cluster_id, current: file.current, versions })
    }

    pub(crate) fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let encoded: Vec<_> = self
            .versions
            .iter()
            .map(|(number, version)| (*number, encode(version.key.expose_secret()), encode(&version.salt)))
            .collect();
        let versions = encoded.iter().map(|(version, key, salt)| FileVersion { version: *version, key, salt });
        let file = File {
            format_version: FORMAT_VERSION,
            cluster_id: self.cluster_id,
            current: self.current,
            versions: versions.collect(),
        };
        // Room for everything from the start: a buffer that grows leaves copies of a key behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(1024 + 256 * self.versions.len()));
        serde_json::to_writer_pretty(&mut *bytes, &file).expect("a vector can be written to");
        bytes.push(b'\n');
        bytes
    }
}

fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    base64::Engine::decode(&base64::prelude::BASE64_STANDARD, text).ok().map(Zeroizing::new)
}

fn encode(bytes: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(base64::Engine::encode(&base64::prelude::BASE64_STANDARD, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_file_reads_back_and_is_never_overwritten() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("cluster-key.json");
        let keys = ClusterKeys::generate();
        keys.save_new(&path).expect("a new file");
        let read = ClusterKeys::load(&path).expect("the file reads back");
        assert_eq!(read.cluster_id(), keys.cluster_id());
        assert_eq!(read.current().1.key.expose_secret(), keys.current().1.key.expose_secret());
        assert!(matches!(ClusterKeys::generate().save_new(&path), Err(ClusterKeyFault::Exists)));
    }

    #[test]
    fn a_file_that_the_world_can_read_is_refused() {
        use std::{fs, os::unix::fs::PermissionsExt};
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("cluster-key.json");
        ClusterKeys::generate().save_new(&path).expect("a new file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(matches!(ClusterKeys::load(&path), Err(ClusterKeyFault::File(KeyFileFault::Open { mode: 0o644 }))));
    }

    #[test]
    fn a_key_of_the_wrong_size_is_an_error_and_never_fixed() {
        let (good, short) = (encode(&[1; 32]), encode(&[1; 31]));
        let id = Uuid::nil();
        let file = |key: &str, current: u32| {
            format!(
                r#"{{"formatVersion":1,"clusterId":"{id}","current":{current},"versions":[{{"version":1,"key":"{key}","salt":"{}"}}]}}"#,
                *good
            )
        };
        ClusterKeys::parse(file(&good, 1).as_bytes()).expect("a whole file");
        for broken in [file(&short, 1), file("", 1), file("%%%", 1), file(&good, 2), "{}".to_owned(), String::new()] {
            assert!(ClusterKeys::parse(broken.as_bytes()).is_err(), "{broken}");
        }
    }
}
