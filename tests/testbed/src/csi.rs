//! A CSI client: requests as a container orchestrator sends them, with everything filled in that a test does not care
//! about.

use std::{path::Path, time::Duration};

use coffer::proto::csi::{
    CapacityRange, ControllerExpandVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest, NodeExpandVolumeRequest,
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, Volume, VolumeCapability,
    controller_client::ControllerClient,
    identity_client::IdentityClient,
    node_client::NodeClient,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

/// How long a caller waits who is to be told of something that is away.
const LITTLE_TIME: Duration = Duration::from_secs(2);

/// A connection to a CSI socket.
#[derive(Clone, Debug)]
pub struct Csi {
    /// Identity.
    pub identity: IdentityClient<Channel>,
    /// Controller.
    pub controller: ControllerClient<Channel>,
    /// Node.
    pub node: NodeClient<Channel>,
}

/// A capability for a mounted file system: an empty type means the volume's own.
#[must_use]
pub fn filesystem(fs_type: &str, mode: Mode) -> VolumeCapability {
    mount(MountVolume { fs_type: fs_type.to_owned(), ..MountVolume::default() }, mode)
}

/// A capability for a mounted file system, in full.
#[must_use]
pub fn mount(mount: MountVolume, mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(mount)),
    }
}

/// A capability for a raw block device.
#[must_use]
pub fn block(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    }
}

/// A request for a new volume.
#[must_use]
pub fn new_volume(name: &str, bytes: u64, capability: VolumeCapability) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(CapacityRange { required_bytes: signed(bytes), limit_bytes: 0 }),
        volume_capabilities: vec![capability],
        ..CreateVolumeRequest::default()
    }
}

/// A request to stage a volume.
#[must_use]
pub fn stage(volume: &Volume, path: &Path, capability: VolumeCapability) -> NodeStageVolumeRequest {
    NodeStageVolumeRequest {
        volume_id: volume.volume_id.clone(),
        staging_target_path: text(path),
        volume_capability: Some(capability),
        volume_context: volume.volume_context.clone(),
        ..NodeStageVolumeRequest::default()
    }
}

/// A request to publish a volume.
#[must_use]
pub fn publish(
    volume: &Volume,
    staged: &Path,
    target: &Path,
    capability: VolumeCapability,
) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        staging_target_path: text(staged),
        target_path: text(target),
        volume_capability: Some(capability),
        volume_context: volume.volume_context.clone(),
        ..NodePublishVolumeRequest::default()
    }
}

/// Whether a request failed because its time was over. The client's own clock may be first to say so.
#[must_use]
pub fn ran_out(status: &Status) -> bool {
    matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled)
}

