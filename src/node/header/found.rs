//! What lies on a device, by its signatures: to tell people, and to see that a new volume's device is blank.

use std::fmt;

use crate::{
    node::header::METADATA_BYTES,
    volume::{FsType, MIB},
};

/// Where something of anybody's could begin: the first 4 MiB, in bytes.
pub const BLANK_HEAD_BYTES: u64 = 4 * MIB;
/// Where GPT and Linux RAID keep copies: the last MiB, in bytes.
pub const BLANK_TAIL_BYTES: u64 = MIB;

/// Bytes from the start of a device in which every signature lies.
pub const SIGNATURE_BYTES: usize = 68 * 1024;

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

impl Found {
    /// What a device begins with that has this file system.
    #[must_use]
    pub fn of(fs_type: FsType) -> Self {
        Self::Known(match fs_type {
            FsType::Ext4 => EXT4,
            FsType::Xfs => XFS,
            FsType::Btrfs => BTRFS,
        })
    }
}

/// How the two copies of a LUKS header's metadata begin.
pub(super) const FIRST_MAGIC: &[u8] = b"LUKS\xba\xbe";
pub(super) const SECOND_MAGIC: &[u8] = b"SKUL\xba\xbe";
const EXT4: &str = "an ext2, ext3 or ext4 file system";
const XFS: &str = "an XFS file system";
const BTRFS: &str = "a Btrfs file system";

/// Looks at the first bytes of a device; signatures further on than the slice reaches are not seen.
#[must_use]
pub fn examine(area: &[u8]) -> Found {
    let at = |offset: usize, signature: &[u8]| area.get(offset..offset + signature.len()) == Some(signature);
    if is_zero(area) {
        return Found::Zeros;
    }
    for (offset, magic) in [(0, FIRST_MAGIC), (METADATA_BYTES, SECOND_MAGIC)] {
        if at(offset, magic)
            && at(offset + 6, &[0, 2])
            && let Some(uuid) = area.get(offset + 168..offset + 208)
        {
            return Found::Luks2(text(uuid));
        }
    }
    let known: &[(usize, &[u8], &'static str)] = &[
        (0, b"LUKS\xba\xbe\0\x01", "a LUKS1 header"),
        (0, b"XFSB", XFS),
        (1080, b"\x53\xef", EXT4),
        (65600, b"_BHRfS_M", BTRFS),
        (512, b"EFI PART", "a GPT partition table"),
        (512, b"LABELONE", "an LVM physical volume"),
        (4096, b"\xfc\x4e\x2b\xa9", "a member of a Linux RAID"),
        (4086, b"SWAPSPACE2", "a swap area"),
        (510, b"\x55\xaa", "a boot sector or partition table"),
    ];
    known.iter().find(|(offset, signature, _)| at(*offset, signature)).map_or(Found::Unknown, |k| Found::Known(k.2))
}

/// Text up to its first NUL.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Whether there is nothing but zeros.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Whole pages are compared at once, as fast as memory can be read.
    const PAGE: [u8; 4096] = [0; 4096];
    bytes.chunks(PAGE.len()).all(|chunk| *chunk == PAGE[..chunk.len()])
}

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
        assert_eq!(examine(b"LUKS\xba\xbe\0\x02 and no more"), Found::Unknown);
    }
}
