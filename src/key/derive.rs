//! Every key derivation of the program (HKDF-SHA256, RFC 5869) and both MACs.
//!
//! | key | equation |
//! |---|---|
//! | DEK, `coffer-v1` | HKDF(IKM = cluster key, salt = the record's 32 random bytes, info = fields(`coffer/v1/volume-dek`, binding)) |
//! | DEK, `constellation-v1` | HKDF(IKM = cluster key, salt = the cluster's, info = `key-` ‖ LUKS UUID in lower case) |
//! | header MAC key | HKDF(IKM = DEK, no salt, info = fields(`coffer/v1/header-mac`)) |
//! | record MAC key | HKDF(IKM = DEK, no salt, info = fields(`coffer/v1/record-mac`)) |

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::{
    key::binding::{Binding, Fields},
    secret::{ClusterKey, Dek, MacKey},
};

const VOLUME_DEK_LABEL: &str = "coffer/v1/volume-dek";
const HEADER_MAC_LABEL: &str = "coffer/v1/header-mac";
const RECORD_MAC_LABEL: &str = "coffer/v1/record-mac";

/// More bytes of stack than a derivation takes.
const STACK_BYTES: usize = 16 * 1024;

/// Bytes in a salt.
pub const SALT_BYTES: usize = 32;

/// An HMAC-SHA256 tag, compared in constant time.
#[derive(Clone, Copy, Debug, Eq)]
pub struct Tag([u8; 32]);

impl Tag {
    /// A tag that was stored.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for Tag {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// Derives the DEK of a volume of ours. Without the record's salt it cannot be made again.
#[must_use]
pub fn volume_dek(cluster_key: &ClusterKey, salt: &[u8; SALT_BYTES], binding: &Binding<'_>) -> Dek {
    let info = binding.fields(VOLUME_DEK_LABEL).bytes();
    Dek::born(|dek| expand(cluster_key.expose_secret(), Some(salt), &info, dek))
}

/// Derives the DEK of a volume that Constellation made.
#[must_use]
pub fn constellation_dek(cluster_key: &ClusterKey, cluster_salt: &[u8; SALT_BYTES], luks_uuid: Uuid) -> Dek {
    let info = format!("key-{luks_uuid}");
    Dek::born(|dek| expand(cluster_key.expose_secret(), Some(cluster_salt), info.as_bytes(), dek))
}

/// Derives the key that authenticates a volume's LUKS header.
#[must_use]
pub fn header_mac_key(dek: &Dek) -> MacKey {
    MacKey::born(|key| expand(dek.expose_secret(), None, &Fields::new(HEADER_MAC_LABEL).bytes(), key))
}

/// Derives the key that authenticates a volume's record.
#[must_use]
pub fn record_mac_key(dek: &Dek) -> MacKey {
    MacKey::born(|key| expand(dek.expose_secret(), None, &Fields::new(RECORD_MAC_LABEL).bytes(), key))
}

/// HMAC-SHA256 (RFC 2104) of a message.
#[must_use]
pub fn mac(key: &MacKey, message: &[u8]) -> Tag {
    let mut hmac = Hmac::<Sha256>::new_from_slice(key.expose_secret()).expect("HMAC takes a key of any length");
    hmac.update(message);
    Tag(hmac.finalize().into_bytes().into())
}

fn expand(ikm: &[u8], salt: Option<&[u8]>, info: &[u8], okm: &mut [u8; 32]) {
    #[inline(never)]
    fn expand(ikm: &[u8], salt: Option<&[u8]>, info: &[u8], okm: &mut [u8; 32]) {
        Hkdf::<Sha256>::new(salt, ikm).expand(info, okm).expect("HKDF-SHA256 gives up to 8160 bytes");
    }
    expand(ikm, salt, info, okm);
    // HKDF leaves copies of both keys where its own stack was.
    zeroize::zeroize_stack::<STACK_BYTES>();
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::volume::{VolumeId, hex};

    #[derive(serde::Deserialize)]
    struct Vectors {
        vectors: Vec<Vector>,
    }

    #[derive(serde::Deserialize)]
    struct Vector {
        name: String,
        ikm: String,
        salt: String,
        info_utf8: String,
        length: usize,
        okm: String,
    }

    fn bytes(hex: &str) -> [u8; 32] {
        let byte = |i: usize| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hexadecimal");
        std::array::from_fn(byte)
    }

    #[test]
    fn the_vectors_of_constellation_hold() {
        let text = include_str!("../../tests/vectors/hkdf-constellation-v1.json");
        let vectors: Vectors = serde_json::from_str(text).expect("the vectors are JSON");
        assert_eq!(vectors.vectors.len(), 4);
        for vector in vectors.vectors {
            let cluster_key = ClusterKey::born(|key| *key = bytes(&vector.ikm));
            let mut okm = [0; 32];
            expand(cluster_key.expose_secret(), Some(&bytes(&vector.salt)), vector.info_utf8.as_bytes(), &mut okm);
            assert_eq!((hex(&okm), vector.length), (vector.okm.clone(), 32), "{}", vector.name);
            if let Ok(uuid) = vector.info_utf8.trim_start_matches("key-").parse() {
                let dek = constellation_dek(&cluster_key, &bytes(&vector.salt), uuid);
                assert_eq!(hex(dek.expose_secret()), vector.okm, "{}", vector.name);
            }
        }
    }

    fn dek(cluster_key: u8, salt: u8, volume_id: &str, generation: u32, luks_uuid: u128) -> String {
        let volume_id: VolumeId = volume_id.parse().expect("an id");
        let binding = Binding {
            cluster_id: Uuid::from_u128(9),
            volume_id: &volume_id,
            generation,
            luks_uuid: Uuid::from_u128(luks_uuid),
            context: &BTreeMap::new(),
        };
        hex(volume_dek(&ClusterKey::born(|key| key.fill(cluster_key)), &[salt; 32], &binding).expose_secret())
    }

    #[test]
    fn the_derivation_coffer_v1_never_changes() {
        assert_eq!(dek(1, 2, "vol-1", 1, 7), include_str!("../../tests/vectors/coffer-v1.hex").trim());
    }

    #[test]
    fn every_part_of_the_binding_changes_the_key() {
        let one = dek(1, 2, "vol-1", 1, 7);
        for other in [
            dek(2, 2, "vol-1", 1, 7),
            dek(1, 3, "vol-1", 1, 7),
            dek(1, 2, "vol-2", 1, 7),
            dek(1, 2, "vol-1", 2, 7),
            dek(1, 2, "vol-1", 1, 8),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn the_two_mac_keys_differ_from_each_other_and_from_the_dek() {
        let dek = Dek::born(|key| key.fill(5));
        let (header, record) = (header_mac_key(&dek), record_mac_key(&dek));
        assert_ne!(header.expose_secret(), record.expose_secret());
        assert_ne!(header.expose_secret(), dek.expose_secret());
        assert_ne!(mac(&header, b"x"), mac(&record, b"x"));
        assert_eq!(mac(&header, b"x"), mac(&header, b"x"));
    }
}
