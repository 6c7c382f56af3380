//! CSI's Controller service: local files, of this node or of a whole cluster's, and devices that are there already.
//!
//! The record is made before the file and destroyed before it, so that at every moment a file without a key is
//! garbage and never the other way round. Where the files lie is behind a joint, `node::pool`.

mod volumes;

use std::{collections::HashMap, fmt, sync::Arc};

use tonic::{Request, Response, Status, async_trait};

use crate::{
    csi::{
        Gate, TOPOLOGY_KEY,
        node::signed,
        request::{self, Invalid, Range, class::class},
    },
    key::service::{KeyInfo, KeyService},
    node::{
        self, Form,
        header::Layout,
        pool::{Pools, Wanted, here::Here},
    },
    proto::csi::{
        ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetCapabilitiesRequest,
        ControllerGetCapabilitiesResponse, ControllerServiceCapability, CreateVolumeRequest, CreateVolumeResponse,
        DeleteVolumeRequest, DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse, ListVolumesRequest,
        ListVolumesResponse, Topology, TopologyRequirement, ValidateVolumeCapabilitiesRequest,
        ValidateVolumeCapabilitiesResponse, controller_server,
        controller_service_capability::{Rpc, Type, rpc},
        validate_volume_capabilities_response::Confirmed,
    },
    server::rpc as grpc,
    volume::{Content, MIB, VolumeId},
};

/// Volumes in a page of a list, where no fewer are asked for.
const PAGE: usize = 500;
/// What the token of a page begins with.
const TOKEN_PREFIX: &str = "after:";

/// The Controller service.
#[derive(Clone)]
pub struct Controller {
    keys: Arc<dyn KeyService>,
    pools: Arc<dyn Pools>,
    gate: Gate,
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Controller")
    }
}

impl Controller {
    /// The service for the volumes of one node, beside its driver.
    #[must_use]
    pub fn new(node: Arc<node::Node>, node_id: String, gate: Gate) -> Self {
        Self::over(node.keys.clone(), Arc::new(Here::of(node, node_id)), gate)
    }

    /// The service for the volumes of these pools.
    #[must_use]
    pub fn over(keys: Arc<dyn KeyService>, pools: Arc<dyn Pools>, gate: Gate) -> Self {
        Self { keys, pools, gate }
    }
}

/// The node that a topology names; none where it is any node's.
fn node_of(topology: &Topology) -> Option<&str> {
    topology.segments.get(TOPOLOGY_KEY).map(String::as_str)
}

/// On which nodes a volume may be. A topology that does not name our key is every node's.
fn wanted(requirement: Option<&TopologyRequirement>) -> Wanted {
    let Some(TopologyRequirement { requisite, preferred }) = requirement else { return Wanted::default() };
    let nodes = |topologies: &[Topology]| -> Vec<Option<String>> {
        topologies.iter().map(|topology| node_of(topology).map(str::to_owned)).collect()
    };
    Wanted {
        preferred: nodes(preferred).into_iter().flatten().collect(),
        allowed: nodes(requisite).into_iter().collect::<Option<Vec<_>>>().filter(|allowed| !allowed.is_empty()),
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
        let class = class(&request.parameters, &capabilities.collect::<Result<Vec<_>, _>>()?)?;
        let range = Range::parse(request.capacity_range.as_ref())?;
        if request.volume_content_source.is_some() {
            return Err(Invalid::new("volume_content_source: snapshots and clones are not supported").into());
        }
        if !request.mutable_parameters.is_empty() {
            return Err(Invalid::new("mutable_parameters are not supported").into());
        }
        let wanted = wanted(request.accessibility_requirements.as_ref());
        let (controller, volume_id) = (self.clone(), VolumeId::for_name(&name));
        let work = async move {
            let volume = controller.create(name, class, range, wanted, deadline).await?;
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
        request::no_secrets(&request.secrets)?;
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
        let deadline = grpc::deadline(request.metadata());
        let request = request.into_inner();
        let capabilities = request.volume_capabilities.iter().map(|capability| request::capability(Some(capability)));
        let mut capabilities = capabilities.collect::<Result<Vec<_>, _>>()?;
        if capabilities.is_empty() {
            capabilities.push(node::Capability {
                form: Form::Filesystem { fs_type: None, options: Default::default(), group: None },
                access: node::Use::Write,
            });
        }
        let class = class(&request.parameters, &capabilities)?;
        let node = request.accessible_topology.as_ref().and_then(node_of).map(str::to_owned);
        let controller = self.clone();
        let work = async move {
            let overhead = Layout::of(&class.parameters).overhead_bytes();
            let available = controller.pools.available(node.as_deref(), deadline).await?;
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
            // Not looked at, so not confirmed.
            parameters: HashMap::new(),
            mutable_parameters: HashMap::new(),
        }),
        message: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csi::node::topology;

    fn requirement(requisite: Vec<Topology>, preferred: Vec<Topology>) -> TopologyRequirement {
        TopologyRequirement { requisite, preferred }
    }

    #[test]
    fn a_topology_that_names_no_node_is_every_nodes() {
        let (n1, n2, other) = (topology("n1"), topology("n2"), Topology::default());
        assert_eq!(wanted(None), Wanted::default());
        assert_eq!(wanted(Some(&requirement(vec![], vec![n1.clone()]))).order(), ["n1"]);
        let one_of = wanted(Some(&requirement(vec![n1.clone(), n2.clone()], vec![n2])));
        assert_eq!(one_of.order(), ["n2", "n1"]);
        assert!(!one_of.allows("n3"));
        assert!(wanted(Some(&requirement(vec![n1, other], vec![]))).allows("n3"));
    }
}
