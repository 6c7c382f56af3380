//! CSI's requests as types: what is missing, too long, unknown or not to be had is refused here, in words.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Component, Path, PathBuf},
    str::FromStr,
};

use crate::{
    node::{Capability, Form, Use, mount::Options, source::Place},
    proto::csi::{
        VolumeCapability,
        volume_capability::{AccessType, access_mode::Mode},
    },
    volume::{Cipher, Content, Discard, FsType, Integrity, Parameters, SectorSize, VolumeId},
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
        Ok(Mode::SingleNodeWriter | Mode::SingleNodeMultiWriter) => Use::Write,
        Ok(Mode::SingleNodeSingleWriter) => Use::WriteAlone,
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

fn sized(field: &str, map: &HashMap<String, String>) -> Result<(), Invalid> {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes <= MAP_MAX_BYTES {
        return Ok(());
    }
    Err(Invalid::new(format!("{field} has {bytes} bytes; at most {MAP_MAX_BYTES} are allowed")))
}

/// What the parameters of a StorageClass ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Layout and encryption.
    pub parameters: Parameters,
    /// Where the device comes from.
    pub place: Place,
    /// A provider of the key service, where one is named.
    pub provider: Option<String>,
    /// More binding data.
    pub context: BTreeMap<String, String>,
    /// The namespace of the claim, where the provisioner passes it on.
    pub tenant: Option<String>,
}

const PVC_NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
const KUBERNETES_KEYS: &str = "csi.storage.k8s.io/";
const CLASS_KEYS: &[&str] = &[
    "cipher",
    "context",
    "device",
    "discard",
    "encryption",
    "fsType",
    "integrity",
    "keyId",
    "mkfsOptions",
    "provider",
    "sectorSize",
];

/// Reads the parameters of a StorageClass, together with what the capabilities ask for.
///
/// # Errors
/// A key that is not known, a value that is not possible, or capabilities that contradict each other or the class.
pub fn class(parameters: &HashMap<String, String>, capabilities: &[Capability]) -> Result<Class, Invalid> {
    sized("parameters", parameters)?;
    for key in parameters.keys().filter(|key| !key.starts_with(KUBERNETES_KEYS)) {
        if !CLASS_KEYS.contains(&key.as_str()) {
            return Err(unknown_parameter(key));
        }
    }
    let value = |key: &str| parameters.get(key).map(String::as_str);
    match value("encryption") {
        None | Some("luks2") => {}
        Some("none") => {
            return Err(Invalid::new(
                "parameter encryption: \"none\" needs a policy that allows it, and there is none",
            ));
        }
        Some(other) => return Err(Invalid::new(format!("parameter encryption: {other:?} is not luks2"))),
    }
    if value("keyId").is_some() {
        return Err(Invalid::new("parameter keyId: the configured providers have one key each; take it out"));
    }
    let mut read = Parameters::of(content(choice("fsType", value("fsType"))?, capabilities)?);
    if let Some(cipher) = choice::<Cipher>("cipher", value("cipher"))? {
        read.cipher = cipher;
    }
    if let Some(discard) = choice::<Discard>("discard", value("discard"))? {
        read.discard = discard;
    }
    if let Some(bytes) = choice::<u32>("sectorSize", value("sectorSize"))? {
        let size = SectorSize::try_from(bytes);
        read.sector_size = size.map_err(|error| Invalid::new(format!("parameter sectorSize: {error}")))?;
    }
    if choice::<Integrity>("integrity", value("integrity"))?.is_some_and(|asked| asked != Integrity::None) {
        return Err(Invalid::new(
            "parameter integrity: this version cannot give it: a new volume would have to be written full before its \
             first use. Take the parameter out",
        ));
    }
    if let Some(options) = value("mkfsOptions") {
        read.mkfs_options = mkfs_options(options, read.content)?;
    }
    let place = match value(CONTEXT_DEVICE) {
        None => Place::Local,
        Some(device) => Place::Device(path("parameter device", device)?),
    };
    Ok(Class {
        parameters: read,
        place,
        provider: value("provider").map(str::to_owned),
        context: value("context").map(binding_context).transpose()?.unwrap_or_default(),
        tenant: value(PVC_NAMESPACE).map(str::to_owned),
    })
}

fn choice<T: FromStr<Err: std::fmt::Display>>(key: &str, value: Option<&str>) -> Result<Option<T>, Invalid> {
    value.map(|text| text.parse().map_err(|error| Invalid::new(format!("parameter {key}: {error}")))).transpose()
}

fn unknown_parameter(key: &str) -> Invalid {
    let mut near: Vec<_> = CLASS_KEYS
        .iter()
        .map(|known| (strsim::jaro_winkler(&key.to_lowercase(), &known.to_lowercase()), *known))
        .filter(|(likeness, _)| *likeness > 0.75)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let near: Vec<_> = near.into_iter().map(|(_, known)| known).collect();
    let hint = if near.is_empty() {
        format!("known parameters: {}", CLASS_KEYS.join(", "))
    } else {
        format!("did you mean {}?", near.join(" or "))
    };
    Invalid::new(format!("parameter {key:?} is not known; {hint}"))
}

