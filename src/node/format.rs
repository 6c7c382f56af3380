//! The first stage of a volume: the only place that writes a header, or makes a file system that is to be kept.
//!
//! It runs only while the record says prepared or formatting, when no user has ever written to the volume. It can be
//! broken off at any point and started over. A record can come back from a backup, though, while the device holds a
//! finished volume; so a header that opens with the DEK is kept, and one that bears the finish mark is kept with all
//! that is inside.
//!
//! ```text
//! claim the device (O_EXCL)             nobody else may have it until its header is written
//! look: blank, or our own header?      anything else is refused
//! record → formatting                  this attempt fences off earlier ones
//! no header that opens: one is made in memory and written, the mark's place cleared before, its first 4 KiB last
//! let go, open, read the header again  it must be the one that was opened
//! mkfs, flush                          so that no power cut can leave the mark without it
//! finish mark written, flush           from here on everything is kept for ever
//! record → ready                       with the header's tag
//! ```

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    exec::Deadline,
    key::service::{Attempt, VolumeKey},
    node::{
        Node, NodeFailure,
        block::{Access, Hold},
        filesystem,
        header::{
            self, Header, HeaderFault, Layout, MARK_BYTES, Mark,
            found::{BLANK_HEAD_BYTES, BLANK_TAIL_BYTES, Found, SIGNATURE_BYTES, examine, is_zero},
        },
        luks::{self, LuksFailure},
    },
    step::{Step, reached},
    volume::Content,
};

/// The start of a header, written last: without it, the device bears no header.
const START_BYTES: usize = 4096;

impl Node {
    /// Makes what is missing of a volume that no user has written to, and returns its open mapping.
    ///
    /// # Errors
    /// The device is neither blank nor ours, or a step failed; then the same call goes on from there.
    pub(super) async fn format(
        &self,
        key: &VolumeKey,
        device: &Path,
        access: Access,
        deadline: Deadline,
    ) -> Result<PathBuf, NodeFailure> {
        let VolumeKey { info, dek } = key;
        let (volume_id, parameters) = (&info.volume_id, &info.parameters);
        let refused = NodeFailure::header(info, device);
        // From the look to the last byte of the header nobody else may have the device: two volumes can name one.
        let claim = self.claim(key, device).await?;
        let area = self.expect_blank_or_ours(key, device).await?;
        let mark = Mark::of(&area, parameters);
        let written = Header::adopt(&area, info.luks_uuid, parameters, dek).ok();
        let finished = written.as_ref().is_some_and(|header| header.is_finished(&mark, dek));
        if finished {
            tracing::warn!(%volume_id, "the device holds this volume, finished: it is kept, and the record follows");
        } else if mark != Mark::Absent {
            return Err(refused(HeaderFault::Damaged));
        }
        reached(Step::Claimed, volume_id);
        let begun = self.keys.begin_format(volume_id, info.generation, deadline).await;
        let begun = begun.map_err(NodeFailure::key(volume_id))?;
        reached(Step::FormatBegun, volume_id);
        let attempt = Attempt { generation: begun.generation, number: begun.format_attempt };
        let header = match written {
            Some(header) => header,
            None => self.write_header(key, device, deadline).await?,
        };
        drop(claim);
        let (header, mapping) = match self.open(key, device, &header, access, deadline).await {
            Err(NodeFailure::Luks { source: LuksFailure::WrongKey, .. }) if !finished => {
                // A power cut tore its keyslot. The device is looked at again: it was nobody's for a moment.
                let claim = self.claim(key, device).await?;
                if self.expect_blank_or_ours(key, device).await? != area {
                    return Err(lost(key, device, "what was read a moment ago"));
                }
                let header = self.write_header(key, device, deadline).await?;
                drop(claim);
                let mapping = self.open(key, device, &header, access, deadline).await?;
                (header, mapping)
            }
            opened => (header, opened?),
        };
        // The mapping holds the device now; what it was opened with must be what lies on it.
        let now = self.blocks.read(device, 0, header.bytes().len()).await;
        if now.map_err(NodeFailure::io("read the header of", device))? != header.bytes() {
            return Err(lost(key, device, "the LUKS header"));
        }
        reached(Step::FirstOpened, volume_id);
        if !finished {
            if let Content::Filesystem(fs_type) = parameters.content {
                tracing::info!(%volume_id, %fs_type, "making the file system");
                let made = filesystem::make(self.exec.as_ref(), fs_type, parameters, &mapping, deadline).await;
                made.map_err(NodeFailure::filesystem("make the file system", volume_id))?;
            }
            // The mark says that all of this is on the disk, so it goes there after it: mkfs's own word is not enough.
            self.blocks.flush(&mapping).await.map_err(NodeFailure::io("flush", &mapping))?;
            self.expect_made(key, &mapping).await?;
            reached(Step::FilesystemMade, volume_id);
            let (mark, offset) = (header.finish_mark(dek), Layout::of(parameters).mark_offset() as u64);
            let marked = self.blocks.write(device, offset, &mark).await;
            marked.map_err(NodeFailure::io("write the finish mark to", device))?;
            let kept = self.blocks.read(device, offset, mark.len()).await;
            if kept.map_err(NodeFailure::io("read the finish mark of", device))? != mark {
                return Err(lost(key, device, "the finish mark"));
            }
        }
        reached(Step::Marked, volume_id);
        let ready = self.keys.mark_ready(volume_id, attempt, header.tag(), deadline).await;
        ready.map_err(NodeFailure::key(volume_id))?;
        reached(Step::Ready, volume_id);
        Ok(mapping)
    }

