//! What the configuration does not let be: what a policy forbids, or cannot be applied to; a context that a KEK does not
//! take; a provider that records need and that is gone. Each is told as what it is, and leaves nothing behind.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use coffer::{
    exec::Deadline,
    key::{
        binding::Binding,
        embedded::Embedded,
        kms::{Kek, Kms, KmsFailure, Wrapped},
        policy::{Given, Match, Rule},
        providers::{KmsProvider, Provider, Providers},
        record::{KekMechanism, StoredKey},
        service::{KeyFailure, KeyService, NewKey, Refusal},
        store::{DekStore, memory::Memory},
    },
    secret::InnerKey,
    server::rpc,
};
use testbed::conformance::told;
use tonic::Code;
use uuid::Uuid;

use crate::{id, local, new, soon};

const CLUSTER: Uuid = Uuid::from_u128(1);

/// A KMS whose KEK is RSA: it binds nothing.
struct Rsa(Arc<dyn Kms>);

#[async_trait]
impl Kms for Rsa {
    async fn describe(&self, kek: Option<&str>, deadline: Deadline) -> Result<Kek, KmsFailure> {
        Ok(Kek { mechanism: KekMechanism::RsaOaep256, ..self.0.describe(kek, deadline).await? })
    }

    async fn wrap(
        &self,
        key: &InnerKey,
        kek: Option<&str>,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<Wrapped, KmsFailure> {
        let wrapped = self.0.wrap(key, kek, binding, deadline).await?;
        Ok(Wrapped { mechanism: KekMechanism::RsaOaep256, ..wrapped })
    }

    async fn unwrap(
        &self,
        wrapped: &Wrapped,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<InnerKey, KmsFailure> {
        let wrapped = Wrapped { mechanism: KekMechanism::Symmetric, ..wrapped.clone() };
        self.0.unwrap(&wrapped, binding, deadline).await
    }
}

/// Three providers: the default one, another, and one with an RSA KEK.
fn providers() -> Providers {
    let kms = |kms: Arc<dyn Kms>| Provider::Kms(KmsProvider::new(kms));
    let by_name = [("main", kms(local(7))), ("other", kms(local(8))), ("rsa", kms(Arc::new(Rsa(local(9)))))];
    let by_name = by_name.into_iter().map(|(name, provider)| (name.to_owned(), provider)).collect();
    Providers { by_name, default: "main".to_owned() }
}

fn store() -> Arc<dyn DekStore> {
    Arc::new(Memory::default())
}

fn service(store: &Arc<dyn DekStore>, rules: Vec<Rule>) -> Embedded {
    Embedded::new(CLUSTER, providers(), store.clone()).with_policies(rules)
}

fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn rule(name: &str, namespace: Option<&str>, provider: Option<&str>) -> Rule {
    let some = |text: &str| text.to_owned();
    let matches = Match { namespace: namespace.map(some), ..Match::default() };
    Rule { name: Some(some(name)), matches, provider: provider.map(some), ..Rule::default() }
}

/// A request is refused with this code and these words, and nothing is stored.
async fn expect_refused(rules: Vec<Rule>, new: NewKey, code: Code, words: &str) {
    let (store, volume_id) = (store(), new.volume_id.clone());
    let failure = service(&store, rules).create(new, soon()).await.expect_err(words);
    assert_eq!((rpc::code(failure.refusal()), told(&failure).as_str()), (code, words));
    assert!(store.get(&volume_id, soon()).await.expect("it answers").is_none(), "something is stored: {words}");
}

#[tokio::test]
async fn what_a_policy_forbids_is_a_precondition_that_fails_and_what_is_wrong_in_itself_an_invalid_argument() {
    let mandatory = || Rule { mandatory: true, ..rule("pay", Some("pay-*"), Some("main")) };
    let of_pay = || NewKey { tenant: Some("pay-1".to_owned()), ..new("vol-1") };
    expect_refused(
        vec![mandatory()],
        NewKey { provider: Some("other".to_owned()), ..of_pay() },
        Code::FailedPrecondition,
        "policy pay gives provider main, and provider other is asked for; the policy is mandatory: take that out of the \
         StorageClass",
    )
    .await;
    expect_refused(
        vec![Rule { context: pairs(&[("team", "blue")]), ..mandatory() }],
        NewKey { context: pairs(&[("team", "red")]), ..of_pay() },
        Code::FailedPrecondition,
        "policy pay gives context team=blue, and team=red is asked for; the policy is mandatory: take that out of the \
         StorageClass",
    )
    .await;
    expect_refused(
        Vec::new(),
        NewKey { provider: Some("nobody".to_owned()), ..of_pay() },
        Code::InvalidArgument,
        "provider \"nobody\" is not configured; there are: main, other, rsa",
    )
    .await;
    expect_refused(
        Vec::new(),
        NewKey { context: pairs(&[("volume", "x")]), ..of_pay() },
        Code::InvalidArgument,
        "context key \"volume\" is reserved",
    )
    .await;
}

#[tokio::test]
async fn a_policy_for_a_namespace_is_not_got_around_by_a_request_without_one() {
    let mandatory = || Rule { mandatory: true, ..rule("pay", Some("pay-*"), Some("main")) };
    expect_refused(
        vec![mandatory()],
        NewKey { provider: Some("other".to_owned()), ..new("vol-1") },
        Code::FailedPrecondition,
        "policy pay goes by the claim's namespace, which is not known; run external-provisioner with \
         --extra-create-metadata, which passes it on",
    )
    .await;
    // A rule before it that needs no namespace, and a claim that is not the rule's.
    let free = Rule { matches: Match { storage_class: Some("lab".to_owned()), ..Match::default() }, ..Rule::default() };
    let (store, lab) = (store(), NewKey { storage_class: Some("lab".to_owned()), ..new("vol-lab") });
    let ruled = service(&store, vec![free, mandatory()]);
    ruled.create(lab, soon()).await.expect("the first rule is for it");
    let shop = NewKey { tenant: Some("shop".to_owned()), ..new("vol-shop") };
    ruled.create(shop, soon()).await.expect("no rule is for it");

    // What was made before there was such a rule stays readable.
    let before = service(&store, Vec::new());
    let old = NewKey { provider: Some("other".to_owned()), ..new("vol-old") };
    before.create(old, soon()).await.expect("a new key");
    ruled.get(&id("vol-old"), soon()).await.expect("its record knows no namespace");
}

#[tokio::test]
async fn a_context_that_a_kek_does_not_take_is_refused_whoever_adds_it() {
    let kek = providers().kek("rsa", soon()).await.expect("a KEK").id;
    let words = |keys: &str| {
        format!(
            "KEK {kek} of provider rsa wraps by rsa-oaep-256, which takes no context, and volume vol-1 has one ({keys}); \
             take context out of the StorageClass, the policy or the provider that adds it (each key stays bound to its \
             volume by Coffer itself), or name a symmetric KEK"
        )
    };
    let on_rsa = || NewKey { provider: Some("rsa".to_owned()), ..new("vol-1") };
    let of_class = NewKey { context: pairs(&[("team", "blue")]), ..on_rsa() };
    expect_refused(Vec::new(), of_class, Code::FailedPrecondition, &words("team")).await;
    let of_policy = Rule { context: pairs(&[("site", "a"), ("tier", "gold")]), ..rule("all", None, None) };
    expect_refused(vec![of_policy], on_rsa(), Code::FailedPrecondition, &words("site, tier")).await;
    let store = store();
    service(&store, Vec::new()).create(on_rsa(), soon()).await.expect("without a context");
    service(&store, Vec::new()).get(&id("vol-1"), soon()).await.expect("it opens");
}

#[tokio::test]
async fn a_key_with_a_context_moves_to_a_kek_that_takes_none_and_keeps_it() {
    let store = store();
    let with_context = NewKey { context: pairs(&[("team", "blue")]), ..new("vol-1") };
    service(&store, Vec::new()).create(with_context, soon()).await.expect("a new key");
    let stored = store.get(&id("vol-1"), soon()).await.expect("it answers").expect("it is there");
    let moved = providers().rewrap(&stored.record, "rsa", Given::default(), soon()).await.expect("it moves");
    let (key, dek) = moved;
    assert_eq!(key.kek_mechanism(), Some(KekMechanism::RsaOaep256));
    let mut record = stored.record.clone();
    (record.provider, record.key) = ("rsa".to_owned(), Some(key));
    record.authenticate(&dek);
    store.replace(&record, stored.version, soon()).await.expect("replaced");
    service(&store, Vec::new()).get(&id("vol-1"), soon()).await.expect("it opens");
    assert_eq!(record.context, pairs(&[("team", "blue")]));
    assert!(matches!(record.key, Some(StoredKey::Wrapped { .. })));
}

#[tokio::test]
async fn a_key_whose_provider_is_gone_says_which_and_what_to_do() {
    let store = store();
    let on_other = NewKey { provider: Some("other".to_owned()), ..new("vol-1") };
    service(&store, Vec::new()).create(on_other, soon()).await.expect("a new key");
    let mut left = providers();
    left.by_name.remove("other");
    let after = Embedded::new(CLUSTER, left, store.clone());
    let failure = after.get(&id("vol-1"), soon()).await.expect_err("its provider is gone");
    assert!(matches!(failure, KeyFailure::NoProvider { .. }) && failure.refusal() == Refusal::State, "{failure:?}");
    assert_eq!(
        failure.to_string(),
        "the key of volume vol-1 is of provider other, which is not configured (there are: main, rsa); configure it again \
         as it was; to do without it for good, move its records while it is there: coffer rewrap --from other --to OTHER"
    );
    // What needs no key goes on.
    after.describe(&id("vol-1"), soon()).await.expect("it is described").expect("it is there");
    after.destroy(&id("vol-1"), 1, soon()).await.expect("it is destroyed");
}
