//! Wrong providers, each by itself and so the default one.

use crate::{CLUSTER, expect_faults};

/// What stands in the braces of provider `a`, and the faults of its keys.
pub(crate) const WRONG: &[(&str, &[&str])] = &[
    ("", &["type: is missing; expected cluster-key, local, aws-kms, azure-key-vault, gcp-kms, transit, kes"]),
    (
        "type: locl, keyFil: k",
        &["type: \"locl\" is not one of cluster-key, local, aws-kms, azure-key-vault, gcp-kms, transit, kes; did you \
           mean local?"],
    ),
    ("type: [local]", &["type: expected cluster-key, local, aws-kms, azure-key-vault, gcp-kms, transit, kes"]),
    ("type: cluster-key, file: f, keyFile: k", &["keyFile: belongs to provider type local, and this is cluster-key"]),
    (
        "type: cluster-key, file: f, calls: {}",
        &["calls: belongs to provider type aws-kms, azure-key-vault, gcp-kms, transit or kes, and this is cluster-key"],
    ),
    (
        "type: local",
        &[
            "keyFile: is missing; expected a path",
            "insecureLocalKey: must be true: whoever reads keyFile reads every volume of this provider",
        ],
    ),
    (
        "type: local, keyFile: k, insecureLocalKey: yes",
        &[
            "insecureLocalKey: expected true",
            "insecureLocalKey: must be true: whoever reads keyFile reads every volume of this provider",
        ],
    ),
    (
        "type: local, keyFile: k, insecureLocalKey: true, cache: {}",
        &["cache: belongs to provider type aws-kms, azure-key-vault, gcp-kms, transit or kes, and this is local"],
    ),
    // AWS.
    (
        "type: aws-kms, keyId: alias/a",
        &["region: is missing; expected a region such as eu-central-1, here or in AWS_REGION or AWS_DEFAULT_REGION"],
    ),
    ("type: aws-kms, region: EU, keyId: alias/a", &["region: expected a region such as eu-central-1, not \"EU\""]),
    (
        "type: aws-kms, region: eu-central-1",
        &[
            "keyId: is missing; expected a key's id, its ARN, an alias (alias/NAME) or an alias's ARN; or keyScope: class \
           or namespace",
        ],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: main",
        &["keyId: expected a key's id, its ARN, an alias (alias/NAME) or an alias's ARN, not \"main\""],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: 'arn:aws:kms:us-east-1:111122223333:alias/a'",
        &["keyId: is in us-east-1, and region is eu-central-1; expected the same, or us-east-1 among regions"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, regions: [eu-west-1]",
        &["regions: are for a multi-region key; expected a keyId whose key begins with mrk-"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: mrk-1234abcd12ab34cd56ef1234567890ab, regions: [eu-central-1]",
        &["regions: eu-central-1 is there twice; region is asked first"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, regions: []",
        &["regions: is empty; expected a list of regions"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, algorithm: rsa-oaep-256, context: {team: blue}",
        &["context: an RSA key takes no context; take it out (each key stays bound to its volume by Coffer itself)"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, algorithm: rsa",
        &["algorithm: \"rsa\" is not one of symmetric, rsa-oaep-256; did you mean rsa-oaep-256?"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyScope: namespace, keyId: alias/a",
        &["keyId: keyScope namespace names the keys; take keyId out"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyScope: class, algorithm: rsa-oaep-256",
        &["algorithm: keyScope class makes symmetric keys only"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, keyPrefix: c, keyTags: {t: v}",
        &[
            "keyPrefix: is for keys that are made: with keyScope class or namespace",
            "keyTags: is for keys that are made: with keyScope class or namespace",
        ],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyScope: namespace, keyTags: {'aws:t': v}",
        &["keyTags: tags that begin with aws: are AWS's own"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyScope: namespace, keyPrefix: a/b",
        &["keyPrefix: expected 1 to 64 of A-Z, a-z, 0-9, _ and -, not \"a/b\""],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, endpoint: 'http://kms.test'",
        &["endpoint: is http, which protects neither keys nor tokens; expected https, or insecureEndpoint: true"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, endpoint: 'https://user:secret@kms.test'",
        &["endpoint: names a user; expected an https URL; http with insecureEndpoint: true"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, stsEndpoint: 'https://sts.test/?x=1'",
        &["stsEndpoint: has a query or a fragment; expected an https URL; http with insecureEndpoint: true"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, endpoint: kms.test",
        &["endpoint: is no URL (relative URL without a base); expected an https URL; http with insecureEndpoint: true"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, endpoint: 'ftp://kms.test', insecureEndpoint: true",
        &["endpoint: is ftp; expected an https URL; http with insecureEndpoint: true"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, auth: {type: static, accessKeyIdFile: a}",
        &["auth.secretAccessKeyFile: is missing; expected a path"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, \
         auth: {type: static, accessKeyIdFile: a, secretAccessKeyFile: b, tokenFile: t}",
        &["auth.tokenFile: belongs to auth type web-identity, and this is static"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, auth: {profile: x}",
        &["auth.profile: belongs to auth type profile, and this is chain"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, auth: {type: keys, profile: x}",
        &["auth.type: \"keys\" is not one of chain, static, profile, web-identity, container, imds"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, \
         auth: {type: web-identity, tokenFile: t, roleArn: 'arn:aws:iam::1:role/x'}",
        &["auth.roleArn: expected the ARN of a role, such as arn:aws:iam::111122223333:role/coffer, not \
           \"arn:aws:iam::1:role/x\""],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, role: {sessionName: 'a b'}",
        &[
            "role.arn: is missing; expected the ARN of a role, such as arn:aws:iam::111122223333:role/coffer",
            "role.sessionName: expected 2 to 64 of A-Z, a-z, 0-9 and _+=,.@-, not \"a b\"",
        ],
    ),
    // What every KMS has.
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, context: {volume: x}",
        &["context: volume is Coffer's own key; name it otherwise"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, context: {team: 7}",
        &["context: team: 7 is not text: put it in quotes; expected keys and texts"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, calls: {timeout: 5}",
        &["calls.timeout: 5 has no unit; expected a length of time such as 10s, from 100ms to 2m"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, calls: {timeout: 50ms}",
        &["calls.timeout: 50ms is too little; expected a length of time such as 10s, from 100ms to 2m"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, calls: {timeout: 5m}",
        &["calls.timeout: 5m is too much; expected a length of time such as 10s, from 100ms to 2m"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, calls: {timeout: -5s}",
        &["calls.timeout: -5s is negative; expected a length of time such as 10s, from 100ms to 2m"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, calls: {timeout: soon}",
        &["calls.timeout: \"soon\" is no length of time; expected a length of time such as 10s, from 100ms to 2m"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, calls: {attempts: 0}",
        &["calls.attempts: 0 is too little; expected a number from 1 to 20"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, calls: {attempts: 2.5}",
        &["calls.attempts: expected a number from 1 to 20, not \"2.5\""],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, calls: {concurrency: 1001}",
        &["calls.concurrency: 1001 is too much; expected a number from 1 to 1000"],
    ),
    ("type: aws-kms, region: eu-central-1, keyId: alias/a, calls: {retries: 3}", &["calls.retries: is not known"]),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, cache: {expiryAny: 25h}",
        &["cache.expiryAny: 25h is too much; expected a length of time such as 5m, up to 24h; 0 for never"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, cache: {expriyAny: 5m}",
        &["cache.expriyAny: is not known; did you mean expiryAny?"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, cache: {entries: 0}",
        &["cache.entries: 0 is too little; expected a number from 1 to 1000000"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, validate: always",
        &["validate: \"always\" is not one of startup, lazy, off"],
    ),
    (
        "type: aws-kms, region: eu-central-1, keyId: alias/a, validate: false",
        &["validate: expected startup, lazy, off"],
    ),
    // Azure.
    (
        "type: azure-key-vault, vaultUrl: 'https://v.vault.azure.net', keyName: k",
        &["auth.type: is missing; expected client-secret, managed-identity, workload-identity"],
    ),
    (
        "type: azure-key-vault, vaultUrl: 'https://v.vault.azure.net', keyName: k, auth: {type: sas, sasFile: s}",
        &["auth.type: sas is for azure-blob: a vault takes no signatures"],
    ),
    (
        "type: azure-key-vault, vaultUrl: 'https://v.vault.azure.net', keyName: k, auth: {type: client-certificate}",
        &["auth.type: client-certificate needs another TLS than Coffer's; use client-secret or workload-identity"],
    ),
    (
        "type: azure-key-vault, vaultUrl: 'http://v.vault.azure.net', keyName: k, auth: {type: managed-identity}",
        &["vaultUrl: is http; expected an https URL such as https://NAME.vault.azure.net"],
    ),
    (
        "type: azure-key-vault, vaultUrl: 'https://v.managedhsm.azure.net', keyName: k, auth: {type: managed-identity}",
        &["vaultType: v.managedhsm.azure.net is a managed HSM; expected managed-hsm"],
    ),
    (
        "type: azure-key-vault, vaultUrl: 'https://v.vault.azure.net', vaultType: managed-hsm, keyName: k, \
         auth: {type: managed-identity}",
        &["vaultType: v.vault.azure.net is a vault; expected vault"],
    ),
    (
        "type: azure-key-vault, vaultUrl: 'https://v.vault.azure.net', keyName: k, algorithm: aes-key-wrap-256, \
         auth: {type: managed-identity}",
        &["algorithm: aes-key-wrap-256 is for vaultType managed-hsm: a vault has RSA keys only"],
    ),
    (
        "type: azure-key-vault, vaultUrl: 'https://v.vault.azure.net/keys/k', keyName: k, auth: {type: managed-identity}",
        &["vaultUrl: has a path; expected the vault alone, and the key in keyName"],
    ),
    (
        "type: azure-key-vault, vaultUrl: 'https://v.vault.azure.net', keyName: k, context: {team: blue}, \
         auth: {type: managed-identity}",
        &["context: neither RSA nor AES Key Wrap takes a context; take it out (each key stays bound to its volume by \
           Coffer itself)"],
    ),
    (
        "type: azure-key-vault, vaultUrl: 'https://v.managedhsm.azure.net', vaultType: managed-hsm, keyName: k, \
         context: {team: blue}, auth: {type: managed-identity}",
        &["context: neither RSA nor AES Key Wrap takes a context; take it out (each key stays bound to its volume by \
           Coffer itself)"],
    ),
    (
        "type: azure-key-vault, vaultUrl: 'https://v.test', keyName: a_b, ipAddress: here, auth: {type: managed-identity}",
        &[
            "keyName: expected 1 to 127 of A-Z, a-z, 0-9 and -, not \"a_b\"",
            "ipAddress: expected an IP address, not \"here\"",
        ],
    ),
    (
        "type: azure-key-vault, vaultUrl: 'https://v.test', keyName: k, auth: {type: workload-identity}",
        &[
            "auth.tenantId: is missing; expected the id of a directory, here or in AZURE_TENANT_ID",
            "auth.clientId: is missing; expected the id of an application, here or in AZURE_CLIENT_ID",
            "auth.tokenFile: is missing; expected a path, here or in AZURE_FEDERATED_TOKEN_FILE",
        ],
    ),
    // Google.
    (
        "type: gcp-kms, keyName: k",
        &["keyName: expected projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY, not \"k\""],
    ),
    (
        "type: gcp-kms, keyName: projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
        &["keyName: names a version, and the key's primary version is used; expected \
           projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY"],
    ),
    (
        "type: gcp-kms, keyName: projects/p/locations/l/keyRings/r/cryptoKeys/k, auth: {type: anonymous}",
        &["auth.type: anonymous is for test servers; expected insecureEndpoint: true beside auth"],
    ),
    (
        "type: gcp-kms, keyName: projects/p/locations/l/keyRings/r/cryptoKeys/k, auth: {type: credentials-file}",
        &["auth.credentialsFile: is missing; expected a path"],
    ),
    (
        "type: gcp-kms, keyName: projects/p/locations/l/keyRings/r/cryptoKeys/k, caFile: ca.crt",
        &[
            "caFile: is not for Google, whose client library takes authorities from the environment alone; take it out, \
           and let SSL_CERT_FILE name the system's bundle and SSL_CERT_DIR the folder of your own",
        ],
    ),
    // Transit.
    (
        "type: transit, keyName: k, auth: {type: token, tokenFile: t}",
        &["address: is missing; expected an https URL; http with insecureEndpoint: true, here or in BAO_ADDR or \
           VAULT_ADDR"],
    ),
    (
        "type: transit, address: 'https://b.test', keyName: k",
        &["auth.type: is missing; expected token, approle, jwt, kubernetes"],
    ),
    (
        "type: transit, address: 'https://b.test', keyName: k, mount: ../x, auth: {type: token, tokenFile: t}",
        &["mount: expected a path of A-Z, a-z, 0-9, _, ., - and /, not \"../x\""],
    ),
    (
        "type: transit, address: 'https://b.test', keyName: k, auth: {type: approle, role: r}",
        &[
            "auth.roleId: is missing; expected the id of a role",
            "auth.secretIdFile: is missing; expected a path",
            "auth.role: belongs to auth type jwt or kubernetes, and this is approle",
        ],
    ),
    (
        "type: transit, address: 'https://b.test', keyName: k, auth: {type: kubernetes}",
        &["auth.role: is missing; expected the name of a role"],
    ),
    // KES.
    (
        "type: kes, endpoints: [], keyName: k, certificateFile: c, privateKeyFile: p",
        &["endpoints: is empty; expected a list of https URLs"],
    ),
    (
        "type: kes, endpoints: ['http://kes.test'], keyName: k, certificateFile: c, privateKeyFile: p",
        &["endpoints: is http; expected a list of https URLs"],
    ),
    (
        "type: kes, endpoints: ['https://kes.test'], keyName: k",
        &["certificateFile: is missing; expected a path", "privateKeyFile: is missing; expected a path"],
    ),
];

#[test]
fn wrong_providers_are_refused_with_these_words() {
    for (body, faults) in WRONG {
        let text = format!("clusterId: {CLUSTER}\nproviders:\n  a: {{{body}}}\n");
        let faults: Vec<_> = faults.iter().map(|fault| format!("providers.a.{fault}")).collect();
        expect_faults(&text, &[], &faults.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn no_fault_tells_a_password_that_stands_in_a_url() {
    let text = "providers: {a: {type: transit, address: 'https://user:hunter2@b.test', keyName: k}}";
    let faults = crate::read_with(text, &[]).expect_err("faults").to_string();
    assert!(!faults.contains("hunter2"), "{faults}");
}
