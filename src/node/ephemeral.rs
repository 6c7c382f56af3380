//! Ephemeral volumes: space that a pod has for itself, for as long as it lives (CSI inline volumes of Kubernetes). There is
//! no key record, no header, no staging: NodePublishVolume makes the volume and NodeUnpublishVolume unmakes it.
//!
//! The key is made for one opening and kept by nobody but the kernel, so what a pod wrote is gone when the mapping is
//! closed, or the power is, whatever becomes of the file. That is why what is left of an ephemeral volume is never opened
//! again: it is removed and made anew.
//!
//! ```text
//! mounted there as asked?              → done
//! mounted elsewhere                    → shown there as well
//! mapping, device or file without it   → closed, detached, removed: nobody has the key, or nobody the data
//! file, device, mapping, file system   → mounted at the target
//! ```
//!
//! An ephemeral volume has a mapping and a file of its own kind of name ([`VolumeId::ephemeral`]), which shows by the id.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    exec::Deadline,
    node::{
        Capability, Form, Node, NodeFailure, Use,
        block::{Access, Mapping},
        filesystem, luks,
        mount::{Mount, Options},
        mounted_at,
        publish::published,
        shows,
        source::BlockSource,
        target::Kind,
        turns::Work,
    },
    secret::ThrowAwayKey,
    step::{Step, reached},
    volume::{Content, FsType, MapperName, Parameters, SectorSize, VolumeId},
};

/// How long unmaking may take after a publish that failed.
const UNDO_TIME: Duration = Duration::from_secs(30);

/// An ephemeral volume to publish.
#[derive(Clone, Debug)]
pub struct Ephemeral {
    /// The volume, by the id that CSI's requests name.
    pub volume_id: VolumeId,
    /// Where it is to be seen.
    pub target_path: PathBuf,
    /// In which form and for whom.
    pub capability: Capability,
    /// Whether the pod may write.
    pub access: Access,
    /// What it is to hold.
    pub fs_type: FsType,
    /// Its size in bytes; a file system that needs more gets it.
    pub bytes: u64,
}

impl Node {
    /// Makes an ephemeral volume and publishes it. Published already, as asked: a success.
    ///
    /// # Errors
    /// The id is no ephemeral volume's, a file system is not what is asked for, there is no room, or a step failed; then
    /// nothing of the volume is left.
    pub async fn publish_ephemeral(&self, ephemeral: &Ephemeral, deadline: Deadline) -> Result<(), NodeFailure> {
        let volume_id = &ephemeral.volume_id;
        let Some(own) = volume_id.ephemeral() else {
            return Err(NodeFailure::Unsupported(
                "an ephemeral volume has an id that the kubelet made up: csi- and 64 hexadecimal digits",
            ));
        };
        let Form::Filesystem { options, group, .. } = &ephemeral.capability.form else {
            return Err(NodeFailure::Unsupported("an ephemeral volume has a file system; block is not to be had"));
        };
        let mut options = options.clone();
        if ephemeral.access == Access::ReadOnly || ephemeral.capability.access == Use::Read {
            options.read_only();
        }
        let target = self.targets.look(&ephemeral.target_path, Kind::Folder).await?;
        let (mapping, mounts) = (self.mapping(&own).await?, self.mounts().await?);
        if let Some(mount) = mounted_at(&mounts, &target.path) {
            expect_published(ephemeral, &target.path, mount, mapping.as_ref(), options.access())?;
            // A group that a first publish did not come to the end of.
            return self.give_to(*group, &target.path).await;
        }
        let turn = self.turns.take(Work::Open, volume_id, deadline).await?;
        self.targets.make(&target).await?;
        if let Some(mapping) = &mapping
            && let Some(elsewhere) =
                mounts.iter().filter(|mount| shows(mount, mapping)).max_by_key(|mount| is_whole(mount))
        {
            return self.show(volume_id, elsewhere, &target.path, &options).await;
        }
        if mapping.is_some() {
            // Left by a publish that broke off, or an unpublish: nobody has written to it, or nobody may read it again.
            self.close(&own, deadline).await?;
        }
        let made = self.make_anew(ephemeral, &own, &target.path, &options, deadline).await;
        drop(turn);
        let done = match made {
            Ok(()) => self.give_to(*group, &target.path).await,
            Err(failure) => Err(failure),
        };
        if done.is_err()
            && let Err(failure) = self.unmake(volume_id, &own, &target.path, Deadline::within(UNDO_TIME)).await
        {
            tracing::warn!(%volume_id, error = %failure, "a failed publish leaves something of an ephemeral volume");
        }
        done
    }

    /// What there is of an ephemeral volume by this id: the id under which it is there, or none.
    pub(super) async fn ephemeral(&self, volume_id: &VolumeId) -> Result<Option<VolumeId>, NodeFailure> {
        let Some(own) = volume_id.ephemeral() else { return Ok(None) };
        let is_there = self.mapping(&own).await?.is_some()
            || self.pool.size(&own).await.map_err(NodeFailure::source(volume_id))?.is_some();
        Ok(is_there.then_some(own))
    }

    /// Unpublishes an ephemeral volume and unmakes it: what was written is gone with its key.
    ///
    /// # Errors
    /// The target is something else, the volume is in use, or a step failed; then the same call goes on from there.
    pub(super) async fn unpublish_ephemeral(
        &self,
        volume_id: &VolumeId,
        own: &VolumeId,
        target_path: &Path,
        deadline: Deadline,
    ) -> Result<(), NodeFailure> {
        let _turn = self.turns.take(Work::Close, volume_id, deadline).await?;
        let path = match (target_path.parent(), target_path.file_name()) {
            (Some(folder), Some(name)) => match self.targets.resolve(folder).await {
                // The pod's folder is gone and the volume is not: it is unmade all the same.
                Err(error) if error.kind() == io::ErrorKind::NotFound => target_path.to_owned(),
                folder => folder.map_err(NodeFailure::io("look at the folder of", target_path))?.join(name),
            },
            _ => target_path.to_owned(),
        };
        self.unmake(volume_id, own, &path, deadline).await
    }

