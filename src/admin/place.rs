//! What a configuration or a state folder opens: providers, and the store of records.

use std::{fmt, sync::Arc, time::Duration};

use futures::FutureExt;
use uuid::Uuid;

#[cfg(feature = "kubernetes")]
use crate::key::store::kubernetes::VolumeKeys;
use crate::{
    admin::{StateDir, keys},
    config::{
        Faults,
        file::{FileConfig, KmsConfig, ProviderConfig},
    },
    exec::Deadline,
    key::{
        access::SettingsFault,
        cluster::ClusterKeys,
        kms::{
            self, Kms,
            guarded::Guarded,
            settings::{AwsKms, Common, KeyScope, Validate},
        },
        policy::Rule,
        providers::{KmsProvider, Provider, Providers},
        record::AwsRole,
        roles::Roles,
        store::{self, DekStore, StoreFailure, filesystem::Filesystem, object::Objects},
    },
    server::rpc,
};

/// The name of the provider of a state folder's own cluster key.
const CLUSTER_PROVIDER: &str = "cluster";
/// How long a KEK or a store may take to show that it is well, before anything is served.
const TRIAL_TIME: Duration = Duration::from_secs(30);

/// Providers and a store.
pub struct Place {
    /// The installation.
    pub cluster_id: Uuid,
    /// Who holds KEKs.
    pub providers: Providers,
    /// Where records lie.
    pub store: Arc<dyn DekStore>,
    /// Which provider, KEK, role and context a volume gets.
    pub policies: Vec<Rule>,
    /// What is still to be tried.
    pub trials: Vec<Trial>,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("cluster_id", &self.cluster_id).finish_non_exhaustive()
    }
}

/// Something that may be away when the program starts.
pub enum Trial {
    /// A provider's KEK.
    Kek {
        /// The provider.
        provider: String,
        /// The same.
        guarded: Arc<Guarded>,
        /// Nothing is to be served before it is well.
        at_start: bool,
    },
    /// A store of objects.
    Store(Arc<Objects>),
    /// A store of custom resources.
    #[cfg(feature = "kubernetes")]
    VolumeKeys(Arc<VolumeKeys>),
}

impl fmt::Debug for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kek { .. } => "Kek",
            Self::Store(_) => "Store",
            #[cfg(feature = "kubernetes")]
            Self::VolumeKeys(_) => "VolumeKeys",
        })
    }
}

impl Trial {
    /// Tries it, and says in the log what came of it.
    pub async fn run(self) {
        let deadline = Deadline::within(TRIAL_TIME);
        match self {
            Self::Kek { provider, guarded, .. } => match guarded.validate(deadline).await {
                Ok(()) => tracing::info!(provider, "the KEK wraps and unwraps"),
                Err(failure) => tracing::warn!(provider, error = text(failure), "the KEK cannot be used"),
            },
            Self::Store(objects) => match objects.check(deadline).await {
                Ok(()) => tracing::info!(store = ?objects, "the store honours preconditions"),
                Err(failure) => tracing::warn!(store = ?objects, error = text(failure), "the store cannot be used"),
            },
            #[cfg(feature = "kubernetes")]
            Self::VolumeKeys(keys) => match keys.check(deadline).await {
                Ok(()) => tracing::info!(store = ?keys, "the store answers"),
                Err(failure) => tracing::warn!(store = ?keys, error = text(failure), "the store cannot be used"),
            },
        }
    }
}

