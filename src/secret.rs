//! Keys in memory: born in place, shown to nobody, wiped when dropped.
//!
//! Every plaintext key of the program is one of these types. None can be cloned, compared, serialised or
//! displayed, and `Debug` prints a constant. The bytes come out through `expose_secret` alone, on the line that
//! uses them. Copies that libraries make in memory of their own are overwritten when they free it (`main.rs`), and on the
//! wire a key is ciphertext (`keyservice/hpke.rs`).

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Bytes in every key of the program.
pub const KEY_BYTES: usize = 32;

/// Bytes that were to be a key and are not 32 long.
#[derive(Debug, thiserror::Error)]
#[error("a key is {KEY_BYTES} bytes; {found} were given")]
pub struct WrongLength {
    found: usize,
}

macro_rules! key_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Zeroize, ZeroizeOnDrop)]
        pub struct $name(Box<[u8; KEY_BYTES]>);

        impl $name {
            /// Makes a key of 32 bytes from the kernel's random source (getrandom(2)).
            #[must_use]
            pub fn random() -> Self {
                Self::born(|bytes| {
                    getrandom::fill(bytes).expect("getrandom(2) gives 32 bytes once the kernel is up");
                })
            }

            /// Lets `fill` write the key where it will live, so that no copy is left on the stack.
            #[must_use]
            pub fn born(fill: impl FnOnce(&mut [u8; KEY_BYTES])) -> Self {
                let mut key = Self(Box::new([0; KEY_BYTES]));
                fill(&mut key.0);
                key
            }

            /// Takes the key out of a buffer, which is wiped when this returns.
            ///
            /// # Errors
            /// The buffer is not 32 bytes long.
            pub fn take(bytes: impl Into<Zeroizing<Vec<u8>>>) -> Result<Self, WrongLength> {
                let bytes = bytes.into();
                if bytes.len() != KEY_BYTES {
                    return Err(WrongLength { found: bytes.len() });
                }
                Ok(Self::born(|key| key.copy_from_slice(&bytes)))
            }

            /// The 32 bytes, for the line that uses them.
            #[must_use]
            pub fn expose_secret(&self) -> &[u8; KEY_BYTES] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }
    };
}

key_type! {
    /// A volume's data encryption key: 32 bytes, random or derived. In LUKS words it is the passphrase of a keyslot.
    Dek
}
key_type! {
    /// One version of the cluster key: 32 bytes of input key material from which DEKs are derived (RFC 5869).
    ClusterKey
}
key_type! {
    /// The key that wraps one DEK inside its record: 32 random bytes, used once, and itself wrapped by a KMS.
    InnerKey
}
key_type! {
    /// The KEK of the `local` provider: 32 bytes from a file.
    LocalKek
}
key_type! {
    /// A key for HMAC-SHA256 derived from a DEK: it authenticates a header or a record and opens nothing.
    MacKey
}

/// Bytes in the key of dm-crypt's plain mode for AES-256 in XTS mode: two keys of 256 bits (IEEE 1619).
pub const THROW_AWAY_KEY_BYTES: usize = 64;

/// The key of one ephemeral volume: 64 random bytes that no header and no record ever holds. It lives until the mapping
/// is open; after that only the kernel has it, and nobody once the mapping is closed.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct ThrowAwayKey(Box<[u8; THROW_AWAY_KEY_BYTES]>);

impl ThrowAwayKey {
    /// Makes a key from the kernel's random source (getrandom(2)).
    #[must_use]
    pub fn random() -> Self {
        let mut key = Self(Box::new([0; THROW_AWAY_KEY_BYTES]));
        getrandom::fill(key.0.as_mut_slice()).expect("getrandom(2) gives 64 bytes once the kernel is up");
        key
    }

    /// The 64 bytes, for the line that uses them.
    #[must_use]
    pub fn expose_secret(&self) -> &[u8; THROW_AWAY_KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for ThrowAwayKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ThrowAwayKey(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_no_byte_of_a_key() {
        let dek = Dek::born(|bytes| bytes.fill(0xab));
        assert_eq!(format!("{dek:?}"), "Dek(redacted)");
        assert_eq!(format!("{:?}", ClusterKey::random()), "ClusterKey(redacted)");
        assert_eq!(format!("{:?}", ThrowAwayKey::random()), "ThrowAwayKey(redacted)");
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        for length in [0, 16, 31, 33, 64] {
            let refused = Dek::take(vec![1; length]).map(|_| ());
            assert_eq!(
                refused.expect_err("wrong length").to_string(),
                format!("a key is 32 bytes; {length} were given")
            );
        }
        assert_eq!(Dek::take(vec![7; 32]).expect("32 bytes").expose_secret(), &[7; 32]);
    }

    #[test]
    fn two_random_keys_differ() {
        assert_ne!(Dek::random().expose_secret(), Dek::random().expose_secret());
        let key = ThrowAwayKey::random();
        assert_ne!(key.expose_secret(), ThrowAwayKey::random().expose_secret());
        // XTS with two equal halves is no XTS.
        assert_ne!(key.expose_secret()[..32], key.expose_secret()[32..]);
    }
}
