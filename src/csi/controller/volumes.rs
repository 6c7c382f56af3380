//! What the Controller does with volumes: record first, file second when it makes one, and the other way round never.

use tonic::Status;

use crate::{
    csi::{
        controller::{Controller, TOKEN_PREFIX},
        node::{signed, topology},
        request::{self, Range, class::Class},
    },
    exec::Deadline,
    key::{
        record::State,
        service::{KeyInfo, NewKey},
    },
    node::{
        header::Layout,
        source::{BlockSource, Place, device::Device, local::PoolFailure},
    },
    proto::csi::{
        ControllerExpandVolumeResponse, DeleteVolumeResponse, ListVolumesResponse, Volume, list_volumes_response::Entry,
    },
    server::rpc as grpc,
    step::{Step, reached},
    volume::{MIB, MapperName, Parameters, VolumeId},
};

/// The size of a volume for which none is asked, in bytes.
const DEFAULT_BYTES: u64 = 1 << 30;

impl Controller {
    pub(super) async fn create(
        &self,
        name: String,
        class: Class,
        range: Range,
        deadline: Deadline,
    ) -> Result<Volume, Status> {
        let volume_id = VolumeId::for_name(&name);
        let overhead = Layout::of(&class.parameters).overhead_bytes();
        let existing = self.node.keys.describe(&volume_id, deadline).await?;
        let device_bytes = match &class.place {
            Place::Device(path) => {
                let bytes = self.device_bytes(&volume_id, path, &class.parameters).await?;
                expect_size(path, bytes, &class.parameters, range, existing.is_some())?;
                Some(bytes)
            }
            Place::Local => None,
        };
        let bytes = size(&class.parameters, range)?;
        if existing.is_none() && class.place == Place::Local {
            self.expect_no_file(&volume_id).await?;
            // Asked before the record is made, so that a volume that cannot fit leaves no trace.
            self.expect_room(bytes + overhead).await?;
        }
        let new = NewKey {
            volume_id: volume_id.clone(),
            name,
            parameters: class.parameters,
            node: Some(self.node_id.clone()),
            tenant: class.tenant,
            storage_class: class.storage_class,
            claim: class.claim,
            key_id: class.key_id,
            provider: class.provider,
            context: class.context,
        };
        let info = self.node.keys.create(new, deadline).await?;
        reached(Step::KeyCreated, &volume_id);
        let bytes = match device_bytes {
            Some(bytes) => bytes,
            None => self.create_file(&info, bytes + overhead, range, deadline).await? - overhead,
        };
        reached(Step::FileCreated, &volume_id);
        Ok(Volume {
            capacity_bytes: signed(bytes),
            volume_id: volume_id.to_string(),
            volume_context: request::context(&class.place),
            content_source: None,
            accessible_topology: vec![topology(&self.node_id)],
        })
    }

    async fn create_file(
        &self,
        info: &KeyInfo,
        file_bytes: u64,
        range: Range,
        deadline: Deadline,
    ) -> Result<u64, Status> {
        let (pool, overhead) = (&self.node.pool, Layout::of(&info.parameters).overhead_bytes());
        let size = match (pool.size(&info.volume_id).await?, info.state) {
            (Some(size), _) => size,
            // A file in its place would be a blank volume where a user's data was.
            (None, State::Ready | State::Destroyed) => {
                return Err(Status::failed_precondition(format!(
                    "volume {} exists and its file in the pool is gone: put it back from a backup, or delete the volume",
                    info.volume_id
                )));
            }
            (None, State::Prepared | State::Formatting) => match pool.create(&info.volume_id, file_bytes).await {
                Err(full @ PoolFailure::Full { .. }) => {
                    // Nothing was ever written under this key.
                    self.node.keys.destroy(&info.volume_id, info.generation, deadline).await?;
                    return Err(full.into());
                }
                created => created?,
            },
        };
        if size < overhead || !range.allows(size - overhead) {
            return Err(Status::already_exists(format!(
                "volume {} exists with {} bytes, which is not the size that is asked for",
                info.volume_id,
                size.saturating_sub(overhead)
            )));
        }
        Ok(size)
    }

    async fn device_bytes(
        &self,
        volume_id: &VolumeId,
        path: &std::path::Path,
        parameters: &Parameters,
    ) -> Result<u64, Status> {
        let attached = Device::at(path, self.node.blocks.clone()).attach(volume_id).await;
        let attached = attached
            .map_err(|failure| Status::invalid_argument(format!("parameter device: {}", grpc::message(&failure))))?;
        let size = self.node.blocks.size(&attached.path).await;
        let size = size.map_err(|error| Status::internal(format!("measure {}: {error}", path.display())))?;
        Ok(size.saturating_sub(Layout::of(parameters).overhead_bytes()))
    }

    /// A file without a record is what a deletion left that broke off, or what is left when records were lost.
    async fn expect_no_file(&self, volume_id: &VolumeId) -> Result<(), Status> {
        match self.node.pool.size(volume_id).await? {
            None => Ok(()),
            Some(_) => Err(Status::failed_precondition(format!(
                "volume {volume_id} has a file in the pool and no key record: delete the volume if it is not needed, \
                 or restore its record from a backup"
            ))),
        }
    }

    async fn expect_room(&self, needed: u64) -> Result<(), Status> {
        let available = self.node.pool.available().await?;
        if needed <= available {
            return Ok(());
        }
        Err(Status::resource_exhausted(format!(
            "{needed} bytes are needed and {available} are available in the pool of node {}",
            self.node_id
        )))
    }

