//! What a volume is, as plain types: its id, what it holds, how it is encrypted. No I/O.
//!
//! Protocol text becomes one of these types at the edge, so that inner code cannot be called with a path in place
//! of an id or with a cipher that nobody checked.

mod parameters;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use parameters::{
    Cipher, Content, Discard, ForbiddenMkfsOption, FsType, Integrity, MkfsOptions, Parameters, SectorSize,
    UnknownChoice,
};

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;

/// The most bytes a volume id may have. CSI asks for 128 of a driver's own ids; the ids of some clouds' disks are longer.
pub const VOLUME_ID_MAX_BYTES: usize = 512;

/// What the names of ephemeral volumes' files begin with.
const EPHEMERAL: &str = "eph-";

/// Why a text is no volume id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidVolumeId {
    /// Nothing was given.
    #[error("volume id is empty")]
    Empty,
    /// Over [`VOLUME_ID_MAX_BYTES`].
    #[error("volume id has {0} bytes; at most {VOLUME_ID_MAX_BYTES} are allowed")]
    TooLong(usize),
    /// NUL, a line break or another control character.
    #[error("volume id holds a control character")]
    ControlCharacter,
}

/// A CSI volume id: 1 to 512 bytes of UTF-8 without control characters. It is a name, never a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeId(String);

impl VolumeId {
    /// The id of the volume that CreateVolume makes for `name`: the same name gives the same id, on every retry.
    #[must_use]
    pub fn for_name(name: &str) -> Self {
        Self(format!("vol-{}", &hex(&Sha256::digest(name.as_bytes()))[..32]))
    }

    /// The id under which an ephemeral volume has its file and its mapping: `eph-` and half of the SHA-256 of its CSI id.
    /// None for an id that no ephemeral volume has: the kubelet makes up `csi-` and 64 hexadecimal digits for each, and
    /// [`VolumeId::for_name`] never gives such a one. So what is ephemeral shows by the id alone, and nothing that is done
    /// to an ephemeral volume can reach the file or the mapping of another.
    #[must_use]
    pub fn ephemeral(&self) -> Option<Self> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let digits = self.0.strip_prefix("csi-").filter(|digits| digits.len() == 64 && digits.bytes().all(is_digit));
        digits.map(|_| Self(format!("{EPHEMERAL}{}", &hex(&Sha256::digest(self.0.as_bytes()))[..32])))
    }

    /// Whether [`VolumeId::ephemeral`] gave this id. No CSI request names one, and no record is kept under one.
    #[must_use]
    pub fn is_ephemeral(&self) -> bool {
        self.0.starts_with(EPHEMERAL)
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id as the name of a file, when it is one that is safe in every folder: `a-z`, `0-9`, `-`, at most 64 bytes.
    #[must_use]
    pub fn file_name(&self) -> Option<&str> {
        let safe = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (self.0.len() <= 64 && self.0.bytes().all(safe)).then_some(&self.0)
    }
}

impl FromStr for VolumeId {
    type Err = InvalidVolumeId;

    fn from_str(text: &str) -> Result<Self, InvalidVolumeId> {
        if text.is_empty() {
            return Err(InvalidVolumeId::Empty);
        }
        if text.len() > VOLUME_ID_MAX_BYTES {
            return Err(InvalidVolumeId::TooLong(text.len()));
        }
        if text.chars().any(char::is_control) {
            return Err(InvalidVolumeId::ControlCharacter);
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for VolumeId {
    type Error = InvalidVolumeId;

    fn try_from(text: String) -> Result<Self, InvalidVolumeId> {
        text.parse()
    }
}

impl From<VolumeId> for String {
    fn from(id: VolumeId) -> Self {
        id.0
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const MAPPER: &str = "coffer-";

/// The name of a volume's device-mapper mapping: `coffer-` and half of the id's SHA-256, so that it has one length,
/// no two volumes share it and nothing in an id can break it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapperName(String);

impl MapperName {
    /// The name for one volume.
    #[must_use]
    pub fn of(volume_id: &VolumeId) -> Self {
        Self(format!("{MAPPER}{}", &hex(&Sha256::digest(volume_id.as_str().as_bytes()))[..32]))
    }

    /// A name that the kernel shows, where it is one of ours: `coffer-` and 32 hexadecimal digits.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let digits = text.strip_prefix(MAPPER)?;
        (digits.len() == 32 && digits.bytes().all(is_digit)).then(|| Self(text.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MapperName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Bytes as lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_name_and_never_a_path() {
        let check = |text: &str| text.parse::<VolumeId>().map(|id| id.file_name().map(str::to_owned));
        assert_eq!(check("vol-1"), Ok(Some("vol-1".to_owned())));
        assert_eq!(check("../../etc/passwd"), Ok(None));
        assert_eq!(check("UPPER"), Ok(None));
        assert_eq!(check("ünïcode"), Ok(None));
        assert_eq!(check(&"a".repeat(65)), Ok(None));
        assert_eq!(check(""), Err(InvalidVolumeId::Empty));
        assert_eq!(check("a\0b"), Err(InvalidVolumeId::ControlCharacter));
        assert_eq!(check(&"a".repeat(513)), Err(InvalidVolumeId::TooLong(513)));
    }

    #[test]
    fn one_name_gives_one_id_and_it_is_safe_as_a_file_name() {
        let id = VolumeId::for_name("pvc-é/../x");
        assert_eq!(id, VolumeId::for_name("pvc-é/../x"));
        assert_ne!(id, VolumeId::for_name("pvc-é/../y"));
        assert_eq!(id.file_name(), Some(id.as_str()));
    }

    #[test]
    fn mapper_names_have_one_length_and_do_not_collide_by_suffix() {
        let name = |id: &str| MapperName::of(&id.parse().expect("an id"));
        assert_eq!(name("a/disk").as_str().len(), 39);
        assert_ne!(name("a/disk"), name("b/disk"));
    }

    #[test]
    fn only_a_name_that_we_could_have_given_is_ours() {
        let given = MapperName::of(&"vol-1".parse().expect("an id"));
        assert_eq!(MapperName::read(given.as_str()), Some(given.clone()));
        let upper = given.as_str().to_uppercase();
        for other in ["", "coffer-", "coffer-home", "root", &given.as_str()[..38], &upper, &format!("{given}0")] {
            assert_eq!(MapperName::read(other), None, "{other:?}");
        }
    }

    #[test]
    fn what_is_ephemeral_shows_by_the_id_and_has_names_of_its_own() {
        let id = |text: &str| text.parse::<VolumeId>().expect("an id");
        let csi = id(&format!("csi-{}", "0a".repeat(32)));
        let own = csi.ephemeral().expect("the kubelet's form");
        assert!(own.is_ephemeral() && own.file_name().is_some_and(|name| name.starts_with("eph-")), "{own}");
        assert_ne!(MapperName::of(&own), MapperName::of(&csi));
        assert_eq!(own.ephemeral(), None);
        let upper = format!("csi-{}", "0A".repeat(32));
        for other in ["csi-", "csi-0a", &upper, VolumeId::for_name("pvc-1").as_str(), &format!("{csi}0")] {
            assert_eq!(id(other).ephemeral(), None, "{other:?}");
        }
    }
}
