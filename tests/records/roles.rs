//! Rewrapping into a role that a policy gives, into another one, and back out of it.

use std::sync::Arc;

use coffer::{
    admin::{
        Place,
        answer::Print,
        keys::status,
        records::Effect,
        rewrap::{Asked, Sweep},
    },
    key::{
        embedded::Embedded,
        kms::Kms,
        policy::{Match, Rule},
        providers::{KmsProvider, Provider, Providers},
        record::{AwsRole, StoredKey},
        roles::Roles,
        service::{KeyInfo, KeyService},
        store::{DekStore, memory::Memory},
    },
};
use futures::FutureExt;
use serde_json::Value;

use crate::{CLUSTER, id, local, new, of, one, place, quiet, soon, untold, wraps};

fn role(account: &str, external_id: &str) -> AwsRole {
    AwsRole {
        arn: format!("arn:aws:iam::{account}:role/coffer"),
        session_name: "coffer-1".to_owned(),
        external_id: Some(external_id.to_owned()),
    }
}

/// Provider `a`, each of whose roles reaches the KEK of its own account, and `b`, which knows no roles.
fn providers() -> Providers {
    let roles = Roles::opened_by(Vec::new(), |role| {
        let kms: Arc<dyn Kms> = Arc::new(local(if role.arn.contains(":1:") { 30 } else { 31 }));
        async move { Ok(kms) }.boxed()
    });
    let with_roles = KmsProvider { roles, ..KmsProvider::new(Arc::new(local(7))) };
    of([("a", Provider::Kms(with_roles)), ("b", wraps(local(8)))])
}

fn ruled(role: Option<AwsRole>, store: &Arc<dyn DekStore>) -> Place {
    let matches = Match { namespace: Some("shop".to_owned()), ..Match::default() };
    let rule = Rule { matches, provider: Some("a".to_owned()), role, ..Rule::default() };
    Place { policies: vec![rule], ..place(providers(), store.clone()) }
}

fn asked(to: Option<&str>, effect: Effect) -> Asked {
    Asked { from: None, to: to.map(str::to_owned), volume: None, effect }
}

async fn rewrapped(place: &Place, asked: Asked) -> String {
    let mut out = Vec::new();
    let sweep = Sweep::plan(place, asked).expect("it can be done");
    sweep.run(&untold(), &mut quiet(), &mut out).await.expect("everything is rewrapped");
    String::from_utf8(out).expect("text")
}

/// How many records of provider `a` need a rewrap, as the status tells it.
async fn needed(place: &Place) -> Value {
    let mut out = Vec::new();
    status::status(place, Print::Json, &mut quiet(), &mut out).await.expect("a status");
    let mut told: Value = serde_json::from_slice(&out).expect("JSON");
    told["providers"][0]["rewrapNeeded"].take()
}

async fn key_of(store: &Arc<dyn DekStore>) -> (Vec<u8>, String, Option<AwsRole>) {
    let key = Embedded::new(CLUSTER, providers(), store.clone()).get(&id("vol-1"), soon()).await.expect("it opens");
    let record = one(store.as_ref(), "vol-1").await;
    let role = record.key.as_ref().and_then(StoredKey::role).cloned();
    (key.dek.expose_secret().to_vec(), KeyInfo::from(&record).kek_id, role)
}

#[tokio::test]
async fn a_record_goes_into_the_role_that_a_policy_gives_and_out_of_it_again() {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    Embedded::new(CLUSTER, providers(), store.clone()).create(new("vol-1", "a"), soon()).await.expect("a new key");
    let (dek, own_kek, none) = key_of(&store).await;
    assert_eq!(none, None);

    let first = ruled(Some(role("1", "x")), &store);
    assert_eq!(needed(&first).await, 1);
    let told = rewrapped(&first, asked(None, Effect::DryRun)).await;
    let expected = format!(
        "vol-1: from {own_kek} of a to the KEK that role arn:aws:iam::1:role/coffer reaches of a\n1 of 1 would"
    );
    assert!(told.starts_with(&expected), "{told}");
    let told = rewrapped(&first, asked(None, Effect::Real)).await;
    assert!(told.contains("1 of 1 rewrapped, 0 skipped"), "{told}");
    let (same, kek, now) = key_of(&store).await;
    assert_eq!((&same, now), (&dek, Some(role("1", "x"))));
    assert_ne!(kek, own_kek);
    // What is there already is left as it is.
    let told = rewrapped(&first, asked(None, Effect::Real)).await;
    assert!(told.contains("0 of 1 rewrapped, 1 skipped"), "{told}");
    assert_eq!(needed(&first).await, 0);

    // The same role with another external id, and another role.
    for (account, external_id) in [("1", "y"), ("2", "y")] {
        let next = ruled(Some(role(account, external_id)), &store);
        assert_eq!(needed(&next).await, 1, "{account} {external_id}");
        let told = rewrapped(&next, asked(None, Effect::Real)).await;
        assert!(told.contains("1 of 1 rewrapped, 0 skipped"), "{told}");
        let (same, _, now) = key_of(&store).await;
        assert_eq!((&same, now), (&dek, Some(role(account, external_id))));
    }

    let none = ruled(None, &store);
    assert_eq!(needed(&none).await, 1);
    rewrapped(&none, asked(None, Effect::Real)).await;
    assert_eq!(key_of(&store).await, (dek, own_kek, None));
}

#[tokio::test]
async fn a_role_stays_behind_with_its_provider() {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    let place = ruled(Some(role("1", "x")), &store);
    Embedded::new(CLUSTER, providers(), store.clone())
        .with_policies(place.policies.clone())
        .create(new("vol-1", "a"), soon())
        .await
        .expect("a new key");
    let (dek, _, role) = key_of(&store).await;
    assert!(role.is_some());
    let told = rewrapped(&place, asked(Some("b"), Effect::Real)).await;
    assert!(told.contains("1 of 1 rewrapped"), "{told}");
    let (same, _, role) = key_of(&store).await;
    assert_eq!((same, role), (dek, None));
    assert_eq!(one(store.as_ref(), "vol-1").await.provider, "b");
}
