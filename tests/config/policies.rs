//! Wrong policies.

use coffer::key::record::AwsRole;

use crate::{CLUSTER, expect_faults, good, read};

/// What the list of policies holds, and its faults.
pub(crate) const WRONG: &[(&str, &[&str])] = &[
    ("{provider: x}", &["policies[0].provider: there is no provider x"]),
    ("{keyId: alias/x}", &["policies[0].keyId: needs provider beside it: a key means something to one provider only"]),
    ("{provider: b, keyId: x}", &["policies[0].keyId: a provider of type local has one key; take keyId out"]),
    (
        "{provider: a, keyId: x}",
        &["policies[0].keyId: expected a key's id, its ARN, an alias (alias/NAME) or an alias's ARN, not \"x\""],
    ),
    // Roles.
    (
        "{role: {arn: 'arn:aws:iam::111122223333:role/x'}}",
        &["policies[0].role: needs provider beside it: a role leads to the keys of one provider only"],
    ),
    (
        "{provider: b, role: {arn: 'arn:aws:iam::111122223333:role/x'}}",
        &["policies[0].role: is a role of AWS, and provider b is of type local; take role out"],
    ),
    (
        "{provider: a, role: {}}",
        &[
            "policies[0].role.arn: is missing; expected the ARN of a role, such as arn:aws:iam::111122223333:role/coffer",
        ],
    ),
    (
        "{provider: a, role: {arn: 'arn:aws:iam::111122223333:user/x', sessionName: x, external: 7}}",
        &[
            "policies[0].role.arn: expected the ARN of a role, such as arn:aws:iam::111122223333:role/coffer, not \
             \"arn:aws:iam::111122223333:user/x\"",
            "policies[0].role.sessionName: expected 2 to 64 of A-Z, a-z, 0-9 and _+=,.@-, not \"x\"",
            "policies[0].role.external: is not known; did you mean externalId?",
        ],
    ),
    ("{provider: a, role: x}", &["policies[0].role: expected keys and values"]),
    // A context for keys that take none.
    (
        "{provider: rsa, context: {team: blue}}",
        &["policies[0].context: the keys of provider rsa take no context; take it out (each key stays bound to its \
           volume by Coffer itself)"],
    ),
    (
        "{provider: vault, context: {team: blue}}",
        &["policies[0].context: the keys of provider vault take no context; take it out (each key stays bound to its \
           volume by Coffer itself)"],
    ),
    ("{mandatory: true}", &["policies[0].mandatory: needs provider beside it: the only one that such keys may be of"]),
    (
        "{provider: a, mandatory: true, allowOverride: true}",
        &["policies[0].allowOverride: contradicts mandatory; take one of them out"],
    ),
    ("{provider: a, mandatory: maybe}", &["policies[0].mandatory: expected true or false"]),
    (
        "{provider: a}, {match: {namespace: x}, provider: b}",
        &["policies[1]: can never apply: policies[0] stands before it and matches everything; move it up"],
    ),
    (
        "{name: n, match: {namespace: x}}, {match: {namespace: x, claim: c}}",
        &["policies[1]: can never apply: n stands before it and matches all that it matches; move it up"],
    ),
    ("{match: {storageclass: x}}", &["policies[0].match.storageclass: is not known; did you mean storageClass?"]),
    ("7", &["policies[0]: expected keys and values"]),
    ("{context: {cluster: x}}", &["policies[0].context: cluster is Coffer's own key; name it otherwise"]),
    (
        "{match: {claim: ''}}",
        &["policies[0].match.claim: is empty; expected a pattern: * for any text, ? for one character"],
    ),
];

fn file(policies: &str) -> String {
    format!(
        "clusterId: {CLUSTER}
providers:
  a: {{type: aws-kms, region: eu-central-1, keyId: alias/a}}
  b: {{type: local, keyFile: k, insecureLocalKey: true}}
  rsa: {{type: aws-kms, region: eu-central-1, keyId: alias/rsa, algorithm: rsa-oaep-256}}
  vault: {{type: azure-key-vault, vaultUrl: 'https://v.vault.azure.net', keyName: k, auth: {{type: managed-identity}}}}
defaultProvider: a
policies: [{policies}]
"
    )
}

#[test]
fn wrong_policies_are_refused_with_these_words() {
    for (policies, faults) in WRONG {
        expect_faults(&file(policies), &[], faults);
    }
}

#[test]
fn a_policy_is_read_whole() {
    let config = read(&file(
        "{name: n, match: {storageClass: gold, namespace: 'x-*', claim: 'db-?'}, provider: a, keyId: alias/k, \
         context: {t: v}, allowOverride: true}, {provider: b, mandatory: true}",
    ));
    let [first, second] = config.policies.as_slice() else { panic!("{:?}", config.policies) };
    assert_eq!(first.name.as_deref(), Some("n"));
    assert_eq!(first.matches.storage_class.as_deref(), Some("gold"));
    assert_eq!(first.matches.namespace.as_deref(), Some("x-*"));
    assert_eq!(first.matches.claim.as_deref(), Some("db-?"));
    assert_eq!((first.provider.as_deref(), first.key_id.as_deref()), (Some("a"), Some("alias/k")));
    assert_eq!(first.context.get("t").map(String::as_str), Some("v"));
    assert!(first.allow_override && !first.mandatory);
    assert!(second.mandatory && second.matches.fits_all());
    good::expect_shown(config);
}

#[test]
fn a_role_is_read_whole_and_its_session_has_the_clusters_name() {
    let config = read(&file(
        "{match: {namespace: blue}, provider: a, keyId: alias/k, role: {arn: 'arn:aws:iam::444455556666:role/c', \
         sessionName: s-1, externalId: '7'}}, {match: {namespace: red}, provider: a, role: {arn: \
         'arn:aws:iam::444455557777:role/a/b'}}, {provider: a}",
    ));
    let roles: Vec<_> = config.policies.iter().map(|rule| rule.role.clone()).collect();
    let role = |arn: &str, session_name: &str, external_id: Option<&str>| AwsRole {
        arn: arn.to_owned(),
        session_name: session_name.to_owned(),
        external_id: external_id.map(str::to_owned),
    };
    let expected = [
        Some(role("arn:aws:iam::444455556666:role/c", "s-1", Some("7"))),
        Some(role("arn:aws:iam::444455557777:role/a/b", &format!("coffer-{CLUSTER}"), None)),
        None,
    ];
    assert_eq!(roles, expected);
    good::expect_shown(config);
}

/// A file with these providers and a policy that adds a context for all of them.
fn with_context_for_all(providers: &str) -> String {
    format!("clusterId: {CLUSTER}\ndefaultProvider: a\nproviders:\n{providers}\npolicies: [{{context: {{t: v}}}}]\n")
}

#[test]
fn a_context_for_every_provider_needs_one_that_takes_it() {
    let rsa = "  a: {type: aws-kms, region: eu-central-1, keyId: alias/a, algorithm: rsa-oaep-256}";
    let fault = "policies[0].context: no provider has keys that take a context; take it out (each key stays bound to its \
                 volume by Coffer itself)";
    expect_faults(&with_context_for_all(rsa), &[], &[fault]);
    // A class may name the other one; and what a key of transit is, only the server knows.
    for other in [
        "  b: {type: local, keyFile: k, insecureLocalKey: true}",
        "  b: {type: transit, address: 'https://b.test', keyName: k, auth: {type: token, tokenFile: t}}",
    ] {
        good::expect_shown(read(&with_context_for_all(&format!("{rsa}\n{other}"))));
    }
}
