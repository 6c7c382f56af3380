//! What a volume holds and how it is encrypted: chosen when it is created, kept in its record.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::volume::MIB;

/// A text that names none of the choices there are.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{given:?} is not one of {}", choices.join(", "))]
pub struct UnknownChoice {
    given: String,
    choices: &'static [&'static str],
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every choice, as it is written.
            pub const CHOICES: &[&str] = &[$($text),+];

            /// The choice as it is written in parameters and records.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl FromStr for $name {
            type Err = UnknownChoice;

            fn from_str(text: &str) -> Result<Self, UnknownChoice> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(UnknownChoice { given: text.to_owned(), choices: Self::CHOICES }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

choice! {
    /// A file system that a volume can hold.
    FsType {
        /// ext4, the default.
        Ext4 = "ext4",
        /// XFS.
        Xfs = "xfs",
        /// Btrfs.
        Btrfs = "btrfs",
    }
}

impl FsType {
    /// The smallest volume, in bytes, on which the file system's own mkfs works.
    #[must_use]
    pub fn minimum_bytes(self) -> u64 {
        match self {
            Self::Ext4 => 4 * MIB,
            Self::Xfs => 300 * MIB,
            Self::Btrfs => 128 * MIB,
        }
    }
}

choice! {
    /// How sectors are encrypted, in dm-crypt's words.
    Cipher {
        /// AES-256 in XTS mode: a LUKS volume key of 64 bytes.
        AesXtsPlain64 = "aes-xts-plain64",
    }
}

choice! {
    /// How sectors are authenticated.
    Integrity {
        /// They are not: a changed sector decrypts to garbage.
        None = "none",
        /// HMAC-SHA256 by dm-integrity: a changed sector is a read error.
        HmacSha256 = "hmac-sha256",
    }
}

choice! {
    /// Whether the blocks that a file system frees are given back to the device below, which shows which blocks are in use.
    Discard {
        /// They are not.
        Off = "false",
        /// They are.
        On = "true",
    }
}

/// What a volume holds inside its encryption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "fsType", rename_all = "lowercase")]
pub enum Content {
    /// A file system that Coffer makes, once.
    Filesystem(FsType),
    /// A raw block device that the pod gets as it is.
    Block,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filesystem(fs_type) => fs_type.fmt(f),
            Self::Block => f.write_str("block"),
        }
    }
}

/// Bytes in one encrypted sector: 512, 1024, 2048 or 4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SectorSize(u32);

impl SectorSize {
    /// The default: one IV and one request for 4096 bytes.
    pub const DEFAULT: Self = Self(4096);

    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for SectorSize {
    type Error = UnknownChoice;

    fn try_from(bytes: u32) -> Result<Self, UnknownChoice> {
        match bytes {
            512 | 1024 | 2048 | 4096 => Ok(Self(bytes)),
            _ => Err(UnknownChoice { given: bytes.to_string(), choices: &["512", "1024", "2048", "4096"] }),
        }
    }
}

impl From<SectorSize> for u32 {
    fn from(size: SectorSize) -> Self {
        size.0
    }
}

/// More words for mkfs, each an option that is known to shape a file system and to name no file or device. They are
/// checked wherever they come from: a class, a record or a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct MkfsOptions(Vec<String>);

/// A word for mkfs that is not allowed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("mkfs option {0:?} is not allowed")]
pub struct ForbiddenMkfsOption(String);

impl MkfsOptions {
    /// The options that shape a file system in mke2fs(8), mkfs.xfs(8) or mkfs.btrfs(8). Those that read or write
    /// elsewhere (`-d` of mke2fs, `-p` of mkfs.xfs, `-r` of mkfs.btrfs) or make nothing (`-n` of mke2fs) are not here.
    const ALLOWED: &[&str] = &["-b", "-C", "-E", "-g", "-G", "-i", "-I", "-L", "-m", "-N", "-O", "-R", "-s", "-T"];
    /// What would lead elsewhere inside a value.
    const ELSEWHERE: &[&str] = &["dev", "file", "name", "journal", "offset"];

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The words.
    #[must_use]
    pub fn words(&self) -> &[String] {
        &self.0
    }
}

impl TryFrom<Vec<String>> for MkfsOptions {
    type Error = ForbiddenMkfsOption;

    fn try_from(words: Vec<String>) -> Result<Self, ForbiddenMkfsOption> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_=,.:^-".contains(c);
        for pair in words.chunks(2) {
            let [option, value] = pair else { return Err(ForbiddenMkfsOption(pair.concat())) };
            let leads_away = Self::ELSEWHERE.iter().any(|word| value.to_lowercase().contains(word));
            if !Self::ALLOWED.contains(&option.as_str()) {
                return Err(ForbiddenMkfsOption(option.clone()));
            }
            if value.is_empty() || value.starts_with('-') || leads_away || !value.chars().all(plain) {
                return Err(ForbiddenMkfsOption(format!("{option} {value}")));
            }
        }
        Ok(Self(words))
    }
}

impl From<MkfsOptions> for Vec<String> {
    fn from(options: MkfsOptions) -> Self {
        options.0
    }
}

/// How a volume is laid out and encrypted: chosen when it is created, kept in its record, never changed by a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Parameters {
    /// What is inside.
    pub content: Content,
    /// How sectors are encrypted.
    pub cipher: Cipher,
    /// Bytes in one encrypted sector.
    pub sector_size: SectorSize,
    /// How sectors are authenticated.
    pub integrity: Integrity,
    /// Whether freed blocks are given back.
    pub discard: Discard,
    /// More words for mkfs, in pairs of option and value.
    #[serde(default, skip_serializing_if = "MkfsOptions::is_empty")]
    pub mkfs_options: MkfsOptions,
}

impl Parameters {
    /// What a class without parameters gives: aes-xts-plain64, 4096-byte sectors, no integrity, no discard.
    #[must_use]
    pub fn of(content: Content) -> Self {
        Self {
            content,
            cipher: Cipher::AesXtsPlain64,
            sector_size: SectorSize::DEFAULT,
            integrity: Integrity::None,
            discard: Discard::Off,
            mkfs_options: MkfsOptions::default(),
        }
    }

    /// The smallest volume, in bytes, that can hold the content.
    #[must_use]
    pub fn minimum_bytes(&self) -> u64 {
        match self.content {
            Content::Filesystem(fs_type) => fs_type.minimum_bytes(),
            Content::Block => MIB,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_mkfs_shape_a_file_system_and_lead_nowhere_else() {
        let check = |text: &str| MkfsOptions::try_from(text.split(' ').map(str::to_owned).collect::<Vec<_>>()).is_ok();
        for good in ["-i 8192", "-O ^metadata_csum,64bit", "-E lazy_itable_init=1 -m 1", "-L data"] {
            assert!(check(good), "{good}");
        }
        for bad in
            ["", "-d etc", "-n x", "-q", "-E", "-i -d", "-E offset=4096", "-L /etc", "-p proto", "-R a;b", "etc -i"]
        {
            assert!(!check(bad), "{bad:?}");
        }
    }

    #[test]
    fn an_unknown_choice_names_the_choices() {
        assert_eq!(
            "zfs".parse::<FsType>().expect_err("unknown").to_string(),
            r#""zfs" is not one of ext4, xfs, btrfs"#
        );
        assert!(SectorSize::try_from(520).is_err());
    }
}
