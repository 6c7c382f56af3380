//! CSI's Node service: each RPC in four verbs, the work in `crate::node`.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use tonic::{Request, Response, Status, async_trait};

use crate::{
    csi::{Gate, TOPOLOGY_KEY, request},
    node::{
        self,
        block::Access,
        ephemeral::Ephemeral,
        failure::NodeFailure,
        publish::Publish,
        stage::Stage,
        stats::{Condition, Size, Stats},
    },
    proto::csi::{
        NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse,
        NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
        NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
        NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest,
        NodeUnstageVolumeResponse, Topology, VolumeCondition, VolumeUsage, node_server,
        node_service_capability::{Rpc, Type, rpc},
        volume_usage::Unit,
    },
    server::rpc as grpc,
    volume::VolumeId,
};

/// The Node service.
#[derive(Clone, Debug)]
pub struct Node {
    node: Arc<node::Node>,
    node_id: String,
    gate: Gate,
}

impl Node {
    /// The service of one node.
    #[must_use]
    pub fn new(node: Arc<node::Node>, node_id: String, gate: Gate) -> Self {
        Self { node, node_id, gate }
    }
}

/// The topology of a volume or node.
#[must_use]
pub fn topology(node_id: &str) -> Topology {
    Topology { segments: HashMap::from([(TOPOLOGY_KEY.to_owned(), node_id.to_owned())]) }
}

#[async_trait]
impl node_server::Node for Node {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let deadline = grpc::deadline(request.metadata());
        let request = request.into_inner();
        request::no_secrets(&request.secrets)?;
        let stage = Stage {
            volume_id: request::volume_id(&request.volume_id)?,
            staging_target_path: request::path("staging_target_path", &request.staging_target_path)?,
            capability: request::capability(request.volume_capability.as_ref())?,
            place: request::place(&request.volume_context)?,
        };
        let (node, volume_id) = (self.node.clone(), stage.volume_id.clone());
        let work = async move { node.stage(&stage, deadline).await.map(|()| NodeStageVolumeResponse {}) };
        self.gate.run("NodeStageVolume", Some(volume_id), work).await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let deadline = grpc::deadline(request.metadata());
        let request = request.into_inner();
        let volume_id = request::volume_id(&request.volume_id)?;
        let path = request::path("staging_target_path", &request.staging_target_path)?;
        let (node, id) = (self.node.clone(), volume_id.clone());
        let work = async move { node.unstage(&id, &path, deadline).await.map(|()| NodeUnstageVolumeResponse {}) };
        self.gate.run("NodeUnstageVolume", Some(volume_id), work).await
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let deadline = grpc::deadline(request.metadata());
        let request = request.into_inner();
        request::no_secrets(&request.secrets)?;
        let volume_id = request::volume_id(&request.volume_id)?;
        let access = if request.readonly { Access::ReadOnly } else { Access::ReadWrite };
        let node = self.node.clone();
        if let Some(attributes) = request::ephemeral::attributes(&request.volume_context)? {
            let capability = request::capability(request.volume_capability.as_ref())?;
            let ephemeral = Ephemeral {
                volume_id: volume_id.clone(),
                target_path: request::path("target_path", &request.target_path)?,
                fs_type: attributes.fs_type(&capability.form)?,
                bytes: attributes.bytes,
                capability,
                access,
            };
            let work = async move {
                node.publish_ephemeral(&ephemeral, deadline).await.map(|()| NodePublishVolumeResponse {})
            };
            return self.gate.run("NodePublishVolume", Some(volume_id), work).await;
        }
        let publish = Publish {
            volume_id: volume_id.clone(),
            staging_target_path: request::path("staging_target_path", &request.staging_target_path)?,
            target_path: request::path("target_path", &request.target_path)?,
            capability: request::capability(request.volume_capability.as_ref())?,
            access,
        };
        let work = async move { node.publish(&publish).await.map(|()| NodePublishVolumeResponse {}) };
        self.gate.run("NodePublishVolume", Some(volume_id), work).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let deadline = grpc::deadline(request.metadata());
        let request = request.into_inner();
        let volume_id = request::volume_id(&request.volume_id)?;
        let path = request::path("target_path", &request.target_path)?;
        let (node, id) = (self.node.clone(), volume_id.clone());
        let work = async move { node.unpublish(&id, &path, deadline).await.map(|()| NodeUnpublishVolumeResponse {}) };
        self.gate.run("NodeUnpublishVolume", Some(volume_id), work).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let volume_id = request::volume_id(&request.volume_id)?;
        let path = volume_path(&volume_id, &request.volume_path)?;
        let node = self.node.clone();
        // No lock: it changes nothing, and kubelet asks often.
        let work = async move { node.stats(&volume_id, &path).await.map(|stats| response(&stats)) };
        self.gate.run("NodeGetVolumeStats", None, work).await
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let deadline = grpc::deadline(request.metadata());
        let request = request.into_inner();
        request::no_secrets(&request.secrets)?;
        let volume_id = request::volume_id(&request.volume_id)?;
        let path = volume_path(&volume_id, &request.volume_path)?;
        let range = request::Range::parse(request.capacity_range.as_ref())?;
        if request.volume_capability.is_some() {
            request::capability(request.volume_capability.as_ref())?;
        }
        let (node, id) = (self.node.clone(), volume_id.clone());
        let work = async move {
            let bytes = node.expand(&id, &path, range.required, deadline).await?;
            Ok::<_, NodeFailure>(NodeExpandVolumeResponse { capacity_bytes: signed(bytes) })
        };
        self.gate.run("NodeExpandVolume", Some(volume_id), work).await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let capabilities = [
            rpc::Type::StageUnstageVolume,
            rpc::Type::GetVolumeStats,
            rpc::Type::ExpandVolume,
            rpc::Type::VolumeCondition,
            rpc::Type::SingleNodeMultiWriter,
            rpc::Type::VolumeMountGroup,
        ];
        let capability =
            |kind: rpc::Type| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })) };
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities: capabilities.map(capability).to_vec() }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.node_id.clone(),
            max_volumes_per_node: 0,
            accessible_topology: Some(topology(&self.node_id)),
        }))
    }
}

