//! Wrong policies.

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
