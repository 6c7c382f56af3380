//! Provider `gcp-kms`.

use crate::{
    config::file::{
        google::access,
        provider::{Attempts, ProviderConfig, common, of},
        reading::Reading,
        section::Section,
        value::{Misfit, checked},
    },
    key::kms::{Settings, settings::GcpKms},
};

const KEY_NAME: &str = "projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY";

pub(super) fn read(section: &mut Section, reading: &mut Reading<'_>) -> Option<ProviderConfig> {
    section.title = "gcp-kms";
    let key_name = section.ask("keyName", KEY_NAME).required(reading, checked(key_name));
    let access = access(section, reading);
    let common = common(section, Attempts::FromFile, reading);
    Some(of(common, Settings::GcpKms(GcpKms { key_name: key_name?, access: access? })))
}

fn key_name(text: &str) -> Result<String, Misfit> {
    let parts: Vec<_> = text.split('/').collect();
    let is_good = |part: &&str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte))
    };
    match parts.as_slice() {
        ["projects", project, "locations", location, "keyRings", ring, "cryptoKeys", key, rest @ ..]
            if [project, location, ring, key].into_iter().all(is_good) =>
        {
            match rest {
                [] => Ok(text.to_owned()),
                ["cryptoKeyVersions", ..] => {
                    Err(Misfit::What("names a version, and the key's primary version is used".to_owned()))
                }
                _ => Err(Misfit::Not(text.to_owned())),
            }
        }
        _ => Err(Misfit::Not(text.to_owned())),
    }
}
