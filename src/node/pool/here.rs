//! The pool of this node, for a controller that runs beside its driver: what it is asked for is done at once.

use std::{fmt, path::Path, sync::Arc};

use async_trait::async_trait;

use crate::{
    exec::Deadline,
    key::service::KeyInfo,
    node::{
        Node,
        pool::{Held, Needs, Placement, Pools, PoolsFailure, Wanted},
        source::{BlockSource, SourceFailure, device::Device, local::PoolFailure},
    },
    step::{Step, reached},
    volume::{MapperName, VolumeId},
};

/// The pool of this node, and its devices.
pub struct Here {
    node: Arc<Node>,
    node_id: String,
}

impl fmt::Debug for Here {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Here").field(&self.node_id).finish()
    }
}

impl Here {
    /// The pool of a node, by its name.
    #[must_use]
    pub fn of(node: Arc<Node>, node_id: String) -> Self {
        Self { node, node_id }
    }

    async fn expect_no_file(&self, volume_id: &VolumeId) -> Result<(), PoolsFailure> {
        match self.node.pool.size(volume_id).await.map_err(PoolFailure::from)? {
            None => Ok(()),
            Some(_) => Err(PoolsFailure::NoRecord(volume_id.clone())),
        }
    }

    async fn expect_room(&self, needed: u64) -> Result<(), PoolsFailure> {
        let available = self.node.pool.available().await.map_err(PoolFailure::from)?;
        if needed <= available {
            return Ok(());
        }
        Err(PoolsFailure::NoRoom { needed, available, place: format!("the pool of node {}", self.node_id) })
    }
}

#[async_trait]
impl Pools for Here {
    async fn place(
        &self,
        volume_id: &VolumeId,
        needs: Needs<'_>,
        wanted: &Wanted,
        existing: Option<&KeyInfo>,
        _: Deadline,
    ) -> Result<Placement, PoolsFailure> {
        if !wanted.allows(&self.node_id) {
            return Err(PoolsFailure::Elsewhere { node: self.node_id.clone() });
        }
        if let (Needs::File(bytes), None) = (needs, existing) {
            self.expect_no_file(volume_id).await?;
            // Asked before the record is made, so that a volume that cannot fit leaves no trace.
            self.expect_room(bytes).await?;
        }
        Ok(Placement::At(self.node_id.clone()))
    }

    async fn device_bytes(&self, volume_id: &VolumeId, path: &Path) -> Result<u64, PoolsFailure> {
        let attached = Device::at(path, self.node.blocks.clone()).attach(volume_id).await;
        let attached = attached.map_err(PoolsFailure::Device)?;
        let measured = self.node.blocks.size(&attached.path).await;
        let failed = |source| SourceFailure::Io { step: "measure", place: path.to_owned(), source };
        Ok(measured.map_err(failed).map_err(PoolFailure::from)?)
    }

    async fn size(&self, volume_id: &VolumeId, _: Deadline) -> Result<Option<u64>, PoolsFailure> {
        Ok(self.node.pool.size(volume_id).await.map_err(PoolFailure::from)?)
    }

    async fn create(&self, volume_id: &VolumeId, _: &str, bytes: u64, _: Deadline) -> Result<u64, PoolsFailure> {
        Ok(self.node.pool.create(volume_id, bytes).await?)
    }

    async fn expand(&self, volume_id: &VolumeId, bytes: u64, _: Deadline) -> Result<u64, PoolsFailure> {
        Ok(self.node.pool.expand(volume_id, bytes).await?)
    }

    async fn expect_unused(&self, volume_id: &VolumeId) -> Result<(), PoolsFailure> {
        let mapping = self.node.blocks.mapping(&MapperName::of(volume_id)).await;
        let failed = |source| SourceFailure::Io { step: "look for mappings in", place: "/sys/block".into(), source };
        if mapping.map_err(failed).map_err(PoolFailure::from)?.is_some() {
            return Err(PoolsFailure::Staged { volume_id: volume_id.clone(), node: self.node_id.clone() });
        }
        Ok(self.node.pool.expect_unused(volume_id).await?)
    }

    async fn remove(&self, volume_id: &VolumeId, _: Option<&KeyInfo>, _: Deadline) -> Result<(), PoolsFailure> {
        self.node.pool.remove(volume_id).await?;
        reached(Step::FileRemoved, volume_id);
        Ok(())
    }

    async fn available(&self, node: Option<&str>, _: Deadline) -> Result<u64, PoolsFailure> {
        if node.is_some_and(|node| node != self.node_id) {
            return Ok(0);
        }
        Ok(self.node.pool.available().await.map_err(PoolFailure::from)?)
    }

    async fn held(&self, infos: Vec<KeyInfo>, _: Deadline) -> Result<Vec<Held>, PoolsFailure> {
        let mut held = Vec::new();
        for info in infos.into_iter().filter(|info| info.node.as_ref().is_none_or(|node| *node == self.node_id)) {
            let bytes = self.node.pool.size(&info.volume_id).await.map_err(PoolFailure::from)?;
            held.push(Held { info, node: self.node_id.clone(), bytes });
        }
        Ok(held)
    }
}
