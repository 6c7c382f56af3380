//! Wrong files: the whole, the listeners, the names of providers.

use std::time::Duration;

use coffer::{keyservice::bearer::Account, server::tls::Clients};

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
        "provider: {type: cluster-key, file: f}\nlisten: {http: here}",
        &["listen.http: expected an IP address and a port, not \"here\""],
    ),
    (
        "provider: {type: cluster-key, file: f}\nlisten: {unix: {path: /k, allowedUids: []}}\nkubernetes: {nodeAccounts: [a/b]}",
        &["listen.tls: is missing; callers of Kubernetes come over TLS"],
    ),
    (
        "provider: {type: cluster-key, file: f}\nkubernetes: {}",
        &["kubernetes.nodeAccounts: is missing; expected a list of NAMESPACE/NAME"],
    ),
    (
        "provider: {type: cluster-key, file: f}
kubernetes: {audience: '', nodeAccounts: [], controllerAccounts: [node], drivers: [A], reviewExpiry: 10m, watchExpiry: 1s, requestsPerSecond: 0}",
        &[
            "kubernetes.audience: is empty; expected 1 to 253 of A-Z, a-z, 0-9, -, ., _, : and /",
            "kubernetes.nodeAccounts: is empty; expected a list of NAMESPACE/NAME",
            "kubernetes.controllerAccounts: expected a list of NAMESPACE/NAME, not \"node\"",
            "kubernetes.drivers: expected a list of names of CSI drivers, not \"A\"",
            "kubernetes.reviewExpiry: 10m is too much; expected a length of time such as 10s, from 1s to 5m",
            "kubernetes.watchExpiry: 1s is too little; expected a length of time such as 3m, from 30s to 10m",
            "kubernetes.requestsPerSecond: 0 is too little; expected a number from 1 to 10000",
        ],
    ),
    (
        "provider: {type: cluster-key, file: f}\nkubernetes: {nodeAccounts: [a/b, a/c], controllerAccounts: [a/c], nodeAcounts: []}",
        &[
            "kubernetes.controllerAccounts: a/c is one of nodeAccounts as well; an account is a node's or a controller's",
            "kubernetes.nodeAcounts: is not known; did you mean nodeAccounts?",
        ],
    ),
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

#[test]
fn callers_of_kubernetes_need_no_authority_for_certificates_and_may_have_one() {
    let listen = |more: &str| {
        crate::read(&format!(
            "provider: {{type: cluster-key, file: f}}
listen: {{http: '0.0.0.0:9811', tls: {{address: '0.0.0.0:7443', certificate: a, privateKey: b{more}}}}}
kubernetes: {{nodeAccounts: [coffer-system/coffer-node], controllerAccounts: []}}"
        ))
    };
    let config = listen("");
    assert_eq!(config.tls.map(|tls| tls.files.clients), Some(Clients::Anybody));
    assert_eq!(config.http, Some("0.0.0.0:9811".parse().expect("an address")));
    let settings = config.kubernetes.expect("the section is there");
    assert_eq!((settings.audience.as_str(), settings.review_expiry), ("coffer", Duration::from_secs(10)));
    assert_eq!((settings.drivers, settings.requests_per_second.get()), (vec!["coffer.csi".to_owned()], 50));
    assert_eq!(settings.node_accounts, ["coffer-system/coffer-node".parse::<Account>().expect("an account")]);
    assert!(settings.controller_accounts.is_empty());
    let with = listen(", clientAuthority: ca.crt").tls.map(|tls| tls.files.clients);
    assert_eq!(with, Some(Clients::CertifiedOrNot("/etc/ca.crt".into())));
}
