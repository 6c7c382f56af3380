//! CSI's requests as types: what is missing, too long, unknown or not to be had is refused here, in words.

pub mod class;
pub mod ephemeral;
pub mod quantity;

use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
    str::FromStr,
};

use crate::{
    node::{Capability, Form, Use, mount::Options, source::Place},
    proto::csi::{
        VolumeCapability,
        volume_capability::{AccessType, access_mode::Mode},
    },
    volume::VolumeId,
};

/// A request that makes no sense, and why.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Invalid(String);

impl Invalid {
    /// A reason in words.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// The most bytes of a name (CSI specification, "Size Limits").
const NAME_MAX_BYTES: usize = 128;
/// The most bytes of a path (path_resolution(7), PATH_MAX less the final NUL).
const PATH_MAX_BYTES: usize = 4095;
/// The most bytes of a map of parameters or context (CSI specification, "Size Limits").
const MAP_MAX_BYTES: usize = 4096;

/// The key in the volume context that says where a volume's device comes from.
pub const CONTEXT_SOURCE: &str = "source";
/// The key in class parameters and volume context that names a device of the node.
pub const CONTEXT_DEVICE: &str = "device";
const SOURCE_LOCAL: &str = "local";
/// What the keys begin with that Kubernetes and its sidecars add to parameters and context.
const KUBERNETES_KEYS: &str = "csi.storage.k8s.io/";

/// A volume id.
///
/// # Errors
/// It is missing, too long, or holds a control character.
pub fn volume_id(text: &str) -> Result<VolumeId, Invalid> {
    text.parse().map_err(|error| Invalid::new(format!("volume_id: {error}")))
}

/// The name of a new volume.
///
/// # Errors
/// It is missing, too long, or holds a control character.
pub fn name(text: &str) -> Result<&str, Invalid> {
    match text {
        "" => Err(Invalid::new("name is missing")),
        _ if text.len() > NAME_MAX_BYTES => {
            Err(Invalid::new(format!("name has {} bytes; at most {NAME_MAX_BYTES} are allowed", text.len())))
        }
        _ if text.chars().any(char::is_control) => Err(Invalid::new("name holds a control character")),
        _ => Ok(text),
    }
}

/// An absolute path that leads straight to where it says.
///
/// # Errors
/// It is missing, relative, too long, the root, or goes through `.` or `..`.
pub fn path(field: &str, text: &str) -> Result<PathBuf, Invalid> {
    let refuse = |fault: &str| Err(Invalid::new(format!("{field} {fault}")));
    if text.is_empty() {
        return refuse("is missing");
    }
    if text.len() > PATH_MAX_BYTES {
        return refuse("is longer than 4095 bytes");
    }
    if text.chars().any(char::is_control) {
        return refuse("holds a control character");
    }
    let path = Path::new(text);
    if !path.is_absolute() {
        return refuse("is not an absolute path");
    }
    let straight = text.split('/').all(|part| part != "." && part != "..");
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !straight || !plain {
        return refuse("goes through '.' or '..'");
    }
    if path.file_name().is_none() {
        return refuse("is the root folder");
    }
    // Made again from its parts, so that it has no doubled or final slash.
    Ok(path.components().collect())
}

/// Secrets of a request. Coffer's keys come from its key service alone.
///
/// # Errors
/// There are any.
pub fn no_secrets(secrets: &HashMap<String, String>) -> Result<(), Invalid> {
    if secrets.is_empty() {
        return Ok(());
    }
    Err(Invalid::new(
        "the request carries secrets, and a volume's key comes from the key service alone: take the secret \
         parameters (csi.storage.k8s.io/*-secret-name) out of the StorageClass",
    ))
}

/// What a request asks of a volume.
///
/// # Errors
/// It is missing, or asks for what Coffer does not have.
pub fn capability(capability: Option<&VolumeCapability>) -> Result<Capability, Invalid> {
    let capability = capability.ok_or_else(|| Invalid::new("volume_capability is missing"))?;
    let mode = capability.access_mode.as_ref().ok_or_else(|| Invalid::new("access_mode is missing"))?;
    let access = match Mode::try_from(mode.mode) {
        Ok(Mode::SingleNodeMultiWriter) => Use::Write,
        // With SINGLE_NODE_MULTI_WRITER advertised, both of these mean one target (CSI, NodePublishVolume).
        Ok(Mode::SingleNodeWriter | Mode::SingleNodeSingleWriter) => Use::WriteAlone,
        Ok(Mode::SingleNodeReaderOnly) => Use::Read,
        Ok(mode @ (Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter)) => {
            return Err(Invalid::new(format!(
                "access mode {} is not supported: a volume is on one node at a time",
                mode.as_str_name()
            )));
        }
        Ok(Mode::Unknown) => return Err(Invalid::new("access_mode is missing")),
        Err(_) => return Err(Invalid::new(format!("access mode {} is not known", mode.mode))),
    };
    let form = match &capability.access_type {
        None => return Err(Invalid::new("access_type (mount or block) is missing")),
        Some(AccessType::Block(_)) => Form::Block,
        Some(AccessType::Mount(mount)) => Form::Filesystem {
            fs_type: optional("fs_type", &mount.fs_type)?,
            options: Options::parse(mount.mount_flags.iter().map(String::as_str))
                .map_err(|error| Invalid::new(format!("mount_flags: {error}")))?,
            group: optional("volume_mount_group", &mount.volume_mount_group)?,
        },
    };
    Ok(Capability { form, access })
}

fn optional<T: FromStr<Err: std::fmt::Display>>(field: &str, text: &str) -> Result<Option<T>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error| Invalid::new(format!("{field}: {error}")))
}

