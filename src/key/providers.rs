//! Providers: who holds a KEK, and how each makes a key and opens one.

use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::{
    exec::Deadline,
    key::{
        binding::Binding,
        cluster::ClusterKeys,
        derive,
        envelope::{self, Envelope},
        kms::{Kms, KmsFailure},
        record::{Base64, Derivation, Record, StoredKey, random_salt},
        service::KeyFailure,
    },
    secret::Dek,
};

/// Who holds a KEK.
pub enum Provider {
    /// We do: DEKs are derived from the cluster key and never stored.
    Cluster(ClusterKeys),
    /// A KMS does: DEKs are random, and stored wrapped.
    Kms(Arc<dyn Kms>),
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster(_) => "Cluster",
            Self::Kms(_) => "Kms",
        })
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
    /// A new key for a binding, by the provider of a name, with the way to it.
    ///
    /// # Errors
    /// There is no such provider, or its KMS refuses or cannot be asked.
    pub async fn make(
        &self,
        name: &str,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<(StoredKey, Dek), KeyFailure> {
        match self.find(name)? {
            Provider::Cluster(keys) => {
                let (cluster_key_version, version) = keys.current();
                let salt = random_salt();
                let dek = derive::volume_dek(&version.key, &salt, binding);
                let mechanism = Derivation::CofferV1;
                Ok((StoredKey::Derived { mechanism, cluster_key_version, salt: Base64::new(salt) }, dek))
            }
            Provider::Kms(kms) => {
                let dek = Dek::random();
                let wrapped = envelope::wrap(&dek, binding, kms.as_ref(), deadline).await;
                let failed = |source: KmsFailure| KeyFailure::Kms { provider: name.to_owned(), source: source.into() };
                Ok((wrapped.map_err(failed)?, dek))
            }
        }
    }

    /// The DEK that a record leads to. The record's MAC is not checked here.
    ///
    /// # Errors
    /// The record's provider is gone or another, the KEK does not open the key, or the KMS cannot be asked.
    pub async fn open(&self, record: &Record, key: &StoredKey, deadline: Deadline) -> Result<Dek, KeyFailure> {
        let (name, binding) = (&record.provider, record.binding());
        let refused = |source: Box<dyn std::error::Error + Send + Sync>| KeyFailure::Unwrap {
            volume_id: record.volume_id.clone(),
            provider: name.clone(),
            source,
        };
        // The record is sound; it is the configuration that lacks what it needs.
        let provider = self.find(name).map_err(|missing| refused(missing.into()))?;
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
                Provider::Kms(kms),
                StoredKey::Wrapped { mechanism: _, kek_id, nonce, wrapped_dek, wrapped_inner_key },
            ) => {
                let envelope = Envelope { kek_id, nonce, wrapped_dek, wrapped_inner_key };
                envelope::unwrap(envelope, &binding, kms.as_ref(), deadline).await.map_err(|source| match source {
                    KmsFailure::NoSuchKek { .. } | KmsFailure::Mismatch => refused(source.into()),
                })
            }
            (Provider::Cluster(_), StoredKey::Wrapped { .. }) | (Provider::Kms(_), StoredKey::Derived { .. }) => {
                Err(refused("the provider of that name is of another type than when the key was made".into()))
            }
        }
    }

    fn find(&self, name: &str) -> Result<&Provider, KeyFailure> {
        self.by_name.get(name).ok_or_else(|| {
            let known: Vec<_> = self.by_name.keys().map(String::as_str).collect();
            KeyFailure::Invalid(format!("provider {name:?} is not configured; there are: {}", known.join(", ")))
        })
    }
}
