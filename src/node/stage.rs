//! NodeStageVolume: from a volume id to an open mapping, mounted where the request says.
//!
//! ```text
//! mounted as asked?                   → done, and no key is asked for
//! source.attach                       → device
//! keys.get                            → record and DEK
//! record ready                        → the header is authenticated, and the checked copy is opened
//! record prepared or formatting       → node::format makes what is missing, and the record ready
//! the DEK is dropped; repair, mount   → done
//! ```

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    exec::Deadline,
    key::{
        record::State,
        service::{KeyInfo, VolumeKey},
    },
    node::{
        Capability, Form, Node, NodeFailure, Use,
        block::{Access, Mapping},
        filesystem,
        header::{self, Header, HeaderFault, Layout},
        luks::{self, LuksFailure},
        mounted_at, shows,
        source::Place,
        target::Kind,
        turns::Work,
    },
    step::{Step, reached},
    volume::{Content, FsType, Integrity, MapperName, Parameters, VolumeId},
};

/// How long closing may take after a stage that failed.
const UNDO_TIME: Duration = Duration::from_secs(30);
/// How long a repair may take: it does not start over each time that a caller gives up.
const REPAIR_TIME: Duration = Duration::from_secs(3600);

/// A volume's open mapping.
struct Opened {
    device: PathBuf,
    parameters: Parameters,
}

/// A volume to stage.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The volume.
    pub volume_id: VolumeId,
    /// Where.
    pub staging_target_path: PathBuf,
    /// In which form and for whom.
    pub capability: Capability,
    /// Where its device comes from.
    pub place: Place,
}

impl Node {
    /// Stages a volume. Staged already, as asked: a success.
    ///
    /// # Errors
    /// Any step that failed; a refusal has changed nothing on the device.
    pub async fn stage(&self, stage: &Stage, deadline: Deadline) -> Result<(), NodeFailure> {
        let volume_id = &stage.volume_id;
        let target = self.targets.look(&stage.staging_target_path, Kind::Folder).await?;
        let mapping = self.mapping(volume_id).await?;
        if self.is_staged(stage, &target.path, mapping.as_ref(), deadline).await? {
            // A group that a first stage did not come to the end of.
            return self.give(stage, &target.path).await;
        }
        reached(Step::Staging, volume_id);
        let before = mapping.is_some();
        let turn = self.turns.take(Work::Open, volume_id, deadline).await?;
        self.targets.make(&target).await?;
        let opened = self.attach_and_open(stage, mapping, deadline).await;
        drop(turn);
        let staged = match opened {
            Ok(opened) => self.mount(stage, &opened, &target.path).await,
            Err(failure) => Err(failure),
        };
        if staged.is_err() && !before {
            self.undo(volume_id, &target.path).await;
        }
        staged
    }

    async fn attach_and_open(
        &self,
        stage: &Stage,
        mapping: Option<Mapping>,
        deadline: Deadline,
    ) -> Result<Opened, NodeFailure> {
        let volume_id = &stage.volume_id;
        let source = self.source(&stage.place);
        let attached = source.attach(volume_id).await.map_err(NodeFailure::source(volume_id))?;
        reached(Step::Attached, volume_id);
        let key = self.keys.get(volume_id, deadline).await.map_err(NodeFailure::key(volume_id))?;
        reached(Step::KeyReleased, volume_id);
        let content = matching(&key.info, &stage.capability.form)?;
        let parameters = key.info.parameters.clone();
        let mapping = self.usable(mapping, &key.info, &attached.path, deadline).await?;
        let access = match (stage.capability.access, content) {
            (Use::Read, Content::Block) => Access::ReadOnly,
            _ => Access::ReadWrite,
        };
        let device = match (key.info.state, mapping) {
            (State::Ready, Some(mapping)) if mapping.access != access => {
                let how = if access == Access::ReadOnly { "to be written" } else { "read-only" };
                return Err(NodeFailure::Incompatible { volume_id: volume_id.clone(), path: mapping.path, how });
            }
            (State::Ready, Some(mapping)) => Path::new("/dev").join(mapping.kernel_name),
            (State::Ready, None) => self.unlock(&key, &attached.path, access, deadline).await?,
            (State::Prepared | State::Formatting, mapping) => {
                if mapping.is_some() {
                    // Left by an attempt that broke off: what it made inside is not known to be whole.
                    self.close(volume_id, deadline).await?;
                }
                self.format(&key, &attached.path, access, deadline).await?
            }
            // A record without a key gives none.
            (State::Destroyed, _) => return Err(NodeFailure::Unsupported("a destroyed volume cannot be staged")),
        };
        // The mapping holds the device now, and nobody needs the key.
        drop((key, attached));
        reached(Step::Opened, volume_id);
        Ok(Opened { device, parameters })
    }

