//! Who holds the KEK of each record, beside who would hold that of a new one: old providers and old keys.

use std::collections::BTreeMap;

use crate::{
    admin::{
        Place,
        inventory::finding::{Finding, Found, Kind, Unseen},
        keys::current::{Currents, Standing, Wraps},
    },
    key::{
        kms::settings::KeyScope,
        policy::{self, Claim},
        providers::Provider,
        record::{Record, StoredKey},
        service::KeyInfo,
    },
    server::rpc,
};

/// Adds what is found of the providers and KEKs of records that have a key.
pub(super) fn held(place: &Place, currents: &Currents, records: &[Record], found: &mut Found) {
    let mut not_known: BTreeMap<&str, usize> = BTreeMap::new();
    let own = records.iter().filter(|record| record.key.is_some() && record.cluster_id == place.cluster_id);
    for record in own {
        if !place.providers.by_name.contains_key(&record.provider) {
            found.findings.push(missing(place, record));
            continue;
        }
        found.findings.extend(other(place, record));
        match currents.standing(record) {
            Standing::Current => {}
            Standing::Older => found.findings.push(old(place, currents, record)),
            Standing::NotKnown => *not_known.entry(&record.provider).or_default() += 1,
        }
    }
    for (provider, count) in not_known {
        found.unseen.push(unknown(provider, count, currents.of(provider)));
    }
}

/// A provider that is not configured any more.
fn missing(place: &Place, record: &Record) -> Finding {
    let (provider, default) = (&record.provider, &place.providers.default);
    let what = format!("provider {provider} is not configured, and KEK {} is its own", KeyInfo::from(record).kek_id);
    let next = if derives(place, default) {
        format!("configure {provider} again: without it the volume does not open")
    } else {
        format!(
            "configure {provider} again, without which the volume does not open; then move the key: coffer rewrap --from \
             {provider} --to {default}"
        )
    };
    Finding::of(Kind::ProviderMissing, record.volume_id.as_str(), what, next)
}

/// A provider that a new key of the same claim would not get: the policy gives another, and lets no class differ; or
/// another is given to whoever asks for none.
fn other(place: &Place, record: &Record) -> Option<Finding> {
    let (provider, id) = (&record.provider, record.volume_id.as_str());
    let rule = policy::applying(&place.policies, &Claim::of(record));
    let given = rule.and_then(|(at, rule)| Some((at, rule, rule.provider.as_deref()?)));
    let (kind, wanted, what) = match given {
        Some((at, rule, wanted)) if rule.mandatory || !rule.allow_override => {
            let what = format!("provider {provider} holds it, and policy {} gives {wanted}", rule.label(at));
            (Kind::ProviderNotPolicys, wanted, what)
        }
        given => {
            let wanted = given.map_or(place.providers.default.as_str(), |(_, _, wanted)| wanted);
            let what = format!("provider {provider} holds it, and a new volume of its claim gets {wanted}");
            (Kind::ProviderNotDefault, wanted, what)
        }
    };
    if wanted == provider {
        return None;
    }
    let next = match (kind, derives(place, wanted)) {
        (Kind::ProviderNotPolicys, true) => {
            format!(
                "{wanted} is a cluster key, which takes over no key: change the policy, or copy the data to a new volume"
            )
        }
        (Kind::ProviderNotPolicys, false) => format!("coffer rewrap --volume {id} --to {wanted}"),
        (_, true) => format!("nothing: {wanted} is a cluster key, which takes over no key"),
        (_, false) => format!("unless its StorageClass asks for {provider}: coffer rewrap --volume {id} --to {wanted}"),
    };
    Some(Finding::of(kind, id, what, next))
}

/// A KEK, or a version of the cluster key, that wraps nothing new.
fn old(place: &Place, currents: &Currents, record: &Record) -> Finding {
    let (provider, kek_id) = (&record.provider, KeyInfo::from(record).kek_id);
    let now = match currents.of(provider) {
        Some(Wraps::With(kek)) => kek.id.as_str(),
        Some(Wraps::ByScope(_) | Wraps::Failed(_)) | None => "another",
    };
    let next = match &record.key {
        Some(StoredKey::Derived { .. }) => {
            let wraps = place.providers.by_name.keys().find(|name| !derives(place, name));
            let to = wraps.map_or("PROVIDER", String::as_str);
            format!(
                "keep this version in the cluster key's file; a provider that wraps can take the key over: coffer rewrap \
                 --from {provider} --to {to}"
            )
        }
        Some(StoredKey::Wrapped { .. }) | None => format!("coffer rewrap --from {provider}"),
    };
    let what = format!("it is under KEK {kek_id} of {provider}, which wraps with {now} now");
    Finding::of(Kind::OldKey, record.volume_id.as_str(), what, next)
}

/// Records of which nobody can say whether their KEK is the one that wraps now.
fn unknown(provider: &str, count: usize, wraps: Option<&Wraps>) -> Unseen {
    let compares = format!("coffer rewrap --from {provider} compares each, and passes over what is current");
    let (why, is_failure) = match wraps {
        Some(Wraps::Failed(failure)) => (rpc::message(failure), true),
        Some(Wraps::ByScope(KeyScope::Namespace)) => {
            (format!("each namespace has a KEK of its own; {compares}"), false)
        }
        Some(Wraps::ByScope(KeyScope::Class | KeyScope::Key)) => {
            (format!("each StorageClass has a KEK of its own; {compares}"), false)
        }
        Some(Wraps::With(_)) | None => (format!("their class or a policy names the KEK; {compares}"), false),
    };
    let what = format!("whether {count} keys of provider {provider} are under its newest KEK");
    Unseen { what, why, is_failure }
}

