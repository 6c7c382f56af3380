//! Compiles the three protocols without a `protoc`, and leaves `Debug` off every message that can carry a secret.

#![allow(clippy::print_stdout, reason = "a build script speaks to cargo on standard output")]

use prost_build::Config;

/// Messages that carry a CSI secret or mount flags (which CSI lets hold secrets): `src/proto.rs` writes
/// their `Debug` by hand, and a message that is added to the protocol without it does not compile where it is logged.
const SECRET: &[&str] = &[
    ".csi.v1.CreateVolumeRequest",
    ".csi.v1.DeleteVolumeRequest",
    ".csi.v1.ControllerPublishVolumeRequest",
    ".csi.v1.ControllerUnpublishVolumeRequest",
    ".csi.v1.ValidateVolumeCapabilitiesRequest",
    ".csi.v1.ControllerModifyVolumeRequest",
    ".csi.v1.ControllerExpandVolumeRequest",
    ".csi.v1.CreateSnapshotRequest",
    ".csi.v1.DeleteSnapshotRequest",
    ".csi.v1.ListSnapshotsRequest",
    ".csi.v1.GetSnapshotRequest",
    ".csi.v1.CreateVolumeGroupSnapshotRequest",
    ".csi.v1.DeleteVolumeGroupSnapshotRequest",
    ".csi.v1.GetVolumeGroupSnapshotRequest",
    ".csi.v1.GetMetadataAllocatedRequest",
    ".csi.v1.GetMetadataDeltaRequest",
    ".csi.v1.NodeStageVolumeRequest",
    ".csi.v1.NodePublishVolumeRequest",
    ".csi.v1.NodeExpandVolumeRequest",
    ".csi.v1.VolumeCapability.MountVolume",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files =
        ["csi/v1/csi.proto", "keyservice/v1/keyservice.proto", "pluginregistration/v1/pluginregistration.proto"];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    let mut config = Config::new();
    config.skip_debug(SECRET);
    tonic_prost_build::configure()
        .build_transport(false)
        .generate_default_stubs(true)
        .disable_comments(["."])
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