    async fn mount(&self, stage: &Stage, opened: &Opened, path: &Path) -> Result<(), NodeFailure> {
        let (volume_id, Opened { device, parameters }) = (&stage.volume_id, opened);
        let (Content::Filesystem(fs_type), Form::Filesystem { options, .. }) =
            (parameters.content, &stage.capability.form)
        else {
            return Ok(());
        };
        let mut options = options.clone();
        if stage.capability.access == Use::Read {
            options.read_only();
        }
        if let Some(word) = filesystem::discard_option(parameters) {
            options.add(word);
        }
        self.repair(volume_id, device, fs_type).await?;
        let failed = |source| NodeFailure::Mount { volume_id: volume_id.clone(), target: path.to_owned(), source };
        self.mounts.mount(device, path, fs_type, &options).await.map_err(failed)?;
        reached(Step::Mounted, volume_id);
        self.give(stage, path).await
    }

    /// Gives the mounted files to the group that is asked for, if one is.
    async fn give(&self, stage: &Stage, path: &Path) -> Result<(), NodeFailure> {
        match &stage.capability.form {
            Form::Filesystem { group: Some(group), .. } => {
                self.targets.give(path, *group).await.map_err(NodeFailure::io("give to the group", path))
            }
            Form::Filesystem { group: None, .. } | Form::Block => Ok(()),
        }
    }

    /// Closes what a stage that failed had opened: nobody may ever ask to unstage a volume that was never staged.
    async fn undo(&self, volume_id: &VolumeId, path: &Path) {
        let deadline = Deadline::within(UNDO_TIME);
        if let Err(failure) = self.unstage(volume_id, path, deadline).await {
            tracing::warn!(%volume_id, error = %failure, "a failed stage leaves the volume open");
        }
    }

    /// Opens the header of a finished volume, which must be the one that its record knows.
    async fn unlock(
        &self,
        key: &VolumeKey,
        device: &Path,
        access: Access,
        deadline: Deadline,
    ) -> Result<PathBuf, NodeFailure> {
        let header = self.header(key, device).await?;
        reached(Step::HeaderAuthenticated, &key.info.volume_id);
        self.open(key, device, &header, access, deadline).await
    }

    /// Reads the header of a finished volume, once, and authenticates it.
    pub(super) async fn header(&self, key: &VolumeKey, device: &Path) -> Result<Header, NodeFailure> {
        let info = &key.info;
        let layout = Layout::of(&info.parameters);
        let needed = layout.overhead_bytes() + u64::from(info.parameters.sector_size.bytes());
        self.expect_bytes(info, device, needed).await?;
        let read = |length| self.blocks.read(device, 0, length);
        let failed = NodeFailure::io("read the header of", device);
        let mut area = read(layout.one_keyslot_bytes()).await.map_err(&failed)?;
        let used = header::used_bytes(&area, &info.parameters);
        if used > area.len() {
            // All of it again, so that what is checked was read at one time.
            area = read(used).await.map_err(&failed)?;
        }
        let refused = NodeFailure::header(info, device);
        let tag = info.header_tag.ok_or_else(|| refused(HeaderFault::Tag))?;
        Header::authenticate(&area, info.luks_uuid, &info.parameters, tag, &key.dek).map_err(refused)
    }

    /// The size of a device, in bytes, which has to be at least what is needed.
    pub(super) async fn expect_bytes(&self, info: &KeyInfo, device: &Path, needed: u64) -> Result<u64, NodeFailure> {
        let bytes = self.blocks.size(device).await.map_err(NodeFailure::io("measure", device))?;
        if bytes >= needed {
            return Ok(bytes);
        }
        let (volume_id, device) = (info.volume_id.clone(), device.to_owned());
        Err(NodeFailure::TooSmall { volume_id, device, bytes, needed })
    }

    /// Opens a mapping with a header that was checked.
    pub(super) async fn open(
        &self,
        key: &VolumeKey,
        device: &Path,
        header: &Header,
        access: Access,
        deadline: Deadline,
    ) -> Result<PathBuf, NodeFailure> {
        let volume_id = &key.info.volume_id;
        let (mapper, discard) = (MapperName::of(volume_id), key.info.parameters.discard);
        let open = luks::Open { device, mapper: &mapper, access, discard };
        let opened = luks::open(self.exec.as_ref(), open, header, &key.dek, deadline).await;
        opened.map_err(|source| match source {
            LuksFailure::Busy(mapper) => {
                let what = format!("/dev/mapper/{mapper} or its device is in use");
                NodeFailure::Busy { volume_id: volume_id.clone(), what }
            }
            source => NodeFailure::luks("open", volume_id)(source),
        })
    }

