//! The key service itself: one record and one key, the state machine, destruction, lists.

use std::sync::Arc;

use coffer::{
    key::{
        derive::Tag,
        record::State,
        service::{Attempt, KeyFailure, KeyService, NewKey},
        store::{DekStore, filesystem::Filesystem, memory::Memory},
    },
    volume::{Content, Parameters},
};
use tokio::task::JoinSet;

use crate::{id, new, services, soon};

#[tokio::test]
async fn a_key_is_made_once_and_the_same_request_finds_it() {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    for (kind, service) in services(&store) {
        let first = service.create(new(kind), soon()).await.expect("a new key");
        assert_eq!(first.state, State::Prepared);
        assert_eq!(service.create(new(kind), soon()).await.expect("the same"), first);
        let other = NewKey { parameters: Parameters::of(Content::Block), ..new(kind) };
        assert!(matches!(
            service.create(other, soon()).await,
            Err(KeyFailure::Differs { what: "content or encryption", .. })
        ));
        let elsewhere = NewKey { node: Some("n2".to_owned()), ..new(kind) };
        assert!(matches!(service.create(elsewhere, soon()).await, Err(KeyFailure::Differs { what: "node", .. })));
        let one = service.get(&id(kind), soon()).await.expect("a key").dek;
        let again = service.get(&id(kind), soon()).await.expect("a key").dek;
        assert_eq!(one.expose_secret(), again.expose_secret());
    }
    assert!(matches!(services(&store)[0].1.get(&id("missing"), soon()).await, Err(KeyFailure::Missing(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn twenty_concurrent_creators_agree_on_one_record_and_one_key() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for kind in 0..2 {
        let mut creators = JoinSet::new();
        for _ in 0..20 {
            // Each has a store of its own on the one folder, as a process of its own would have.
            let store: Arc<dyn DekStore> = Arc::new(Filesystem::open(folder.path()).expect("a folder"));
            let [derived, wrapped] = services(&store);
            let service = if kind == 0 { derived.1 } else { wrapped.1 };
            creators.spawn(async move {
                let name = format!("raced-{kind}");
                let info = service.create(new(&name), soon()).await.expect("one record for all");
                let key = service.get(&id(&name), soon()).await.expect("a key");
                (info.luks_uuid, key.dek.expose_secret().to_vec())
            });
        }
        let mut seen = std::collections::BTreeSet::new();
        while let Some(made) = creators.join_next().await {
            seen.insert(made.expect("no panic"));
        }
        assert_eq!(seen.len(), 1);
    }
}

#[tokio::test]
async fn a_record_goes_from_prepared_to_ready_and_a_later_attempt_fences_off_an_earlier_one() {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    for (kind, service) in services(&store) {
        let (volume, header) = (id(kind), Tag::from_bytes([3; 32]));
        service.create(new(kind), soon()).await.expect("a new key");
        let attempt = |number| Attempt { generation: 1, number };
        let early = service.mark_ready(&volume, attempt(0), header, soon()).await;
        assert!(matches!(early, Err(KeyFailure::State { state: State::Prepared, .. })), "{early:?}");
        assert_eq!(service.begin_format(&volume, 1, soon()).await.expect("begun").format_attempt, 1);
        assert_eq!(service.begin_format(&volume, 1, soon()).await.expect("begun again").format_attempt, 2);
        let late = service.mark_ready(&volume, attempt(1), header, soon()).await;
        assert!(matches!(late, Err(KeyFailure::Superseded(_))), "{late:?}");
        assert!(matches!(service.begin_format(&volume, 2, soon()).await, Err(KeyFailure::Superseded(_))));
        let ready = service.mark_ready(&volume, attempt(2), header, soon()).await.expect("ready");
        assert_eq!((ready.state, ready.header_tag), (State::Ready, Some(header)));
        assert_eq!(service.mark_ready(&volume, attempt(2), header, soon()).await.expect("the same again"), ready);
        let other = service.mark_ready(&volume, attempt(2), Tag::from_bytes([4; 32]), soon()).await;
        assert!(matches!(other, Err(KeyFailure::State { state: State::Ready, .. })), "{other:?}");
        let back = service.begin_format(&volume, 1, soon()).await;
        assert!(matches!(back, Err(KeyFailure::State { state: State::Ready, .. })), "{back:?}");
    }
}

#[tokio::test]
async fn a_destroyed_key_never_opens_again() {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    for (kind, service) in services(&store) {
        let volume = id(kind);
        service.create(new(kind), soon()).await.expect("a new key");
        let old = service.get(&volume, soon()).await.expect("a key").dek;
        service.destroy(&volume, 1, soon()).await.expect("destroyed");
        service.destroy(&volume, 1, soon()).await.expect("destroyed already");
        assert!(matches!(service.get(&volume, soon()).await, Err(KeyFailure::Destroyed(_))));
        assert!(matches!(service.begin_format(&volume, 1, soon()).await, Err(KeyFailure::Destroyed(_))));
        assert!(service.describe(&volume, soon()).await.expect("it answers").is_none());
        let tombstone = store.get(&volume, soon()).await.expect("it answers").expect("it is there").record;
        assert!(tombstone.key.is_none() && tombstone.mac.is_none() && tombstone.state == State::Destroyed);
        // The id can be used again, for another key.
        assert_eq!(service.create(new(kind), soon()).await.expect("a new key").generation, 2);
        let new = service.get(&volume, soon()).await.expect("a key").dek;
        assert_ne!(new.expose_secret(), old.expose_secret());
        // A request for the first key that was long on its way leaves the second one alone.
        service.destroy(&volume, 1, soon()).await.expect("destroyed long ago");
        assert_eq!(service.get(&volume, soon()).await.expect("a key").info.generation, 2);
        assert!(matches!(service.destroy(&volume, 3, soon()).await, Err(KeyFailure::Invalid(_))));
        service.destroy(&volume, 2, soon()).await.expect("destroyed");
        assert!(matches!(service.get(&volume, soon()).await, Err(KeyFailure::Destroyed(_))));
    }
    services(&store)[0].1.destroy(&id("missing"), 1, soon()).await.expect("nothing to destroy");
}

#[tokio::test]
async fn a_list_leaves_out_tombstones_and_has_whole_pages() {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    let [(_, service), _] = services(&store);
    for number in 0..10 {
        service.create(new(&format!("vol-{number}")), soon()).await.expect("a new key");
    }
    for number in [0, 3, 4, 5, 9] {
        service.destroy(&id(&format!("vol-{number}")), 1, soon()).await.expect("destroyed");
    }
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = service.list(after.as_ref(), 2, soon()).await.expect("a page");
        assert!(page.infos.len() == 2 || page.next.is_none(), "{page:?}");
        seen.extend(page.infos.iter().map(|info| info.volume_id.to_string()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["vol-1", "vol-2", "vol-6", "vol-7", "vol-8"]);
}

#[tokio::test]
async fn reserved_context_and_unknown_providers_are_refused() {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    let [(_, service), _] = services(&store);
    let reserved = NewKey { context: [("volume".to_owned(), "x".to_owned())].into(), ..new("a") };
    assert!(matches!(service.create(reserved, soon()).await, Err(KeyFailure::Invalid(_))));
    let unknown = NewKey { provider: Some("aws".to_owned()), ..new("a") };
    let refused = service.create(unknown, soon()).await.expect_err("unknown").to_string();
    assert!(refused.contains("\"aws\" is not configured; there are: main"), "{refused}");
}
