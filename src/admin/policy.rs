//! `coffer policy …`

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use crate::{
    config::{
        Faults,
        file::{FileConfig, ProviderConfig},
    },
    key::{
        kms::{Settings, settings::KeyScope},
        policy::{self, Asked, Claim, Decision},
        record::AwsRole,
    },
};

/// `coffer policy explain`: says which rule a claim comes under, and what its volume's key would be. Nobody is asked.
///
/// # Errors
/// Standard output cannot be written to.
pub fn explain(config: &FileConfig, claim: &Claim<'_>, asked: &Asked<'_>, out: &mut impl Write) -> Result<(), Faults> {
    write(config, claim, asked, out).map_err(|error| Faults::one(format!("standard output: {error}")))
}

fn write(config: &FileConfig, claim: &Claim<'_>, asked: &Asked<'_>, out: &mut impl Write) -> io::Result<()> {
    match policy::governing(&config.policies, claim) {
        // What is missing is told as the refusal that it is.
        Err(_) => writeln!(out, "policy:   not known")?,
        Ok(None) => writeln!(out, "policy:   none; no rule matches")?,
        Ok(Some((place, rule))) => {
            let kind = match (rule.mandatory, rule.allow_override) {
                (true, _) => ", mandatory",
                (false, true) => ", may be overridden",
                (false, false) => "",
            };
            let label = rule.name.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
            writeln!(out, "policy:   policies[{place}]{label}{kind}")?;
        }
    }
    let decision = match policy::decide(&config.policies, claim, asked) {
        Ok(decision) => decision,
        Err(fault) => return writeln!(out, "refused:  {fault}"),
    };
    let name = decision.provider.as_deref().unwrap_or(&config.default_provider);
    let Some(provider) = config.providers.get(name) else {
        let known: Vec<_> = config.providers.keys().map(String::as_str).collect();
        return writeln!(out, "refused:  provider {name} is not configured; there are: {}", known.join(", "));
    };
    let default = if decision.provider.is_none() { ", the default" } else { "" };
    writeln!(out, "provider: {name} ({}{default})", provider.kind())?;
    writeln!(out, "key:      {}", key(&decision, provider))?;
    if let Some(role) = &decision.role {
        writeln!(out, "role:     {}", told(role))?;
    }
    let context: Vec<_> =
        context(&decision, provider).into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    if !context.is_empty() && !provider.takes_context() {
        return writeln!(
            out,
            "refused:  the keys of provider {name} take no context, and {} is added",
            context.join(", ")
        );
    }
    writeln!(
        out,
        "context:  {}",
        if context.is_empty() { "nothing but the volume".to_owned() } else { context.join(", ") }
    )
}

/// A role with what it is assumed with.
fn told(role: &AwsRole) -> String {
    let AwsRole { arn, session_name, external_id } = role;
    let external_id = external_id.as_ref().map_or_else(String::new, |id| format!(", external id {id}"));
    format!("{arn} (session {session_name}{external_id})")
}

/// Which KEK a new volume gets.
fn key(decision: &Decision, provider: &ProviderConfig) -> String {
    if let Some(key_id) = &decision.key_id {
        return key_id.clone();
    }
    let ProviderConfig::Kms(config) = provider else { return "the cluster key".to_owned() };
    match &config.settings {
        Settings::Local(_) => "the provider's only one".to_owned(),
        Settings::AwsKms(settings) => match settings.key_scope {
            KeyScope::Key => settings.key_id.clone().unwrap_or_default(),
            KeyScope::Class => "one for each StorageClass, made when it is first needed".to_owned(),
            KeyScope::Namespace => "one for each namespace, made when it is first needed".to_owned(),
        },
        Settings::AzureKeyVault(settings) => settings.key_name.clone(),
        Settings::GcpKms(settings) => settings.key_name.clone(),
        Settings::Transit(settings) => settings.key_name.clone(),
        Settings::Kes(settings) => settings.key_name.clone(),
    }
}

