//! A LUKS2 header as bytes: what it must look like, its authentication, and the mark of a finished volume.
//!
//! The header lies on a disk that others can write to, so nothing in it is believed before it was authenticated. It
//! is read once, into memory, and the copy that was checked is the copy that is opened: [`Header`] can only be made
//! by the checks here, and only a [`Header`] can be opened.
//!
//! Layout of the device, `D` being 1 MiB, or 2 MiB with integrity (three keyslots of 64 or 96 bytes × 4000 stripes):
//! ```text
//! 0        first copy of the metadata (16 KiB)       LUKS2 On-Disk Format Specification 1.1.3, chapter 2
//! 16 KiB   second copy (16 KiB)
//! 32 KiB   keyslots
//! D-4 KiB  the finish mark (4 KiB)
//! D        the encrypted data
//! ```

use std::{collections::BTreeMap, fmt};

use serde::Deserialize;
use uuid::Uuid;

use crate::{
    key::{
        binding::Fields,
        derive::{self, Tag},
    },
    secret::Dek,
    volume::{Cipher, Integrity, MIB, Parameters},
};

const METADATA_BYTES: usize = 16 * 1024;
const BINARY_BYTES: usize = 4096;
const MARK_BYTES: usize = 4096;
const MARK_MAGIC: &[u8; 16] = b"coffer finished\n";
const MARK_LABEL: &str = "coffer/v1/finished";
const FIRST_MAGIC: &[u8] = b"LUKS\xba\xbe";
const SECOND_MAGIC: &[u8] = b"SKUL\xba\xbe";

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

/// What a device begins with, told to people and never used to decide that a volume is new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing but zeros.
    Zeros,
    /// A LUKS2 header with this UUID.
    Luks2(String),
    /// Something else that is known by its signature.
    Known(&'static str),
    /// Bytes that no signature explains.
    Unknown,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeros => f.write_str("nothing but zeros"),
            Self::Luks2(uuid) => write!(f, "a LUKS2 header with UUID {uuid}"),
            Self::Known(what) => f.write_str(what),
            Self::Unknown => f.write_str("bytes that are no LUKS header"),
        }
    }
}

