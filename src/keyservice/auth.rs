//! Who may have what, and that it is written down.
//!
//! | caller | may |
//! |---|---|
//! | this process, or an allowed uid on the unix socket | everything |
//! | a node, by its certificate | everything, for volumes that are bound to it or to no node; create and destroy only what is bound to it |
//! | a node, by its pod's token | a key and the steps of formatting, for volumes that are bound to it or to no node and that the API server says it holds; describe, also for those that are bound to it |
//! | a controller, by its certificate or its pod's token | create, describe, destroy, list; never a key |

use std::{error::Error, fmt, sync::Arc};

use async_trait::async_trait;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{
    exec::Deadline,
    key::{
        derive::Tag,
        service::{Attempt, KeyFailure, KeyInfo, KeyService, NewKey, Page, VolumeKey},
    },
    keyservice::{
        audit::{Audit, Operation, Pod, Who},
        kubernetes::Authority,
    },
    volume::VolumeId,
};

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The program itself.
    Process,
    /// A process on this machine, by its uid.
    Uid(u32),
    /// A node, by its certificate.
    Node(String),
    /// A controller, by its certificate.
    Controller(String),
    /// A node, by the token of a pod on it.
    NodePod {
        /// The node that the token names.
        node: String,
        /// The pod that it is bound to.
        pod: Pod,
    },
    /// A controller, by its pod's token.
    ControllerPod(Pod),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process => f.write_str("process"),
            Self::Uid(uid) => write!(f, "uid:{uid}"),
            Self::Node(name) | Self::NodePod { node: name, .. } => write!(f, "node:{name}"),
            Self::Controller(name) | Self::ControllerPod(Pod { name, .. }) => write!(f, "controller:{name}"),
        }
    }
}

const NODE_URI: &str = "coffer://node/";
const CONTROLLER_URI: &str = "coffer://controller/";

impl Caller {
    /// The caller that a client certificate names, by its only URI among the subject alternative names (RFC 5280,
    /// 4.2.1.6): `coffer://node/NAME` or `coffer://controller/NAME`. The certificate's chain was checked by TLS.
    #[must_use]
    pub fn from_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = &certificate.subject_alternative_name().ok()??.value.general_names;
        let mut uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let (uri, None) = (uris.next()?, uris.next()) else { return None };
        let named = |prefix: &str| uri.strip_prefix(prefix).filter(|name| !name.is_empty()).map(str::to_owned);
        named(NODE_URI).map(Self::Node).or_else(|| named(CONTROLLER_URI).map(Self::Controller))
    }

    /// The node that it is, where it is one.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Node(name) | Self::NodePod { node: name, .. } => Some(name),
            Self::Process | Self::Uid(_) | Self::Controller(_) | Self::ControllerPod(_) => None,
        }
    }

    /// What the audit log says of it.
    #[must_use]
    pub fn who(&self) -> Who {
        let pod = match self {
            Self::NodePod { pod, .. } | Self::ControllerPod(pod) => Some(pod.clone()),
            Self::Process | Self::Uid(_) | Self::Node(_) | Self::Controller(_) => None,
        };
        Who { name: self.to_string(), pod }
    }
}

/// Why a node does not hold a volume: what is to be said behind the volume's id.
#[derive(Debug, thiserror::Error)]
pub enum Unheld {
    /// The cluster has no such volume.
    #[error("which no PersistentVolume of the cluster is")]
    NoVolume,
    /// Its PersistentVolume is of a driver whose volumes have no keys here.
    #[error("whose PersistentVolume is of driver {0}")]
    Driver(String),
    /// Neither is it attached to the node, nor does it require it.
    #[error("which is neither attached to it nor its own by node affinity")]
    Elsewhere,
    /// It is going.
    #[error("whose VolumeAttachment to it is being deleted")]
    Detaching,
    /// The API server cannot be asked.
    #[error("of which the API server cannot be asked")]
    Unknown(#[source] Arc<dyn Error + Send + Sync>),
}

/// A key service for one caller: it gives what the caller may have, and writes down what was asked.
pub struct Guarded {
    inner: Arc<dyn KeyService>,
    audit: Arc<Audit>,
    caller: Caller,
    who: Who,
    authority: Option<Arc<Authority>>,
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guarded").field(&self.caller).finish()
    }
}

impl Guarded {
    /// A key service for this caller.
    #[must_use]
    pub fn new(inner: Arc<dyn KeyService>, audit: Arc<Audit>, caller: Caller) -> Self {
        let who = caller.who();
        Self { inner, audit, caller, who, authority: None }
    }