    /// Checks that the disk has the file system that was made a moment ago.
    async fn expect_made(&self, key: &VolumeKey, mapping: &Path) -> Result<(), NodeFailure> {
        let Content::Filesystem(fs_type) = key.info.parameters.content else { return Ok(()) };
        let start = self.blocks.read(mapping, 0, SIGNATURE_BYTES).await;
        let found = examine(&start.map_err(NodeFailure::io("read the superblock of", mapping))?);
        if found == Found::of(fs_type) { Ok(()) } else { Err(lost(key, mapping, "the new file system")) }
    }

    /// Keeps everybody else off a device, as long as what is returned is held.
    async fn claim(&self, key: &VolumeKey, device: &Path) -> Result<Hold, NodeFailure> {
        self.blocks.claim(device).await.map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => {
                let what = format!("somebody else has {}", device.display());
                NodeFailure::Busy { volume_id: key.info.volume_id.clone(), what }
            }
            _ => NodeFailure::io("claim", device)(error),
        })
    }

    /// The start of a device that is blank, or bears this volume's own header, or what a write of it left behind.
    async fn expect_blank_or_ours(&self, key: &VolumeKey, device: &Path) -> Result<Vec<u8>, NodeFailure> {
        let (info, layout) = (&key.info, Layout::of(&key.info.parameters));
        let needed = layout.overhead_bytes() + info.parameters.minimum_bytes();
        let bytes = self.expect_bytes(info, device, needed).await?;
        let read = |offset: u64, length: u64| async move {
            let length = usize::try_from(length).expect("a few MiB fit into memory");
            self.blocks.read(device, offset, length).await.map_err(NodeFailure::io("read", device))
        };
        let head = read(0, BLANK_HEAD_BYTES.min(bytes)).await?;
        if header::bears(&head, info.luks_uuid) {
            return Ok(head);
        }
        let tail = read(bytes - BLANK_TAIL_BYTES.min(bytes), BLANK_TAIL_BYTES.min(bytes)).await?;
        // What a power cut leaves of a header that was being written lies between its first 4 KiB and the data.
        let torn_allowed = info.format_attempt > 0;
        let foreign = match examine(&head) {
            Found::Zeros => None,
            Found::Unknown if torn_allowed && is_zero(&head[..START_BYTES]) && is_zero(&head[layout.data_offset..]) => {
                None
            }
            found => Some(found.to_string()),
        };
        let foreign = foreign.or_else(|| (!is_zero(&tail)).then(|| "data in its last MiB".to_owned()));
        match foreign {
            None => Ok(head),
            Some(found) => {
                Err(NodeFailure::NotBlank { volume_id: info.volume_id.clone(), device: device.to_owned(), found })
            }
        }
    }

    async fn write_header(&self, key: &VolumeKey, device: &Path, deadline: Deadline) -> Result<Header, NodeFailure> {
        let (info, dek) = (&key.info, &key.dek);
        tracing::info!(volume_id = %info.volume_id, luks_uuid = %info.luks_uuid, "writing a LUKS header");
        let made = luks::format(self.exec.as_ref(), device, info.luks_uuid, &info.parameters, dek, deadline).await;
        let made = made.map_err(NodeFailure::luks("make the LUKS header of", &info.volume_id))?;
        // What cryptsetup made is held to the same list as what is read back.
        let header = Header::adopt(&made, info.luks_uuid, &info.parameters, dek);
        let header = header.map_err(|source| NodeFailure::NewHeader { volume_id: info.volume_id.clone(), source })?;
        let write = |offset: usize, bytes: Vec<u8>| async move {
            self.blocks
                .write(device, offset as u64, &bytes)
                .await
                .map_err(NodeFailure::io("write the header to", device))
        };
        // A mark that a disk hid for a moment would belong to another header, and keep this one from ever being taken.
        write(Layout::of(&info.parameters).mark_offset(), vec![0; MARK_BYTES]).await?;
        write(0, vec![0; START_BYTES]).await?;
        reached(Step::HeaderCleared, &info.volume_id);
        write(START_BYTES, header.bytes()[START_BYTES..].to_vec()).await?;
        reached(Step::HeaderBodyWritten, &info.volume_id);
        write(0, header.bytes()[..START_BYTES].to_vec()).await?;
        reached(Step::HeaderWritten, &info.volume_id);
        Ok(header)
    }
}

/// A disk, or somebody else, has not kept what was written to it.
fn lost(key: &VolumeKey, device: &Path, what: &'static str) -> NodeFailure {
    NodeFailure::NotKept { volume_id: key.info.volume_id.clone(), device: device.to_owned(), what }
}
