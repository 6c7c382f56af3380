//! What every KMS does: what was wrapped opens for its own volume, and for nothing else.

use std::{collections::BTreeMap, sync::Arc};

use coffer::{
    key::{
        binding::Binding,
        envelope::{self, Envelope, Kept},
        kms::{Kms, KmsFailure, Wrapped},
        record::{Base64, KekMechanism, StoredKey},
    },
    secret::{Dek, InnerKey},
    volume::VolumeId,
};
use uuid::Uuid;

use super::{soon, told};

/// What a KMS binds an inner key to by itself. What it does not bind, the envelope does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binds {
    /// Every field of the binding.
    Everything,
    /// Every field but the UUID of the LUKS header: a context that people read in an audit log.
    AllButLuksUuid,
    /// Nothing: RSA, AES Key Wrap.
    Nothing,
}

/// How many flipped bits a KMS is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flips {
    /// Each bit, where a call costs nothing.
    EveryBit,
    /// One bit of each byte.
    EveryByte,
}

/// A KMS on which the list is run.
pub struct Subject {
    /// The KMS.
    pub kms: Arc<dyn Kms>,
    /// What it binds to by itself.
    pub binds: Binds,
    /// How thoroughly it is asked.
    pub flips: Flips,
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject").field("binds", &self.binds).field("flips", &self.flips).finish_non_exhaustive()
    }
}

/// A volume to which keys are bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The installation.
    pub cluster_id: Uuid,
    /// The volume.
    pub volume_id: VolumeId,
    /// Which of its keys.
    pub generation: u32,
    /// Its header.
    pub luks_uuid: Uuid,
    /// What its class adds.
    pub context: BTreeMap<String, String>,
}

impl Volume {
    /// A volume of this id.
    #[must_use]
    pub fn of(volume_id: &str) -> Self {
        Self {
            cluster_id: Uuid::from_u128(0xc0ffe4),
            volume_id: volume_id.parse().expect("a volume id"),
            generation: 1,
            luks_uuid: Uuid::from_u128(7),
            context: [("team".to_owned(), "blue".to_owned())].into(),
        }
    }

    /// What its keys are bound to.
    #[must_use]
    pub fn binding(&self) -> Binding<'_> {
        Binding {
            cluster_id: self.cluster_id,
            volume_id: &self.volume_id,
            generation: self.generation,
            luks_uuid: self.luks_uuid,
            context: &self.context,
        }
    }

    /// Volumes that differ from this one in a single field each.
    fn others(&self) -> Vec<(&'static str, Self)> {
        let context = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
        };
        let other = || self.clone();
        vec![
            ("volume", Self { volume_id: "another".parse().expect("a volume id"), ..other() }),
            ("generation", Self { generation: self.generation + 1, ..other() }),
            ("cluster", Self { cluster_id: Uuid::from_u128(8), ..other() }),
            ("context's value", Self { context: context(&[("team", "red")]), ..other() }),
            ("context's size", Self { context: context(&[("team", "blue"), ("more", "x")]), ..other() }),
            ("context", Self { context: BTreeMap::new(), ..other() }),
            (LUKS_UUID, Self { luks_uuid: Uuid::from_u128(9), ..other() }),
        ]
    }
}

const LUKS_UUID: &str = "LUKS UUID";

/// Runs the list. What it returns was shown.
///
/// # Panics
/// The KMS breaks a promise.
pub async fn conforms(subject: &Subject) -> Vec<&'static str> {
    let kms = subject.kms.as_ref();
    let mut shown = vec!["round trip"];
    let wrapped = round_trip(kms).await;
    assert_eq!(
        subject.binds == Binds::Nothing,
        wrapped.mechanism != KekMechanism::Symmetric,
        "{:?} is said to bind {:?}",
        wrapped.mechanism,
        subject.binds
    );
    // RFC 3394 has no nonce, and needs none for keys that are random.
    if wrapped.mechanism != KekMechanism::AesKeyWrap256 {
        nothing_comes_twice(kms).await;
        shown.push("no nonce twice");
    }
    if subject.binds != Binds::Nothing {
        another_context_is_refused(kms, subject.binds).await;
        shown.push("the KMS refuses another context");
    }
    changed_bytes_are_refused(kms, subject.flips).await;
    shown.push("changed and cut bytes refused");
    another_kek_is_refused(kms).await;
    shown.push("another KEK's name refused");
    swapped_records_are_refused(kms).await;
    shown.push("swapped records refused");
    changed_envelopes_are_refused(kms, subject.flips).await;
    shown.push("each field of the envelope counts");
    shown
}

async fn wrap(kms: &dyn Kms, key: &InnerKey, volume: &Volume) -> Wrapped {
    match kms.wrap(key, None, &volume.binding(), soon()).await {
        Ok(wrapped) => wrapped,
        Err(failure) => panic!("not wrapped: {}", told(&failure)),
    }
}