/// What a volume is to hold: what all capabilities and the class agree on.
fn content(class: Option<FsType>, capabilities: &[Capability]) -> Result<Content, Invalid> {
    if capabilities.is_empty() {
        return Err(Invalid::new("volume_capabilities are missing"));
    }
    let forms: Vec<_> = capabilities.iter().map(|capability| &capability.form).collect();
    if forms.iter().all(|form| **form == Form::Block) {
        return match class {
            None => Ok(Content::Block),
            Some(_) => Err(Invalid::new("parameter fsType: a block volume has no file system")),
        };
    }
    let mut wanted = class;
    for form in forms {
        match form {
            Form::Block => return Err(Invalid::new("a volume is either a block volume or has a file system")),
            Form::Filesystem { fs_type: Some(asked), .. } => match wanted {
                Some(other) if other != *asked => {
                    return Err(Invalid::new(format!("file systems {other} and {asked} are both asked for")));
                }
                _ => wanted = Some(*asked),
            },
            Form::Filesystem { fs_type: None, .. } => {}
        }
    }
    Ok(Content::Filesystem(wanted.unwrap_or(FsType::Ext4)))
}

/// Words for mkfs, none of which can name a file: mkfs would read it, or write to it.
fn mkfs_options(text: &str, content: Content) -> Result<Vec<String>, Invalid> {
    if content == Content::Block {
        return Err(Invalid::new("parameter mkfsOptions: a block volume has no file system"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,.:^".contains(c);
    let words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
    match words.iter().find(|word| !word.chars().all(plain)) {
        Some(word) => Err(Invalid::new(format!("parameter mkfsOptions: {word:?} is not allowed"))),
        None => Ok(words),
    }
}

/// `key=value,key=value`.
fn binding_context(text: &str) -> Result<BTreeMap<String, String>, Invalid> {
    let mut context = BTreeMap::new();
    for pair in text.split(',') {
        let (key, value) = pair
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| Invalid::new(format!("parameter context: {pair:?} is not key=value")))?;
        if context.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(Invalid::new(format!("parameter context: key {key:?} is there twice")));
        }
    }
    Ok(context)
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

    fn mounted(fs_type: Option<FsType>) -> Capability {
        let form = Form::Filesystem { fs_type, options: Options::default(), group: None };
        Capability { form, access: Use::Write }
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
    fn an_unknown_parameter_is_refused_with_the_near_names() {
        let refused = class(&of(&[("sectorsize", "512")]), &[mounted(None)]).expect_err("unknown");
        assert_eq!(refused.to_string(), r#"parameter "sectorsize" is not known; did you mean sectorSize?"#);
        let refused = class(&of(&[("zzz", "")]), &[mounted(None)]).expect_err("unknown");
        assert!(refused.to_string().contains("known parameters: cipher, context"), "{refused}");
    }

    #[test]
    fn a_class_without_parameters_is_encrypted_ext4() {
        let read = class(&of(&[("csi.storage.k8s.io/pvc/namespace", "blue")]), &[mounted(None)]).expect("valid");
        assert_eq!(read.parameters, Parameters::of(Content::Filesystem(FsType::Ext4)));
        assert_eq!((read.place, read.tenant.as_deref()), (Place::Local, Some("blue")));
    }

    #[test]
    fn what_cannot_be_had_is_refused_with_the_reason() {
        let block = Capability { form: Form::Block, access: Use::Write };
        let check = |pairs: &[(&str, &str)], capabilities: &[Capability], reason: &str| {
            let refused = class(&of(pairs), capabilities).expect_err(reason).to_string();
            assert!(refused.contains(reason), "{refused} lacks {reason}");
        };
        check(&[("encryption", "none")], &[mounted(None)], "policy");
        check(&[("encryption", "rot13")], &[mounted(None)], "not luks2");
        check(&[("integrity", "hmac-sha256")], &[mounted(None)], "cannot give it");
        check(&[("integrity", "crc")], &[mounted(None)], "not one of none, hmac-sha256");
        check(&[("cipher", "cipher_null")], &[mounted(None)], "not one of aes-xts-plain64");
        check(&[("sectorSize", "520")], &[mounted(None)], "not one of 512");
        check(&[("keyId", "x")], &[mounted(None)], "keyId");
        check(&[("fsType", "zfs")], &[mounted(None)], "not one of ext4");
        check(&[("fsType", "xfs")], &[mounted(Some(FsType::Ext4))], "both asked for");
        check(&[("fsType", "xfs")], std::slice::from_ref(&block), "no file system");
        check(&[("mkfsOptions", "-d /etc")], &[mounted(None)], "not allowed");
        check(&[("context", "a")], &[mounted(None)], "key=value");
        check(&[("context", "a=1,a=2")], &[mounted(None)], "twice");
        check(&[("device", "relative")], &[mounted(None)], "absolute");
        check(&[], &[], "missing");
        check(&[], &[mounted(None), block], "either");
        check(&[("context", &"x".repeat(5000))], &[mounted(None)], "at most 4096");
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
