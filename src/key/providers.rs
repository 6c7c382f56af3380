//! Providers: who holds a KEK, and how each makes a key, opens one, and takes one over.

use std::{collections::BTreeMap, fmt, sync::Arc};

use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::{
    exec::Deadline,
    key::{
        access::SettingsFault,
        binding::Binding,
        cluster::ClusterKeys,
        derive,
        envelope::{self, Envelope, Kept},
        kms::{Kek, Kms, KmsFailure, settings::KeyScope},
        policy::Given,
        record::{AwsRole, Base64, Derivation, KekMechanism, Record, StoredKey, random_salt},
        roles::Roles,
        service::{KeyFailure, NewKey, Refusal},
    },
    secret::Dek,
};

/// Who holds a KEK.
pub enum Provider {
    /// We do: DEKs are derived from the cluster key and never stored.
    Cluster(ClusterKeys),
    /// A KMS does: DEKs are random, and stored wrapped.
    Kms(KmsProvider),
}

/// What to do where a volume's class or namespace is not known.
const SAY_CLASS: &str = "name the class in its own parameter storageClass";
const SAY_NAMESPACE: &str = "run external-provisioner with --extra-create-metadata, which passes it on";

/// A KMS, and which of its KEKs a volume gets.
pub struct KmsProvider {
    /// What the configuration calls its type.
    pub type_name: &'static str,
    /// The KMS.
    pub kms: Arc<dyn Kms>,
    /// Which KEK a volume gets.
    pub scope: KeyScope,
    /// Begins the alias of KEKs that are made for a scope.
    pub key_prefix: String,
    /// Goes into the context of every key.
    pub context: BTreeMap<String, String>,
    /// The same KMS, as roles reach it.
    pub roles: Roles,
}

impl fmt::Debug for KmsProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KmsProvider")
            .field("type_name", &self.type_name)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

impl KmsProvider {
    /// A KMS with one KEK and no context of its own.
    #[must_use]
    pub fn new(kms: Arc<dyn Kms>) -> Self {
        let (scope, roles) = (KeyScope::Key, Roles::none());
        Self { type_name: "kms", kms, scope, key_prefix: String::new(), context: BTreeMap::new(), roles }
    }

    /// The KMS, in a role or as the provider itself.
    async fn reached(&self, role: Option<&AwsRole>) -> Result<Arc<dyn Kms>, SettingsFault> {
        match role {
            None => Ok(self.kms.clone()),
            Some(role) => self.roles.reach(role).await,
        }
    }

    /// A DEK under the KEK that a volume gets, reached in a role or as the provider itself.
    async fn wrap(
        &self,
        name: &str,
        new: &NewKey,
        role: Option<&AwsRole>,
        dek: &Dek,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<StoredKey, KeyFailure> {
        let kms = self.reached(role).await.map_err(|fault| KeyFailure::Kms {
            provider: name.to_owned(),
            refusal: Refusal::State,
            source: fault.into(),
        })?;
        let kek = self.kek(name, new, kms.as_ref(), binding.cluster_id, deadline).await?;
        let wrapped = envelope::wrap(dek, binding, kms.as_ref(), kek.as_deref(), deadline).await;
        Ok(wrapped.map_err(|failure| kms_failure(name, failure))?.in_role(role.cloned()))
    }

    /// The KEK for a volume, made where it is missing; none for the configured one.
    async fn kek(
        &self,
        name: &str,
        new: &NewKey,
        kms: &dyn Kms,
        cluster_id: Uuid,
        deadline: Deadline,
    ) -> Result<Option<String>, KeyFailure> {
        let named = |what: &str, value: &Option<String>, remedy: &str| {
            value.clone().ok_or_else(|| {
                KeyFailure::Forbidden(format!(
                    "provider {name} has a key for each {what}, and the {what} of volume {} is not known; {remedy}",
                    new.volume_id
                ))
            })
        };
        let whose = match self.scope {
            _ if new.key_id.is_some() => return Ok(new.key_id.clone()),
            KeyScope::Key => return Ok(None),
            KeyScope::Class => format!("class-{}", named("StorageClass", &new.storage_class, SAY_CLASS)?),
            KeyScope::Namespace => named("namespace", &new.tenant, SAY_NAMESPACE)?,
        };
        // A DNS name has dots, an alias has none; no DNS name has an underscore.
        let alias = format!("alias/{}-{cluster_id}-{}", self.key_prefix, whose.replace('.', "_"));
        kms.ensure(&alias, deadline).await.map_err(|failure| kms_failure(name, failure))?;
        Ok(Some(alias))
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.type_name())
    }
}

impl Provider {
    /// What the configuration calls its type.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Cluster(_) => "cluster-key",
            Self::Kms(provider) => provider.type_name,
        }
    }
}

