//! Keys of our imitation of a vault: real RSA-OAEP with SHA-256 (RFC 8017) and real AES Key Wrap (RFC 3394).

use anyhow::{Result, anyhow, bail};
use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    key_wrap::{AES_256, AesKek, KeyWrap},
    rand,
    rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use x509_parser::{prelude::FromDer, public_key::PublicKey, x509::SubjectPublicKeyInfo};

/// The algorithm of an RSA key.
pub(super) const RSA_OAEP_256: &str = "RSA-OAEP-256";
/// The algorithm of an AES key of 256 bits.
pub(super) const A256KW: &str = "A256KW";

/// What a key is made of.
#[derive(Debug)]
pub(super) enum Material {
    Rsa(PrivateDecryptingKey),
    Aes([u8; 32]),
}

impl Material {
    pub(super) fn rsa() -> Result<Self> {
        let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).map_err(|_| anyhow!("no RSA key"))?;
        Ok(Self::Rsa(key))
    }

    pub(super) fn aes() -> Result<Self> {
        let mut key = [0; 32];
        rand::fill(&mut key).map_err(|_| anyhow!("no random bytes"))?;
        Ok(Self::Aes(key))
    }

    /// The algorithm that it has.
    pub(super) fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => RSA_OAEP_256,
            Self::Aes(_) => A256KW,
        }
    }

    pub(super) fn wrap(&self, plain: &[u8]) -> Result<Vec<u8>> {
        let refused = |_| anyhow!("it cannot be wrapped");
        match self {
            Self::Rsa(key) => {
                let key = OaepPublicEncryptingKey::new(key.public_key()).map_err(refused)?;
                let mut wrapped = vec![0; key.ciphertext_size()];
                Ok(key.encrypt(&OAEP_SHA256_MGF1SHA256, plain, &mut wrapped, None).map_err(refused)?.to_vec())
            }
            Self::Aes(key) => {
                let mut wrapped = vec![0; plain.len() + 8];
                let kek = AesKek::new(&AES_256, key).map_err(refused)?;
                Ok(kek.wrap(plain, &mut wrapped).map_err(refused)?.to_vec())
            }
        }
    }

    pub(super) fn unwrap(&self, wrapped: &[u8]) -> Result<Vec<u8>> {
        let refused = |_| anyhow!("it cannot be unwrapped");
        match self {
            Self::Rsa(key) => {
                let key = OaepPrivateDecryptingKey::new(key.clone()).map_err(refused)?;
                let mut plain = vec![0; key.min_output_size()];
                Ok(key.decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut plain, None).map_err(refused)?.to_vec())
            }
            Self::Aes(key) => {
                // A multiple of 8 bytes, of which the first 8 are the check value, and at least two blocks more.
                if wrapped.len() < 24 || !wrapped.len().is_multiple_of(8) {
                    bail!("it cannot be unwrapped");
                }
                let mut plain = vec![0; wrapped.len() - 8];
                let kek = AesKek::new(&AES_256, key).map_err(refused)?;
                Ok(kek.unwrap(wrapped, &mut plain).map_err(refused)?.to_vec())
            }
        }
    }

    /// What everybody who may read the key sees of it (RFC 7517): modulus and exponent, or nothing.
    pub(super) fn public(&self) -> Result<Value> {
        let Self::Rsa(key) = self else { return Ok(json!({})) };
        let der: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| anyhow!("no public key"))?;
        let (_, info) = SubjectPublicKeyInfo::from_der(der.as_ref()).map_err(|_| anyhow!("no public key"))?;
        match info.parsed()? {
            PublicKey::RSA(key) => {
                let number = |bytes: &[u8]| encode(bytes.strip_prefix(&[0]).unwrap_or(bytes));
                Ok(json!({ "n": number(key.modulus), "e": number(key.exponent) }))
            }
            _ => bail!("no RSA key"),
        }
    }
}

/// base64url without padding, as all bytes travel (RFC 7515).
pub(super) fn encode(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// Bytes that came so.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(text).ok()
}

/// 32 hexadecimal digits, as versions and tokens have.
pub(super) fn random_id() -> String {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).expect("there are random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3394, section 4.6: 256 bits of key data with a KEK of 256 bits.
    #[test]
    fn aes_key_wrap_is_that_of_the_rfc() {
        let kek: Vec<u8> = (0..32).collect();
        let plain: Vec<u8> = [(0..16).map(|n| n * 0x11).collect::<Vec<u8>>(), (0..16).collect()].concat();
        let material = Material::Aes(kek.try_into().expect("32 bytes"));
        let wrapped = material.wrap(&plain).expect("it wraps");
        let expected = "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21";
        assert_eq!(wrapped.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), expected);
        assert_eq!(material.unwrap(&wrapped).expect("it unwraps"), plain);
        assert!(material.unwrap(&wrapped[..32]).is_err());
    }
}
