//! CSI's Controller service for volumes of this node: local files, and devices that are there already.
//!
//! The record is made before the file and destroyed before it, so that at every moment a file without a key is
//! garbage and never the other way round.

use std::sync::Arc;

use tonic::{Request, Response, Status, async_trait};

use crate::{
    csi::{
        Gate, TOPOLOGY_KEY,
        node::{signed, topology},
        request::{self, Class, Invalid, Range},
    },
    exec::Deadline,
    key::{
        record::State,
        service::{KeyInfo, NewKey},
    },
    node::{
        self, Form,
        header::Layout,
        source::{BlockSource, Place, device::Device, local::PoolFailure},
    },
    proto::csi::{
        ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetCapabilitiesRequest,
        ControllerGetCapabilitiesResponse, ControllerServiceCapability, CreateVolumeRequest, CreateVolumeResponse,
        DeleteVolumeRequest, DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse, ListVolumesRequest,
        ListVolumesResponse, Topology, TopologyRequirement, ValidateVolumeCapabilitiesRequest,
        ValidateVolumeCapabilitiesResponse, Volume, controller_server,
        controller_service_capability::{Rpc, Type, rpc},
        list_volumes_response::Entry,
        validate_volume_capabilities_response::Confirmed,
    },
    server::rpc as grpc,
    volume::{Content, MIB, MapperName, Parameters, VolumeId},
};

/// The size of a volume for which none is asked, in bytes.
const DEFAULT_BYTES: u64 = 1 << 30;
const PAGE: usize = 500;
const TOKEN_PREFIX: &str = "after:";

/// The Controller service.
#[derive(Clone, Debug)]
pub struct Controller {
    node: Arc<node::Node>,
    node_id: String,
    gate: Gate,
}

impl Controller {
    /// The service for the volumes of one node.
    #[must_use]
    pub fn new(node: Arc<node::Node>, node_id: String, gate: Gate) -> Self {
        Self { node, node_id, gate }
    }

