//! A DEK on its way: encrypted by the key service to a key pair that the asking node makes for this one request (HPKE,
//! RFC 9180: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM; base mode, single shot).
//!
//! TLS says who the other side is and keeps the wire private. It does not wipe what it has sent and received: HTTP/2 and
//! TLS keep the last bytes of a connection in buffers of their own as long as it lasts. What they keep is this
//! ciphertext, whose private key is gone when the reply has been read.
//!
//! `sealed = HPKE.Seal(public key of the request, info = "coffer/v1/get-key", aad = volume id, DEK)`

use std::fmt;

use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256,
    hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey, HpkeSealer},
};
use zeroize::Zeroizing;

use crate::{secret::Dek, volume::VolumeId};

/// Bytes of a request's public key.
pub const PUBLIC_KEY_BYTES: usize = 32;

const SUITE: &dyn Hpke = DH_KEM_X25519_HKDF_SHA256_AES_256;
const INFO: &[u8] = b"coffer/v1/get-key";

/// Why a DEK was not encrypted, or does not open.
#[derive(Debug, thiserror::Error)]
pub enum HpkeFault {
    /// What stands for a public key is none: 32 bytes of X25519.
    #[error("public_key is not a public key of X25519 (32 bytes)")]
    PublicKey(#[source] rustls::Error),
    /// No key pair could be made.
    #[error("make a key pair")]
    KeyPair(#[source] rustls::Error),
    /// A DEK could not be encrypted.
    #[error("encrypt the key")]
    Seal(#[source] rustls::Error),
    /// The reply was not made for this request and this volume.
    #[error("the key in the reply does not open: it was made for another request")]
    Reply,
}

/// A DEK as the wire carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedDek {
    /// HPKE's `enc`: 32 bytes.
    pub encapsulated_key: Vec<u8>,
    /// The DEK encrypted: 48 bytes.
    pub ciphertext: Vec<u8>,
}

/// The key pair of one request.
pub struct ReplyKey {
    public_key: HpkePublicKey,
    private_key: HpkePrivateKey,
}

impl fmt::Debug for ReplyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplyKey(redacted)")
    }
}

impl ReplyKey {
    /// A new key pair.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn new() -> Result<Self, HpkeFault> {
        let (public_key, private_key) = SUITE.generate_key_pair().map_err(HpkeFault::KeyPair)?;
        Ok(Self { public_key, private_key })
    }

    /// What the request carries: 32 bytes.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        &self.public_key.0
    }

    /// Opens the reply's DEK. The key pair is of no use afterwards.
    ///
    /// # Errors
    /// The reply was made for another request or another volume.
    pub fn open(self, volume_id: &VolumeId, sealed: SealedDek) -> Result<Dek, HpkeFault> {
        let enc = EncapsulatedSecret(sealed.encapsulated_key);
        let aad = volume_id.as_str().as_bytes();
        let dek = SUITE.open(&enc, INFO, aad, &sealed.ciphertext, &self.private_key).map_err(|_| HpkeFault::Reply)?;
        Dek::take(Zeroizing::new(dek)).map_err(|_| HpkeFault::Reply)
    }
}

/// The service's side of a request: made while the key is on its way, because it takes its time and needs no key.
pub struct Sealer {
    encapsulated_key: EncapsulatedSecret,
    inner: Box<dyn HpkeSealer>,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(redacted)")
    }
}

impl Sealer {
    /// For the key pair of a request.
    ///
    /// # Errors
    /// The request's public key is none.
    pub fn new(public_key: Vec<u8>) -> Result<Self, HpkeFault> {
        let made = SUITE.setup_sealer(INFO, &HpkePublicKey(public_key));
        let (encapsulated_key, inner) = made.map_err(HpkeFault::PublicKey)?;
        Ok(Self { encapsulated_key, inner })
    }

    /// Encrypts a DEK to it.
    ///
    /// # Errors
    /// The cryptography of this program fails.
    pub fn seal(mut self, dek: &Dek, volume_id: &VolumeId) -> Result<SealedDek, HpkeFault> {
        let ciphertext = self.inner.seal(volume_id.as_str().as_bytes(), dek.expose_secret());
        Ok(SealedDek { encapsulated_key: self.encapsulated_key.0, ciphertext: ciphertext.map_err(HpkeFault::Seal)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> VolumeId {
        text.parse().expect("an id")
    }

    fn seal(dek: &Dek, volume_id: &VolumeId, public_key: Vec<u8>) -> Result<SealedDek, HpkeFault> {
        Sealer::new(public_key)?.seal(dek, volume_id)
    }

    #[test]
    fn a_dek_opens_for_its_own_request_and_volume_alone() {
        let (dek, volume) = (Dek::random(), id("vol-1"));
        let key = || ReplyKey::new().expect("there is randomness");
        let (own, other, elsewhere) = (key(), key(), key());
        let sealed = |key: &ReplyKey| seal(&dek, &volume, key.public_key().to_vec()).expect("a public key");
        let (for_own, for_elsewhere) = (sealed(&own), sealed(&elsewhere));
        assert!(!for_own.ciphertext.windows(8).any(|part| part == &dek.expose_secret()[..8]));
        assert!(matches!(other.open(&volume, for_own.clone()), Err(HpkeFault::Reply)));
        assert!(matches!(elsewhere.open(&id("vol-2"), for_elsewhere), Err(HpkeFault::Reply)));
        assert_eq!(own.open(&volume, for_own).expect("its own").expose_secret(), dek.expose_secret());
    }

    #[test]
    fn what_was_sealed_by_another_implementation_opens() {
        let text = include_str!("../../tests/vectors/wire-hpke.json");
        let golden: serde_json::Value = serde_json::from_str(text).expect("the vector is JSON");
        let text = |field: &str| golden[field].as_str().expect("a text").to_owned();
        let bytes = |field: &str| -> Vec<u8> {
            let hex = text(field);
            let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits");
            (0..hex.len()).step_by(2).map(byte).collect()
        };
        assert_eq!(text("info_utf8").as_bytes(), INFO);
        let volume = id(&text("volume_id"));
        let key = || ReplyKey {
            public_key: HpkePublicKey(bytes("public_key")),
            private_key: HpkePrivateKey::from(bytes("private_key")),
        };
        let sealed = SealedDek { encapsulated_key: bytes("encapsulated_key"), ciphertext: bytes("sealed_dek") };
        let opened = key().open(&volume, sealed).expect("it was made for this key pair and volume");
        assert_eq!(opened.expose_secret().as_slice(), bytes("dek"));
        let again = seal(&opened, &volume, key().public_key().to_vec()).expect("a public key");
        assert_eq!(key().open(&volume, again).expect("ours").expose_secret(), opened.expose_secret());
    }

    #[test]
    fn what_is_no_public_key_is_refused() {
        for bytes in [vec![], vec![1; 31], vec![1; 33], vec![0; 32]] {
            let sealed = seal(&Dek::random(), &id("vol-1"), bytes);
            assert!(matches!(sealed, Err(HpkeFault::PublicKey(_))));
        }
    }
}
