//! The attributes of an ephemeral volume, as a pod's `csi.volumeAttributes` gives them to the kubelet, and the kubelet to
//! NodePublishVolume in the volume context.

use std::collections::HashMap;

use crate::{
    csi::request::{Invalid, KUBERNETES_KEYS, quantity, sized, unknown},
    node::Form,
    volume::FsType,
};

/// The key by which the kubelet says that a volume is ephemeral (Kubernetes, CSIDriver, `podInfoOnMount`).
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
const SIZE: &str = "size";
const FS_TYPE: &str = "fsType";
const KEYS: &[&str] = &[FS_TYPE, SIZE];

/// The size of an ephemeral volume for which none is asked, in bytes.
const DEFAULT_BYTES: u64 = 1 << 30;

/// What a pod asks of an ephemeral volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Its size in bytes.
    pub bytes: u64,
    fs_type: Option<FsType>,
}

impl Attributes {
    /// What the volume is to hold: what attributes and capability agree on, or ext4.
    ///
    /// # Errors
    /// They ask for two different file systems.
    pub fn fs_type(self, form: &Form) -> Result<FsType, Invalid> {
        let asked = match form {
            Form::Filesystem { fs_type, .. } => *fs_type,
            // Which is refused further in, in its own words.
            Form::Block => None,
        };
        match (self.fs_type, asked) {
            (Some(one), Some(other)) if one != other => {
                Err(Invalid::new(format!("file systems {one} and {other} are both asked for")))
            }
            (one, other) => Ok(one.or(other).unwrap_or(FsType::Ext4)),
        }
    }
}

/// The attributes of an ephemeral volume; none for a volume that is not one.
///
/// # Errors
/// A key that is not known, or a value that is not possible.
pub fn attributes(context: &HashMap<String, String>) -> Result<Option<Attributes>, Invalid> {
    if context.get(EPHEMERAL).is_none_or(|ephemeral| ephemeral != "true") {
        return Ok(None);
    }
    sized("volume_context", context)?;
    for key in context.keys().filter(|key| !key.starts_with(KUBERNETES_KEYS)) {
        if !KEYS.contains(&key.as_str()) {
            return Err(unknown("attribute", key, KEYS));
        }
    }
    let faulty = |key: &str, fault: &dyn std::fmt::Display| Invalid::new(format!("attribute {key}: {fault}"));
    let bytes = match context.get(SIZE) {
        Some(size) => quantity::bytes(size).map_err(|fault| faulty(SIZE, &fault))?,
        None => DEFAULT_BYTES,
    };
    let fs_type = context.get(FS_TYPE).map(|text| text.parse::<FsType>().map_err(|fault| faulty(FS_TYPE, &fault)));
    Ok(Some(Attributes { bytes, fs_type: fs_type.transpose()? }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::mount::Options;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Attributes>, Invalid> {
        let kubelet = [(EPHEMERAL, "true"), ("csi.storage.k8s.io/pod.name", "p"), ("csi.storage.k8s.io/new", "x")];
        let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        attributes(&kubelet.iter().chain(pairs).map(pair).collect())
    }

    fn form(fs_type: Option<FsType>) -> Form {
        Form::Filesystem { fs_type, options: Options::default(), group: None }
    }

    #[test]
    fn a_volume_is_ephemeral_when_the_kubelet_says_so_and_only_then() {
        assert_eq!(attributes(&HashMap::new()), Ok(None));
        assert_eq!(read(&[(EPHEMERAL, "false"), ("source", "local")]), Ok(None));
        assert_eq!(read(&[]), Ok(Some(Attributes { bytes: 1 << 30, fs_type: None })));
        let asked = read(&[("size", "64Mi"), ("fsType", "xfs")]);
        assert_eq!(asked, Ok(Some(Attributes { bytes: 64 << 20, fs_type: Some(FsType::Xfs) })));
    }

    #[test]
    fn an_attribute_that_is_not_known_is_refused_with_the_near_name() {
        let check = |pair: (&str, &str), reason: &str| {
            let refused = read(&[pair]).expect_err(reason).to_string();
            assert!(refused.contains(reason), "{refused} lacks {reason}");
        };
        check(("Size", "1Gi"), r#"attribute "Size" is not known; did you mean size?"#);
        check(("zzz", ""), "known attributes: fsType, size");
        check(("size", "much"), "attribute size: \"much\" is not a quantity");
        check(("fsType", "zfs"), "attribute fsType: \"zfs\" is not one of ext4");
        check(("size", &"1".repeat(5000)), "at most 4096");
    }

    #[test]
    fn two_file_systems_are_not_had_at_once() {
        let attributes = |fs_type| Attributes { bytes: 1, fs_type };
        assert_eq!(attributes(None).fs_type(&form(None)), Ok(FsType::Ext4));
        assert_eq!(attributes(Some(FsType::Xfs)).fs_type(&form(None)), Ok(FsType::Xfs));
        assert_eq!(attributes(None).fs_type(&form(Some(FsType::Btrfs))), Ok(FsType::Btrfs));
        assert!(attributes(Some(FsType::Xfs)).fs_type(&form(Some(FsType::Ext4))).is_err());
    }
}