async fn opens(kms: &dyn Kms, wrapped: &Wrapped, volume: &Volume, key: &InnerKey) {
    match kms.unwrap(wrapped, &volume.binding(), soon()).await {
        Ok(opened) => assert_eq!(opened.expose_secret(), key.expose_secret(), "it opened to another key"),
        Err(failure) => panic!("not unwrapped: {}", told(&failure)),
    }
}

/// Fails unless these bytes are refused for what they are.
async fn refused(kms: &dyn Kms, wrapped: &Wrapped, volume: &Volume, what: &str) -> KmsFailure {
    match kms.unwrap(wrapped, &volume.binding(), soon()).await {
        Ok(_) => panic!("{what}: it opened"),
        Err(failure) => {
            // What is taken for an outage would be retried, and answered from the cache.
            assert!(!failure.is_outage(), "{what}: taken for an outage: {}", told(&failure));
            failure
        }
    }
}

async fn round_trip(kms: &dyn Kms) -> Wrapped {
    let (key, volume) = (InnerKey::random(), Volume::of("vol-1"));
    let wrapped = wrap(kms, &key, &volume).await;
    let kek = kms.describe(None, soon()).await.expect("described");
    assert_eq!(wrapped.kek_id, kek.id, "the KEK that wraps and the one that is described differ");
    assert_eq!(wrapped.mechanism, kek.mechanism);
    assert!(!wrapped.bytes.windows(32).any(|bytes| bytes == key.expose_secret()), "the key stands in the clear");
    opens(kms, &wrapped, &volume, &key).await;
    let again = kms.unwrap_again(&wrapped, &volume.binding(), soon()).await.expect("unwrapped again");
    assert_eq!(again.expose_secret(), key.expose_secret());
    wrapped
}

async fn nothing_comes_twice(kms: &dyn Kms) {
    let (key, volume) = (InnerKey::random(), Volume::of("vol-1"));
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..8 {
        assert!(seen.insert(wrap(kms, &key, &volume).await.bytes), "a nonce came twice");
    }
}

async fn another_context_is_refused(kms: &dyn Kms, binds: Binds) {
    let (key, volume) = (InnerKey::random(), Volume::of("vol-1"));
    let wrapped = wrap(kms, &key, &volume).await;
    for (what, other) in volume.others() {
        if what == LUKS_UUID && binds == Binds::AllButLuksUuid {
            continue;
        }
        let failure = refused(kms, &wrapped, &other, what).await;
        assert!(matches!(failure, KmsFailure::Mismatch), "another {what}: {}", told(&failure));
    }
    opens(kms, &wrapped, &volume, &key).await;
}

async fn changed_bytes_are_refused(kms: &dyn Kms, flips: Flips) {
    let (key, volume) = (InnerKey::random(), Volume::of("vol-1"));
    let wrapped = wrap(kms, &key, &volume).await;
    let (length, with) = (wrapped.bytes.len(), |bytes| Wrapped { bytes, ..wrapped.clone() });
    for bit in flipped_bits(length, flips) {
        refused(kms, &with(flipped(&wrapped.bytes, bit)), &volume, &format!("bit {bit}")).await;
    }
    let lengths: Vec<_> = match flips {
        Flips::EveryBit => (0..length).collect(),
        Flips::EveryByte => vec![0, 1, length / 2, length - 1],
    };
    for cut in lengths {
        refused(kms, &with(wrapped.bytes[..cut].to_vec()), &volume, &format!("{cut} bytes")).await;
    }
    refused(kms, &with([wrapped.bytes.as_slice(), b"x"].concat()), &volume, "a byte more").await;
    opens(kms, &wrapped, &volume, &key).await;
}

async fn another_kek_is_refused(kms: &dyn Kms) {
    let (key, volume) = (InnerKey::random(), Volume::of("vol-1"));
    let wrapped = wrap(kms, &key, &volume).await;
    let with = |kek_id: String| Wrapped { kek_id, ..wrapped.clone() };
    refused(kms, &with("another-key".to_owned()), &volume, "another KEK").await;
    // Who can write records must not be able to choose who is asked.
    if let Some(rest) = wrapped.kek_id.strip_prefix("https://") {
        let path = rest.split_once('/').map_or("", |(_, path)| path);
        refused(kms, &with(format!("https://127.0.0.1:9/{path}")), &volume, "a KEK on another server").await;
    }
    // Some services find the version in the wrapped bytes and are not told one: then the name of a version opens
    // nothing else, and the record's MAC covers it.
    let renamed = with(format!("{}9", wrapped.kek_id));
    match kms.unwrap(&renamed, &volume.binding(), soon()).await {
        Ok(opened) => assert_eq!(opened.expose_secret(), key.expose_secret(), "it opened to another key"),
        Err(failure) => assert!(!failure.is_outage(), "{}", told(&failure)),
    }
}

/// The parts of a wrapped DEK.
#[derive(Clone)]
struct Parts {
    kek_id: String,
    kek_mechanism: KekMechanism,
    nonce: Base64,
    wrapped_dek: Base64,
    wrapped_inner_key: Base64,
}

