//! The policies: which provider, KEK, role and context a claim's key gets. What they mean is in [`crate::key::policy`].

use crate::{
    config::{
        did_you_mean,
        file::{
            aws::role_in,
            provider::{KEY_ID, ProviderConfig, Providers, key_id},
            reading::Reading,
            section::Section,
            value::{context, flag, text},
        },
    },
    key::{
        kms::Settings,
        policy::{Match, Rule},
    },
};

const PATTERN: &str = "a pattern: * for any text, ? for one character";

/// Reads the list.
pub(super) fn read(top: &mut Section, providers: &Providers, reading: &mut Reading<'_>) -> Vec<Rule> {
    let sections = top.sections("policies", "policies", reading);
    let mut rules: Vec<Rule> = Vec::new();
    for (place, section) in sections.into_iter().enumerate() {
        let rule = read_one(section, providers, reading);
        let before = rules.iter().enumerate().find(|(_, before)| before.matches.covers(&rule.matches));
        if let Some((number, before)) = before {
            let what = if before.matches.fits_all() { "everything" } else { "all that it matches" };
            let name = before.label(number);
            let text = format!("can never apply: {name} stands before it and matches {what}; move it up");
            top.fault(&format!("policies[{place}]"), &text, reading);
        }
        rules.push(rule);
    }
    rules
}

fn read_one(mut section: Section, providers: &Providers, reading: &mut Reading<'_>) -> Rule {
    let name = section.ask("name", "text").optional(reading, text);
    let matches = section.section("match", "match", reading).map(|section| patterns(section, reading));
    let provider = section.ask("provider", "the name of a provider").optional(reading, text);
    let key_is_given = section.has("keyId");
    let key = section.ask("keyId", "a key of that provider").optional(reading, text);
    let role_is_given = section.has("role");
    let role = role_in(&mut section, reading);
    let added = section.ask("context", "keys and texts").optional(reading, context).unwrap_or_default();
    let mandatory = section.ask("mandatory", "true or false").or(false, reading, flag);
    let allow_override = section.ask("allowOverride", "true or false").or(false, reading, flag);

    let missing = provider.as_ref().filter(|name| !providers.names.is_empty() && !providers.names.contains(name));
    if let Some(missing) = missing {
        let hint = did_you_mean(missing, providers.names.iter().map(String::as_str));
        section.fault("provider", &format!("there is no provider {missing}{hint}"), reading);
    }
    if key_is_given && provider.is_none() {
        section.fault("keyId", "needs provider beside it: a key means something to one provider only", reading);
    }
    let config = provider.as_ref().and_then(|provider| providers.by_name.get(provider));
    if let (Some(key), Some(config)) = (&key, config) {
        check_key(&section, key, config, reading);
    }
    if role_is_given && provider.is_none() {
        section.fault("role", "needs provider beside it: a role leads to the keys of one provider only", reading);
    }
    if let (true, Some(name), Some(config)) = (role_is_given, &provider, config)
        && config.kind() != "aws-kms"
    {
        let what = format!("is a role of AWS, and provider {name} is of type {}; take role out", config.kind());
        section.fault("role", &what, reading);
    }
    if !added.is_empty() {
        check_context(&section, provider.as_deref(), providers, reading);
    }
    if mandatory && provider.is_none() {
        section.fault("mandatory", "needs provider beside it: the only one that such keys may be of", reading);
    }
    if mandatory && allow_override {
        section.fault("allowOverride", "contradicts mandatory; take one of them out", reading);
    }
    section.finish(reading);
    let matches = matches.unwrap_or_default();
    Rule { name, matches, provider, key_id: key, role, context: added, mandatory, allow_override }
}

/// Whether there is a key that a context can be bound to: of the rule's provider, or else of any that a class may name.
fn check_context(section: &Section, provider: Option<&str>, providers: &Providers, reading: &mut Reading<'_>) {
    let bound = "take it out (each key stays bound to its volume by Coffer itself)";
    let takes = |name: &str| providers.by_name.get(name).is_none_or(ProviderConfig::takes_context);
    match provider {
        Some(name) if !takes(name) => {
            section.fault("context", &format!("the keys of provider {name} take no context; {bound}"), reading);
        }
        None if !providers.names.is_empty() && !providers.names.iter().any(|name| takes(name)) => {
            section.fault("context", &format!("no provider has keys that take a context; {bound}"), reading);
        }
        _ => {}
    }
}

/// Whether a provider can have a key of that name.
fn check_key(section: &Section, key: &str, config: &ProviderConfig, reading: &mut Reading<'_>) {
    let kind = config.kind();
    let has_names = match config {
        ProviderConfig::ClusterKey { .. } => false,
        ProviderConfig::Kms(config) => !matches!(config.settings, Settings::Local(_)),
    };
    if !has_names {
        section.fault("keyId", &format!("a provider of type {kind} has one key; take keyId out"), reading);
    } else if kind == "aws-kms" && key_id(key).is_err() {
        section.fault("keyId", &format!("expected {KEY_ID}, not {key:?}"), reading);
    }
}

fn patterns(mut section: Section, reading: &mut Reading<'_>) -> Match {
    let storage_class = section.ask("storageClass", PATTERN).optional(reading, text);
    let namespace = section.ask("namespace", PATTERN).optional(reading, text);
    let claim = section.ask("claim", PATTERN).optional(reading, text);
    section.finish(reading);
    Match { storage_class, namespace, claim }
}
