//! Providers as they are configured: who holds a KEK, each under a name that records keep.

mod aws_kms;
mod azure_key_vault;
mod gcp_kms;
mod kes;
mod transit;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde_json::Value;

use crate::{
    config::{
        did_you_mean,
        file::{
            aws::FILE,
            family::Family,
            reading::Reading,
            section::Section,
            source::Source,
            value::{Misfit, choice, context, duration, flag, names, text, whole},
        },
    },
    key::{
        calls::CallSettings,
        kms::{
            Settings,
            settings::{CacheSettings, Common, Local, Validate},
        },
    },
};

pub(super) use aws_kms::{KEY_ID, key_id};
pub(super) use transit::AUTH as TRANSIT_AUTH;

/// A provider as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderConfig {
    /// A cluster key file.
    ClusterKey {
        /// The file.
        file: PathBuf,
    },
    /// A KMS, or a KEK in a file.
    Kms(Box<KmsConfig>),
}

/// A KMS as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmsConfig {
    /// How it is called, and for how long its answers are kept.
    pub common: Common,
    /// What its type asks for.
    pub settings: Settings,
}

impl ProviderConfig {
    /// The type, as the file names it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ClusterKey { .. } => "cluster-key",
            Self::Kms(config) => config.settings.type_name(),
        }
    }

    /// Whether its keys take a context, as far as the file says it: what a key of transit is, only the server knows.
    #[must_use]
    pub fn takes_context(&self) -> bool {
        match self {
            Self::ClusterKey { .. } => true,
            Self::Kms(config) => match &config.settings {
                Settings::AwsKms(settings) => !settings.rsa,
                Settings::AzureKeyVault(_) => false,
                Settings::Local(_) | Settings::GcpKms(_) | Settings::Transit(_) | Settings::Kes(_) => true,
            },
        }
    }
}

/// The types of providers.
pub(super) static TYPES: Family<ProviderConfig> = Family {
    name: "provider type",
    title: "Every provider",
    kinds: &[
        ("cluster-key", cluster_key),
        ("local", local),
        ("aws-kms", aws_kms::read),
        ("azure-key-vault", azure_key_vault::read),
        ("gcp-kms", gcp_kms::read),
        ("transit", transit::read),
        ("kes", kes::read),
    ],
    refused: &[],
};

const VALIDATE: &[(&str, Validate)] =
    &[("startup", Validate::Startup), ("lazy", Validate::Lazy), ("off", Validate::Off)];
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const KEEPING: &str = "a length of time such as 5m, up to 24h; 0 for never";

/// All providers of a file.
pub(super) struct Providers {
    /// Those that are right, by name.
    pub(super) by_name: BTreeMap<String, ProviderConfig>,
    /// The names of all.
    pub(super) names: Vec<String>,
    /// The one for new volumes; empty where it is not known.
    pub(super) default: String,
}

impl Providers {
    /// Reads them in the long form or in the short one.
    pub(super) fn read(top: &mut Section, reading: &mut Reading<'_>) -> Self {
        let (has_one, has_many) = (top.has("provider"), top.has("providers"));
        let one = top.section("provider", TYPES.title, reading);
        let many = top.section("providers", TYPES.title, reading);
        let default = top.ask("defaultProvider", "the name of a provider");
        let default = default.documented("the only one").optional(reading, text);
        match (one, many) {
            (Some(_), Some(_)) if has_one && has_many => {
                top.fault("provider", "stands in place of providers; take one of them out", reading);
                Self::none()
            }
            (Some(one), _) => {
                if default.is_some() {
                    let what = "has no meaning beside provider, which is the only one; take it out";
                    top.fault("defaultProvider", what, reading);
                }
                Self::read_one(one, reading)
            }
            (None, Some(many)) => Self::read_many(top, many, default, reading),
            (None, None) => {
                // Where it is something else, that has been told.
                if !has_one && !has_many {
                    let what = "is missing; without a provider nothing could be encrypted";
                    top.fault("providers", what, reading);
                }
                Self::none()
            }
        }
    }

    fn none() -> Self {
        Self { by_name: BTreeMap::new(), names: Vec::new(), default: String::new() }
    }

    fn read_one(mut section: Section, reading: &mut Reading<'_>) -> Self {
        section.environment = true;
        let Some(provider) = section.read_as(&TYPES, None, reading) else { return Self::none() };
        let name = provider.kind().to_owned();
        let names = vec![name.clone()];
        Self { by_name: [(name.clone(), provider)].into(), names, default: name }
    }

    fn read_many(top: &Section, mut section: Section, default: Option<String>, reading: &mut Reading<'_>) -> Self {
        let names = section.names();
        let default = find_default(top, default, &names, reading);
        if names.is_empty() {
            top.fault("providers", "holds no provider; without one nothing could be encrypted", reading);
        }
        let mut by_name = BTreeMap::new();
        for name in &names {
            if !is_name(name) {
                section.fault(name, "is no name; expected 1 to 63 of a-z, 0-9 and -", reading);
            }
            let Some(mut provider) = section.named(name, TYPES.title, reading) else { continue };
            // Where nobody knows which is the default one, nothing is said of what only that one may leave out.
            provider.environment = default.as_ref().is_none_or(|default| default == name);
            if let Some(provider) = provider.read_as(&TYPES, None, reading) {
                by_name.insert(name.clone(), provider);
            }
        }
        Self { by_name, names, default: default.unwrap_or_default() }
    }
}

fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(allowed)
}

fn find_default(top: &Section, named: Option<String>, names: &[String], reading: &mut Reading<'_>) -> Option<String> {
    match (named, names) {
        (Some(name), names) if names.contains(&name) => Some(name),
        (Some(name), [_, ..]) => {
            let hint = did_you_mean(&name, names.iter().map(String::as_str));
            top.fault("defaultProvider", &format!("there is no provider {name}{hint}"), reading);
            None
        }
        (None, [only]) => {
            reading.give(top.place("defaultProvider"), only.as_str(), Source::Default);
            Some(only.clone())
        }
        (None, [_, _, ..]) => {
            top.fault("defaultProvider", "is missing; with several providers one must be named", reading);
            None
        }
        (_, []) => None,
    }
}

fn cluster_key(section: &mut Section, reading: &mut Reading<'_>) -> Option<ProviderConfig> {
    section.title = "cluster-key";
    let file = section.ask("file", FILE).required_file(reading)?;
    Some(ProviderConfig::ClusterKey { file })
}

/// Nobody is called, so there is nothing to call again, to keep or to try.
fn local(section: &mut Section, reading: &mut Reading<'_>) -> Option<ProviderConfig> {
    section.title = "local";
    let key_file = section.ask("keyFile", FILE).required_file(reading);
    let salt = section.ask("salt", "text").optional(reading, text);
    let insecure = section.ask("insecureLocalKey", "true").optional(reading, flag);
    if insecure != Some(true) {
        let what = "must be true: whoever reads keyFile reads every volume of this provider";
        section.fault("insecureLocalKey", what, reading);
    }
    let common = Common {
        context: read_context(section, reading),
        calls: CallSettings::default(),
        cache: CacheSettings {
            expiry_any: Duration::ZERO,
            expiry_unused: Duration::ZERO,
            expiry_offline: Duration::ZERO,
            ..CacheSettings::default()
        },
        validate: Validate::Off,
    };
    Some(of(common, Settings::Local(Local { key_file: key_file?, salt })))
}

fn of(common: Common, settings: Settings) -> ProviderConfig {
    ProviderConfig::Kms(Box::new(KmsConfig { common, settings }))
}

/// Whether variables of AWS stand in for what is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempts {
    FromAws,
    FromFile,
}

/// Reads what every KMS has.
fn common(section: &mut Section, attempts: Attempts, reading: &mut Reading<'_>) -> Common {
    section.title = "Every KMS";
    let context = read_context(section, reading);
    let calls = calls(section, attempts, reading);
    let mut cache = section.section_or_empty("cache", "cache", reading);
    let kept = duration(Duration::ZERO..=DAY);
    let expiry_any = cache.ask("expiryAny", KEEPING).or("5m", reading, &kept);
    let expiry_unused = cache.ask("expiryUnused", KEEPING).or("30s", reading, &kept);
    let expiry_offline = cache.ask("expiryOffline", KEEPING).or(0, reading, &kept);
    let entries = cache.ask("entries", "a number from 1 to 1000000").or(10_000, reading, whole(1..=1_000_000));
    cache.finish(reading);
    let validate = section.ask("validate", names(VALIDATE)).or("lazy", reading, choice(VALIDATE));
    let cache = CacheSettings { expiry_any, expiry_unused, expiry_offline, entries };
    Common { context, calls, cache, validate }
}

fn read_context(section: &mut Section, reading: &mut Reading<'_>) -> BTreeMap<String, String> {
    section.ask("context", "keys and texts").optional(reading, context).unwrap_or_default()
}

/// Reads how a KMS or a store is called.
pub(super) fn calls(section: &mut Section, attempts: Attempts, reading: &mut Reading<'_>) -> CallSettings {
    let mut calls = section.section_or_empty("calls", "calls", reading);
    calls.environment &= attempts == Attempts::FromAws;
    let timeout = calls.ask("timeout", "a length of time such as 10s, from 100ms to 2m");
    let timeout = timeout.or("10s", reading, duration(SECOND / 10..=120 * SECOND));
    let count = calls.ask("attempts", "a number from 1 to 20").or_from(&["AWS_MAX_ATTEMPTS"]);
    let count = count.or(5, reading, |value: &Value| size(value, 20));
    let concurrency = calls.ask("concurrency", "a number from 1 to 1000");
    let concurrency = concurrency.or(64, reading, |value: &Value| size(value, 1000));
    calls.finish(reading);
    CallSettings { timeout, attempts: count, concurrency }
}

fn size(value: &Value, most: u64) -> Result<usize, Misfit> {
    let size = whole(1..=most)(value)?;
    Ok(usize::try_from(size).expect("at most 1000 fit"))
}
