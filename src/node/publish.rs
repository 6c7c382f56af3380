//! NodePublishVolume and NodeUnpublishVolume: a staged volume shown to a pod, and hidden again. No key is asked for.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    exec::Deadline,
    node::{
        Capability, Form, Node, NodeFailure, Use,
        block::{Access, Mapping},
        is_node_of,
        mount::{Mount, Options},
        mounted_at, shows,
        target::Kind,
    },
    volume::VolumeId,
};

/// A volume to publish.
#[derive(Clone, Debug)]
pub struct Publish {
    /// The volume.
    pub volume_id: VolumeId,
    /// Where it is staged.
    pub staging_target_path: PathBuf,
    /// Where it is to be seen.
    pub target_path: PathBuf,
    /// In which form and for whom.
    pub capability: Capability,
    /// Whether this pod may write.
    pub access: Access,
}

impl Node {
    /// Publishes a staged volume. Published already, as asked: a success.
    ///
    /// # Errors
    /// The volume is not staged, has its one writer, or a step failed.
    pub async fn publish(&self, publish: &Publish) -> Result<(), NodeFailure> {
        let volume_id = &publish.volume_id;
        let not_staged = |path: &Path| NodeFailure::NotStaged { volume_id: volume_id.clone(), path: path.to_owned() };
        let staging_path = &publish.staging_target_path;
        let mapping = self.mapping(volume_id).await?.ok_or_else(|| not_staged(staging_path))?;
        let mounts = self.mounts().await?;
        let (source, kind, mut options) = match &publish.capability.form {
            Form::Filesystem { options, .. } => {
                let staged = self.targets.resolve(staging_path).await.map_err(|_| not_staged(staging_path))?;
                if !mounted_at(&mounts, &staged).is_some_and(|mount| shows(mount, &mapping)) {
                    return Err(not_staged(&staged));
                }
                (staged, Kind::Folder, options.clone())
            }
            Form::Block => {
                if let Some(mount) = mounts.iter().find(|mount| shows(mount, &mapping) && !is_node_of(mount, &mapping))
                {
                    let what = format!("as a file system on {}", mount.target.display());
                    return Err(NodeFailure::InUse { volume_id: volume_id.clone(), what });
                }
                (Path::new("/dev").join(&mapping.kernel_name), Kind::File, Options::default())
            }
        };
        if publish.access == Access::ReadOnly || publish.capability.access == Use::Read {
            if publish.capability.form == Form::Block && mapping.access == Access::ReadWrite {
                return Err(NodeFailure::Unsupported(
                    "a raw block volume that was staged to be written cannot be published read-only: the kernel keeps \
                     no writer off a device node; stage it with access mode SINGLE_NODE_READER_ONLY",
                ));
            }
            options.read_only();
        }
        let target = self.targets.look(&publish.target_path, kind).await?;
        let path = &target.path;
        if let Some(mount) = mounted_at(&mounts, path) {
            return published(volume_id, path, mount, &mapping, options.access());
        }
        if publish.capability.access == Use::WriteAlone {
            let other = mounts.iter().find(|mount| shows(mount, &mapping) && mount.target != source);
            if let Some(other) = other {
                return Err(NodeFailure::HasWriter { volume_id: volume_id.clone(), path: other.target.clone() });
            }
        }
        self.targets.make(&target).await?;
        let failed = |source| NodeFailure::Mount { volume_id: volume_id.clone(), target: path.clone(), source };
        self.mounts.bind(&source, path, &options).await.map_err(failed)
    }

    /// Unpublishes a volume and removes what it was mounted on; an ephemeral one is unmade. Not published, or not there: a
    /// success.
    ///
    /// # Errors
    /// The target is something else, or is in use.
    pub async fn unpublish(
        &self,
        volume_id: &VolumeId,
        target_path: &Path,
        deadline: Deadline,
    ) -> Result<(), NodeFailure> {
        if let Some(own) = self.ephemeral(volume_id).await? {
            return self.unpublish_ephemeral(volume_id, &own, target_path, deadline).await;
        }
        let (Some(folder), Some(name)) = (target_path.parent(), target_path.file_name()) else { return Ok(()) };
        let path = match self.targets.resolve(folder).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            folder => folder.map_err(NodeFailure::io("look at", folder_of(target_path)))?.join(name),
        };
        let mapping = self.mapping(volume_id).await?;
        // The mount comes first: a file system whose disk is gone answers nothing but errors.
        for mount in self.mounts().await?.iter().filter(|mount| mount.target == path) {
            if !is_ours(mount, mapping.as_ref()) {
                return Err(NodeFailure::Occupied { path, what: "something else than this volume is mounted there" });
            }
            self.mounts.unmount(&path).await.map_err(NodeFailure::io("unmount", &path))?;
        }
        self.targets.remove(&path).await
    }
}

/// A device node stays bound when its mapping is gone or was made again; a file system does not stay mounted.
fn is_ours(mount: &Mount, mapping: Option<&Mapping>) -> bool {
    let is_old_node = mount.fs_type == "devtmpfs" && mount.root.to_string_lossy().ends_with("//deleted");
    is_old_node || mapping.map_or(mount.fs_type == "devtmpfs", |mapping| shows(mount, mapping))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// What is mounted at the target already, where it is what is asked for.
pub(super) fn published(
    volume_id: &VolumeId,
    path: &Path,
    mount: &Mount,
    mapping: &Mapping,
    access: Access,
) -> Result<(), NodeFailure> {
    if !shows(mount, mapping) {
        return Err(NodeFailure::Occupied { path: path.to_owned(), what: "something else is mounted there" });
    }
    let how = match (mount.access, access) {
        (Access::ReadOnly, Access::ReadWrite) => "read-only",
        (Access::ReadWrite, Access::ReadOnly) => "to be written",
        (Access::ReadOnly, Access::ReadOnly) | (Access::ReadWrite, Access::ReadWrite) => return Ok(()),
    };
    Err(NodeFailure::Incompatible { volume_id: volume_id.clone(), path: path.to_owned(), how })
}
