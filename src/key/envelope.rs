//! The envelope: a DEK is wrapped by an AEAD under a random inner key, and a KMS wraps the inner key.
//!
//! `wrapped DEK = AES-256-GCM(inner key, nonce, DEK, AAD = binding)` (NIST SP 800-38D), the AAD being that of
//! [`Binding::aad`]. The KMS sees 32 bytes whatever it is, so every KMS's size limit holds, and the binding holds on
//! every KMS, also on those that bind nothing by themselves.

use aes_gcm::{
    Aes256Gcm, Nonce,
    aead::{Aead as _, KeyInit, Payload},
};
use zeroize::Zeroizing;

use crate::{
    exec::Deadline,
    key::{
        binding::Binding,
        kms::{Kms, KmsFailure, Wrapped},
        record::{Aead, Base64, KekMechanism, StoredKey},
    },
    secret::{Dek, InnerKey, KEY_BYTES},
};

/// Bytes in a nonce of AES-GCM.
pub const NONCE_BYTES: usize = 12;

/// Wraps a DEK for its binding under a KEK of a KMS: the one of a name, or the configured one.
///
/// # Errors
/// The KMS refuses or cannot be asked.
pub async fn wrap(
    dek: &Dek,
    binding: &Binding<'_>,
    kms: &dyn Kms,
    kek: Option<&str>,
    deadline: Deadline,
) -> Result<StoredKey, KmsFailure> {
    let inner_key = InnerKey::random();
    let (nonce, wrapped_dek) = encrypt(inner_key.expose_secret(), dek.expose_secret(), &binding.aad());
    let Wrapped { kek_id, mechanism: kek_mechanism, bytes } = kms.wrap(&inner_key, kek, binding, deadline).await?;
    Ok(StoredKey::Wrapped {
        mechanism: Aead::Aes256Gcm,
        kek_id,
        kek_mechanism,
        role: None,
        nonce: Base64::new(nonce),
        wrapped_dek: Base64::new(wrapped_dek),
        wrapped_inner_key: Base64::new(bytes),
    })
}

/// The parts of a wrapped DEK, as a record holds them.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// The KEK.
    pub kek_id: &'a str,
    /// How it wrapped.
    pub kek_mechanism: KekMechanism,
    /// 12 bytes.
    pub nonce: &'a Base64,
    /// 48 bytes.
    pub wrapped_dek: &'a Base64,
    /// As the KMS wrapped it.
    pub wrapped_inner_key: &'a Base64,
}

/// Whether a DEK that is unwrapped is one that a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is: the KMS's answer may come from a cache, and be kept there.
    Stored,
    /// It is new: the KMS is asked, and nothing is kept.
    New,
}

/// Unwraps a DEK.
///
/// # Errors
/// The KMS refuses or cannot be asked, or the parts, the binding and the KEK do not belong together.
pub async fn unwrap(
    envelope: Envelope<'_>,
    binding: &Binding<'_>,
    kept: Kept,
    kms: &dyn Kms,
    deadline: Deadline,
) -> Result<Dek, KmsFailure> {
    let wrapped = Wrapped {
        kek_id: envelope.kek_id.to_owned(),
        mechanism: envelope.kek_mechanism,
        bytes: envelope.wrapped_inner_key.as_bytes().to_vec(),
    };
    let inner_key = match kept {
        Kept::Stored => kms.unwrap(&wrapped, binding, deadline).await?,
        Kept::New => kms.unwrap_again(&wrapped, binding, deadline).await?,
    };
    let nonce = envelope.nonce.exactly().ok_or(KmsFailure::Mismatch)?;
    decrypt(inner_key.expose_secret(), &nonce, envelope.wrapped_dek.as_bytes(), &binding.aad())
        .and_then(|bytes| Dek::take(bytes).ok())
        .ok_or(KmsFailure::Mismatch)
}

/// AES-256-GCM under a fresh random nonce: the nonce, and ciphertext ‖ tag (16 bytes).
pub(crate) fn encrypt(key: &[u8; KEY_BYTES], message: &[u8], aad: &[u8]) -> ([u8; NONCE_BYTES], Vec<u8>) {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).expect("getrandom(2) gives 12 bytes once the kernel is up");
    let sealed = Aes256Gcm::new(key.into()).encrypt(&Nonce::from(nonce), Payload { msg: message, aad });
    (nonce, sealed.expect("AES-GCM takes messages up to 64 GiB"))
}

/// The message, where key, nonce, AAD and tag belong together.
pub(crate) fn decrypt(
    key: &[u8; KEY_BYTES],
    nonce: &[u8; NONCE_BYTES],
    sealed: &[u8],
    aad: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let payload = Payload { msg: sealed, aad };
    Aes256Gcm::new(key.into()).decrypt(&Nonce::from(*nonce), payload).ok().map(Zeroizing::new)
}