impl Place {
    /// What a configuration file opens. Where the file names no store, records lie in the state folder, if there is one.
    ///
    /// # Errors
    /// Everything that is wrong with keys, files and folders. Nothing is asked of any network yet.
    pub async fn of_config(config: &FileConfig, state_dir: Option<&StateDir>) -> Result<Self, Faults> {
        let (mut faults, mut trials) = (Faults::default(), Vec::new());
        let (mut cluster_id, mut by_name) = (config.cluster_id, std::collections::BTreeMap::new());
        // The cluster key comes first: it may bring the installation's id.
        let is_cluster_key = |provider: &ProviderConfig| matches!(provider, ProviderConfig::ClusterKey { .. });
        let (first, then): (Vec<_>, Vec<_>) =
            config.providers.iter().partition(|(_, provider)| is_cluster_key(provider));
        for (name, provider) in first.into_iter().chain(then) {
            let opened = match provider {
                ProviderConfig::ClusterKey { file } => match ClusterKeys::load(file) {
                    Ok(keys) => {
                        if cluster_id.is_some_and(|configured| configured != keys.cluster_id()) {
                            let other = keys.cluster_id();
                            let file = file.display();
                            faults.add(format!(
                                "provider {name}: {file}: it is of cluster {other}, and clusterId is another"
                            ));
                        }
                        cluster_id = Some(keys.cluster_id());
                        Ok(Provider::Cluster(keys))
                    }
                    Err(fault) => Err(format!("{}: {fault}", file.display())),
                },
                ProviderConfig::Kms(provider) => {
                    open_kms(name, provider, cluster_id.unwrap_or_default(), &config.policies, &mut trials).await
                }
            };
            match opened {
                Ok(provider) => drop(by_name.insert(name.clone(), provider)),
                Err(fault) => faults.add(format!("provider {name}: {fault}")),
            }
        }
        let store = match (state_dir.filter(|_| config.store.is_none()), cluster_id) {
            (Some(state_dir), _) => {
                Filesystem::open(&state_dir.records()).map(|store| Arc::new(store) as Arc<dyn DekStore>).map_err(text)
            }
            (None, Some(cluster_id)) => open_store(config.store.as_ref(), cluster_id, &mut trials).await,
            (None, None) => return Err(faults),
        };
        let store = store.map_err(|fault| faults.add(format!("store: {fault}")));
        let (Some(cluster_id), Ok(store)) = (cluster_id, store) else { return Err(faults) };
        let providers = Providers { by_name, default: config.default_provider.clone() };
        faults.or(Self { cluster_id, providers, store, policies: config.policies.clone(), trials })
    }

    /// Tries what is to be well before anything is served, and leaves the rest in `trials`.
    ///
    /// # Errors
    /// A KEK that is to be tried at start and cannot be used; a store that ignores preconditions, or has no bucket.
    pub async fn expect_ready(&mut self) -> Result<(), Faults> {
        let (mut faults, mut later) = (Faults::default(), Vec::new());
        for trial in self.trials.drain(..) {
            let deadline = Deadline::within(TRIAL_TIME);
            match &trial {
                Trial::Kek { provider, guarded, at_start: true } => {
                    if let Err(failure) = guarded.validate(deadline).await {
                        faults.add(format!("provider {provider}: {}", text(failure)));
                    }
                }
                Trial::Kek { at_start: false, .. } => later.push(trial),
                Trial::Store(objects) => match objects.check(deadline).await {
                    Ok(()) => {}
                    // What will not be otherwise later: nothing could ever be stored.
                    Err(failure @ (StoreFailure::NoPreconditions { .. } | StoreFailure::NoBucket { .. })) => {
                        faults.add(format!("store: {}", text(failure)));
                    }
                    // A store that is away keeps nobody from starting: every write looks again.
                    Err(_) => later.push(trial),
                },
                // The same; and the custom resources may be installed after the program is.
                #[cfg(feature = "kubernetes")]
                Trial::VolumeKeys(keys) => {
                    if keys.check(deadline).await.is_err() {
                        later.push(trial);
                    }
                }
            }
        }
        self.trials = later;
        faults.or(())
    }

    /// What a state folder opens: its cluster key, which is there or must be restored, and its records.
    ///
    /// # Errors
    /// There is no cluster key: it is never made here.
    pub fn of_state_dir(state_dir: &StateDir) -> Result<Self, Faults> {
        let path = state_dir.cluster_key();
        let at = |what: &dyn fmt::Display| Faults::one(format!("{}: {what}", path.display()));
        if !path.exists() {
            if Filesystem::holds_records(&state_dir.records()).map_err(|failure| Faults::one(text(failure)))? {
                return Err(keys::lost(state_dir));
            }
            let folder = state_dir.path().display();
            return Err(at(&format!("there is no cluster key. Make one, once: coffer keys init --state-dir {folder}")));
        }
        let keys = ClusterKeys::load(&path).map_err(|fault| at(&fault))?;
        let cluster_id = keys.cluster_id();
        let by_name = [(CLUSTER_PROVIDER.to_owned(), Provider::Cluster(keys))].into();
        let providers = Providers { by_name, default: CLUSTER_PROVIDER.to_owned() };
        let store = Filesystem::open(&state_dir.records()).map_err(|failure| Faults::one(text(failure)))?;
        Ok(Self { cluster_id, providers, store: Arc::new(store), policies: Vec::new(), trials: Vec::new() })
    }
}

