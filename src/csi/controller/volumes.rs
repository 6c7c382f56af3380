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
        pool::{Held, Needs, Placement, PoolsFailure, Wanted},
        source::Place,
    },
    proto::csi::{
        ControllerExpandVolumeResponse, DeleteVolumeResponse, ListVolumesResponse, Volume, list_volumes_response::Entry,
    },
    step::{Step, reached},
    volume::{MIB, Parameters, VolumeId},
};

/// The size of a volume for which none is asked, in bytes.
const DEFAULT_BYTES: u64 = 1 << 30;

impl Controller {
    pub(super) async fn create(
        &self,
        name: String,
        class: Class,
        range: Range,
        wanted: Wanted,
        deadline: Deadline,
    ) -> Result<Volume, Status> {
        let volume_id = VolumeId::for_name(&name);
        let overhead = Layout::of(&class.parameters).overhead_bytes();
        let existing = self.keys.describe(&volume_id, deadline).await?;
        let device_bytes = match &class.place {
            Place::Device(path) => {
                let bytes = self.pools.device_bytes(&volume_id, path).await?.saturating_sub(overhead);
                expect_size(path, bytes, &class.parameters, range, existing.is_some())?;
                Some(bytes)
            }
            Place::Local => None,
        };
        let bytes = size(&class.parameters, range)?;
        let needs = match &class.place {
            Place::Device(path) => Needs::Device(path),
            Place::Local => Needs::File(bytes + overhead),
        };
        let node = self.place(&volume_id, needs, &wanted, existing, deadline).await?;
        let new = NewKey {
            volume_id: volume_id.clone(),
            name,
            parameters: class.parameters,
            node: Some(node.clone()),
            tenant: class.tenant,
            storage_class: class.storage_class,
            claim: class.claim,
            key_id: class.key_id,
            provider: class.provider,
            context: class.context,
        };
        let info = self.keys.create(new, deadline).await?;
        reached(Step::KeyCreated, &volume_id);
        let bytes = match device_bytes {
            Some(bytes) => bytes,
            None => self.create_file(&info, &node, bytes + overhead, range, deadline).await? - overhead,
        };
        reached(Step::FileCreated, &volume_id);
        Ok(Volume {
            capacity_bytes: signed(bytes),
            volume_id: volume_id.to_string(),
            volume_context: request::context(&class.place),
            content_source: None,
            accessible_topology: vec![topology(&node)],
        })
    }

    /// The node for a new volume. A record that the pools say is of no use is destroyed.
    async fn place(
        &self,
        volume_id: &VolumeId,
        needs: Needs<'_>,
        wanted: &Wanted,
        mut existing: Option<KeyInfo>,
        deadline: Deadline,
    ) -> Result<String, Status> {
        let mut placed = self.pools.place(volume_id, needs, wanted, existing.as_ref(), deadline).await;
        if matches!(placed, Err(PoolsFailure::NoRecord(_))) {
            // Another controller may have made both since the record was looked for.
            existing = self.keys.describe(volume_id, deadline).await?;
            if existing.is_some() {
                placed = self.pools.place(volume_id, needs, wanted, existing.as_ref(), deadline).await;
            }
        }
        let placement = placed?;
        if let (Placement::Anew(_) | Placement::Nowhere(_), Some(info)) = (&placement, &existing) {
            self.keys.destroy(volume_id, info.generation, deadline).await?;
        }
        match placement {
            Placement::At(node) | Placement::Anew(node) => Ok(node),
            Placement::Nowhere(reason) => Err(reason.into()),
        }
    }

    async fn create_file(
        &self,
        info: &KeyInfo,
        node: &str,
        file_bytes: u64,
        range: Range,
        deadline: Deadline,
    ) -> Result<u64, Status> {
        let overhead = Layout::of(&info.parameters).overhead_bytes();
        let size = match (self.pools.size(&info.volume_id, deadline).await?, info.state) {
            (Some(size), _) => size,
            // A file in its place would be a blank volume where a user's data was.
            (None, State::Ready | State::Destroyed) => {
                return Err(Status::failed_precondition(format!(
                    "volume {} exists and its file in the pool is gone: put it back from a backup, or delete the volume",
                    info.volume_id
                )));
            }
            (None, State::Prepared | State::Formatting) => {
                match self.pools.create(&info.volume_id, node, file_bytes, deadline).await {
                    Err(full) if full.is_full() => {
                        // Nothing was ever written under this key.
                        self.keys.destroy(&info.volume_id, info.generation, deadline).await?;
                        return Err(full.into());
                    }
                    created => created?,
                }
            }
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

    pub(super) async fn delete(
        &self,
        volume_id: &VolumeId,
        deadline: Deadline,
    ) -> Result<DeleteVolumeResponse, Status> {
        self.pools.expect_unused(volume_id).await?;
        // No key, or a destroyed one: a deletion that broke off before the file was removed.
        let info = self.keys.describe(volume_id, deadline).await?;
        if let Some(info) = &info {
            self.keys.destroy(volume_id, info.generation, deadline).await?;
        }
        reached(Step::KeyDestroyed, volume_id);
        self.pools.remove(volume_id, info.as_ref(), deadline).await?;
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
        let now = self.pools.size(volume_id, deadline).await?;
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
        let size = self.pools.expand(volume_id, wanted.saturating_add(overhead), deadline).await;
        let size = size.map_err(|failure| match failure {
            full if full.is_full() => Status::out_of_range(full.to_string()),
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
        let page = self.keys.list(after.as_ref(), most, deadline).await?;
        let mut entries = Vec::new();
        for Held { info, node, bytes } in self.pools.held(page.infos, deadline).await? {
            let overhead = Layout::of(&info.parameters).overhead_bytes();
            let volume = Volume {
                capacity_bytes: signed(bytes.unwrap_or(0).saturating_sub(overhead)),
                volume_id: info.volume_id.to_string(),
                volume_context: Default::default(),
                content_source: None,
                accessible_topology: vec![topology(&node)],
            };
            entries.push(Entry { volume: Some(volume), status: None });
        }
        let next_token = page.next.map(|id| format!("{TOKEN_PREFIX}{id}")).unwrap_or_default();
        Ok(ListVolumesResponse { entries, next_token })
    }

    /// What the record of a volume says that there must be.
    pub(super) async fn expect(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<KeyInfo, Status> {
        let info = self.keys.describe(volume_id, deadline).await?;
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