    /// From the mount to nothing. Nothing of a step's work there: a success.
    async fn unmake(
        &self,
        volume_id: &VolumeId,
        own: &VolumeId,
        path: &Path,
        deadline: Deadline,
    ) -> Result<(), NodeFailure> {
        let (mapping, mounts) = (self.mapping(own).await?, self.mounts().await?);
        let ours = |mount: &Mount| mapping.as_ref().is_some_and(|mapping| shows(mount, mapping));
        for mount in mounts.iter().rev().filter(|mount| mount.target == path) {
            if !ours(mount) {
                let what = "something else than this volume is mounted there";
                return Err(NodeFailure::Occupied { path: path.to_owned(), what });
            }
            self.mounts.unmount(path).await.map_err(NodeFailure::io("unmount", path))?;
        }
        reached(Step::Unmounted, volume_id);
        if let Some(other) = mounts.iter().find(|mount| mount.target != path && ours(mount)) {
            let what = format!("on {}: unpublish it there first", other.target.display());
            return Err(NodeFailure::InUse { volume_id: volume_id.clone(), what });
        }
        if mapping.is_some() {
            self.close(own, deadline).await?;
        }
        reached(Step::Closed, volume_id);
        self.pool.release(own).await.map_err(NodeFailure::source(volume_id))?;
        reached(Step::Detached, volume_id);
        self.pool.remove(own).await.map_err(NodeFailure::pool("remove", volume_id))?;
        reached(Step::FileRemoved, volume_id);
        self.targets.remove(path).await
    }

    async fn make_anew(
        &self,
        ephemeral: &Ephemeral,
        own: &VolumeId,
        path: &Path,
        options: &Options,
        deadline: Deadline,
    ) -> Result<(), NodeFailure> {
        let (volume_id, fs_type) = (&ephemeral.volume_id, ephemeral.fs_type);
        // What a publish that broke off, or a power cut, has left.
        self.pool.release(own).await.map_err(NodeFailure::source(volume_id))?;
        self.pool.remove(own).await.map_err(NodeFailure::pool("remove", volume_id))?;

        let sector = u64::from(SectorSize::DEFAULT.bytes());
        let bytes = ephemeral.bytes.max(fs_type.minimum_bytes()).next_multiple_of(sector);
        self.pool.create(own, bytes).await.map_err(NodeFailure::pool("make", volume_id))?;
        reached(Step::FileCreated, volume_id);
        let attached = self.pool.attach(own).await.map_err(NodeFailure::source(volume_id))?;
        reached(Step::Attached, volume_id);
        let (key, mapper) = (ThrowAwayKey::random(), MapperName::of(own));
        let opened = luks::open_plain(self.exec.as_ref(), &attached.path, &mapper, &key, deadline).await;
        let device = opened.map_err(NodeFailure::luks("open", volume_id))?;
        // The kernel has the one and the mapping the other.
        drop((key, attached));
        reached(Step::Opened, volume_id);
        let parameters = Parameters::of(Content::Filesystem(fs_type));
        let made = filesystem::make(self.exec.as_ref(), fs_type, &parameters, &device, deadline).await;
        made.map_err(NodeFailure::filesystem("make the file system", volume_id))?;
        reached(Step::FilesystemMade, volume_id);
        let failed = |source| NodeFailure::Mount { volume_id: volume_id.clone(), target: path.to_owned(), source };
        self.mounts.mount(&device, path, fs_type, options).await.map_err(failed)?;
        reached(Step::Mounted, volume_id);
        Ok(())
    }

    /// Shows what is mounted at one place at another one.
    async fn show(
        &self,
        volume_id: &VolumeId,
        mount: &Mount,
        path: &Path,
        options: &Options,
    ) -> Result<(), NodeFailure> {
        if !is_whole(mount) {
            let what = format!("on {}, which shows only a part of it", mount.target.display());
            return Err(NodeFailure::InUse { volume_id: volume_id.clone(), what });
        }
        let failed = |source| NodeFailure::Mount { volume_id: volume_id.clone(), target: path.to_owned(), source };
        self.mounts.bind(&mount.target, path, options).await.map_err(failed)
    }

    async fn give_to(&self, group: Option<u32>, path: &Path) -> Result<(), NodeFailure> {
        match group {
            Some(group) => self.targets.give(path, group).await.map_err(NodeFailure::io("give to the group", path)),
            None => Ok(()),
        }
    }
}

/// Whether a mount shows all of its file system, and not a folder of it.
fn is_whole(mount: &Mount) -> bool {
    mount.root == Path::new("/")
}

/// Whether what is mounted there is what is asked for.
fn expect_published(
    ephemeral: &Ephemeral,
    path: &Path,
    mount: &Mount,
    mapping: Option<&Mapping>,
    access: Access,
) -> Result<(), NodeFailure> {
    let Some(mapping) = mapping else {
        return Err(NodeFailure::Occupied { path: path.to_owned(), what: "something else is mounted there" });
    };
    published(&ephemeral.volume_id, path, mount, mapping, access)?;
    if mount.fs_type == ephemeral.fs_type.as_str() {
        return Ok(());
    }
    let (volume_id, path) = (ephemeral.volume_id.clone(), path.to_owned());
    Err(NodeFailure::Incompatible { volume_id, path, how: "with another file system" })
}