/// Whether a provider derives its keys, and so can take over none.
fn derives(place: &Place, provider: &str) -> bool {
    matches!(place.providers.by_name.get(provider), Some(Provider::Cluster(_)))
}

#[cfg(test)]
pub(super) mod tests {
    use std::{sync::Arc, time::Duration};

    use uuid::Uuid;

    use super::*;
    use crate::{
        exec::Deadline,
        key::{
            embedded::Embedded,
            kms::local::Local,
            policy::{Match, Rule},
            providers::{KmsProvider, Providers},
            service::{KeyService, NewKey},
            store::{DekStore, memory::Memory},
        },
        secret::LocalKek,
        volume::{Content, Parameters},
    };

    pub(crate) const CLUSTER: Uuid = Uuid::from_u128(1);

    /// Providers by their names, each with a KEK of this byte. The first is the default.
    fn providers(of: &[(&str, u8)]) -> Providers {
        let wraps = |byte: u8| {
            let local = Local::new(LocalKek::born(|kek| kek.fill(byte)));
            Provider::Kms(KmsProvider::new(Arc::new(local)))
        };
        let by_name = of.iter().map(|(name, byte)| ((*name).to_owned(), wraps(*byte))).collect();
        Providers { by_name, default: of.first().map(|(name, _)| (*name).to_owned()).unwrap_or_default() }
    }

    /// A record of state prepared, under a provider of this name with a KEK of this byte.
    pub(crate) async fn record(volume_id: &str, provider: (&str, u8)) -> Record {
        let store: Arc<dyn DekStore> = Arc::new(Memory::default());
        let service = Embedded::new(CLUSTER, providers(&[provider]), store.clone());
        let new = NewKey {
            volume_id: volume_id.parse().expect("an id"),
            name: volume_id.to_owned(),
            parameters: Parameters::of(Content::Block),
            node: None,
            tenant: Some("shop".to_owned()),
            storage_class: None,
            claim: None,
            provider: None,
            key_id: None,
            context: BTreeMap::new(),
        };
        let soon = Deadline::within(Duration::from_secs(30));
        service.create(new, soon).await.expect("a new key");
        store.get(&volume_id.parse().expect("an id"), soon).await.expect("it answers").expect("it is there").record
    }

    async fn found(providers: Providers, policies: Vec<Rule>, records: &[Record]) -> Found {
        let place =
            Place { cluster_id: CLUSTER, providers, store: Arc::new(Memory::default()), policies, trials: Vec::new() };
        let (currents, mut found) = (Currents::ask(&place, |_| true).await, Found::default());
        held(&place, &currents, records, &mut found);
        found
    }

    fn told(found: &Found) -> Vec<(Kind, &str)> {
        found.findings.iter().map(|finding| (finding.kind, finding.next.as_str())).collect()
    }

    #[tokio::test]
    async fn each_key_is_held_against_the_provider_that_a_new_one_would_get() {
        let records = [record("v-a", ("a", 1)).await, record("v-b", ("b", 2)).await];
        let all = || providers(&[("a", 1), ("b", 2)]);
        let moves = "unless its StorageClass asks for b: coffer rewrap --volume v-b --to a";
        let default = found(all(), Vec::new(), &records).await;
        assert_eq!(told(&default), [(Kind::ProviderNotDefault, moves)]);
        assert!(default.unseen.is_empty() && default.findings[0].kind.is_note(), "{default:?}");

        let matches = Match { namespace: Some("shop".to_owned()), ..Match::default() };
        let rule = Rule { matches, provider: Some("b".to_owned()), ..Rule::default() };
        let strict = found(all(), vec![rule.clone()], &records).await;
        assert_eq!(told(&strict), [(Kind::ProviderNotPolicys, "coffer rewrap --volume v-a --to b")]);
        assert!(strict.findings[0].what.contains("policy policies[0] gives b"), "{strict:?}");
        let open = found(all(), vec![Rule { allow_override: true, ..rule.clone() }], &records).await;
        assert_eq!(open.findings[0].kind, Kind::ProviderNotDefault, "a class may have asked for it");
        let mandatory = Rule { allow_override: true, mandatory: true, ..rule };
        assert_eq!(found(all(), vec![mandatory], &records).await.findings[0].kind, Kind::ProviderNotPolicys);
    }

    #[tokio::test]
    async fn a_provider_that_is_gone_and_a_kek_that_is_old_are_told_with_what_to_do() {
        let records = [record("v-a", ("a", 1)).await, record("v-b", ("b", 2)).await];
        // b is gone, and a wraps with another KEK.
        let found = found(providers(&[("a", 9)]), Vec::new(), &records).await;
        let [old, missing] = found.findings.as_slice() else { panic!("{found:?}") };
        assert_eq!((old.kind, old.next.as_str()), (Kind::OldKey, "coffer rewrap --from a"));
        assert_eq!((missing.kind, missing.volume_id.as_deref()), (Kind::ProviderMissing, Some("v-b")));
        assert!(missing.next.contains("coffer rewrap --from b --to a"), "{missing:?}");
    }

    #[tokio::test]
    async fn what_nobody_can_say_of_a_kek_is_told_and_no_failure() {
        let mut named = record("v-a", ("a", 1)).await;
        named.key_id = Some("another".to_owned());
        let found = found(providers(&[("a", 1)]), Vec::new(), &[named]).await;
        assert!(found.findings.is_empty(), "{found:?}");
        let [unseen] = found.unseen.as_slice() else { panic!("{found:?}") };
        assert!(!unseen.is_failure && unseen.why.contains("compares each"), "{unseen:?}");
    }
}
