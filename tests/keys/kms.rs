//! Every KMS against one list.

use std::sync::Arc;

use coffer::{
    key::kms::{Kms, KmsFailure},
    secret::InnerKey,
};

use crate::{local, soon};

/// What every KMS does.
async fn wraps(kms: Arc<dyn Kms>) {
    let key = InnerKey::random();
    let wrapped = kms.wrap(&key, b"aad", soon()).await.expect("wrapped");
    assert_eq!(wrapped.kek_id, kms.describe(soon()).await.expect("described"));
    let opened = kms.unwrap(&wrapped, b"aad", soon()).await.expect("unwrapped");
    assert_eq!(opened.expose_secret(), key.expose_secret());
    assert!(matches!(kms.unwrap(&wrapped, b"other", soon()).await, Err(KmsFailure::Mismatch)));
    assert_ne!(kms.wrap(&key, b"aad", soon()).await.expect("wrapped").bytes, wrapped.bytes, "a nonce came twice");
    for bit in 0..wrapped.bytes.len() * 8 {
        let mut flipped = wrapped.clone();
        flipped.bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(kms.unwrap(&flipped, b"aad", soon()).await, Err(KmsFailure::Mismatch)), "bit {bit}");
    }
    for length in 0..wrapped.bytes.len() {
        let mut cut = wrapped.clone();
        cut.bytes.truncate(length);
        assert!(kms.unwrap(&cut, b"aad", soon()).await.is_err(), "{length} bytes");
    }
    let mut other = wrapped;
    other.kek_id.push('x');
    assert!(matches!(kms.unwrap(&other, b"aad", soon()).await, Err(KmsFailure::NoSuchKek { .. })));
}

#[tokio::test]
async fn the_local_kms_wraps() {
    wraps(local(1)).await;
}
