//! The KEKs with which providers wrap now, each asked for once, and how records stand to them.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;

use crate::{
    admin::Place,
    exec::Deadline,
    key::{
        kms::{Kek, settings::KeyScope},
        policy::{self, Rule},
        providers::{Provider, Providers},
        record::{Record, StoredKey},
        service::{KeyFailure, KeyInfo},
    },
};

/// How long a KMS may take to describe a KEK.
const ASK_TIME: Duration = Duration::from_secs(30);

/// What a provider wraps with now.
#[derive(Debug)]
pub(crate) enum Wraps {
    /// One KEK for all volumes.
    With(Kek),
    /// A KEK for each StorageClass or namespace: which one, is known only where a volume is.
    ByScope(KeyScope),
    /// The KMS could not be asked, or the KEK cannot be used.
    Failed(KeyFailure),
}

/// How a record's wrapping stands to the KEK with which its provider wraps now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is under that KEK.
    Current,
    /// It is under another one.
    Older,
    /// That KEK is not known.
    NotKnown,
}

/// What providers wrap with now, by their names.
#[derive(Debug)]
pub(crate) struct Currents {
    by_name: BTreeMap<String, Wraps>,
    policies: Vec<Rule>,
}

impl Currents {
    /// Asks the providers that are wanted, all at once.
    pub(crate) async fn ask(place: &Place, wanted: impl Fn(&str) -> bool) -> Self {
        let providers = &place.providers;
        let wanted = providers.by_name.iter().filter(|(name, _)| wanted(name));
        let asked =
            wanted.map(|(name, provider)| async move { (name.clone(), wraps(providers, name, provider).await) });
        Self { by_name: join_all(asked).await.into_iter().collect(), policies: place.policies.clone() }
    }

    /// What a provider wraps with; none where it was not asked.
    pub(crate) fn of(&self, provider: &str) -> Option<&Wraps> {
        self.by_name.get(provider)
    }

    /// How a record stands to the KEK of its own provider.
    pub(crate) fn standing(&self, record: &Record) -> Standing {
        let given = policy::given(&self.policies, record, &record.provider);
        let role = record.key.as_ref().and_then(StoredKey::role);
        if role != given.role {
            return Standing::Older;
        }
        let Some(Wraps::With(kek)) = self.of(&record.provider) else { return Standing::NotKnown };
        // What the provider itself wraps with says nothing of these.
        if role.is_some() || record.key_id.is_some() || given.key_id.is_some() {
            return Standing::NotKnown;
        }
        let mechanism = record.key.as_ref().and_then(StoredKey::kek_mechanism);
        let is_current = KeyInfo::from(record).kek_id == kek.id && mechanism.is_none_or(|used| used == kek.mechanism);
        if is_current { Standing::Current } else { Standing::Older }
    }
}

async fn wraps(providers: &Providers, name: &str, provider: &Provider) -> Wraps {
    match provider {
        Provider::Kms(kms) if kms.scope != KeyScope::Key => Wraps::ByScope(kms.scope),
        Provider::Kms(_) | Provider::Cluster(_) => {
            providers.kek(name, Deadline::within(ASK_TIME)).await.map_or_else(Wraps::Failed, Wraps::With)
        }
    }
}
