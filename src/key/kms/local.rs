//! The provider `local`: a KEK in a file, for development and machines without a network. Whoever reads the file
//! reads every volume, which is why it has to be asked for by `insecureLocalKey: true`.
//!
//! Wrapped bytes: nonce (12) ‖ AES-256-GCM(KEK, nonce, inner key, AAD) (48).

use std::path::Path;

use async_trait::async_trait;
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::{
    exec::Deadline,
    key::{
        binding::{Binding, Fields},
        envelope::{self, NONCE_BYTES},
        keyfile::{self, KeyFileFault},
        kms::{Kek, Kms, KmsFailure, Wrapped},
        record::KekMechanism,
    },
    secret::{InnerKey, KEY_BYTES, LocalKek},
    volume::hex,
};

const KEK_LABEL: &str = "coffer/v1/local-kek";
const KEK_ID_LABEL: &str = "coffer/v1/local-kek-id";

/// Why there is no local KEK.
#[derive(Debug, thiserror::Error)]
pub enum LocalKeyFault {
    /// The file cannot be read, or others can read it.
    #[error(transparent)]
    File(#[from] KeyFileFault),
    /// The file does not hold base64.
    #[error("it does not hold base64")]
    NotBase64,
    /// The key has another size. It is never padded or cut.
    #[error("it holds {0} bytes; a key is exactly {KEY_BYTES} bytes, in base64 (`head -c 32 /dev/urandom | base64`)")]
    Size(usize),
}

/// A KEK from a file.
#[derive(Debug)]
pub struct Local {
    kek: LocalKek,
    kek_id: String,
}

impl Local {
    /// Reads the KEK: 32 bytes in base64, white space around it allowed. With a salt, the KEK is
    /// HKDF-SHA256(IKM = those bytes, salt, info = fields(`coffer/v1/local-kek`)).
    ///
    /// # Errors
    /// The file cannot be read, or does not hold a key of exactly 32 bytes.
    pub fn load(path: &Path, salt: Option<&str>) -> Result<Self, LocalKeyFault> {
        let text = keyfile::read(path)?;
        let decoded = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, text.trim_ascii());
        let bytes = Zeroizing::new(decoded.map_err(|_| LocalKeyFault::NotBase64)?);
        let size = bytes.len();
        let kek = LocalKek::take(bytes).map_err(|_| LocalKeyFault::Size(size))?;
        Ok(Self::new(match salt {
            None => kek,
            Some(salt) => LocalKek::born(|okm| {
                Hkdf::<Sha256>::new(Some(salt.as_bytes()), kek.expose_secret())
                    .expand(&Fields::new(KEK_LABEL).bytes(), okm)
                    .expect("HKDF-SHA256 gives up to 8160 bytes");
            }),
        }))
    }

    /// A provider around a KEK. Its id is 8 bytes derived from it, which name it and tell nothing of it.
    #[must_use]
    pub fn new(kek: LocalKek) -> Self {
        let mut id = [0; 8];
        Hkdf::<Sha256>::new(None, kek.expose_secret())
            .expand(&Fields::new(KEK_ID_LABEL).bytes(), &mut id)
            .expect("HKDF-SHA256 gives up to 8160 bytes");
        Self { kek, kek_id: format!("local:{}", hex(&id)) }
    }

    fn expect_own(&self, kek: Option<&str>) -> Result<(), KmsFailure> {
        match kek {
            Some(other) if other != self.kek_id => Err(KmsFailure::NoSuchKek {
                kek_id: other.to_owned(),
                hint: "the provider's keyFile holds another key than the one that wrapped this volume's".to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Kms for Local {
    async fn describe(&self, kek: Option<&str>, _: Deadline) -> Result<Kek, KmsFailure> {
        self.expect_own(kek)?;
        Ok(Kek { id: self.kek_id.clone(), mechanism: KekMechanism::Symmetric })
    }

    async fn wrap(
        &self,
        key: &InnerKey,
        kek: Option<&str>,
        binding: &Binding<'_>,
        _: Deadline,
    ) -> Result<Wrapped, KmsFailure> {
        self.expect_own(kek)?;
        let (nonce, sealed) = envelope::encrypt(self.kek.expose_secret(), key.expose_secret(), &binding.aad());
        let bytes = [nonce.as_slice(), &sealed].concat();
        Ok(Wrapped { kek_id: self.kek_id.clone(), mechanism: KekMechanism::Symmetric, bytes })
    }

    async fn unwrap(&self, wrapped: &Wrapped, binding: &Binding<'_>, _: Deadline) -> Result<InnerKey, KmsFailure> {
        self.expect_own(Some(&wrapped.kek_id))?;
        if wrapped.mechanism != KekMechanism::Symmetric {
            return Err(KmsFailure::Mismatch);
        }
        let (nonce, sealed) = wrapped.bytes.split_first_chunk::<NONCE_BYTES>().ok_or(KmsFailure::Mismatch)?;
        let opened = envelope::decrypt(self.kek.expose_secret(), nonce, sealed, &binding.aad());
        InnerKey::take(opened.ok_or(KmsFailure::Mismatch)?).map_err(|_| KmsFailure::Mismatch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_file(content: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), content).expect("it can be written");
        file
    }

    #[test]
    fn a_key_of_the_wrong_size_is_an_error() {
        for bytes in [0, 16, 31, 33, 64] {
            let text = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, vec![1; bytes]);
            let refused = Local::load(key_file(&text).path(), None);
            assert!(matches!(refused, Err(LocalKeyFault::Size(size)) if size == bytes));
        }
        assert!(matches!(Local::load(key_file("not base64!").path(), None), Err(LocalKeyFault::NotBase64)));
    }

    #[test]
    fn the_salt_makes_another_kek_and_white_space_does_not() {
        let text = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, [1; 32]);
        let id = |text: &str, salt| Local::load(key_file(text).path(), salt).expect("a key").kek_id;
        assert_eq!(id(&text, None), id(&format!("{text}\n"), None));
        assert_ne!(id(&text, None), id(&text, Some("salt")));
        assert_ne!(id(&text, Some("other")), id(&text, Some("salt")));
    }
}