impl Parts {
    async fn wrapped(kms: &dyn Kms, dek: &Dek, volume: &Volume) -> Self {
        match envelope::wrap(dek, &volume.binding(), kms, None, soon()).await {
            Ok(StoredKey::Wrapped { kek_id, kek_mechanism, nonce, wrapped_dek, wrapped_inner_key, .. }) => {
                Self { kek_id, kek_mechanism, nonce, wrapped_dek, wrapped_inner_key }
            }
            Ok(StoredKey::Derived { .. }) => panic!("an envelope derives nothing"),
            Err(failure) => panic!("no envelope: {}", told(&failure)),
        }
    }

    async fn unwrap(&self, kms: &dyn Kms, volume: &Volume, kept: Kept) -> Result<Dek, KmsFailure> {
        let envelope = Envelope {
            kek_id: &self.kek_id,
            kek_mechanism: self.kek_mechanism,
            nonce: &self.nonce,
            wrapped_dek: &self.wrapped_dek,
            wrapped_inner_key: &self.wrapped_inner_key,
        };
        envelope::unwrap(envelope, &volume.binding(), kept, kms, soon()).await
    }

    async fn mismatches(&self, kms: &dyn Kms, volume: &Volume, what: &str) {
        match self.unwrap(kms, volume, Kept::Stored).await {
            Ok(_) => panic!("{what}: it opened"),
            Err(failure) => assert!(matches!(failure, KmsFailure::Mismatch), "{what}: {}", told(&failure)),
        }
    }
}

/// On every KMS, also where it binds nothing by itself.
async fn swapped_records_are_refused(kms: &dyn Kms) {
    let volumes = [Volume::of("vol-a"), Volume { luks_uuid: Uuid::from_u128(10), ..Volume::of("vol-b") }];
    let deks = [Dek::random(), Dek::random()];
    let [a, b] = [Parts::wrapped(kms, &deks[0], &volumes[0]).await, Parts::wrapped(kms, &deks[1], &volumes[1]).await];
    for (parts, (volume, dek)) in [&a, &b].into_iter().zip(volumes.iter().zip(&deks)) {
        for kept in [Kept::New, Kept::Stored] {
            let opened = parts.unwrap(kms, volume, kept).await.expect("its own volume's key opens");
            assert_eq!(opened.expose_secret(), dek.expose_secret());
        }
    }
    a.mismatches(kms, &volumes[1], "the record of a under the name of b").await;
    b.mismatches(kms, &volumes[0], "the record of b under the name of a").await;
    for (volume, own, other) in [(&volumes[0], &a, &b), (&volumes[1], &b, &a)] {
        let dek = Parts { wrapped_dek: other.wrapped_dek.clone(), nonce: other.nonce.clone(), ..own.clone() };
        dek.mismatches(kms, volume, "another volume's DEK").await;
        let inner = Parts { wrapped_inner_key: other.wrapped_inner_key.clone(), ..own.clone() };
        inner.mismatches(kms, volume, "another volume's inner key").await;
    }
    for (what, other) in volumes[0].others() {
        a.mismatches(kms, &other, what).await;
    }
}

async fn changed_envelopes_are_refused(kms: &dyn Kms, flips: Flips) {
    let (dek, volume) = (Dek::random(), Volume::of("vol-1"));
    let whole = Parts::wrapped(kms, &dek, &volume).await;
    for bit in flipped_bits(whole.nonce.as_bytes().len(), flips) {
        let nonce = Base64::new(flipped(whole.nonce.as_bytes(), bit));
        Parts { nonce, ..whole.clone() }.mismatches(kms, &volume, &format!("nonce, bit {bit}")).await;
    }
    for bit in flipped_bits(whole.wrapped_dek.as_bytes().len(), flips) {
        let wrapped_dek = Base64::new(flipped(whole.wrapped_dek.as_bytes(), bit));
        Parts { wrapped_dek, ..whole.clone() }.mismatches(kms, &volume, &format!("wrapped DEK, bit {bit}")).await;
    }
    for length in [0, 11] {
        let nonce = Base64::new(&whole.nonce.as_bytes()[..length]);
        Parts { nonce, ..whole.clone() }.mismatches(kms, &volume, &format!("a nonce of {length} bytes")).await;
    }
    for length in [0, 16, 47] {
        let wrapped_dek = Base64::new(&whole.wrapped_dek.as_bytes()[..length]);
        Parts { wrapped_dek, ..whole.clone() }.mismatches(kms, &volume, &format!("a DEK of {length} bytes")).await;
    }
    let opened = whole.unwrap(kms, &volume, Kept::Stored).await.expect("what is whole opens");
    assert_eq!(opened.expose_secret(), dek.expose_secret());
}

fn flipped_bits(length: usize, flips: Flips) -> Vec<usize> {
    match flips {
        Flips::EveryBit => (0..length * 8).collect(),
        Flips::EveryByte => (0..length).map(|at| at * 8 + at % 8).collect(),
    }
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    changed[bit / 8] ^= 1 << (bit % 8);
    changed
}