async fn open_kms(
    name: &str,
    config: &KmsConfig,
    cluster_id: Uuid,
    policies: &[Rule],
    trials: &mut Vec<Trial>,
) -> Result<Provider, String> {
    let KmsConfig { common, settings } = config;
    if matches!(settings, kms::Settings::Local(_)) {
        tracing::warn!(
            provider = name,
            "insecureLocalKey: whoever reads the key file reads every volume of this provider"
        );
    }
    let (scope, key_prefix, roles) = match settings {
        kms::Settings::AwsKms(settings) => {
            let rules = policies.iter().filter(|rule| rule.provider.as_deref() == Some(name));
            let known = rules.filter_map(|rule| rule.role.clone()).collect();
            let roles = aws_roles(known, name, settings, common, cluster_id);
            (settings.key_scope, settings.key_prefix.clone(), roles)
        }
        _ => (KeyScope::Key, String::new(), Roles::none()),
    };
    let kms = kms::open(settings.clone()).await.map_err(text)?;
    let guarded = Arc::new(Guarded::new(kms, name, common.clone()).of_cluster(cluster_id));
    // A scope's KEKs are named by volumes: there is none to try.
    if common.validate != Validate::Off && scope == KeyScope::Key {
        let at_start = common.validate == Validate::Startup;
        trials.push(Trial::Kek { provider: name.to_owned(), guarded: guarded.clone(), at_start });
    }
    let kms: Arc<dyn Kms> = guarded;
    Ok(Provider::Kms(KmsProvider {
        type_name: settings.type_name(),
        kms,
        scope,
        key_prefix,
        context: common.context.clone(),
        roles,
    }))
}

/// The roles of a provider. Each is assumed with what the provider itself is, and has around it what the provider has.
fn aws_roles(known: Vec<AwsRole>, name: &str, settings: &AwsKms, common: &Common, cluster_id: Uuid) -> Roles {
    let (name, settings, common) = (name.to_owned(), settings.clone(), common.clone());
    Roles::opened_by(known, move |role| {
        let (name, mut settings, common) = (name.clone(), settings.clone(), common.clone());
        settings.access.roles.push(role);
        async move {
            let kms = kms::open(kms::Settings::AwsKms(settings)).await?;
            let guarded: Arc<dyn Kms> = Arc::new(Guarded::new(kms, &name, common).of_cluster(cluster_id));
            Ok::<_, SettingsFault>(guarded)
        }
        .boxed()
    })
}

async fn open_store(
    settings: Option<&store::Settings>,
    cluster_id: Uuid,
    trials: &mut Vec<Trial>,
) -> Result<Arc<dyn DekStore>, String> {
    let place = match settings {
        None => return Err("is missing".to_owned()),
        // An empty folder in place of a disk that is not mounted would pass for a store without keys.
        Some(store::Settings::Filesystem(folder)) if !folder.is_dir() => {
            return Err(format!("path: there is no folder {}; make it, once", folder.display()));
        }
        Some(store::Settings::Filesystem(folder)) => {
            return Ok(Arc::new(Filesystem::open(folder).map_err(text)?));
        }
        Some(store::Settings::S3(settings)) => settings.place.clone(),
        Some(store::Settings::Gcs(settings)) => settings.place.clone(),
        Some(store::Settings::AzureBlob(settings)) => settings.place.clone(),
        #[cfg(feature = "kubernetes")]
        Some(store::Settings::Kubernetes) => {
            let keys = Arc::new(VolumeKeys::new(crate::kubernetes::client().await.map_err(text)?));
            trials.push(Trial::VolumeKeys(keys.clone()));
            return Ok(keys);
        }
        #[cfg(not(feature = "kubernetes"))]
        Some(store::Settings::Kubernetes) => return Err("this build has no store of this type".to_owned()),
    };
    let Some(settings) = settings else { return Err("is missing".to_owned()) };
    let bucket = store::open_bucket(settings.clone()).await.map_err(text)?;
    let objects = Arc::new(Objects::new(bucket, place, cluster_id));
    trials.push(Trial::Store(objects.clone()));
    Ok(objects)
}

fn text(failure: impl std::error::Error) -> String {
    rpc::message(&failure)
}