impl Csi {
    /// A connection to a socket, made when it is needed.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        let socket = socket.to_owned();
        let connect = service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://csi").connect_with_connector_lazy(connect);
        Self {
            identity: IdentityClient::new(channel.clone()),
            controller: ControllerClient::new(channel.clone()),
            node: NodeClient::new(channel),
        }
    }

    /// CreateVolume.
    ///
    /// # Errors
    /// What the driver answers.
    pub async fn create(&self, request: CreateVolumeRequest) -> Result<Volume, Status> {
        let reply = self.controller.clone().create_volume(request).await?.into_inner();
        reply.volume.ok_or_else(|| Status::internal("the reply lacks the volume"))
    }

    /// A new file system volume.
    ///
    /// # Errors
    /// What the driver answers.
    pub async fn create_filesystem(&self, name: &str, bytes: u64, fs_type: &str) -> Result<Volume, Status> {
        self.create(new_volume(name, bytes, filesystem(fs_type, Mode::SingleNodeWriter))).await
    }

    /// DeleteVolume.
    ///
    /// # Errors
    /// What the driver answers.
    pub async fn delete(&self, volume_id: &str) -> Result<(), Status> {
        let request = DeleteVolumeRequest { volume_id: volume_id.to_owned(), ..DeleteVolumeRequest::default() };
        self.controller.clone().delete_volume(request).await.map(drop)
    }

    /// NodeStageVolume.
    ///
    /// # Errors
    /// What the driver answers.
    pub async fn stage(&self, volume: &Volume, path: &Path, capability: VolumeCapability) -> Result<(), Status> {
        self.node.clone().node_stage_volume(stage(volume, path, capability)).await.map(drop)
    }

    /// NodeStageVolume of a file system for one writer.
    ///
    /// # Errors
    /// What the driver answers.
    pub async fn stage_filesystem(&self, volume: &Volume, path: &Path) -> Result<(), Status> {
        self.stage(volume, path, filesystem("", Mode::SingleNodeWriter)).await
    }

    /// As [`Self::stage_filesystem`], by a caller who waits for so long.
    ///
    /// # Errors
    /// What the driver answers; where it does not in time, what [`ran_out`] is for.
    pub async fn stage_within(&self, volume: &Volume, path: &Path, time: Duration) -> Result<(), Status> {
        let mut request = Request::new(stage(volume, path, filesystem("", Mode::SingleNodeWriter)));
        request.set_timeout(time);
        self.node.clone().node_stage_volume(request).await.map(drop)
    }

    /// What a driver says of a stage for which its key service is away. It asks for a key again and again, for as long as
    /// its caller waits or 6 s; so this one waits for less. Where his time is over before he was told why, he comes again.
    ///
    /// # Errors
    /// What the driver answers.
    pub async fn stage_without_keys(&self, volume: &Volume, path: &Path) -> Result<(), Status> {
        let mut answer = self.stage_within(volume, path, LITTLE_TIME).await;
        for _ in 0..5 {
            match &answer {
                Err(status) if ran_out(status) || status.code() == Code::Aborted => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    answer = self.stage_within(volume, path, LITTLE_TIME).await;
                }
                _ => break,
            }
        }
        answer
    }

    /// NodeUnstageVolume.
    ///
    /// # Errors
    /// What the driver answers.
    pub async fn unstage(&self, volume_id: &str, path: &Path) -> Result<(), Status> {
        let request = NodeUnstageVolumeRequest { volume_id: volume_id.to_owned(), staging_target_path: text(path) };
        self.node.clone().node_unstage_volume(request).await.map(drop)
    }

    /// NodePublishVolume.
    ///
    /// # Errors
    /// What the driver answers.
    pub async fn publish(
        &self,
        volume: &Volume,
        staged: &Path,
        target: &Path,
        capability: VolumeCapability,
    ) -> Result<(), Status> {
        self.node.clone().node_publish_volume(publish(volume, staged, target, capability)).await.map(drop)
    }

    /// NodeUnpublishVolume.
    ///
    /// # Errors
    /// What the driver answers.
    pub async fn unpublish(&self, volume_id: &str, target: &Path) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest { volume_id: volume_id.to_owned(), target_path: text(target) };
        self.node.clone().node_unpublish_volume(request).await.map(drop)
    }

    /// NodeGetVolumeStats.
    ///
    /// # Errors
    /// What the driver answers.
    pub async fn stats(&self, volume_id: &str, path: &Path) -> Result<NodeGetVolumeStatsResponse, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume_id.to_owned(),
            volume_path: text(path),
            ..NodeGetVolumeStatsRequest::default()
        };
        Ok(self.node.clone().node_get_volume_stats(request).await?.into_inner())
    }

    /// ControllerExpandVolume.
    ///
    /// # Errors
    /// What the driver answers.
    pub async fn expand_file(&self, volume_id: &str, bytes: u64) -> Result<u64, Status> {
        let request = ControllerExpandVolumeRequest {
            volume_id: volume_id.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: signed(bytes), limit_bytes: 0 }),
            ..ControllerExpandVolumeRequest::default()
        };
        let reply = self.controller.clone().controller_expand_volume(request).await?.into_inner();
        Ok(reply.capacity_bytes.unsigned_abs())
    }

    /// NodeExpandVolume.
    ///
    /// # Errors
    /// What the driver answers.
    pub async fn expand(&self, volume_id: &str, path: &Path, bytes: u64) -> Result<u64, Status> {
        let request = NodeExpandVolumeRequest {
            volume_id: volume_id.to_owned(),
            volume_path: text(path),
            capacity_range: Some(CapacityRange { required_bytes: signed(bytes), limit_bytes: 0 }),
            ..NodeExpandVolumeRequest::default()
        };
        Ok(self.node.clone().node_expand_volume(request).await?.into_inner().capacity_bytes.unsigned_abs())
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).expect("a test's sizes are small")
}
