//! The local KMS against the list of every KMS, and what is its own.

use coffer::{key::kms::KmsFailure, secret::InnerKey};
use testbed::conformance::kms::{Binds, Flips, Subject, Volume, conforms};

use crate::{local, soon};

#[tokio::test]
async fn the_local_kms_does_what_every_kms_does() {
    conforms(&Subject { kms: local(1), binds: Binds::Everything, flips: Flips::EveryBit }).await;
}

#[tokio::test]
async fn the_local_kms_tells_another_key_from_changed_bytes() {
    let (kms, volume, key) = (local(1), Volume::of("vol-1"), InnerKey::random());
    let wrapped = kms.wrap(&key, None, &volume.binding(), soon()).await.expect("wrapped");
    let mut changed = wrapped.clone();
    for bit in 0..wrapped.bytes.len() * 8 {
        changed.bytes.clone_from(&wrapped.bytes);
        changed.bytes[bit / 8] ^= 1 << (bit % 8);
        let refused = kms.unwrap(&changed, &volume.binding(), soon()).await;
        assert!(matches!(refused, Err(KmsFailure::Mismatch)), "bit {bit}: {refused:?}");
    }
    let refused = local(2).unwrap(&wrapped, &volume.binding(), soon()).await;
    assert!(matches!(refused, Err(KmsFailure::NoSuchKek { .. })), "{refused:?}");
    let refused = local(2).wrap(&key, Some(&wrapped.kek_id), &volume.binding(), soon()).await;
    assert!(matches!(refused, Err(KmsFailure::NoSuchKek { .. })), "{refused:?}");
}
