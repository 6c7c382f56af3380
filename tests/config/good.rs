//! Good files: every provider with every source of credentials, every store, and what the defaults come to.

use coffer::{
    admin::config::as_file,
    config::file::{FileConfig, ProviderConfig, UnixConfig},
    key::{
        access::AwsAuth,
        calls::CallSettings,
        kms::{
            Settings,
            settings::{CacheSettings, KeyScope, Validate, VaultType},
        },
        store,
    },
};

use crate::{CLUSTER, read};

/// What stands in the braces of the only provider.
const PROVIDERS: &[&str] = &[
    "type: cluster-key, file: cluster-key.json",
    "type: local, keyFile: k, insecureLocalKey: true",
    "type: local, keyFile: k, insecureLocalKey: true, salt: some text, context: {team: blue}",
    "type: aws-kms, region: eu-central-1, keyId: alias/a",
    "type: aws-kms, region: eu-central-1, keyId: 1234abcd-12ab-34cd-56ef-1234567890ab, auth: {type: chain}",
    "type: aws-kms, region: eu-central-1, keyId: alias/a, auth: {type: static, accessKeyIdFile: a, \
     secretAccessKeyFile: b}",
    "type: aws-kms, region: eu-central-1, keyId: alias/a, auth: {type: static, accessKeyIdFile: a, \
     secretAccessKeyFile: b, sessionTokenFile: c}, role: {arn: 'arn:aws:iam::111122223333:role/x', externalId: '7'}",
    "type: aws-kms, region: eu-central-1, keyId: alias/a, auth: {type: profile, profile: p, credentialsFile: c, \
     configFile: d}",
    "type: aws-kms, region: eu-central-1, keyId: alias/a, auth: {type: web-identity, tokenFile: t, \
     roleArn: 'arn:aws:iam::111122223333:role/x'}",
    "type: aws-kms, region: eu-central-1, keyId: alias/a, auth: {type: container}",
    "type: aws-kms, region: eu-central-1, keyId: alias/a, auth: {type: imds}",
    "type: aws-kms, region: eu-central-1, keyId: alias/a, algorithm: rsa-oaep-256",
    "type: aws-kms, region: eu-west-1, regions: [eu-central-1], \
     keyId: 'arn:aws:kms:eu-central-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab'",
    "type: aws-kms, region: eu-central-1, keyScope: class",
    "type: aws-kms, region: eu-central-1, keyScope: namespace, keyPrefix: c, keyTags: {t: v}",
    "type: aws-kms, region: eu-central-1, keyId: alias/a, endpoint: 'http://127.0.0.1:1', insecureEndpoint: true, \
     stsEndpoint: 'https://sts.test', caFile: ca.crt",
    "type: azure-key-vault, vaultUrl: 'https://v.vault.azure.net/', keyName: k, auth: {type: client-secret, \
     tenantId: t, clientId: c, clientSecretFile: s}",
    "type: azure-key-vault, vaultUrl: 'https://v.managedhsm.azure.net', vaultType: managed-hsm, keyName: k, \
     auth: {type: managed-identity}",
    "type: azure-key-vault, vaultUrl: 'https://v.test:8443', vaultType: managed-hsm, algorithm: rsa-oaep-256, \
     keyName: k, keyVersion: '0123456789abcdef0123456789abcdef', auth: {type: managed-identity, clientId: c}, \
     authorityHost: 'https://login.test/', caFile: ca.crt, ipAddress: 10.0.0.1",
    "type: azure-key-vault, vaultUrl: 'https://v.vault.azure.net', keyName: k, auth: {type: workload-identity, \
     tenantId: t, clientId: c, tokenFile: f}",
    "type: gcp-kms, keyName: projects/p/locations/l/keyRings/r/cryptoKeys/k",
    "type: gcp-kms, keyName: 'projects/example.com:p/locations/l/keyRings/r/cryptoKeys/k', \
     auth: {type: credentials-file, credentialsFile: c}",
    "type: gcp-kms, keyName: projects/p/locations/l/keyRings/r/cryptoKeys/k, endpoint: 'http://127.0.0.1:1', \
     insecureEndpoint: true, auth: {type: anonymous}",
    "type: transit, address: 'https://b.test', keyName: k, auth: {type: token, tokenFile: t}",
    "type: transit, address: 'https://b.test/bao/', mount: /a/transit/, namespace: n/m, keyName: k, caFile: c, \
     auth: {type: approle, roleId: r, secretIdFile: s}",
    "type: transit, address: 'https://b.test', keyName: k, auth: {type: jwt, mount: j, role: r, tokenFile: t}",
    "type: transit, address: 'http://b.test', insecureEndpoint: true, keyName: k, auth: {type: kubernetes, role: r}",
    "type: kes, endpoints: ['https://a.test:7373', 'https://b.test:7373'], keyName: k, certificateFile: c, \
     privateKeyFile: p",
    "type: kes, endpoints: ['https://a.test'], keyName: k, caFile: a, certificateFile: c, privateKeyFile: p, \
     passwordFile: w, calls: {timeout: 250ms, attempts: 1, concurrency: 1}, cache: {expiryAny: 0, expiryUnused: 0s, \
     expiryOffline: 1h 30m, entries: 1}, validate: off",
];

