//! Who may have what, and that it is written down.
//!
//! | caller | may |
//! |---|---|
//! | this process, or an allowed uid on the unix socket | everything |
//! | a node, by its certificate | everything, for volumes that are bound to it or to no node; create and destroy only what is bound to it |
//! | a controller, by its certificate | create, describe, destroy, list; never a key |

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{
    exec::Deadline,
    key::{
        derive::Tag,
        service::{Attempt, KeyFailure, KeyInfo, KeyService, NewKey, Page, VolumeKey},
    },
    keyservice::audit::{Audit, Operation},
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
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process => f.write_str("process"),
            Self::Uid(uid) => write!(f, "uid:{uid}"),
            Self::Node(name) => write!(f, "node:{name}"),
            Self::Controller(name) => write!(f, "controller:{name}"),
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
}

/// A key service for one caller: it gives what the caller may have, and writes down what was asked.
pub struct Guarded {
    inner: Arc<dyn KeyService>,
    audit: Arc<Audit>,
    caller: Caller,
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
        Self { inner, audit, caller }
    }

    /// Writes down how an operation ended. What cannot be written down is not answered.
    fn audited<T>(
        &self,
        operation: Operation,
        volume_id: Option<&VolumeId>,
        outcome: Result<T, KeyFailure>,
        info: impl Fn(&T) -> Option<&KeyInfo>,
    ) -> Result<T, KeyFailure> {
        let who = self.caller.to_string();
        match &outcome {
            Ok(done) => self.audit.done(&who, operation, volume_id, info(done)),
            Err(failure) => self.audit.not_done(&who, operation, volume_id, failure),
        }
        .map_err(KeyFailure::Audit)?;
        outcome
    }

    fn deny<T>(&self, what: impl Into<String>) -> Result<T, KeyFailure> {
        Err(KeyFailure::Denied { who: self.caller.to_string(), what: what.into() })
    }

    /// Refuses a volume that the caller may not use the key of. `generation` is the one that the caller speaks of: a
    /// record of another one may be bound to another node by now.
    async fn expect_user(
        &self,
        volume_id: &VolumeId,
        generation: Option<u32>,
        deadline: Deadline,
    ) -> Result<(), KeyFailure> {
        match &self.caller {
            Caller::Process | Caller::Uid(_) => Ok(()),
            Caller::Controller(_) => self.deny(format!("the key of volume {volume_id}")),
            Caller::Node(_) => {
                match (self.inner.describe(volume_id, deadline).await?, generation) {
                    (Some(info), Some(generation)) if generation != info.generation => {
                        Err(KeyFailure::Superseded(volume_id.clone()))
                    }
                    (Some(info), _) => self.expect_bound(&info),
                    // Nothing that a step could be taken on.
                    (None, Some(_)) => Err(KeyFailure::Missing(volume_id.clone())),
                    // The service says itself what there is not; what it gives is looked at again.
                    (None, None) => Ok(()),
                }
            }
        }
    }

    /// Refuses a node that a volume is not bound to.
    fn expect_bound(&self, info: &KeyInfo) -> Result<(), KeyFailure> {
        match (&self.caller, &info.node) {
            (Caller::Node(name), Some(node)) if name != node => {
                self.deny(format!("volume {}, which is bound to another node", info.volume_id))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a volume that the caller may not make or destroy.
    fn expect_owner(&self, volume_id: &VolumeId, node: Option<&str>) -> Result<(), KeyFailure> {
        match &self.caller {
            Caller::Process | Caller::Uid(_) | Caller::Controller(_) => Ok(()),
            Caller::Node(name) if node == Some(name) => Ok(()),
            Caller::Node(_) => self.deny(format!("volume {volume_id}, which is not bound to it")),
        }
    }

    async fn create_as_caller(&self, new: NewKey, deadline: Deadline) -> Result<KeyInfo, KeyFailure> {
        self.expect_owner(&new.volume_id, new.node.as_deref())?;
        self.inner.create(new, deadline).await
    }

    async fn get_as_caller(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<VolumeKey, KeyFailure> {
        self.expect_user(volume_id, None, deadline).await?;
        let key = self.inner.get(volume_id, deadline).await?;
        // The record may be a newer one than the one that was described.
        self.expect_bound(&key.info)?;
        Ok(key)
    }

    async fn describe_as_caller(
        &self,
        volume_id: &VolumeId,
        deadline: Deadline,
    ) -> Result<Option<KeyInfo>, KeyFailure> {
        let info = self.inner.describe(volume_id, deadline).await?;
        if let Some(info) = &info {
            self.expect_bound(info)?;
        }
        Ok(info)
    }

    async fn destroy_as_caller(
        &self,
        volume_id: &VolumeId,
        generation: u32,
        deadline: Deadline,
    ) -> Result<(), KeyFailure> {
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
            Ok(()) => self.inner.begin_format(volume_id, generation, deadline).await,
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
            Ok(()) => self.inner.mark_ready(volume_id, attempt, header, deadline).await,
            Err(denied) => Err(denied),
        };
        self.audited(Operation::MarkReady, Some(volume_id), outcome, |info| Some(info))
    }

    async fn destroy(&self, volume_id: &VolumeId, generation: u32, deadline: Deadline) -> Result<(), KeyFailure> {
        let outcome = self.destroy_as_caller(volume_id, generation, deadline).await;
        self.audited(Operation::Destroy, Some(volume_id), outcome, |()| None)
    }

    /// A list is no key either. A node sees what is bound to it.
    async fn list(&self, after: Option<&VolumeId>, limit: usize, deadline: Deadline) -> Result<Page, KeyFailure> {
        let listed = self.inner.list(after, limit, deadline).await;
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
