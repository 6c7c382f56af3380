//! The pools of every node of a cluster, through the API server: what is asked of them here becomes a `LocalVolume`, and
//! the node does the work when it is there (`keeper`). This side never waits for a node longer than its caller does, and
//! what it has asked for goes on.
//!
//! A node that says that a file is there counts only in an object that is not being deleted, and whoever takes an object
//! back names the version of it that had no file. So an answer by success and a volume that is taken back exclude each
//! other.

mod asked;
mod place;

use std::{collections::BTreeMap, fmt, path::Path};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};

use crate::{
    exec::Deadline,
    key::service::KeyInfo,
    kubernetes::{
        FIELD_MANAGER,
        events::{Events, Reason},
        local_pool::LocalPool,
        local_volume::{LocalVolume, Phase},
        pools::asked::{DELETE, asked, expected, refused},
    },
    node::pool::{Held, Needs, Placement, Pools, PoolsFailure, Wanted},
    volume::VolumeId,
};

const LIST: &str = "list LocalVolumes";
const CREATE: &str = "create LocalVolume";

/// The pools of a cluster's nodes.
pub struct ClusterPools {
    volumes: Api<LocalVolume>,
    pools: Api<LocalPool>,
    persistent: Api<PersistentVolume>,
    events: Events,
}

impl fmt::Debug for ClusterPools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterPools")
    }
}

/// What a node has made of a volume.
enum Seen {
    /// The file is there, with so many bytes.
    Made(u64),
    /// It does not fit, as this object says.
    Full(Box<LocalVolume>),
    /// It cannot be made.
    Failed(String),
    /// The object is being deleted, or is gone.
    Taken,
}

impl ClusterPools {
    /// The pools of the cluster of a client.
    #[must_use]
    pub fn through(client: Client) -> Self {
        Self {
            volumes: Api::all(client.clone()),
            pools: Api::all(client.clone()),
            persistent: Api::all(client.clone()),
            events: Events::through(client),
        }
    }
}

#[async_trait]
impl Pools for ClusterPools {
    async fn place(
        &self,
        volume_id: &VolumeId,
        needs: Needs<'_>,
        wanted: &Wanted,
        existing: Option<&KeyInfo>,
        deadline: Deadline,
    ) -> Result<Placement, PoolsFailure> {
        match needs {
            Needs::File(bytes) => self.place_file(volume_id, bytes, wanted, existing, deadline).await,
            Needs::Device(_) => Err(PoolsFailure::NoDevices),
        }
    }

    async fn device_bytes(&self, _: &VolumeId, _: &Path) -> Result<u64, PoolsFailure> {
        Err(PoolsFailure::NoDevices)
    }

