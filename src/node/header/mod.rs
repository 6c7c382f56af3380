//! A LUKS2 header as bytes: what it must look like, its authentication, and the mark of a finished volume.
//!
//! The header lies on a disk that others can write to, so nothing in it is believed before it was authenticated. It
//! is read once, into memory, and the copy that was checked is the copy that is opened: [`Header`] can only be made
//! by the checks here, and only a [`Header`] can be opened. It ends where the last keyslot in use ends: what lies behind
//! opens nothing, so it is neither read nor authenticated.
//!
//! Layout of the device, `D` being 1 MiB, or 2 MiB with integrity (three keyslots of 64 or 96 bytes × 4000 stripes):
//! ```text
//! 0        first copy of the metadata (16 KiB)       LUKS2 On-Disk Format Specification 1.1.3, chapter 2
//! 16 KiB   second copy (16 KiB)
//! 32 KiB   keyslots
//! D-4 KiB  the finish mark (4 KiB)
//! D        the encrypted data
//! ```

pub mod found;
mod metadata;

use std::fmt;

use uuid::Uuid;

use crate::{
    key::{
        binding::Fields,
        derive::{self, Tag},
    },
    node::header::found::{Found, examine},
    secret::Dek,
    volume::{Integrity, Parameters},
};

const METADATA_BYTES: usize = 16 * 1024;
/// Bytes of the finish mark.
pub const MARK_BYTES: usize = 4096;
const MARK_MAGIC: &[u8; 16] = b"coffer finished\n";
const MARK_LABEL: &str = "coffer/v1/finished";

/// PBKDF2's iterations: its least. The DEK is 256 random bits, which no number of iterations makes harder to guess.
pub const ITERATIONS: u32 = 1000;

/// Where things lie on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of one copy of the metadata.
    pub metadata_bytes: usize,
    /// Bytes of the keyslots.
    pub keyslots_bytes: usize,
    /// Where the encrypted data begins, in bytes.
    pub data_offset: usize,
}

impl Layout {
    /// The layout for a volume's parameters.
    #[must_use]
    pub fn of(parameters: &Parameters) -> Self {
        let (keyslots_bytes, mib) = match parameters.integrity {
            Integrity::None => (768 * 1024, 1),
            Integrity::HmacSha256 => (1152 * 1024, 2),
        };
        Self { metadata_bytes: METADATA_BYTES, keyslots_bytes, data_offset: mib << 20 }
    }

    /// Bytes of the header: both copies of the metadata and the keyslots.
    #[must_use]
    pub fn header_bytes(self) -> usize {
        2 * self.metadata_bytes + self.keyslots_bytes
    }

    /// Bytes of a header with one keyslot in use, which is what a volume has but for the time of a change of its key.
    #[must_use]
    pub fn one_keyslot_bytes(self) -> usize {
        // Three of them have the keyslots' room, in whole pages.
        2 * self.metadata_bytes + (self.keyslots_bytes / 3) / 4096 * 4096
    }

    /// Bytes of a device below the encrypted data, which a request for space does not count.
    #[must_use]
    pub fn overhead_bytes(self) -> u64 {
        self.data_offset as u64
    }

    /// Where the finish mark lies, in bytes.
    #[must_use]
    pub fn mark_offset(self) -> usize {
        self.data_offset - MARK_BYTES
    }
}

/// A header that was checked: the bytes of both metadata copies and the keyslots in use, and nothing behind them.
pub struct Header {
    bytes: Vec<u8>,
    tag: Tag,
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Header").field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

/// Why a header is not opened.
#[derive(Debug, thiserror::Error)]
pub enum HeaderFault {
    /// No LUKS2 header, or another one's.
    #[error("it holds {0}")]
    Foreign(Found),
    /// The header has our UUID, and was changed.
    #[error("it holds the LUKS2 header of this volume, but the header was changed since Coffer wrote it")]
    Tag,
    /// The volume was finished, and its header does not open it.
    #[error("it was finished once, and its LUKS2 header was damaged since")]
    Damaged,
    /// The metadata holds what Coffer never writes.
    #[error("the metadata of its LUKS2 header is not what Coffer writes: {0}")]
    Metadata(String),
}

impl Header {
    /// Checks the header of a finished volume: UUID, tag, and metadata.
    ///
    /// # Errors
    /// The header is another's, was changed, or holds what Coffer never writes.
    pub fn authenticate(
        area: &[u8],
        luks_uuid: Uuid,
        parameters: &Parameters,
        tag: Tag,
        dek: &Dek,
    ) -> Result<Self, HeaderFault> {
        ours(area, luks_uuid)?;
        let bytes = used(area, parameters)?;
        if tag_of(dek, bytes) != tag {
            return Err(HeaderFault::Tag);
        }
        metadata::check(bytes, luks_uuid, parameters).map_err(HeaderFault::Metadata)?;
        Ok(Self { bytes: bytes.to_vec(), tag })
    }