    /// Whether the volume is staged as asked. A mount of something else, or in another way, is an error.
    async fn is_staged(
        &self,
        stage: &Stage,
        path: &Path,
        mapping: Option<&Mapping>,
        deadline: Deadline,
    ) -> Result<bool, NodeFailure> {
        let mounts = self.mounts().await?;
        let Some(mount) = mounted_at(&mounts, path) else { return Ok(false) };
        let incompatible =
            |how| Err(NodeFailure::Incompatible { volume_id: stage.volume_id.clone(), path: path.to_owned(), how });
        let Some(mapping) = mapping.filter(|mapping| shows(mount, mapping)) else {
            return Err(NodeFailure::Occupied { path: path.to_owned(), what: "something else is mounted there" });
        };
        if mapping.backing.is_empty() {
            // The disk below was pulled out: nothing can be written through this mount any more.
            self.discard(&stage.volume_id, deadline).await?;
            return Err(NodeFailure::StaleMapping { volume_id: stage.volume_id.clone() });
        }
        match &stage.capability.form {
            Form::Block => incompatible("as a file system"),
            Form::Filesystem { fs_type: Some(fs_type), .. } if fs_type.as_str() != mount.fs_type => {
                incompatible("with another file system")
            }
            Form::Filesystem { options, .. } => {
                let read_only = stage.capability.access == Use::Read || options.access() == Access::ReadOnly;
                match (mount.access, read_only) {
                    (Access::ReadOnly, true) | (Access::ReadWrite, false) => Ok(true),
                    (Access::ReadOnly, false) => incompatible("read-only"),
                    (Access::ReadWrite, true) => incompatible("to be written"),
                }
            }
        }
    }

    /// An open mapping that is this volume on this device. Any other of its name is closed.
    async fn usable(
        &self,
        mapping: Option<Mapping>,
        info: &KeyInfo,
        device: &Path,
        deadline: Deadline,
    ) -> Result<Option<Mapping>, NodeFailure> {
        let Some(mapping) = mapping else { return Ok(None) };
        let number = self.blocks.number(device).await.map_err(NodeFailure::io("look at", device))?;
        let is_on_device = mapping.backing.iter().any(|backing| backing.number == number);
        if mapping.luks_uuid == Some(info.luks_uuid) && is_on_device && mapping.bytes > 0 {
            return Ok(Some(mapping));
        }
        if let Some(mount) = self.mounts().await?.iter().find(|mount| shows(mount, &mapping)) {
            let what = format!("on {}, from another device", mount.target.display());
            return Err(NodeFailure::InUse { volume_id: info.volume_id.clone(), what });
        }
        tracing::warn!(volume_id = %info.volume_id, "closing an old mapping of another device");
        self.discard(&info.volume_id, deadline).await?;
        Ok(None)
    }

    /// Repairs a file system whose superblock asks for it.
    async fn repair(&self, volume_id: &VolumeId, device: &Path, fs_type: FsType) -> Result<(), NodeFailure> {
        let start = self.blocks.read(device, 0, filesystem::SUPERBLOCK_BYTES).await;
        let start = start.map_err(NodeFailure::io("read the superblock of", device))?;
        if !filesystem::wants_repair(fs_type, &start) {
            return Ok(());
        }
        let deadline = Deadline::within(REPAIR_TIME);
        let _turn = self.turns.take(Work::Repair, volume_id, deadline).await?;
        tracing::warn!(%volume_id, "the superblock notes errors: repairing before the mount");
        let repaired = filesystem::repair(self.exec.as_ref(), device, deadline).await;
        repaired.map_err(NodeFailure::filesystem("repair the file system", volume_id))
    }
}

/// What the volume holds, where that is what is asked for and can be had.
fn matching(info: &KeyInfo, form: &Form) -> Result<Content, NodeFailure> {
    let content = info.parameters.content;
    let other = |asked: &str| {
        Err(NodeFailure::OtherContent { volume_id: info.volume_id.clone(), content, asked: asked.to_owned() })
    };
    match (content, form) {
        _ if info.parameters.integrity != Integrity::None => Err(NodeFailure::NoIntegrity(info.volume_id.clone())),
        (Content::Filesystem(_), Form::Block) => other("block"),
        (Content::Block, Form::Filesystem { .. }) => other("a file system"),
        (Content::Filesystem(is), Form::Filesystem { fs_type: Some(asked), .. }) if is != *asked => {
            other(asked.as_str())
        }
        (Content::Filesystem(_), Form::Filesystem { .. }) | (Content::Block, Form::Block) => Ok(content),
    }
}
