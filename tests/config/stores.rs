//! Wrong stores.

use crate::expect_faults;

/// What stands in the braces of the store, and the faults of its keys.
pub(crate) const WRONG: &[(&str, &[&str])] = &[
    ("path: p", &["type: is missing; expected filesystem, s3, gcs, azure-blob, kubernetes"]),
    ("type: memory", &["type: memory is for tests only: every key would be lost with the process; name another store"]),
    ("type: s4", &["type: \"s4\" is not one of filesystem, s3, gcs, azure-blob, kubernetes"]),
    ("type: filesystem", &["path: is missing; expected a path"]),
    ("type: filesystem, path: ''", &["path: is empty; expected a path"]),
    ("type: filesystem, path: p, bucket: b", &["bucket: belongs to store type s3 or gcs, and this is filesystem"]),
    ("type: kubernetes, path: p", &["path: belongs to store type filesystem, and this is kubernetes"]),
    ("type: s3, region: eu-central-1", &["bucket: is missing; expected 3 to 63 of a-z, 0-9, . and -"]),
    (
        "type: s3, region: eu-central-1, bucket: Records",
        &["bucket: expected 3 to 63 of a-z, 0-9, . and -, not \"Records\""],
    ),
    (
        "type: s3, bucket: records",
        &["region: is missing; expected a region such as eu-central-1, here or in AWS_REGION or AWS_DEFAULT_REGION"],
    ),
    (
        "type: s3, region: eu-central-1, bucket: records, prefix: /a",
        &["prefix: expected a path of A-Z, a-z, 0-9, _, ., - and /, not \"/a\""],
    ),
    ("type: s3, region: eu-central-1, bucket: records, keyId: k", &["keyId: is not known"]),
    (
        "type: gcs, bucket: records, createIfMissing: true",
        &["project: is missing; createIfMissing: true needs it to make a bucket in"],
    ),
    (
        "type: gcs, bucket: records, auth: {type: anonymous}",
        &["auth.type: anonymous is for test servers; expected insecureEndpoint: true beside auth"],
    ),
    (
        "type: gcs, bucket: records, caFile: ca.crt",
        &[
            "caFile: is not for Google, whose client library takes authorities from the environment alone; take it out, \
           and let SSL_CERT_FILE name the system's bundle and SSL_CERT_DIR the folder of your own",
        ],
    ),
    (
        "type: azure-blob, accountUrl: 'http://a.test', container: records, auth: {type: managed-identity}",
        &["accountUrl: is http, which protects neither keys nor tokens; expected https, or insecureEndpoint: true"],
    ),
    (
        "type: azure-blob, accountUrl: 'https://a.test', container: r, auth: {type: sas}",
        &["container: expected 3 to 63 of a-z, 0-9 and -, not \"r\"", "auth.sasFile: is missing; expected a path"],
    ),
];

#[test]
fn wrong_stores_are_refused_with_these_words() {
    for (body, faults) in WRONG {
        let text = format!("provider: {{type: cluster-key, file: f}}\nstore: {{{body}}}\n");
        let faults: Vec<_> = faults.iter().map(|fault| format!("store.{fault}")).collect();
        expect_faults(&text, &[], &faults.iter().map(String::as_str).collect::<Vec<_>>());
    }
}