    /// The same, with somebody who knows which node holds a volume. Without one a node that shows a token holds none.
    #[must_use]
    pub fn with_authority(self, authority: Option<Arc<Authority>>) -> Self {
        Self { authority, ..self }
    }

    /// Writes down how an operation ended. What cannot be written down is not answered.
    fn audited<T>(
        &self,
        operation: Operation,
        volume_id: Option<&VolumeId>,
        outcome: Result<T, KeyFailure>,
        info: impl Fn(&T) -> Option<&KeyInfo>,
    ) -> Result<T, KeyFailure> {
        match &outcome {
            Ok(done) => self.audit.done(&self.who, operation, volume_id, info(done)),
            Err(failure) => self.audit.not_done(&self.who, operation, volume_id, failure),
        }
        .map_err(KeyFailure::Audit)?;
        outcome
    }

    fn deny<T>(&self, what: impl Into<String>) -> Result<T, KeyFailure> {
        Err(KeyFailure::Denied { who: self.who.name.clone(), what: what.into() })
    }

    /// Refuses a volume that the caller may not use the key of, and returns what was looked at. `generation` is the one
    /// that the caller speaks of: a record of another one may be bound to another node by now.
    async fn expect_user(
        &self,
        volume_id: &VolumeId,
        generation: Option<u32>,
        deadline: Deadline,
    ) -> Result<Option<KeyInfo>, KeyFailure> {
        match &self.caller {
            Caller::Process | Caller::Uid(_) => Ok(None),
            Caller::Controller(_) | Caller::ControllerPod(_) => self.deny(format!("the key of volume {volume_id}")),
            Caller::Node(_) | Caller::NodePod { .. } => {
                match (self.inner.describe(volume_id, deadline).await?, generation) {
                    (Some(info), Some(generation)) if generation != info.generation => {
                        Err(KeyFailure::Superseded(volume_id.clone()))
                    }
                    (Some(info), _) => {
                        self.expect_holder(&info, deadline).await?;
                        Ok(Some(info))
                    }
                    // Nothing that a step could be taken on.
                    (None, Some(_)) => Err(KeyFailure::Missing(volume_id.clone())),
                    // The service says itself what there is not; what it gives is looked at again.
                    (None, None) => Ok(None),
                }
            }
        }
    }

