//! The generated protocols, and a `Debug` that prints nothing for every message that can carry a secret.

use std::fmt;

macro_rules! redacted {
    ($($message:ty),+ $(,)?) => {
        $(impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($message), "(redacted)"))
            }
        })+
    };
}

/// The Container Storage Interface, version 1.12.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from proto/csi/v1/csi.proto"
)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// The key service, version 1.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from proto/keyservice/v1/keyservice.proto"
)]
pub mod keyservice {
    tonic::include_proto!("keyservice.v1");
}

/// The kubelet's plugin registration API, version 1.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from proto/pluginregistration/v1/pluginregistration.proto"
)]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

redacted! {
    csi::CreateVolumeRequest,
    csi::DeleteVolumeRequest,
    csi::ControllerPublishVolumeRequest,
    csi::ControllerUnpublishVolumeRequest,
    csi::ValidateVolumeCapabilitiesRequest,
    csi::ControllerModifyVolumeRequest,
    csi::ControllerExpandVolumeRequest,
    csi::CreateSnapshotRequest,
    csi::DeleteSnapshotRequest,
    csi::ListSnapshotsRequest,
    csi::GetSnapshotRequest,
    csi::CreateVolumeGroupSnapshotRequest,
    csi::DeleteVolumeGroupSnapshotRequest,
    csi::GetVolumeGroupSnapshotRequest,
    csi::GetMetadataAllocatedRequest,
    csi::GetMetadataDeltaRequest,
    csi::NodeStageVolumeRequest,
    csi::NodePublishVolumeRequest,
    csi::NodeExpandVolumeRequest,
    csi::volume_capability::MountVolume,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_with_secrets_print_none_of_them() {
        let stage = csi::NodeStageVolumeRequest {
            secrets: [("passphrase".to_owned(), "marked".to_owned())].into(),
            ..Default::default()
        };
        assert!(!format!("{stage:?}").contains("marked"));
        let mount =
            csi::volume_capability::MountVolume { mount_flags: vec!["marked".to_owned()], ..Default::default() };
        let capability = csi::VolumeCapability {
            access_type: Some(csi::volume_capability::AccessType::Mount(mount)),
            access_mode: None,
        };
        assert!(!format!("{capability:?}").contains("marked"));
    }
}