    async fn size(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<Option<u64>, PoolsFailure> {
        match self.look(volume_id, deadline).await? {
            // Another controller takes it back: nobody may be told that it is there.
            Some(volume) if volume.is_leaving() => {
                Err(PoolsFailure::Leaving { volume_id: volume_id.clone(), node: volume.spec.node_name })
            }
            found => Ok(found.and_then(|volume| volume.made_bytes())),
        }
    }

    async fn create(
        &self,
        volume_id: &VolumeId,
        node: &str,
        bytes: u64,
        deadline: Deadline,
    ) -> Result<u64, PoolsFailure> {
        let (new, params) = (LocalVolume::of(volume_id, node, bytes), PostParams::default());
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..params };
        let name = volume_id.as_str();
        let volume = match asked(CREATE, name, deadline, self.volumes.create(&params, &new)).await? {
            Ok(volume) => volume,
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let found = self.look(volume_id, deadline).await?;
                found.ok_or_else(|| PoolsFailure::Busy(volume_id.clone()))?
            }
            Err(error) => return Err(refused(CREATE, name, error)),
        };
        if volume.spec.node_name != node {
            return Err(PoolsFailure::OnOtherNode { volume_id: volume_id.clone(), node: volume.spec.node_name });
        }
        if volume.made_bytes().is_none() && volume.wanted_bytes() != bytes {
            return Err(PoolsFailure::OtherSize { volume_id: volume_id.clone(), bytes: volume.wanted_bytes() });
        }
        loop {
            match self.wait(volume_id, node, "made the file", deadline, made).await? {
                Seen::Made(bytes) => return Ok(bytes),
                Seen::Failed(message) => return Err(broken(volume_id, node, &message)),
                Seen::Taken => {
                    return Err(PoolsFailure::Leaving { volume_id: volume_id.clone(), node: node.to_owned() });
                }
                Seen::Full(volume) => {
                    let message = volume.message().to_owned();
                    // Unless it fits after all, meanwhile.
                    if self.take_back(&volume, deadline).await?.is_some() {
                        return Err(PoolsFailure::Full {
                            volume_id: volume_id.clone(),
                            node: node.to_owned(),
                            message,
                        });
                    }
                }
            }
        }
    }

    async fn expand(&self, volume_id: &VolumeId, bytes: u64, deadline: Deadline) -> Result<u64, PoolsFailure> {
        let Some(volume) = self.look(volume_id, deadline).await? else {
            return Err(broken(volume_id, "(none)", "there is no LocalVolume of it"));
        };
        let node = volume.spec.node_name.clone();
        if volume.wanted_bytes() < bytes && self.resize(&volume, bytes, deadline).await?.is_none() {
            return Err(PoolsFailure::Busy(volume_id.clone()));
        }
        let grown = |found: Option<LocalVolume>| {
            let Some(volume) = found else { return Some(Seen::Taken) };
            match (volume.phase(), volume.made_bytes()) {
                (Phase::Ready, Some(size)) if size >= bytes => Some(Seen::Made(size)),
                (Phase::Full, _) => Some(Seen::Full(Box::new(volume))),
                (Phase::Failed, _) => Some(Seen::Failed(volume.message().to_owned())),
                (Phase::Pending | Phase::Ready, _) => None,
            }
        };
        match self.wait(volume_id, &node, "grown the file", deadline, grown).await? {
            Seen::Made(size) => Ok(size),
            Seen::Failed(message) => Err(broken(volume_id, &node, &message)),
            Seen::Taken => Err(PoolsFailure::Leaving { volume_id: volume_id.clone(), node }),
            Seen::Full(volume) => {
                let message = volume.message().to_owned();
                // The node is to try no more; whether others were quicker does not matter.
                if let Some(size) = volume.made_bytes() {
                    self.resize(&volume, size, deadline).await?;
                }
                Err(PoolsFailure::Full { volume_id: volume_id.clone(), node, message })
            }
        }
    }

    /// Who has a volume open is known to its node alone: it keeps the file as long as somebody has.
    async fn expect_unused(&self, _: &VolumeId) -> Result<(), PoolsFailure> {
        Ok(())
    }

    async fn remove(
        &self,
        volume_id: &VolumeId,
        destroyed: Option<&KeyInfo>,
        deadline: Deadline,
    ) -> Result<(), PoolsFailure> {
        if let Some(name) = volume_id.file_name() {
            match asked(DELETE, name, deadline, self.volumes.delete(name, &DeleteParams::default())).await? {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => return Err(refused(DELETE, name, error)),
            }
        }
        if let Some(info) = destroyed {
            let persistent = ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("PersistentVolume".to_owned()),
                name: Some(info.name.clone()),
                ..ObjectReference::default()
            };
            let note = format!(
                "the key of volume {volume_id} (generation {}, provider {}) was destroyed; its data cannot be read again",
                info.generation, info.provider
            );
            self.events.tell(&persistent, Reason::KeyDestroyed, &note).await;
        }
        Ok(())
    }

    async fn available(&self, node: Option<&str>, deadline: Deadline) -> Result<u64, PoolsFailure> {
        let room = self.room(deadline).await?;
        let available = match node {
            Some(node) => room.get(node),
            None => room.values().max(),
        };
        Ok(available.copied().unwrap_or(0))
    }

    async fn held(&self, infos: Vec<KeyInfo>, deadline: Deadline) -> Result<Vec<Held>, PoolsFailure> {
        let all = ListParams::default();
        let listed = expected(LIST, "", asked(LIST, "", deadline, self.volumes.list(&all)).await?)?;
        let sizes: BTreeMap<_, _> = listed.into_iter().map(|volume| (volume.name_any(), volume.made_bytes())).collect();
        let held = infos.into_iter().filter_map(|info| {
            let (node, bytes) = (info.node.clone()?, sizes.get(info.volume_id.as_str()).copied().flatten());
            Some(Held { info, node, bytes })
        });
        Ok(held.collect())
    }
}

/// What a node has made of a new volume.
fn made(found: Option<LocalVolume>) -> Option<Seen> {
    let Some(volume) = found.filter(|volume| !volume.is_leaving()) else { return Some(Seen::Taken) };
    match (volume.phase(), volume.made_bytes()) {
        (Phase::Ready, Some(bytes)) => Some(Seen::Made(bytes)),
        (Phase::Full, None) => Some(Seen::Full(Box::new(volume))),
        (Phase::Failed, _) => Some(Seen::Failed(volume.message().to_owned())),
        (Phase::Ready, None) | (Phase::Full, Some(_)) | (Phase::Pending, _) => None,
    }
}

fn broken(volume_id: &VolumeId, node: &str, message: &str) -> PoolsFailure {
    PoolsFailure::Broken { volume_id: volume_id.clone(), node: node.to_owned(), message: message.to_owned() }
}
