//! Objects that are made where there are none, and changed as they were read and where they are ours.

use std::{collections::BTreeMap, error::Error, fmt, io, time::Duration};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams, core::Status};

use crate::{admin::keys::certificates::CertificateFault, kubernetes::FIELD_MANAGER};

/// How long all of it may take.
pub(super) const TIME: Duration = Duration::from_secs(120);
/// How often an object may change under our hands.
const ATTEMPTS: usize = 5;
/// What has it not, is somebody else's.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "coffer");

/// Why it is not done. What was made before stays, and the next time goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum InitFailure {
    /// The API server does not answer, or refuses.
    #[error("{step} {object}")]
    Api {
        /// What was tried.
        step: &'static str,
        /// On what.
        object: String,
        /// What it said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// There are records and no key to open them with.
    #[error(
        "{object} is gone, and {records} VolumeKeys need the cluster key that was in it. Restore it from its backup; a new \
         key would open none of their volumes, so none is made"
    )]
    Lost {
        /// The Secret.
        object: String,
        /// How many records need it, or cannot be read.
        records: usize,
    },
    /// What lies there is not what belongs there.
    #[error("{object}: {what}. It is left as it is: restore it from its backup")]
    Unusable {
        /// The Secret.
        object: String,
        /// What is wrong.
        what: String,
    },
    /// What lies there is not ours to change.
    #[error(
        "{object} was not made by Coffer and would have to be changed; take it away, or leave this part out (--only)"
    )]
    Foreign {
        /// The object.
        object: String,
    },
    /// Somebody else changes it all the time.
    #[error("{object} was changed or deleted meanwhile, again and again; try again")]
    Contended {
        /// The object.
        object: String,
    },
    /// No certificate.
    #[error("{object}")]
    Certificate {
        /// For which Secret.
        object: String,
        /// Why not.
        #[source]
        source: CertificateFault,
    },
    /// The API server is too slow.
    #[error("it was not done within {TIME:?}")]
    Late,
    /// Standard output failed.
    #[error("write to standard output")]
    Output(#[from] io::Error),
}

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Made,
    Kept,
    Renewed,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Made => "made",
            Self::Kept => "kept",
            Self::Renewed => "renewed",
        })
    }
}

/// What a Secret holds.
pub(super) type Data = BTreeMap<String, ByteString>;

/// What is to become of a Secret, and what it then stands for.
pub(super) enum Verdict<T> {
    Keep(T),
    Write(Data, T),
}

/// The objects of one namespace.
pub(super) struct Objects<'a> {
    client: Client,
    namespace: &'a str,
}

impl<'a> Objects<'a> {
    pub(super) fn new(client: Client, namespace: &'a str) -> Self {
        Self { client, namespace }
    }

    pub(super) fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    /// What an object is called, for people.
    pub(super) fn called(&self, kind: &str, name: &str) -> String {
        format!("{kind} {}/{name}", self.namespace)
    }

    /// Makes a Secret, changes it or leaves it, as is decided by what it holds.
    pub(super) async fn settle<T>(
        &self,
        name: &str,
        kind: &str,
        decide: impl Fn(Option<&Data>) -> Result<Verdict<T>, InitFailure>,
    ) -> Result<(Outcome, T), InitFailure> {
        let (object, secrets) = (self.called("Secret", name), self.secrets());
        for _ in 0..ATTEMPTS {
            let found = secrets.get_opt(name).await.map_err(failed("read", &object))?;
            let none = Data::new();
            let verdict = decide(found.as_ref().map(|secret| secret.data.as_ref().unwrap_or(&none)))?;
            let (written, outcome, value) = match (found, verdict) {
                (_, Verdict::Keep(value)) => return Ok((Outcome::Kept, value)),
                (None, Verdict::Write(data, value)) => {
                    let secret = Secret {
                        metadata: metadata(name),
                        type_: Some(kind.to_owned()),
                        data: Some(data),
                        ..Secret::default()
                    };
                    (secrets.create(&as_us(), &secret).await, Outcome::Made, value)
                }
                (Some(mut secret), Verdict::Write(data, value)) => {
                    if !is_ours(&secret.metadata) {
                        return Err(InitFailure::Foreign { object });
                    }
                    secret.data.get_or_insert_default().extend(data);
                    (secrets.replace(name, &as_us(), &secret).await, Outcome::Renewed, value)
                }
            };
            match written {
                Ok(_) => return Ok((outcome, value)),
                // Somebody else was there first: what they have made is looked at.
                Err(kube::Error::Api(status)) if is_race(&status, outcome) => {}
                Err(error) => return Err(failed("write", &object)(error)),
            }
        }
        Err(InitFailure::Contended { object })
    }

    /// Puts a text, which is no secret, into a ConfigMap.
    pub(super) async fn publish(&self, name: &str, key: &str, text: &str) -> Result<Outcome, InitFailure> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), self.namespace);
        let object = self.called("ConfigMap", name);
        for _ in 0..ATTEMPTS {
            let (written, outcome) = match maps.get_opt(name).await.map_err(failed("read", &object))? {
                None => {
                    let data = Some([(key.to_owned(), text.to_owned())].into());
                    let map = ConfigMap { metadata: metadata(name), data, ..ConfigMap::default() };
                    (maps.create(&as_us(), &map).await, Outcome::Made)
                }
                Some(mut map) => {
                    let data = map.data.get_or_insert_default();
                    if data.get(key).is_some_and(|found| found == text) {
                        return Ok(Outcome::Kept);
                    }
                    data.insert(key.to_owned(), text.to_owned());
                    if !is_ours(&map.metadata) {
                        return Err(InitFailure::Foreign { object });
                    }
                    (maps.replace(name, &as_us(), &map).await, Outcome::Renewed)
                }
            };
            match written {
                Ok(_) => return Ok(outcome),
                Err(kube::Error::Api(status)) if is_race(&status, outcome) => {}
                Err(error) => return Err(failed("write", &object)(error)),
            }
        }
        Err(InitFailure::Contended { object })
    }
}

fn metadata(name: &str) -> ObjectMeta {
    let pair = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    ObjectMeta {
        name: Some(name.to_owned()),
        labels: Some([pair(MANAGED_BY), pair(("app.kubernetes.io/name", "coffer"))].into()),
        annotations: Some([pair(("helm.sh/resource-policy", "keep"))].into()),
        ..ObjectMeta::default()
    }
}

fn is_ours(metadata: &ObjectMeta) -> bool {
    let (key, value) = MANAGED_BY;
    metadata.labels.as_ref().and_then(|labels| labels.get(key)).is_some_and(|found| found == value)
}

fn as_us() -> PostParams {
    PostParams { dry_run: false, field_manager: Some(FIELD_MANAGER.to_owned()) }
}

/// Whether a write came too late. A missing object is a race only where there was one: else the namespace is missing.
fn is_race(status: &Status, outcome: Outcome) -> bool {
    status.is_already_exists() || status.is_conflict() || (outcome == Outcome::Renewed && status.is_not_found())
}

pub(super) fn failed(step: &'static str, object: &str) -> impl FnOnce(kube::Error) -> InitFailure {
    let object = object.to_owned();
    move |error| {
        let source: Box<dyn Error + Send + Sync> = match error {
            kube::Error::Api(status) => status,
            error => Box::new(error),
        };
        InitFailure::Api { step, object, source }
    }
}