    /// Checks a header whose tag is in no record yet: UUID and metadata. Whether it belongs to the DEK shows when it
    /// is opened.
    ///
    /// # Errors
    /// The header is another's, is not whole, or holds what Coffer never writes.
    pub fn adopt(area: &[u8], luks_uuid: Uuid, parameters: &Parameters, dek: &Dek) -> Result<Self, HeaderFault> {
        ours(area, luks_uuid)?;
        let bytes = used(area, parameters)?;
        metadata::check(bytes, luks_uuid, parameters).map_err(HeaderFault::Metadata)?;
        Ok(Self { tag: tag_of(dek, bytes), bytes: bytes.to_vec() })
    }

    /// Bytes that nobody checked, for tests of what is done with a header.
    #[cfg(test)]
    pub(super) fn unchecked(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), tag: Tag::from_bytes([0; 32]) }
    }

    /// The bytes, from the start of the device.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its tag: HMAC-SHA256 under the header MAC key.
    #[must_use]
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// The finish mark that says that this header's volume is whole inside, mkfs and all.
    #[must_use]
    pub fn finish_mark(&self, dek: &Dek) -> Vec<u8> {
        let message = Fields::new(MARK_LABEL).field(self.tag.as_bytes()).bytes();
        let mut mark = vec![0; MARK_BYTES];
        mark[..MARK_MAGIC.len()].copy_from_slice(MARK_MAGIC);
        let tag = derive::mac(&derive::header_mac_key(dek), &message);
        mark[MARK_MAGIC.len()..MARK_MAGIC.len() + 32].copy_from_slice(tag.as_bytes());
        mark
    }

    /// Whether a mark is this header's own.
    #[must_use]
    pub fn is_finished(&self, mark: &Mark<'_>, dek: &Dek) -> bool {
        // Not secret: who can read the device sees the mark.
        matches!(mark, Mark::Written(bytes) if *bytes == self.finish_mark(dek))
    }
}

/// What lies where a finished volume bears its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark<'a> {
    /// Nothing was ever finished here.
    Absent,
    /// Something: what it marks is never made again.
    Written(&'a [u8]),
}

impl<'a> Mark<'a> {
    /// Looks at the start of a device. Half of its magic number makes a mark: a damaged one still marks, and what a
    /// failing disk makes of zeros does not.
    #[must_use]
    pub fn of(area: &'a [u8], parameters: &Parameters) -> Self {
        let offset = Layout::of(parameters).mark_offset();
        let bytes = area.get(offset..offset + MARK_BYTES).unwrap_or_default();
        let alike = bytes.iter().zip(MARK_MAGIC).filter(|(found, magic)| found == magic).count();
        if 2 * alike < MARK_MAGIC.len() { Self::Absent } else { Self::Written(bytes) }
    }
}

/// Whether the metadata in a slice of a device has this UUID in the first or the second copy.
#[must_use]
pub fn bears(area: &[u8], luks_uuid: Uuid) -> bool {
    examine(area) == Found::Luks2(luks_uuid.to_string())
}

fn ours(area: &[u8], luks_uuid: Uuid) -> Result<(), HeaderFault> {
    if bears(area, luks_uuid) { Ok(()) } else { Err(HeaderFault::Foreign(examine(area))) }
}

/// How many bytes a header has, by its own word, which is to be authenticated with it. Where its metadata makes no sense
/// it is all that there can be.
#[must_use]
pub fn used_bytes(area: &[u8], parameters: &Parameters) -> usize {
    let layout = Layout::of(parameters);
    metadata::used_bytes(area, layout).unwrap_or(layout.header_bytes())
}

fn used<'a>(area: &'a [u8], parameters: &Parameters) -> Result<&'a [u8], HeaderFault> {
    let length = used_bytes(area, parameters);
    area.get(..length).ok_or_else(|| HeaderFault::Metadata(format!("{} of its {length} bytes", area.len())))
}

fn tag_of(dek: &Dek, header: &[u8]) -> Tag {
    derive::mac(&derive::header_mac_key(dek), header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_keyslots_fit_into_the_header_and_the_mark_lies_behind_it() {
        for (integrity, key_bytes) in [(Integrity::None, 64), (Integrity::HmacSha256, 96)] {
            let parameters = Parameters { integrity, ..Parameters::of(crate::volume::Content::Block) };
            let layout = Layout::of(&parameters);
            let keyslot = (key_bytes * 4000_usize).next_multiple_of(4096);
            assert!(3 * keyslot <= layout.keyslots_bytes, "{integrity}");
            assert!(layout.header_bytes() <= layout.mark_offset(), "{integrity}");
            assert!(layout.one_keyslot_bytes() >= 2 * layout.metadata_bytes + keyslot, "{integrity}");
        }
    }
}