    async fn create(&self, name: String, class: Class, range: Range, deadline: Deadline) -> Result<Volume, Status> {
        let volume_id = VolumeId::for_name(&name);
        let overhead = Layout::of(&class.parameters).overhead_bytes();
        let existing = self.node.keys.describe(&volume_id, deadline).await?;
        let device_bytes = match &class.place {
            Place::Device(path) => Some(self.device_bytes(&volume_id, path, &class.parameters, range).await?),
            Place::Local => None,
        };
        let bytes = size(&class.parameters, range)?;
        if existing.is_none() && class.place == Place::Local {
            // Asked before the record is made, so that a volume that cannot fit leaves no trace.
            self.expect_room(bytes + overhead).await?;
        }
        let new = NewKey {
            volume_id: volume_id.clone(),
            name,
            parameters: class.parameters,
            node: Some(self.node_id.clone()),
            tenant: class.tenant,
            provider: class.provider,
            context: class.context,
        };
        let info = self.node.keys.create(new, deadline).await?;
        let bytes = match device_bytes {
            Some(bytes) => bytes,
            None => self.create_file(&info, bytes + overhead, range, deadline).await? - overhead,
        };
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
                    self.node.keys.destroy(&info.volume_id, deadline).await?;
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
        range: Range,
    ) -> Result<u64, Status> {
        let attached = Device::at(path, self.node.blocks.clone()).attach(volume_id).await?;
        let size = self.node.blocks.size(&attached.path).await;
        let size = size.map_err(|error| Status::internal(format!("measure {}: {error}", path.display())))?;
        let bytes = size.saturating_sub(Layout::of(parameters).overhead_bytes());
        if bytes < parameters.minimum_bytes() || !range.allows(bytes) {
            return Err(Status::out_of_range(format!(
                "device {} has room for {bytes} bytes, which is not the size that is asked for",
                path.display()
            )));
        }
        Ok(bytes)
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

    async fn delete(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<DeleteVolumeResponse, Status> {
        let mapping = self.node.blocks.mapping(&MapperName::of(volume_id)).await;
        if mapping.map_err(|error| Status::internal(format!("look for mappings: {error}")))?.is_some() {
            return Err(Status::failed_precondition(format!("volume {volume_id} is staged on node {}", self.node_id)));
        }
        self.node.pool.expect_unused(volume_id).await?;
        self.node.keys.destroy(volume_id, deadline).await?;
        self.node.pool.remove(volume_id).await?;
        Ok(DeleteVolumeResponse {})
    }

    async fn expand(
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
        Ok(ControllerExpandVolumeResponse { capacity_bytes: signed(size - overhead), node_expansion_required: true })
    }

    async fn list(
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

    async fn expect(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<KeyInfo, Status> {
        let info = self.node.keys.describe(volume_id, deadline).await?;
        info.ok_or_else(|| Status::not_found(format!("there is no volume {volume_id}")))
    }

    fn is_here(&self, topology: &Topology) -> bool {
        topology.segments.get(TOPOLOGY_KEY).is_none_or(|node| *node == self.node_id)
    }

    fn expect_here(&self, requirement: Option<&TopologyRequirement>) -> Result<(), Status> {
        let Some(requirement) = requirement.filter(|requirement| !requirement.requisite.is_empty()) else {
            return Ok(());
        };
        if requirement.requisite.iter().any(|topology| self.is_here(topology)) {
            return Ok(());
        }
        let here = format!("this is node {}, and the volume is required elsewhere", self.node_id);
        Err(Status::resource_exhausted(here))
    }
}

#[async_trait]
impl controller_server::Controller for Controller {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let deadline = grpc::deadline(request.metadata());
        let request = request.into_inner();
        let name = request::name(&request.name)?.to_owned();
        request::no_secrets(&request.secrets)?;
        let capabilities = request.volume_capabilities.iter().map(|capability| request::capability(Some(capability)));
        let class = request::class(&request.parameters, &capabilities.collect::<Result<Vec<_>, _>>()?)?;
        let range = Range::parse(request.capacity_range.as_ref())?;
        if request.volume_content_source.is_some() {
            return Err(Invalid::new("volume_content_source: snapshots and clones are not supported").into());
        }
        if !request.mutable_parameters.is_empty() {
            return Err(Invalid::new("mutable_parameters are not supported").into());
        }
        self.expect_here(request.accessibility_requirements.as_ref())?;
        let (controller, volume_id) = (self.clone(), VolumeId::for_name(&name));
        let work = async move {
            let volume = controller.create(name, class, range, deadline).await?;
            Ok::<_, Status>(CreateVolumeResponse { volume: Some(volume) })
        };
        self.gate.run("CreateVolume", Some(volume_id), work).await
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let deadline = grpc::deadline(request.metadata());
        let request = request.into_inner();
        request::no_secrets(&request.secrets)?;
        let volume_id = request::volume_id(&request.volume_id)?;
        let (controller, id) = (self.clone(), volume_id.clone());
        let work = async move { controller.delete(&id, deadline).await };
        self.gate.run("DeleteVolume", Some(volume_id), work).await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let deadline = grpc::deadline(request.metadata());
        let request = request.into_inner();
        let volume_id = request::volume_id(&request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(Invalid::new("volume_capabilities are missing").into());
        }
        let controller = self.clone();
        let work = async move {
            let info = controller.expect(&volume_id, deadline).await?;
            Ok::<_, Status>(validate(&info, request))
        };
        self.gate.run("ValidateVolumeCapabilities", None, work).await
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let deadline = grpc::deadline(request.metadata());
        let request = request.into_inner();
        let most = match usize::try_from(request.max_entries) {
            Ok(0) => PAGE,
            Ok(most) => most.min(PAGE),
            Err(_) => return Err(Invalid::new("max_entries is negative").into()),
        };
        let unknown = || Status::aborted("starting_token was not given out by this driver: list from the start");
        let after = match request.starting_token.as_str() {
            "" => None,
            token => Some(token.strip_prefix(TOKEN_PREFIX).and_then(|id| id.parse().ok()).ok_or_else(unknown)?),
        };
        let controller = self.clone();
        self.gate.run("ListVolumes", None, async move { controller.list(after, most, deadline).await }).await
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        let request = request.into_inner();
        let capabilities = request.volume_capabilities.iter().map(|capability| request::capability(Some(capability)));
        let mut capabilities = capabilities.collect::<Result<Vec<_>, _>>()?;
        if capabilities.is_empty() {
            capabilities.push(node::Capability {
                form: Form::Filesystem { fs_type: None, options: Default::default(), group: None },
                access: node::Use::Write,
            });
        }
        let class = request::class(&request.parameters, &capabilities)?;
        let here = request.accessible_topology.as_ref().is_none_or(|topology| self.is_here(topology));
        let controller = self.clone();
        let work = async move {
            let overhead = Layout::of(&class.parameters).overhead_bytes();
            let available = if here { controller.node.pool.available().await? } else { 0 };
            let available = available.saturating_sub(overhead) / MIB * MIB;
            Ok::<_, Status>(GetCapacityResponse {
                available_capacity: signed(available),
                maximum_volume_size: Some(signed(available)),
                minimum_volume_size: Some(signed(class.parameters.minimum_bytes())),
            })
        };
        self.gate.run("GetCapacity", None, work).await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let capabilities = [
            rpc::Type::CreateDeleteVolume,
            rpc::Type::ListVolumes,
            rpc::Type::GetCapacity,
            rpc::Type::ExpandVolume,
            rpc::Type::SingleNodeMultiWriter,
        ];
        let capability =
            |kind: rpc::Type| ControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })) };
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities: capabilities.map(capability).to_vec() }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        let deadline = grpc::deadline(request.metadata());
        let request = request.into_inner();
        request::no_secrets(&request.secrets)?;
        let volume_id = request::volume_id(&request.volume_id)?;
        if request.capacity_range.is_none() {
            return Err(Invalid::new("capacity_range is missing").into());
        }
        let range = Range::parse(request.capacity_range.as_ref())?;
        if request.volume_capability.is_some() {
            request::capability(request.volume_capability.as_ref())?;
        }
        let (controller, id) = (self.clone(), volume_id.clone());
        let work = async move { controller.expand(&id, range, deadline).await };
        self.gate.run("ControllerExpandVolume", Some(volume_id), work).await
    }
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

fn validate(info: &KeyInfo, request: ValidateVolumeCapabilitiesRequest) -> ValidateVolumeCapabilitiesResponse {
    let refused = |message: String| ValidateVolumeCapabilitiesResponse { confirmed: None, message };
    for capability in &request.volume_capabilities {
        let form = match request::capability(Some(capability)) {
            Err(invalid) => return refused(invalid.to_string()),
            Ok(capability) => capability.form,
        };
        let fits = match (info.parameters.content, form) {
            (Content::Block, Form::Block) => true,
            (Content::Filesystem(is), Form::Filesystem { fs_type, .. }) => fs_type.is_none_or(|asked| asked == is),
            (Content::Block, Form::Filesystem { .. }) | (Content::Filesystem(_), Form::Block) => false,
        };
        if !fits {
            return refused(format!("the volume holds {}", info.parameters.content));
        }
    }
    ValidateVolumeCapabilitiesResponse {
        confirmed: Some(Confirmed {
            volume_context: request.volume_context,
            volume_capabilities: request.volume_capabilities,
            parameters: request.parameters,
            mutable_parameters: request.mutable_parameters,
        }),
        message: String::new(),
    }
}