/// What stands in the braces of the store.
const STORES: &[&str] = &[
    "type: filesystem, path: records",
    "type: s3, region: eu-central-1, bucket: records",
    "type: s3, region: eu-central-1, bucket: records, prefix: a/b, pathStyle: true, createIfMissing: true, \
     endpoint: 'http://127.0.0.1:1', insecureEndpoint: true, auth: {type: static, accessKeyIdFile: a, \
     secretAccessKeyFile: b}, calls: {timeout: 3s}",
    "type: gcs, bucket: records",
    "type: gcs, bucket: records, project: p, prefix: a/, createIfMissing: true, auth: {type: credentials-file, \
     credentialsFile: c}",
    "type: azure-blob, accountUrl: 'https://a.blob.core.windows.net/', container: records, auth: {type: sas, \
     sasFile: s}",
    "type: azure-blob, accountUrl: 'http://127.0.0.1:1/devstoreaccount1', insecureEndpoint: true, container: records, \
     prefix: p, createIfMissing: true, authorityHost: 'https://login.test', caFile: c, ipAddress: '::1', \
     auth: {type: client-secret, tenantId: t, clientId: c, clientSecretFile: s}",
    "type: azure-blob, accountUrl: 'https://a.test', container: records, auth: {type: managed-identity}",
    "type: kubernetes",
    "type: azure-blob, accountUrl: 'https://a.test', container: records, auth: {type: workload-identity, tenantId: t, \
     clientId: c, tokenFile: f}",
];

fn provider(body: &str) -> FileConfig {
    read(&format!("clusterId: {CLUSTER}\nproviders:\n  a: {{{body}}}\n"))
}

fn store(body: &str) -> FileConfig {
    read(&format!("provider: {{type: cluster-key, file: f}}\nstore: {{{body}}}\n"))
}

/// What is shown is a file that means the same.
pub(crate) fn expect_shown(config: FileConfig) {
    let text = as_file(&config.values);
    let again = read(&text);
    let bare = |config: FileConfig| FileConfig { values: Vec::new(), warnings: Vec::new(), ..config };
    assert_eq!(bare(again), bare(config), "{text}");
}

#[test]
fn every_provider_is_read_with_every_source_of_credentials() {
    for body in PROVIDERS {
        let config = provider(body);
        let kind = config.providers.get("a").map(ProviderConfig::kind).expect("a provider");
        assert!(body.starts_with(&format!("type: {kind}")), "{body} is {kind}");
        expect_shown(config);
    }
}

#[test]
fn every_store_is_read() {
    for body in STORES {
        let config = store(body);
        assert!(config.store.is_some());
        expect_shown(config);
    }
}

