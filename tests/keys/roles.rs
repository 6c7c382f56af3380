//! A policy gives a role for its volumes: the record keeps it, whatever becomes of the policy.

use std::{fs, sync::Arc};

use coffer::key::{
    embedded::Embedded,
    kms::Kms,
    policy::{Match, Rule},
    providers::{KmsProvider, Provider, Providers},
    record::{AwsRole, Record, RecordFault, StoredKey},
    roles::Roles,
    service::{KeyFailure, KeyService, NewKey, Refusal},
    store::{DekStore, filesystem::Filesystem, memory::Memory},
};
use futures::FutureExt;
use testbed::conformance::told;
use uuid::Uuid;

use crate::{id, local, new, services, soon, vectors};

/// What the tenant asks for.
const ASKED: &str = "what-the-owner-asks-for";

/// The tenant's role, with what it is assumed with.
fn role(external_id: &str) -> AwsRole {
    AwsRole {
        arn: "arn:aws:iam::444455556666:role/coffer".to_owned(),
        session_name: "coffer-golden".to_owned(),
        external_id: Some(external_id.to_owned()),
    }
}

/// The rule that gives it.
pub(crate) fn rule() -> Rule {
    let matches = Match { namespace: Some("blue*".to_owned()), ..Match::default() };
    Rule { matches, provider: Some("main".to_owned()), role: Some(role(ASKED)), ..Rule::default() }
}

/// A key service whose provider reaches the tenant's KEK in a role, where the tenant is shown what he asks for. `known`
/// are the roles as the policies name them.
pub(crate) fn service(store: &Arc<dyn DekStore>, known: Vec<AwsRole>, rules: Vec<Rule>) -> Embedded {
    let roles = Roles::opened_by(known, |role| {
        let kms: Arc<dyn Kms> = local(if role.external_id.as_deref() == Some(ASKED) { 9 } else { 10 });
        async move { Ok(kms) }.boxed()
    });
    let provider = Provider::Kms(KmsProvider { roles, ..KmsProvider::new(local(7)) });
    let providers = Providers { by_name: [("main".to_owned(), provider)].into(), default: "main".to_owned() };
    Embedded::new(Uuid::from_u128(1), providers, store.clone()).with_policies(rules)
}

fn of(namespace: &str, volume_id: &str) -> NewKey {
    NewKey { tenant: Some(namespace.to_owned()), ..new(volume_id) }
}

async fn stored(store: &dyn DekStore, volume_id: &str) -> Record {
    store.get(&id(volume_id), soon()).await.expect("it answers").expect("it is there").record
}

fn role_of(record: &Record) -> Option<AwsRole> {
    record.key.as_ref().and_then(StoredKey::role).cloned()
}

#[tokio::test]
async fn a_volume_of_the_rule_is_wrapped_in_its_role_and_opens_when_the_rule_is_gone() {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    let ruled = service(&store, vec![role(ASKED)], vec![rule()]);
    let blue = ruled.create(of("blue-1", "blue"), soon()).await.expect("a new key");
    let red = ruled.create(of("red", "red"), soon()).await.expect("a new key");
    assert_ne!(blue.kek_id, red.kek_id);
    assert_eq!(role_of(&stored(store.as_ref(), "blue").await), Some(role(ASKED)));
    let of_red = stored(store.as_ref(), "red").await;
    assert_eq!(role_of(&of_red), None);
    assert!(!String::from_utf8(of_red.to_bytes()).expect("text").contains("role"), "nothing is said of no role");

    let first = ruled.get(&id("blue"), soon()).await.expect("it opens").dek;
    let bare = service(&store, Vec::new(), Vec::new());
    let again = bare.get(&id("blue"), soon()).await.expect("the record names the role").dek;
    assert_eq!(first.expose_secret(), again.expose_secret());
    bare.begin_format(&id("blue"), 1, soon()).await.expect("it changes without the rule, too");
    assert_eq!(role_of(&stored(store.as_ref(), "blue").await), Some(role(ASKED)));
    bare.create(of("blue-1", "later"), soon()).await.expect("a new key");
    assert_eq!(role_of(&stored(store.as_ref(), "later").await), None);
}