/// What a new key is bound to beside its volume.
fn context(decision: &Decision, provider: &ProviderConfig) -> BTreeMap<String, String> {
    let mut context = match provider {
        ProviderConfig::ClusterKey { .. } => BTreeMap::new(),
        ProviderConfig::Kms(config) => config.common.context.clone(),
    };
    context.extend(decision.context.clone());
    context
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::file::Environment;

    const FILE: &str = "
        providers:
          main: {type: aws-kms, region: eu-central-1, keyScope: namespace, context: {site: a}}
          lab: {type: local, keyFile: k, insecureLocalKey: true}
          rsa: {type: aws-kms, region: eu-central-1, keyId: alias/rsa, algorithm: rsa-oaep-256}
        defaultProvider: main
        clusterId: 6f9c9f0e-5a5c-4f0e-9f44-0c7d3f5b7a11
        policies:
          - {name: lab, match: {namespace: 'lab-*'}, provider: lab, mandatory: true}
          - {match: {storageClass: gold}, context: {tier: gold}}
          - name: tenant
            match: {namespace: blue}
            provider: main
            role: {arn: 'arn:aws:iam::444455556666:role/coffer', externalId: '7'}";

    fn explained(claim: Claim<'_>, provider: Option<&str>) -> String {
        let config = FileConfig::parse(FILE, Path::new("/c.yaml"), &Environment::default()).expect("a good file");
        let (mut out, context) = (Vec::new(), BTreeMap::new());
        explain(&config, &claim, &Asked { provider, key_id: None, context: &context }, &mut out).expect("written");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_claim_is_told_its_rule_and_its_key() {
        let lab = Claim { namespace: Some("lab-1"), ..Claim::default() };
        assert_eq!(
            explained(lab, None),
            "policy:   policies[0] (lab), mandatory\nprovider: lab (local)\nkey:      the provider's only one\n\
             context:  nothing but the volume\n"
        );
        assert!(
            explained(lab, Some("main"))
                .contains("refused:  policy lab gives provider lab, and provider main is asked")
        );
        let gold = Claim { storage_class: Some("gold"), namespace: Some("shop"), claim: None };
        assert_eq!(
            explained(gold, None),
            "policy:   policies[1]\nprovider: main (aws-kms, the default)\nkey:      one for each namespace, made \
             when it is first needed\ncontext:  site=a, tier=gold\n"
        );
        let shop = Claim { namespace: Some("shop"), ..Claim::default() };
        assert!(explained(shop, Some("x")).contains("policy:   none; no rule matches\nrefused:  provider x is not"));
    }

    #[test]
    fn a_role_is_told_with_what_it_is_assumed_with() {
        let blue = Claim { namespace: Some("blue"), ..Claim::default() };
        assert_eq!(
            explained(blue, None),
            "policy:   policies[2] (tenant)\nprovider: main (aws-kms)\nkey:      one for each namespace, made when it is \
             first needed\nrole:     arn:aws:iam::444455556666:role/coffer (session \
             coffer-6f9c9f0e-5a5c-4f0e-9f44-0c7d3f5b7a11, external id 7)\ncontext:  site=a\n"
        );
    }

    #[test]
    fn what_would_be_refused_is_told_as_refused() {
        assert_eq!(
            explained(Claim::default(), None),
            "policy:   not known\nrefused:  policy lab goes by the claim's namespace, which is not known; run \
             external-provisioner with --extra-create-metadata, which passes it on\n"
        );
        let gold = Claim { storage_class: Some("gold"), namespace: Some("shop"), claim: None };
        assert_eq!(
            explained(gold, Some("rsa")),
            "policy:   policies[1]\nprovider: rsa (aws-kms)\nkey:      alias/rsa\nrefused:  the keys of provider rsa \
             take no context, and tier=gold is added\n"
        );
    }
}