#[test]
fn a_whole_file_is_read_with_paths_from_its_own_folder() {
    let config = read(
        "
        listen: {unix: {path: /run/k.sock, allowedUids: [0, 7]}}
        providers: {main: {type: cluster-key, file: cluster-key.json}}
        store: {type: filesystem, path: records}
        auditLog: audit.log",
    );
    assert_eq!(config.default_provider, "main");
    assert_eq!(config.store, Some(store::Settings::Filesystem("/etc/records".into())));
    assert_eq!(config.unix, Some(UnixConfig { path: "/run/k.sock".into(), allowed_uids: vec![0, 7] }));
    assert_eq!(config.audit_log, Some("/etc/audit.log".into()));
    let file = "/etc/cluster-key.json".into();
    assert_eq!(config.providers.get("main"), Some(&ProviderConfig::ClusterKey { file }));
    expect_shown(config);
}

#[test]
fn the_short_form_is_named_by_its_type() {
    let text = format!("clusterId: {CLUSTER}\nprovider: {{type: aws-kms, region: eu-central-1, keyId: alias/a}}");
    let config = read(&text);
    assert_eq!(config.default_provider, "aws-kms");
    assert!(config.providers.contains_key("aws-kms"));
    expect_shown(config);
}

#[test]
fn defaults_are_those_of_the_domain() {
    let config = provider(
        "type: aws-kms, region: eu-central-1, keyScope: namespace, role: {arn: 'arn:aws:iam::111122223333:role/x'}",
    );
    let Some(ProviderConfig::Kms(kms)) = config.providers.get("a") else { panic!("a KMS") };
    assert_eq!(kms.common.calls, CallSettings::default());
    assert_eq!(kms.common.cache, CacheSettings::default());
    assert_eq!(kms.common.validate, Validate::Lazy);
    let Settings::AwsKms(settings) = &kms.settings else { panic!("AWS") };
    assert_eq!((settings.key_scope, settings.key_prefix.as_str()), (KeyScope::Namespace, "coffer"));
    assert_eq!(settings.access.auth, AwsAuth::Chain);
    let sessions: Vec<_> = settings.access.roles.iter().map(|role| role.session_name.clone()).collect();
    assert_eq!(sessions, [format!("coffer-{CLUSTER}")]);
}

#[test]
fn the_kind_of_a_vault_chooses_its_algorithm_and_urls_have_no_slash_to_stumble_over() {
    let azure = |body: &str| match provider(body).providers.remove("a") {
        Some(ProviderConfig::Kms(kms)) => match kms.settings {
            Settings::AzureKeyVault(settings) => settings,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let vault = azure(
        "type: azure-key-vault, vaultUrl: 'https://v.vault.azure.net/', keyName: k, auth: {type: managed-identity}",
    );
    assert_eq!((vault.vault_type, vault.rsa), (VaultType::Vault, true));
    let hsm = azure(
        "type: azure-key-vault, vaultUrl: 'https://v.test', vaultType: managed-hsm, keyName: k, \
         auth: {type: managed-identity}",
    );
    assert_eq!((hsm.vault_type, hsm.rsa), (VaultType::ManagedHsm, false));
    let blob = store(
        "type: azure-blob, accountUrl: 'https://a.test/account/', container: records, auth: {type: managed-identity}",
    );
    let Some(store::Settings::AzureBlob(blob)) = blob.store else { panic!("{:?}", blob.store) };
    assert_eq!(blob.account_url.as_str(), "https://a.test/account");
}

#[test]
fn prefixes_end_with_a_slash() {
    for (given, expected) in [("", ""), ("prefix: a,", "a/"), ("prefix: a/b/,", "a/b/"), ("prefix: '',", "")] {
        let config = store(&format!("{given} type: gcs, bucket: records"));
        let Some(store::Settings::Gcs(gcs)) = config.store else { panic!("{:?}", config.store) };
        assert_eq!(gcs.place.prefix, expected, "{given}");
    }
}