#[tokio::test]
async fn what_the_policies_say_of_a_role_now_goes_before_its_record() {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    service(&store, Vec::new(), vec![rule()]).create(of("blue", "vol-1"), soon()).await.expect("a new key");
    // The tenant asks for something else, and his KMS says so until a policy knows it.
    let refused = service(&store, vec![role("another")], Vec::new()).get(&id("vol-1"), soon()).await;
    assert!(matches!(refused, Err(KeyFailure::Unwrap { .. })), "{refused:?}");
    for known in [Vec::new(), vec![role(ASKED)], vec![role("another"), role(ASKED)]] {
        service(&store, known, Vec::new()).get(&id("vol-1"), soon()).await.expect("it opens");
    }
}

#[tokio::test]
async fn a_role_is_not_changed_unseen() {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    let service = service(&store, Vec::new(), vec![rule()]);
    service.create(of("blue", "vol-1"), soon()).await.expect("a new key");
    let whole = stored(store.as_ref(), "vol-1").await;
    let with = |role: Option<AwsRole>| Record { key: whole.key.clone().map(|key| key.in_role(role)), ..whole.clone() };
    let other = || role(ASKED);
    let by_mac = [
        AwsRole { arn: "arn:aws:iam::777788889999:role/coffer".to_owned(), ..other() },
        AwsRole { session_name: "another".to_owned(), ..other() },
    ];
    let by_kek = [None, Some(AwsRole { external_id: None, ..other() }), Some(role("another"))];
    let changed = by_mac.into_iter().map(|role| (Some(role), true)).chain(by_kek.map(|role| (role, false)));
    for (role, opens) in changed {
        let told = format!("{role:?}");
        let version = store.get(&id("vol-1"), soon()).await.expect("it answers").expect("it is there").version;
        store.replace(&with(role), version, soon()).await.expect("replaced");
        match service.get(&id("vol-1"), soon()).await {
            Err(KeyFailure::Record { source: RecordFault::Mac, .. }) if opens => {}
            Err(KeyFailure::Unwrap { .. }) if !opens => {}
            other => panic!("{told}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_provider_that_knows_no_roles_says_what_the_record_needs() {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    service(&store, Vec::new(), vec![rule()]).create(of("blue", "vol-1"), soon()).await.expect("a new key");
    let [_, (_, plain)] = services(&store);
    let failure = plain.get(&id("vol-1"), soon()).await.expect_err("it knows no roles");
    assert_eq!(failure.refusal(), Refusal::State);
    assert_eq!(
        told(&failure),
        "the key in the record of volume vol-1 does not open with provider main: it is reached in role \
         arn:aws:iam::444455556666:role/coffer, and the provider's type knows no roles"
    );
    let failure = plain.with_policies(vec![rule()]).create(of("blue", "vol-2"), soon()).await.expect_err("nor here");
    assert_eq!(failure.refusal(), Refusal::State);
    assert!(store.get(&id("vol-2"), soon()).await.expect("it answers").is_none(), "something is stored");
}

#[tokio::test]
async fn every_single_bit_of_a_record_with_a_role_counts() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store: Arc<dyn DekStore> = Arc::new(Filesystem::open(folder.path()).expect("a folder"));
    let (service, path) = (service(&store, Vec::new(), Vec::new()), folder.path().join("golden-role.json"));
    let whole = fs::read(vectors().join("records/golden-role.json")).expect("a golden record");
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, flipped).expect("written");
        assert!(service.get(&id("golden-role"), soon()).await.is_err(), "bit {bit} makes no difference");
    }
    fs::write(&path, whole).expect("written");
    service.get(&id("golden-role"), soon()).await.expect("the record is whole again");
}