    /// Refuses a node that a volume is not bound to.
    fn expect_bound(&self, info: &KeyInfo) -> Result<(), KeyFailure> {
        match (self.caller.node(), &info.node) {
            (Some(name), Some(node)) if name != node => {
                self.deny(format!("volume {}, which is bound to another node", info.volume_id))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a node that does not hold a volume. A certificate is as good as its record; who shows a token has to
    /// hold the volume in the eyes of the API server as well.
    async fn expect_holder(&self, info: &KeyInfo, deadline: Deadline) -> Result<(), KeyFailure> {
        self.expect_bound(info)?;
        let Caller::NodePod { node, .. } = &self.caller else { return Ok(()) };
        let volume_id = &info.volume_id;
        let Some(authority) = &self.authority else {
            return self.deny(format!("volume {volume_id}: nobody here knows who holds it"));
        };
        match authority.expect_held(node, info, deadline).await {
            Ok(()) => Ok(()),
            Err(Unheld::Unknown(source)) => {
                Err(KeyFailure::Holder { volume_id: volume_id.clone(), source: Box::new(source) })
            }
            Err(unheld) => self.deny(format!("volume {volume_id}, {unheld}")),
        }
    }

    /// Refuses a volume that the caller may not make or destroy.
    fn expect_owner(&self, volume_id: &VolumeId, node: Option<&str>) -> Result<(), KeyFailure> {
        match &self.caller {
            Caller::Process | Caller::Uid(_) | Caller::Controller(_) | Caller::ControllerPod(_) => Ok(()),
            Caller::Node(name) if node == Some(name) => Ok(()),
            Caller::Node(_) => self.deny(format!("volume {volume_id}, which is not bound to it")),
            Caller::NodePod { .. } => self.deny(format!("volume {volume_id} made or destroyed: controllers do that")),
        }
    }

    async fn create_as_caller(&self, new: NewKey, deadline: Deadline) -> Result<KeyInfo, KeyFailure> {
        self.expect_owner(&new.volume_id, new.node.as_deref())?;
        self.inner.create(new, deadline).await
    }

    async fn get_as_caller(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<VolumeKey, KeyFailure> {
        let seen = self.expect_user(volume_id, None, deadline).await?;
        let key = self.inner.get(volume_id, deadline).await?;
        // The record may be a newer one than the one that was described.
        match seen {
            // Where a tombstone was deleted, generations begin anew; the UUID is another one for each key.
            Some(seen) if (seen.generation, seen.luks_uuid) == (key.info.generation, key.info.luks_uuid) => {
                self.expect_bound(&key.info)?;
            }
            _ => self.expect_holder(&key.info, deadline).await?,
        }
        Ok(key)
    }

    async fn describe_as_caller(
        &self,
        volume_id: &VolumeId,
        deadline: Deadline,
    ) -> Result<Option<KeyInfo>, KeyFailure> {
        let Some(info) = self.inner.describe(volume_id, deadline).await? else { return Ok(None) };
        match &self.caller {
            // A node has to learn that a key is gone, also when its volume is.
            Caller::NodePod { node, .. } if info.node.as_ref() == Some(node) => {}
            _ => self.expect_holder(&info, deadline).await?,
        }
        Ok(Some(info))
    }

    async fn destroy_as_caller(
        &self,
        volume_id: &VolumeId,
        generation: u32,
        deadline: Deadline,
    ) -> Result<(), KeyFailure> {
        if matches!(self.caller, Caller::NodePod { .. }) {
            self.expect_owner(volume_id, None)?;
        }
        if matches!(self.caller, Caller::Node(_)) {
            let Some(info) = self.inner.describe(volume_id, deadline).await? else { return Ok(()) };
            self.expect_owner(volume_id, info.node.as_deref())?;
        }
        self.inner.destroy(volume_id, generation, deadline).await
    }
}

#[async_trait]
impl KeyService for Guarded {
    async fn create(&self, new: NewKey, deadline: Deadline) -> Result<KeyInfo, KeyFailure> {
        let volume_id = new.volume_id.clone();
        let outcome = self.create_as_caller(new, deadline).await;
        self.audited(Operation::Create, Some(&volume_id), outcome, |info| Some(info))
    }

    async fn get(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<VolumeKey, KeyFailure> {
        let outcome = self.get_as_caller(volume_id, deadline).await;
        self.audited(Operation::Release, Some(volume_id), outcome, |key| Some(&key.info))
    }

    /// What a record says is no key, and is asked for often: only a refusal is written down.
    async fn describe(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<Option<KeyInfo>, KeyFailure> {
        match self.describe_as_caller(volume_id, deadline).await {
            Ok(info) => Ok(info),
            failed => self.audited(Operation::Describe, Some(volume_id), failed, Option::as_ref),
        }
    }

    async fn begin_format(
        &self,
        volume_id: &VolumeId,
        generation: u32,
        deadline: Deadline,
    ) -> Result<KeyInfo, KeyFailure> {
        let outcome = match self.expect_user(volume_id, Some(generation), deadline).await {
            Ok(_) => self.inner.begin_format(volume_id, generation, deadline).await,
            Err(denied) => Err(denied),
        };
        self.audited(Operation::BeginFormat, Some(volume_id), outcome, |info| Some(info))
    }

    async fn mark_ready(
        &self,
        volume_id: &VolumeId,
        attempt: Attempt,
        header: Tag,
        deadline: Deadline,
    ) -> Result<KeyInfo, KeyFailure> {
        let outcome = match self.expect_user(volume_id, Some(attempt.generation), deadline).await {
            Ok(_) => self.inner.mark_ready(volume_id, attempt, header, deadline).await,
            Err(denied) => Err(denied),
        };
        self.audited(Operation::MarkReady, Some(volume_id), outcome, |info| Some(info))
    }

    async fn destroy(&self, volume_id: &VolumeId, generation: u32, deadline: Deadline) -> Result<(), KeyFailure> {
        let outcome = self.destroy_as_caller(volume_id, generation, deadline).await;
        self.audited(Operation::Destroy, Some(volume_id), outcome, |()| None)
    }

    /// A list is no key either. A node sees what is bound to it; one that shows a token sees nothing.
    async fn list(&self, after: Option<&VolumeId>, limit: usize, deadline: Deadline) -> Result<Page, KeyFailure> {
        let listed = match &self.caller {
            Caller::NodePod { .. } => self.deny("a list of volumes"),
            _ => self.inner.list(after, limit, deadline).await,
        };
        let mut page = match listed {
            Ok(page) => page,
            failed => return self.audited(Operation::List, None, failed, |_| None),
        };
        if let Caller::Node(name) = &self.caller {
            page.infos.retain(|info| info.node.as_ref() == Some(name));
        }
        Ok(page)
    }
}