    pub(super) async fn delete(
        &self,
        volume_id: &VolumeId,
        deadline: Deadline,
    ) -> Result<DeleteVolumeResponse, Status> {
        let mapping = self.node.blocks.mapping(&MapperName::of(volume_id)).await;
        if mapping.map_err(|error| Status::internal(format!("look for mappings: {error}")))?.is_some() {
            return Err(Status::failed_precondition(format!("volume {volume_id} is staged on node {}", self.node_id)));
        }
        self.node.pool.expect_unused(volume_id).await?;
        // No key, or a destroyed one: a deletion that broke off before the file was removed.
        if let Some(info) = self.node.keys.describe(volume_id, deadline).await? {
            self.node.keys.destroy(volume_id, info.generation, deadline).await?;
        }
        reached(Step::KeyDestroyed, volume_id);
        self.node.pool.remove(volume_id).await?;
        reached(Step::FileRemoved, volume_id);
        Ok(DeleteVolumeResponse {})
    }

    pub(super) async fn expand(
        &self,
        volume_id: &VolumeId,
        range: Range,
        deadline: Deadline,
    ) -> Result<ControllerExpandVolumeResponse, Status> {
        let info = self.expect(volume_id, deadline).await?;
        let overhead = Layout::of(&info.parameters).overhead_bytes();
        let now = self.node.pool.size(volume_id).await?;
        let now =
            now.ok_or_else(|| Status::failed_precondition(format!("volume {volume_id} is not a local volume")))?;
        let wanted = match range.limit {
            Some(limit) => rounded(range.required).min(limit - limit % 4096),
            None => rounded(range.required),
        };
        if wanted < range.required || range.limit.is_some_and(|limit| now.saturating_sub(overhead) > limit) {
            return Err(Status::out_of_range(format!(
                "volume {volume_id} has {} bytes and cannot have between {} and {}",
                now.saturating_sub(overhead),
                range.required,
                range.limit.unwrap_or(u64::MAX)
            )));
        }
        let size = self.node.pool.expand(volume_id, wanted.saturating_add(overhead)).await;
        let size = size.map_err(|failure| match failure {
            full @ PoolFailure::Full { .. } => Status::out_of_range(full.to_string()),
            other => other.into(),
        })?;
        reached(Step::FileGrown, volume_id);
        Ok(ControllerExpandVolumeResponse { capacity_bytes: signed(size - overhead), node_expansion_required: true })
    }

    pub(super) async fn list(
        &self,
        after: Option<VolumeId>,
        most: usize,
        deadline: Deadline,
    ) -> Result<ListVolumesResponse, Status> {
        let page = self.node.keys.list(after.as_ref(), most, deadline).await?;
        let mut entries = Vec::new();
        for info in page.infos.iter().filter(|info| info.node.as_ref().is_none_or(|node| *node == self.node_id)) {
            let size = self.node.pool.size(&info.volume_id).await?;
            let overhead = Layout::of(&info.parameters).overhead_bytes();
            let volume = Volume {
                capacity_bytes: signed(size.unwrap_or(0).saturating_sub(overhead)),
                volume_id: info.volume_id.to_string(),
                volume_context: Default::default(),
                content_source: None,
                accessible_topology: vec![topology(&self.node_id)],
            };
            entries.push(Entry { volume: Some(volume), status: None });
        }
        let next_token = page.next.map(|id| format!("{TOKEN_PREFIX}{id}")).unwrap_or_default();
        Ok(ListVolumesResponse { entries, next_token })
    }

    /// What the record of a volume says that there must be.
    pub(super) async fn expect(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<KeyInfo, Status> {
        let info = self.node.keys.describe(volume_id, deadline).await?;
        info.ok_or_else(|| Status::not_found(format!("there is no volume {volume_id}")))
    }
}

/// Refuses a device of another size than is asked for.
fn expect_size(
    device: &std::path::Path,
    bytes: u64,
    parameters: &Parameters,
    range: Range,
    exists: bool,
) -> Result<(), Status> {
    if bytes >= parameters.minimum_bytes() && range.allows(bytes) {
        return Ok(());
    }
    let device = device.display();
    let told = format!("device {device} has room for {bytes} bytes, which is not the size that is asked for");
    Err(if exists { Status::already_exists(told) } else { Status::out_of_range(told) })
}

/// The size to make a volume, in bytes: what is required, at least what its content needs, in whole MiB where the
/// limit lets it be.
fn size(parameters: &Parameters, range: Range) -> Result<u64, Status> {
    let least = match range.required {
        0 => DEFAULT_BYTES.min(range.limit.unwrap_or(DEFAULT_BYTES)),
        required => required,
    };
    let least = least.max(parameters.minimum_bytes());
    let bytes = match range.limit {
        Some(limit) => rounded(least).min(limit - limit % 4096),
        None => rounded(least),
    };
    if bytes < least || i64::try_from(bytes).is_err() {
        return Err(Status::out_of_range(format!(
            "a volume of {} has at least {} bytes, in multiples of 4096, and at most 2^63",
            parameters.content,
            parameters.minimum_bytes()
        )));
    }
    Ok(bytes)
}

fn rounded(bytes: u64) -> u64 {
    bytes.div_ceil(MIB).saturating_mul(MIB)
}
