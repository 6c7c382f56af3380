//! What lies on a device, by its signatures: to tell people, and to see that a new volume's device is blank.

use std::fmt;

use crate::{
    node::header::{
        METADATA_BYTES,
        metadata::{FIRST_MAGIC, SECOND_MAGIC, text},
    },
    volume::MIB,
};

/// Where something of anybody's could begin: the first 4 MiB, in bytes.
pub const BLANK_HEAD_BYTES: u64 = 4 * MIB;
/// Where GPT and Linux RAID keep copies: the last MiB, in bytes.
pub const BLANK_TAIL_BYTES: u64 = MIB;

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
}
