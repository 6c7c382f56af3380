//! The parameters of a StorageClass, and what a volume's capabilities add to them.

use std::{
    collections::{BTreeMap, HashMap},
    str::FromStr,
};

use crate::{
    csi::request::{CONTEXT_DEVICE, Invalid, KUBERNETES_KEYS, path, sized, unknown},
    node::{Capability, Form, source::Place},
    volume::{Cipher, Content, Discard, FsType, Integrity, MkfsOptions, Parameters, SectorSize},
};

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
    /// A KEK of that provider, where one is named.
    pub key_id: Option<String>,
    /// The namespace of the claim, where the provisioner passes it on.
    pub tenant: Option<String>,
    /// The name of the claim, where the provisioner passes it on.
    pub claim: Option<String>,
    /// The class's own name, where it says it.
    pub storage_class: Option<String>,
}

const PVC_NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
const PVC_NAME: &str = "csi.storage.k8s.io/pvc/name";
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
    "storageClass",
];

/// Reads the parameters of a StorageClass, together with what the capabilities ask for.
///
/// # Errors
/// A key that is not known, a value that is not possible, or capabilities that contradict each other or the class.
pub fn class(parameters: &HashMap<String, String>, capabilities: &[Capability]) -> Result<Class, Invalid> {
    sized("parameters", parameters)?;
    for key in parameters.keys().filter(|key| !key.starts_with(KUBERNETES_KEYS)) {
        if !CLASS_KEYS.contains(&key.as_str()) {
            return Err(unknown("parameter", key, CLASS_KEYS));
        }
    }
    let value = |key: &str| parameters.get(key).map(String::as_str);
    let named = |key: &str| value(key).filter(|name| !name.is_empty()).map(str::to_owned);
    match value("encryption") {
        None | Some("luks2") => {}
        Some("none") => {
            return Err(Invalid::new(
                "parameter encryption: \"none\" needs a policy that allows it, and there is none",
            ));
        }
        Some(other) => return Err(Invalid::new(format!("parameter encryption: {other:?} is not luks2"))),
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
        provider: named("provider"),
        key_id: named("keyId"),
        context: value("context").map(binding_context).transpose()?.unwrap_or_default(),
        tenant: named(PVC_NAMESPACE),
        claim: named(PVC_NAME),
        storage_class: named("storageClass"),
    })
}

fn choice<T: FromStr<Err: std::fmt::Display>>(key: &str, value: Option<&str>) -> Result<Option<T>, Invalid> {
    value.map(|text| text.parse().map_err(|error| Invalid::new(format!("parameter {key}: {error}")))).transpose()
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

fn mkfs_options(text: &str, content: Content) -> Result<MkfsOptions, Invalid> {
    if content == Content::Block {
        return Err(Invalid::new("parameter mkfsOptions: a block volume has no file system"));
    }
    let words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
    MkfsOptions::try_from(words).map_err(|error| Invalid::new(format!("parameter mkfsOptions: {error}")))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Use, mount::Options};

    fn of(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn mounted(fs_type: Option<FsType>) -> Capability {
        let form = Form::Filesystem { fs_type, options: Options::default(), group: None };
        Capability { form, access: Use::Write }
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
}
