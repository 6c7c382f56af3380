//! Callers who come for one key at once, with a KMS that answers when it is let.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::atomic::AtomicUsize,
    task::Poll,
};

use tokio::sync::Semaphore;

use super::*;
use crate::key::{calls::CallSettings, record::KekMechanism};

struct Gated {
    gate: Semaphore,
    asked: AtomicUsize,
}

#[async_trait]
impl Kms for Gated {
    async fn describe(&self, _: Option<&str>, _: Deadline) -> Result<Kek, KmsFailure> {
        Err(KmsFailure::garbled("the gate", "it has no KEK"))
    }

    async fn wrap(&self, _: &InnerKey, _: Option<&str>, _: &Binding<'_>, _: Deadline) -> Result<Wrapped, KmsFailure> {
        Err(KmsFailure::garbled("the gate", "it wraps nothing"))
    }

    async fn unwrap(&self, wrapped: &Wrapped, _: &Binding<'_>, _: Deadline) -> Result<InnerKey, KmsFailure> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await.expect("it is never closed").forget();
        Ok(InnerKey::born(|bytes| bytes.fill(wrapped.bytes[0])))
    }
}

/// Lets a future do what it can do now.
async fn waits(mut future: Pin<&mut impl Future>) -> bool {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_pending())).await
}

#[tokio::test]
async fn a_caller_who_waited_for_anothers_call_gets_its_key_though_the_cache_has_lost_it() {
    let gated = Arc::new(Gated { gate: Semaphore::new(0), asked: AtomicUsize::new(0) });
    let hour = Duration::from_secs(3600);
    let cache = CacheSettings { expiry_any: hour, expiry_unused: hour, expiry_offline: Duration::ZERO, entries: 10 };
    let (calls, context) = (CallSettings::default(), BTreeMap::new());
    let common = Common { context: BTreeMap::new(), calls, cache, validate: Validate::Off };
    let guarded = Guarded::new(gated.clone(), "main", common);
    let volume_id = "vol-1".parse().expect("a volume id");
    let binding = Binding {
        cluster_id: Uuid::nil(),
        volume_id: &volume_id,
        generation: 1,
        luks_uuid: Uuid::nil(),
        context: &context,
    };
    let wrapped = Wrapped { kek_id: "kek".to_owned(), mechanism: KekMechanism::Symmetric, bytes: vec![7; 40] };
    let deadline = Deadline::within(Duration::from_secs(30));

    let mut first = pin!(guarded.unwrap(&wrapped, &binding, deadline));
    let mut second = pin!(guarded.unwrap(&wrapped, &binding, deadline));
    assert!(waits(first.as_mut()).await && waits(second.as_mut()).await, "nobody has let them");
    assert_eq!(gated.asked.load(Ordering::SeqCst), 1, "one asks for both");
    gated.gate.add_permits(1);
    assert_eq!(first.await.expect("a key").expose_secret(), &[7; 32]);
    // What a full cache does to an entry that it does not take, at the worst moment.
    guarded.fresh.as_ref().expect("there is a cache").forget(cache_id(&wrapped, &binding)).await;
    gated.gate.add_permits(1);
    let second = second.await.expect("the KMS answers: there is a key");
    assert_eq!(second.expose_secret(), &[7; 32]);
    assert_eq!(gated.asked.load(Ordering::SeqCst), 2);
}