/// Looks at the first bytes of a device; signatures further on than the slice reaches are not seen.
#[must_use]
pub fn examine(area: &[u8]) -> Found {
    let at = |offset: usize, signature: &[u8]| area.get(offset..offset + signature.len()) == Some(signature);
    if area.iter().all(|byte| *byte == 0) {
        return Found::Zeros;
    }
    for (offset, magic) in [(0, FIRST_MAGIC), (METADATA_BYTES, SECOND_MAGIC)] {
        if at(offset, magic) && at(offset + 6, &[0, 2]) {
            return Found::Luks2(text(&area[offset + 168..offset + 208]));
        }
    }
    let known: &[(usize, &[u8], &'static str)] = &[
        (0, b"LUKS\xba\xbe\0\x01", "a LUKS1 header"),
        (0, b"XFSB", "an XFS file system"),
        (1080, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
        (65600, b"_BHRfS_M", "a Btrfs file system"),
        (512, b"EFI PART", "a GPT partition table"),
        (512, b"LABELONE", "an LVM physical volume"),
        (4096, b"\xfc\x4e\x2b\xa9", "a member of a Linux RAID"),
        (4086, b"SWAPSPACE2", "a swap area"),
        (510, b"\x55\xaa", "a boot sector or partition table"),
    ];
    known.iter().find(|(offset, signature, _)| at(*offset, signature)).map_or(Found::Unknown, |k| Found::Known(k.2))
}

/// A header that was checked: the bytes of both metadata copies and the keyslots, and nothing behind them.
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
        let bytes = header_bytes(area, parameters)?;
        if tag_of(dek, bytes) != tag {
            return Err(HeaderFault::Tag);
        }
        metadata(bytes, luks_uuid, parameters)?;
        Ok(Self { bytes: bytes.to_vec(), tag })
    }

    /// Checks a header whose tag is in no record yet: UUID and metadata. Whether it belongs to the DEK shows when it
    /// is opened.
    ///
    /// # Errors
    /// The header is another's, is not whole, or holds what Coffer never writes.
    pub fn adopt(area: &[u8], luks_uuid: Uuid, parameters: &Parameters, dek: &Dek) -> Result<Self, HeaderFault> {
        ours(area, luks_uuid)?;
        let bytes = header_bytes(area, parameters)?;
        metadata(bytes, luks_uuid, parameters)?;
        Ok(Self { tag: tag_of(dek, bytes), bytes: bytes.to_vec() })
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

    /// Whether a device bears this header's finish mark.
    #[must_use]
    pub fn is_finished(&self, area: &[u8], parameters: &Parameters, dek: &Dek) -> bool {
        let (offset, mark) = (Layout::of(parameters).mark_offset(), self.finish_mark(dek));
        // Not secret: who can read the device sees the mark.
        area.get(offset..offset + MARK_BYTES) == Some(mark.as_slice())
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

fn header_bytes<'a>(area: &'a [u8], parameters: &Parameters) -> Result<&'a [u8], HeaderFault> {
    let length = Layout::of(parameters).header_bytes();
    area.get(..length).ok_or_else(|| HeaderFault::Metadata(format!("{} of its {length} bytes", area.len())))
}

fn tag_of(dek: &Dek, header: &[u8]) -> Tag {
    derive::mac(&derive::header_mac_key(dek), header)
}

/// Checks both copies of the metadata against what Coffer writes. What is not on the list is refused.
fn metadata(header: &[u8], luks_uuid: Uuid, parameters: &Parameters) -> Result<(), HeaderFault> {
    let refuse = |finding: &str| Err(HeaderFault::Metadata(finding.to_owned()));
    let (first, second) = (&header[..METADATA_BYTES], &header[METADATA_BYTES..2 * METADATA_BYTES]);
    for (copy, magic, offset) in [(first, FIRST_MAGIC, 0_u64), (second, SECOND_MAGIC, METADATA_BYTES as u64)] {
        // Big-endian numbers: version at 6, size at 8, own offset at 256 (chapter 2.1).
        if !copy.starts_with(magic) || copy[6..8] != [0, 2] {
            return refuse("a copy of it does not begin with the magic number of its place");
        }
        if copy[8..16] != (METADATA_BYTES as u64).to_be_bytes() || copy[256..264] != offset.to_be_bytes() {
            return refuse("a copy of it has another size or place");
        }
        if text(&copy[168..208]) != luks_uuid.to_string() {
            return refuse("a copy of it has another UUID");
        }
        if text(&copy[72..104]) != "sha256" {
            return refuse("its checksum is not SHA-256");
        }
    }
    if first[BINARY_BYTES..] != second[BINARY_BYTES..] {
        return refuse("its two copies differ");
    }
    let json = text(&first[BINARY_BYTES..]);
    let metadata: Metadata = serde_json::from_str(&json).map_err(|error| HeaderFault::Metadata(error.to_string()))?;
    metadata.check(parameters).or_else(refuse)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The JSON area (chapter 3), with the fields that Coffer's headers have and no others.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    keyslots: BTreeMap<u8, Keyslot>,
    tokens: BTreeMap<String, ()>,
    segments: BTreeMap<u8, Segment>,
    digests: BTreeMap<u8, Digest>,
    config: Config,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keyslot {
    r#type: String,
    key_size: u32,
    af: AntiForensic,
    area: Area,
    kdf: Kdf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AntiForensic {
    r#type: String,
    stripes: u32,
    hash: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Area {
    r#type: String,
    offset: String,
    size: String,
    encryption: String,
    key_size: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kdf {
    r#type: String,
    hash: String,
    iterations: u32,
    #[serde(rename = "salt")]
    _salt: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Segment {
    r#type: String,
    offset: String,
    size: String,
    iv_tweak: String,
    encryption: String,
    sector_size: u32,
    integrity: Option<SegmentIntegrity>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SegmentIntegrity {
    r#type: String,
    journal_encryption: String,
    journal_integrity: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Digest {
    r#type: String,
    keyslots: Vec<String>,
    segments: Vec<String>,
    hash: String,
    iterations: u32,
    #[serde(rename = "salt")]
    _salt: String,
    #[serde(rename = "digest")]
    _digest: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    json_size: String,
    keyslots_size: String,
}

impl Metadata {
    fn check(&self, parameters: &Parameters) -> Result<(), &'static str> {
        let layout = Layout::of(parameters);
        let cipher = match parameters.cipher {
            Cipher::AesXtsPlain64 => "aes-xts-plain64",
        };
        let key_bytes = match parameters.integrity {
            Integrity::None => 64,
            Integrity::HmacSha256 => 96,
        };
        if self.config.json_size != (layout.metadata_bytes - BINARY_BYTES).to_string()
            || self.config.keyslots_size != layout.keyslots_bytes.to_string()
        {
            return Err("its areas have other sizes");
        }
        if !self.tokens.is_empty() {
            return Err("it holds a token");
        }
        let [segment] = self.segments.values().collect::<Vec<_>>()[..] else {
            return Err("it does not have exactly one segment");
        };
        if segment.r#type != "crypt" || segment.encryption != cipher || segment.iv_tweak != "0" {
            return Err("its segment is encrypted in another way");
        }
        if segment.offset != layout.data_offset.to_string() || segment.size != "dynamic" {
            return Err("its segment lies elsewhere");
        }
        if segment.sector_size != parameters.sector_size.bytes() {
            return Err("its segment has another sector size");
        }
        match (parameters.integrity, &segment.integrity) {
            (Integrity::None, None) => {}
            (Integrity::HmacSha256, Some(integrity))
                if integrity.r#type == "hmac(sha256)"
                    && integrity.journal_encryption == "none"
                    && integrity.journal_integrity == "none" => {}
            (Integrity::None, Some(_)) => return Err("it has integrity that the record does not ask for"),
            (Integrity::HmacSha256, _) => return Err("it lacks the integrity that the record asks for"),
        }
        if self.keyslots.is_empty() || self.keyslots.len() > 3 {
            return Err("it does not have one to three keyslots");
        }
        self.keyslots.values().try_for_each(|keyslot| keyslot.check(layout, key_bytes))?;
        let [digest] = self.digests.values().collect::<Vec<_>>()[..] else {
            return Err("it does not have exactly one digest");
        };
        let keyslots: Vec<_> = self.keyslots.keys().map(u8::to_string).collect();
        if digest.r#type != "pbkdf2" || digest.hash != "sha256" || digest.iterations < ITERATIONS {
            return Err("its digest is of another kind");
        }
        if digest.keyslots != keyslots || digest.segments != ["0"] {
            return Err("its digest is for other keyslots or segments");
        }
        Ok(())
    }
}

impl Keyslot {
    fn check(&self, layout: Layout, key_bytes: u32) -> Result<(), &'static str> {
        if self.r#type != "luks2" || self.key_size != key_bytes {
            return Err("a keyslot is of another kind or size");
        }
        if self.af.r#type != "luks1" || self.af.stripes != 4000 || self.af.hash != "sha256" {
            return Err("a keyslot is split in another way");
        }
        if self.area.r#type != "raw" || self.area.encryption != "aes-xts-plain64" || self.area.key_size != 64 {
            return Err("a keyslot is encrypted in another way");
        }
        let (start, end) = (2 * layout.metadata_bytes, layout.header_bytes());
        let inside = match (self.area.offset.parse::<usize>(), self.area.size.parse::<usize>()) {
            (Ok(offset), Ok(size)) => offset >= start && offset.checked_add(size).is_some_and(|last| last <= end),
            _ => false,
        };
        if !inside {
            return Err("a keyslot lies outside the header");
        }
        if self.kdf.r#type != "pbkdf2" || self.kdf.hash != "sha256" || self.kdf.iterations < ITERATIONS {
            return Err("a keyslot has another key derivation");
        }
        Ok(())
    }
}