/// A path at which a volume is said to be. No volume is at a relative one (csi-sanity holds drivers to NOT_FOUND).
fn volume_path(volume_id: &VolumeId, text: &str) -> Result<PathBuf, Status> {
    match text.chars().next() {
        None | Some('/') => Ok(request::path("volume_path", text)?),
        Some(_) => Err(Status::not_found(format!("volume {volume_id} is not at {text}, which is no absolute path"))),
    }
}

fn response(stats: &Stats) -> NodeGetVolumeStatsResponse {
    let usage = match stats.size {
        Size::Block(bytes) => {
            vec![VolumeUsage { total: signed(bytes), unit: Unit::Bytes.into(), ..VolumeUsage::default() }]
        }
        Size::Filesystem(usage) => vec![
            VolumeUsage {
                total: signed(usage.bytes),
                available: signed(usage.bytes_available),
                used: signed(usage.bytes.saturating_sub(usage.bytes_free)),
                unit: Unit::Bytes.into(),
            },
            VolumeUsage {
                total: signed(usage.inodes),
                available: signed(usage.inodes_free),
                used: signed(usage.inodes.saturating_sub(usage.inodes_free)),
                unit: Unit::Inodes.into(),
            },
        ],
    };
    let (abnormal, message) = match stats.condition {
        Condition::Normal => (false, "the volume is open and its device is there"),
        Condition::Abnormal(reason) => (true, reason),
    };
    let volume_condition = Some(VolumeCondition { abnormal, message: message.to_owned() });
    NodeGetVolumeStatsResponse { usage, volume_condition }
}

/// Bytes as CSI's messages carry them.
pub(crate) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
