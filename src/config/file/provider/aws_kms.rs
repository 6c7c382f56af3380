//! Provider `aws-kms`.

use std::collections::BTreeMap;

use crate::{
    config::file::{
        aws::{Service, access, is_account, is_partition, region_name},
        provider::{Attempts, ProviderConfig, common, of},
        reading::Reading,
        section::Section,
        source::Source,
        value::{Misfit, checked, choice, list, names, pairs, word},
    },
    key::kms::{
        Settings,
        settings::{AwsKms, KeyScope, Validate},
    },
};

/// What a key id is.
pub(in crate::config::file) const KEY_ID: &str = "a key's id, its ARN, an alias (alias/NAME) or an alias's ARN";
const PREFIX: &str = "1 to 64 of A-Z, a-z, 0-9, _ and -";
const USUAL_PREFIX: &str = "coffer";

const SCOPES: &[(&str, KeyScope)] =
    &[("key", KeyScope::Key), ("class", KeyScope::Class), ("namespace", KeyScope::Namespace)];
const ALGORITHMS: &[(&str, bool)] = &[("symmetric", false), ("rsa-oaep-256", true)];

pub(super) fn read(section: &mut Section, reading: &mut Reading<'_>) -> Option<ProviderConfig> {
    section.title = "aws-kms";
    let key_scope = section.ask("keyScope", names(SCOPES)).or("key", reading, choice(SCOPES));
    let key_is_given = section.has("keyId");
    let key = section.ask("keyId", KEY_ID).optional(reading, checked(key_id));
    let rsa = section.ask("algorithm", names(ALGORITHMS)).or("symmetric", reading, choice(ALGORITHMS));
    let others = section.ask("regions", "a list of regions").optional(reading, list(checked(region_name)));
    let key_prefix = section.ask("keyPrefix", PREFIX).documented(USUAL_PREFIX).optional(reading, word(64, "_-"));
    let key_tags = section.ask("keyTags", "keys and texts").optional(reading, pairs);
    let access = access(section, Service::Kms, reading);
    let common = common(section, Attempts::FromAws, reading);

    let scope = names(&SCOPES.iter().filter(|(_, one)| *one == key_scope).copied().collect::<Vec<_>>());
    if key_scope == KeyScope::Key {
        if !key_is_given {
            let what = format!("is missing; expected {KEY_ID}; or keyScope: class or namespace");
            section.fault("keyId", &what, reading);
        }
        for (name, is_given) in [("keyPrefix", key_prefix.is_some()), ("keyTags", key_tags.is_some())] {
            if is_given {
                section.fault(name, "is for keys that are made: with keyScope class or namespace", reading);
            }
        }
    } else {
        if key_is_given {
            section.fault("keyId", &format!("keyScope {scope} names the keys; take keyId out"), reading);
        }
        if common.validate == Validate::Startup {
            section.fault("validate", "startup has no key to try with this keyScope; expected lazy or off", reading);
        }
        if rsa {
            section.fault("algorithm", &format!("keyScope {scope} makes symmetric keys only"), reading);
        }
        if key_prefix.is_none() {
            reading.give(section.place("keyPrefix"), USUAL_PREFIX, Source::Default);
        }
    }
    if rsa && !common.context.is_empty() {
        let what = "an RSA key takes no context; take it out (each key stays bound to its volume by Coffer itself)";
        section.fault("context", what, reading);
    }
    if key_tags.iter().flat_map(BTreeMap::keys).any(|tag| tag.starts_with("aws:")) {
        section.fault("keyTags", "tags that begin with aws: are AWS's own", reading);
    }
    let fallback_regions = others.unwrap_or_default();
    let access = access?;
    check_regions(section, &access.region, &fallback_regions, key.as_ref(), reading);
    let key_prefix = key_prefix.unwrap_or_else(|| USUAL_PREFIX.to_owned());
    let (key_id, key_tags) = (key.map(|key| key.text), key_tags.unwrap_or_default());
    let settings = AwsKms { key_id, rsa, fallback_regions, key_scope, key_prefix, key_tags, access };
    Some(of(common, Settings::AwsKms(settings)))
}

/// Whether the regions fit each other and the key.
fn check_regions(section: &Section, region: &str, others: &[String], key: Option<&KeyId>, reading: &mut Reading<'_>) {
    for (place, other) in others.iter().enumerate() {
        if other == region || others[..place].contains(other) {
            section.fault("regions", &format!("{other} is there twice; region is asked first"), reading);
        }
    }
    if !others.is_empty() && !key.is_some_and(|key| key.is_multi_region) {
        let what = "are for a multi-region key; expected a keyId whose key begins with mrk-";
        section.fault("regions", what, reading);
    }
    let Some(own) = key.and_then(|key| key.region.as_ref()) else { return };
    if own != region && !others.contains(own) {
        let what = format!("is in {own}, and region is {region}; expected the same, or {own} among regions");
        section.fault("keyId", &what, reading);
    }
}

/// A key, as AWS names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::config::file) struct KeyId {
    text: String,
    /// The region that its ARN names.
    region: Option<String>,
    is_multi_region: bool,
}

/// Reads the id of a key.
pub(in crate::config::file) fn key_id(text: &str) -> Result<KeyId, Misfit> {
    let parts: Vec<_> = text.splitn(6, ':').collect();
    let (region, key) = match parts.as_slice() {
        ["arn", partition, "kms", region, account, resource] if is_partition(partition) && is_account(account) => {
            (Some((*region).to_owned()), *resource)
        }
        [key] => (None, *key),
        _ => return Err(Misfit::Not(text.to_owned())),
    };
    // An id stands alone, and behind key/ in an ARN.
    let id = if region.is_some() { key.strip_prefix("key/") } else { Some(key) };
    let is_alias = key.strip_prefix("alias/").is_some_and(is_alias_name);
    let is_multi_region = id.and_then(|id| id.strip_prefix("mrk-")).is_some_and(|id| is_hex(id, 32));
    if is_alias || is_multi_region || id.is_some_and(is_uuid) {
        return Ok(KeyId { text: text.to_owned(), region, is_multi_region });
    }
    Err(Misfit::Not(text.to_owned()))
}

fn is_alias_name(text: &str) -> bool {
    (1..=250).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/_-".contains(&byte))
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_uuid(text: &str) -> bool {
    let parts: Vec<_> = text.split('-').collect();
    parts.len() == 5 && parts.iter().zip([8, 4, 4, 4, 12]).all(|(part, length)| is_hex(part, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_of_four_kinds_of_names() {
        let id = "1234abcd-12ab-34cd-56ef-1234567890ab";
        let mrk = "mrk-1234abcd12ab34cd56ef1234567890ab";
        let arn = |resource: &str| format!("arn:aws:kms:eu-central-1:111122223333:{resource}");
        let good = [id.to_owned(), mrk.to_owned(), "alias/a/b_c".to_owned(), arn(&format!("key/{id}")), arn("alias/a")];
        for text in good {
            assert!(key_id(&text).is_ok(), "{text}");
        }
        let read = key_id(&arn(&format!("key/{mrk}"))).expect("a multi-region key");
        assert_eq!((read.region.as_deref(), read.is_multi_region), (Some("eu-central-1"), true));
        for text in ["", "main", "alias/", "mrk-1", &format!("key/{id}"), &arn(id), "arn:aws:s3:::bucket", "alias/a b"]
        {
            assert!(key_id(text).is_err(), "{text}");
        }
    }
}