/// Where a volume's device comes from.
///
/// # Errors
/// The volume context holds a key that is not known, or a device without an absolute path.
pub fn place(context: &HashMap<String, String>) -> Result<Place, Invalid> {
    sized("volume_context", context)?;
    // Kubernetes adds keys of its own, each with its domain before a slash.
    let ours = |key: &str| !key.contains('/');
    if let Some(key) = context.keys().find(|key| ours(key) && ![CONTEXT_SOURCE, CONTEXT_DEVICE].contains(&key.as_str()))
    {
        return Err(Invalid::new(format!("volume_context: key {key:?} is not known")));
    }
    match (context.get(CONTEXT_SOURCE).map(String::as_str), context.get(CONTEXT_DEVICE)) {
        (None | Some(SOURCE_LOCAL), None) => Ok(Place::Local),
        (None | Some(CONTEXT_DEVICE), Some(device)) => Ok(Place::Device(path("volume_context: device", device)?)),
        (Some(CONTEXT_DEVICE), None) => Err(Invalid::new("volume_context: device is missing")),
        (Some(SOURCE_LOCAL), Some(_)) => Err(Invalid::new("volume_context: a local volume has no device")),
        (Some(source), _) => Err(Invalid::new(format!("volume_context: source {source:?} is not local or device"))),
    }
}

/// The volume context that leads to a place.
#[must_use]
pub fn context(place: &Place) -> HashMap<String, String> {
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    match place {
        Place::Local => HashMap::from([pair(CONTEXT_SOURCE, SOURCE_LOCAL)]),
        Place::Device(path) => {
            HashMap::from([pair(CONTEXT_SOURCE, CONTEXT_DEVICE), pair(CONTEXT_DEVICE, &path.to_string_lossy())])
        }
    }
}

/// A key that is none of the known ones, and those that it could be a slip of.
fn unknown(kind: &str, key: &str, known: &[&str]) -> Invalid {
    let likeness = |known: &&str| strsim::jaro_winkler(&key.to_lowercase(), &known.to_lowercase());
    let mut near: Vec<_> =
        known.iter().map(|known| (likeness(known), *known)).filter(|(likeness, _)| *likeness > 0.75).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let near: Vec<_> = near.into_iter().map(|(_, known)| known).collect();
    let hint = if near.is_empty() {
        format!("known {kind}s: {}", known.join(", "))
    } else {
        format!("did you mean {}?", near.join(" or "))
    };
    Invalid::new(format!("{kind} {key:?} is not known; {hint}"))
}

fn sized(field: &str, map: &HashMap<String, String>) -> Result<(), Invalid> {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes <= MAP_MAX_BYTES {
        return Ok(());
    }
    Err(Invalid::new(format!("{field} has {bytes} bytes; at most {MAP_MAX_BYTES} are allowed")))
}

/// Bytes that a volume is to have: at least, and at most where there is a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The least; 0 where none is asked for.
    pub required: u64,
    /// The most, where there is one.
    pub limit: Option<u64>,
}

impl Range {
    /// Reads a capacity range.
    ///
    /// # Errors
    /// A number is negative, or the limit is below what is required.
    pub fn parse(range: Option<&crate::proto::csi::CapacityRange>) -> Result<Self, Invalid> {
        let Some(range) = range else { return Ok(Self { required: 0, limit: None }) };
        let bytes =
            |field: &str, bytes: i64| u64::try_from(bytes).map_err(|_| Invalid::new(format!("{field} is negative")));
        let (required, limit) =
            (bytes("required_bytes", range.required_bytes)?, bytes("limit_bytes", range.limit_bytes)?);
        if limit != 0 && limit < required {
            return Err(Invalid::new(format!("limit_bytes {limit} is below required_bytes {required}")));
        }
        Ok(Self { required, limit: (limit != 0).then_some(limit) })
    }

    /// Whether a volume of this size is what is asked for.
    #[must_use]
    pub fn allows(self, bytes: u64) -> bool {
        bytes >= self.required && self.limit.is_none_or(|limit| bytes <= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn paths_lead_straight_to_where_they_say() {
        let check = |text: &str| path("p", text).map(|path| path.display().to_string());
        assert_eq!(check("/a//b/"), Ok("/a/b".to_owned()));
        for bad in
            ["", "a/b", "/", "//", "/a/../b", "/a/./b", "/..", "/a\0b", "/a\nb", &format!("/{}", "a".repeat(4095))]
        {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        assert!(check("/ünïcode/日本").is_ok());
    }

    #[test]
    fn the_context_that_is_written_is_read_back() {
        for place in [Place::Local, Place::Device("/dev/sdb".into())] {
            assert_eq!(super::place(&context(&place)), Ok(place));
        }
        assert!(place(&of(&[("source", "remote")])).is_err());
        assert!(place(&of(&[("sauce", "local")])).is_err());
        assert!(place(&of(&[("source", "device"), ("device", "../sdb")])).is_err());
        assert_eq!(place(&of(&[("storage.kubernetes.io/csiProvisionerIdentity", "x")])), Ok(Place::Local));
    }
}
