//! Wrong files: the whole, the listeners, the names of providers.

use crate::{expect_faults, read_with};

/// A file, and its faults.
pub(crate) const WRONG: &[(&str, &[&str])] = &[
    ("[1]", &["expected keys and values"]),
    ("store: {type: filesystem, path: r}", &["providers: is missing; without a provider nothing could be encrypted"]),
    ("providers: {}", &["providers: holds no provider; without one nothing could be encrypted"]),
    ("providers:\n  a:\n", &["providers.a: is empty; expected keys and values"]),
    ("providers: {a: 7}", &["providers.a: expected keys and values"]),
    ("providers: 7", &["providers: expected keys and values"]),
    (
        "provider: {type: cluster-key, file: f}\nproviders: {a: {type: cluster-key, file: f}}",
        &["provider: stands in place of providers; take one of them out"],
    ),
    (
        "provider: {type: cluster-key, file: f}\ndefaultProvider: a",
        &["defaultProvider: has no meaning beside provider, which is the only one; take it out"],
    ),
    (
        "providers: {A_b: {type: cluster-key, file: f}}",
        &["providers.A_b: is no name; expected 1 to 63 of a-z, 0-9 and -"],
    ),
    (
        "providers: {a: {type: cluster-key, file: f}, b: {type: local, keyFile: k, insecureLocalKey: true}}",
        &["defaultProvider: is missing; with several providers one must be named"],
    ),
    (
        "providers: {main: {type: cluster-key, file: f}}\ndefaultProvider: mian",
        &["defaultProvider: there is no provider mian; did you mean main?"],
    ),
    (
        "providers: {a: {type: cluster-key, file: f}, b: {type: cluster-key, file: g}}\ndefaultProvider: a",
        &["providers: at most one can be of type cluster-key"],
    ),
    (
        "providers: {a: {type: local, keyFile: k, insecureLocalKey: true}}",
        &["clusterId: is missing, and no provider is a cluster key, which would bring it"],
    ),
    (
        "providers: {a: {type: local, keyFile: k, insecureLocalKey: true}}\nclusterId: x",
        &["clusterId: expected a UUID, not \"x\""],
    ),
    ("provider: {type: cluster-key, file: f}\nlissten: {}", &["lissten: is not known; did you mean listen?"]),
    (
        "provider: {type: cluster-key, file: f}\nlisten: {unix: {path: /k, allowedUids: [-1, 4294967296]}}",
        &["listen.unix.allowedUids: expected a list of uids"],
    ),
    (
        "provider: {type: cluster-key, file: f}\nlisten: {unix: {path: /k}}",
        &["listen.unix.allowedUids: is missing; expected a list of uids"],
    ),
    (
        "provider: {type: cluster-key, file: f}\nlisten: {tls: {address: localhost, certificate: a, privateKey: b, clientAuthority: c}}",
        &["listen.tls.address: expected an IP address and a port, not \"localhost\""],
    ),
    (
        "provider: {type: cluster-key, file: f}\nlisten: {tls: {address: '127.0.0.1:1'}}",
        &[
            "listen.tls.certificate: is missing; expected a path",
            "listen.tls.privateKey: is missing; expected a path",
            "listen.tls.clientAuthority: is missing; expected a path",
        ],
    ),
    ("provider: {type: cluster-key, file: f}\nlisten: []", &["listen: expected keys and values"]),
    (
        "provider: {type: cluster-key, file: f}\nauditLog: 7",
        &["auditLog: 7 is not text: put it in quotes; expected a path"],
    ),
    (
        "lissten: {}
providers:
  a: {type: local, keyFile: k, insecureLocalKey: false}
  b: {type: locl}
  c: {type: cluster-key, file: f, fiel: g}
defaultProvider: d
store: {type: s3, path: 7, bucket: records, region: eu-central-1}",
        &[
            "lissten: is not known; did you mean listen?",
            "providers.a.insecureLocalKey: must be true: whoever reads keyFile reads every volume of this provider",
            "providers.b.type: \"locl\" is not one of cluster-key, local, aws-kms, azure-key-vault, gcp-kms, transit, \
             kes; did you mean local?",
            "providers.c.fiel: is not known; did you mean file?",
            "defaultProvider: there is no provider d",
            "store.path: belongs to store type filesystem, and this is s3",
        ],
    ),
];

#[test]
fn wrong_files_are_refused_with_these_words() {
    for (text, faults) in WRONG {
        expect_faults(text, &[], faults);
    }
}

#[test]
fn what_is_not_yaml_is_told_as_such() {
    for text in ["a: [", "a: b\na: c"] {
        let faults = read_with(text, &[]).expect_err(text).to_string();
        assert!(faults.starts_with("/etc/coffer.yaml: it is not YAML: "), "{faults}");
    }
}