/// The providers of a configuration, by name.
#[derive(Debug)]
pub struct Providers {
    /// Every provider that records may name.
    pub by_name: BTreeMap<String, Provider>,
    /// The one for new volumes.
    pub default: String,
}

impl Providers {
    /// The context that a new key of a provider gets: the provider's own, and what was asked for over it.
    ///
    /// # Errors
    /// There is no such provider.
    pub fn context(
        &self,
        name: &str,
        asked: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, KeyFailure> {
        let mut context = match self.find(name)? {
            Provider::Cluster(_) => BTreeMap::new(),
            Provider::Kms(provider) => provider.context.clone(),
        };
        context.extend(asked.clone());
        Ok(context)
    }

    /// A new key for a binding, by the provider of a name, with the way to it. Its KEK may be reached in a role.
    ///
    /// # Errors
    /// There is no such provider, its KEK takes no context and there is one, or its KMS refuses or cannot be asked.
    pub async fn make(
        &self,
        name: &str,
        new: &NewKey,
        role: Option<&AwsRole>,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<(StoredKey, Dek), KeyFailure> {
        match self.find(name)? {
            Provider::Cluster(keys) => {
                if let Some(key_id) = &new.key_id {
                    return Err(KeyFailure::Invalid(format!(
                        "provider {name} is a cluster key and has no key {key_id}; take keyId out"
                    )));
                }
                let (cluster_key_version, version) = keys.current();
                let salt = random_salt();
                let dek = derive::volume_dek(&version.key, &salt, binding);
                let mechanism = Derivation::CofferV1;
                Ok((StoredKey::Derived { mechanism, cluster_key_version, salt: Base64::new(salt) }, dek))
            }
            Provider::Kms(provider) => {
                let dek = Dek::random();
                let key = provider.wrap(name, new, role, &dek, binding, deadline).await?;
                expect_context_taken(name, &key, binding)?;
                Ok((key, dek))
            }
        }
    }

    /// The DEK that a record leads to. The record's MAC is not checked here.
    ///
    /// # Errors
    /// The record's provider is gone or another, the KEK does not open the key, or the KMS cannot be asked.
    pub async fn open(&self, record: &Record, kept: Kept, deadline: Deadline) -> Result<Dek, KeyFailure> {
        let (name, binding) = (&record.provider, record.binding());
        let refused = |source: Box<dyn std::error::Error + Send + Sync>| KeyFailure::Unwrap {
            volume_id: record.volume_id.clone(),
            provider: name.clone(),
            source,
        };
        let Some(key) = &record.key else { return Err(KeyFailure::Destroyed(record.volume_id.clone())) };
        // The record is sound; it is the configuration that lacks what it needs.
        let provider = self.by_name.get(name).ok_or_else(|| KeyFailure::NoProvider {
            volume_id: record.volume_id.clone(),
            provider: name.clone(),
            known: self.known(),
        })?;
        match (provider, key) {
            (Provider::Cluster(keys), StoredKey::Derived { mechanism, cluster_key_version, salt }) => {
                let missing = || refused(format!("cluster key version {cluster_key_version} is not there").into());
                let version = keys.version(*cluster_key_version).ok_or_else(missing)?;
                match mechanism {
                    Derivation::CofferV1 => {
                        let salt = salt.exactly().ok_or_else(|| refused("its salt is not 32 bytes".into()))?;
                        Ok(derive::volume_dek(&version.key, &salt, &binding))
                    }
                    Derivation::ConstellationV1 => {
                        Ok(derive::constellation_dek(&version.key, &version.salt, record.luks_uuid))
                    }
                }
            }
            (
                Provider::Kms(provider),
                StoredKey::Wrapped { mechanism: _, kek_id, kek_mechanism, role, nonce, wrapped_dek, wrapped_inner_key },
            ) => {
                let kms = provider.reached(role.as_ref()).await.map_err(|fault| refused(fault.into()))?;
                let kek_mechanism = *kek_mechanism;
                let envelope = Envelope { kek_id, kek_mechanism, nonce, wrapped_dek, wrapped_inner_key };
                let opened = envelope::unwrap(envelope, &binding, kept, kms.as_ref(), deadline).await;
                opened.map_err(|failure| match failure {
                    KmsFailure::NoSuchKek { .. } | KmsFailure::Mismatch => refused(failure.into()),
                    failure => kms_failure(name, failure),
                })
            }
            (Provider::Cluster(_), StoredKey::Wrapped { .. }) | (Provider::Kms(_), StoredKey::Derived { .. }) => {
                Err(refused("the provider of that name is of another type than when the key was made".into()))
            }
        }
    }

    /// The same DEK under the KEK with which a provider wraps now, or under one of its KEKs and in a role that are given;
    /// opened again and compared. A context that the KEK does not take stays what Coffer itself binds the key to.
    ///
    /// # Errors
    /// As [`Providers::open`] and [`Providers::make`]; and a cluster key takes no DEK that it has not derived.
    pub async fn rewrap(
        &self,
        record: &Record,
        to: &str,
        given: Given<'_>,
        deadline: Deadline,
    ) -> Result<(StoredKey, Dek), KeyFailure> {
        let Provider::Kms(provider) = self.find(to)? else {
            return Err(KeyFailure::Invalid(format!(
                "provider {to} derives its keys and cannot take one over; name a provider that wraps"
            )));
        };
        let dek = self.open(record, Kept::Stored, deadline).await?;
        // A record that was changed must not get a new MAC over its changes.
        record.verify(&dek).map_err(|source| KeyFailure::Record { volume_id: record.volume_id.clone(), source })?;
        let new = NewKey {
            volume_id: record.volume_id.clone(),
            name: record.name.clone(),
            parameters: record.parameters.clone(),
            node: record.node.clone(),
            tenant: record.tenant.clone(),
            storage_class: record.storage_class.clone(),
            claim: record.claim.clone(),
            provider: Some(to.to_owned()),
            key_id: given.key_id.map(str::to_owned),
            context: record.context.clone(),
        };
        let key = provider.wrap(to, &new, given.role, &dek, &record.binding(), deadline).await?;
        let moved = Record { provider: to.to_owned(), key: Some(key.clone()), ..record.clone() };
        self.expect_same(&moved, &dek, deadline).await?;
        Ok((key, dek))
    }

    /// Opens a record that is not stored yet, and compares.
    ///
    /// # Errors
    /// It does not open, or leads to another DEK.
    pub async fn expect_same(&self, record: &Record, dek: &Dek, deadline: Deadline) -> Result<(), KeyFailure> {
        let again = self.open(record, Kept::New, deadline).await?;
        if bool::from(again.expose_secret().ct_eq(dek.expose_secret())) {
            return Ok(());
        }
        let what = "what was wrapped does not unwrap to the same key";
        Err(kms_failure(&record.provider, KmsFailure::garbled("the KMS", what)))
    }

    /// The KEK with which a provider makes new keys now.
    ///
    /// # Errors
    /// There is no such provider, its KEK cannot be used, or its KMS cannot be asked.
    pub async fn kek(&self, name: &str, deadline: Deadline) -> Result<Kek, KeyFailure> {
        match self.find(name)? {
            Provider::Cluster(keys) => {
                Ok(Kek { id: format!("cluster-key:v{}", keys.current().0), mechanism: KekMechanism::Symmetric })
            }
            Provider::Kms(provider) => {
                provider.kms.describe(None, deadline).await.map_err(|failure| kms_failure(name, failure))
            }
        }
    }

    /// The KMSs that rotate a KEK of their provider by themselves if they are asked to, by the provider's name.
    #[must_use]
    pub fn rotating(&self) -> Vec<(String, Arc<dyn Kms>)> {
        let kms = |(name, provider): (&String, &Provider)| match provider {
            Provider::Kms(KmsProvider { kms, scope: KeyScope::Key, .. }) if kms.rotation_periods(None).is_ok() => {
                Some((name.clone(), kms.clone()))
            }
            Provider::Kms(_) | Provider::Cluster(_) => None,
        };
        self.by_name.iter().filter_map(kms).collect()
    }

    fn find(&self, name: &str) -> Result<&Provider, KeyFailure> {
        self.by_name.get(name).ok_or_else(|| {
            KeyFailure::Invalid(format!("provider {name:?} is not configured; there are: {}", self.known()))
        })
    }

    fn known(&self) -> String {
        self.by_name.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
    }
}

/// Refuses a context that a new key's KEK does not take: whoever asks for one counts on the KMS to ask for it again.
fn expect_context_taken(provider: &str, key: &StoredKey, binding: &Binding<'_>) -> Result<(), KeyFailure> {
    let StoredKey::Wrapped { kek_id, kek_mechanism, .. } = key else { return Ok(()) };
    if kek_mechanism.takes_context() || binding.context.is_empty() {
        return Ok(());
    }
    let (mechanism, keys) = (kek_mechanism.as_str(), binding.context.keys().map(String::as_str).collect::<Vec<_>>());
    Err(KeyFailure::Forbidden(format!(
        "KEK {kek_id} of provider {provider} wraps by {mechanism}, which takes no context, and volume {} has one ({}); \
         take context out of the StorageClass, the policy or the provider that adds it (each key stays bound to its \
         volume by Coffer itself), or name a symmetric KEK",
        binding.volume_id,
        keys.join(", ")
    )))
}

fn kms_failure(provider: &str, failure: KmsFailure) -> KeyFailure {
    KeyFailure::Kms { provider: provider.to_owned(), refusal: failure.refusal(), source: failure.into() }
}