/// Whether a device holds nothing but zeros where anything of anybody's could begin or end: its first 4 MiB and its
/// last MiB (GPT and Linux RAID keep copies at the end).
pub const BLANK_HEAD_BYTES: u64 = 4 * MIB;
/// See [`BLANK_HEAD_BYTES`].
pub const BLANK_TAIL_BYTES: u64 = MIB;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_begins_with_is_named() {
        let area = |offset: usize, bytes: &[u8]| {
            let mut area = vec![0; 128 * 1024];
            area[offset..offset + bytes.len()].copy_from_slice(bytes);
            examine(&area)
        };
        assert_eq!(area(0, b""), Found::Zeros);
        assert_eq!(area(1080, b"\x53\xef").to_string(), "an ext2, ext3 or ext4 file system");
        assert_eq!(area(65600, b"_BHRfS_M").to_string(), "a Btrfs file system");
        assert_eq!(area(0, b"XFSB").to_string(), "an XFS file system");
        assert_eq!(area(0, b"LUKS\xba\xbe\0\x01").to_string(), "a LUKS1 header");
        assert_eq!(area(77, b"x"), Found::Unknown);
        assert_eq!(examine(b"LUKS"), Found::Unknown);
    }

    #[test]
    fn three_keyslots_fit_into_the_header_and_the_mark_lies_behind_it() {
        for (integrity, key_bytes) in [(Integrity::None, 64), (Integrity::HmacSha256, 96)] {
            let parameters = Parameters { integrity, ..Parameters::of(crate::volume::Content::Block) };
            let layout = Layout::of(&parameters);
            let keyslot = (key_bytes * 4000_usize).next_multiple_of(4096);
            assert!(3 * keyslot <= layout.keyslots_bytes, "{integrity}");
            assert!(layout.header_bytes() <= layout.mark_offset(), "{integrity}");
        }
    }
}
