//! Keys of our imitation of Cloud KMS: their versions, which of them can be used, and when the next is made.

use std::collections::BTreeMap;

use aws_lc_rs::{
    aead::{AES_256_GCM, LessSafeKey, UnboundKey},
    rand,
};

use super::{Refused, TAG_BYTES};

/// A key with its versions.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) purpose: &'static str,
    pub(super) tag: [u8; TAG_BYTES],
    pub(super) primary: u32,
    pub(super) versions: BTreeMap<u32, Version>,
    pub(super) rotation: Option<Schedule>,
}

/// When the service makes another version, as texts of the API: how often, and when next.
#[derive(Debug)]
pub(super) struct Schedule {
    pub(super) period: String,
    pub(super) next: String,
}

/// One version.
#[derive(Debug)]
pub(super) struct Version {
    key: [u8; 32],
    pub(super) state: &'static str,
}

impl Version {
    pub(super) fn new() -> Self {
        Self { key: random(), state: "ENABLED" }
    }

    pub(super) fn cipher(&self) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &self.key).expect("a key of AES-256 is 32 bytes"))
    }
}

pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

impl Key {
    pub(super) fn new(purpose: &'static str, versions: BTreeMap<u32, Version>) -> Self {
        Self { purpose, tag: random(), primary: 1, versions, rotation: None }
    }

    pub(super) fn usable(&self, name: &str, number: u32) -> Result<&Version, Refused> {
        let refused = |message| Refused(400, "FAILED_PRECONDITION", message);
        if self.purpose != "ENCRYPT_DECRYPT" {
            return Err(refused(format!("{name} has the purpose {}, which does not encrypt.", self.purpose)));
        }
        let version = self.versions.get(&number).ok_or_else(|| refused(format!("{name} has no primary version.")))?;
        if version.state != "ENABLED" {
            let version_name = version_name(name, number);
            return Err(refused(format!("{version_name} is not enabled, current state is: {}.", version.state)));
        }
        Ok(version)
    }
}

pub(super) fn version_name(key_name: &str, number: u32) -> String {
    format!("{key_name}/cryptoKeyVersions/{number}")
}
