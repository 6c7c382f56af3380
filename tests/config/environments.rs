//! What comes from the environment, and wrong environments.

use coffer::{
    config::file::{FileConfig, ProviderConfig, Source},
    key::kms::{Settings, settings::AwsKms},
};

use crate::{CLUSTER, Variables, expect_faults, read_with};

const AWS: &str = "
clusterId: 6f9c9f0e-5a5c-4f0e-9f44-0c7d3f5b7a11
providers: {a: {type: aws-kms, keyId: alias/a}}";
const AWS_WITH_REGION: &str = "
clusterId: 6f9c9f0e-5a5c-4f0e-9f44-0c7d3f5b7a11
providers: {a: {type: aws-kms, keyId: alias/a, region: eu-central-1}}";
const AZURE: &str = "
clusterId: 6f9c9f0e-5a5c-4f0e-9f44-0c7d3f5b7a11
providers: {a: {type: azure-key-vault, vaultUrl: 'https://v.test', keyName: k, auth: {type: workload-identity}}}";
const TRANSIT: &str = "
clusterId: 6f9c9f0e-5a5c-4f0e-9f44-0c7d3f5b7a11
providers: {a: {type: transit, keyName: k, auth: {type: token, tokenFile: t}}}";
const SECOND: &str = "
providers: {a: {type: cluster-key, file: f}, b: {type: aws-kms, keyId: alias/a}}
defaultProvider: a";
const STORE: &str = "
provider: {type: cluster-key, file: f}
store: {type: s3, bucket: records}";

/// A file, variables, and the faults.
pub(crate) const WRONG: &[(&str, Variables<'static>, &[&str])] = &[
    (
        AWS_WITH_REGION,
        &[("AWS_ACCESS_KEY_ID", "x")],
        &["environment: AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not; expected both or neither"],
    ),
    (
        AWS_WITH_REGION,
        &[("AWS_SECRET_ACCESS_KEY", "x")],
        &["environment: AWS_SECRET_ACCESS_KEY is set and AWS_ACCESS_KEY_ID is not; expected both or neither"],
    ),
    (
        AWS_WITH_REGION,
        &[("AWS_SESSION_TOKEN", "x")],
        &["environment: AWS_SESSION_TOKEN is set and AWS_ACCESS_KEY_ID is not; expected both or neither"],
    ),
    (
        AWS_WITH_REGION,
        &[("AWS_WEB_IDENTITY_TOKEN_FILE", "/t")],
        &["environment: AWS_WEB_IDENTITY_TOKEN_FILE is set and AWS_ROLE_ARN is not; expected both or neither"],
    ),
    (
        AWS,
        &[("AWS_REGION", "EU")],
        &["environment: AWS_REGION, which stands in for providers.a.region: expected a region such as eu-central-1, \
           not \"EU\""],
    ),
    (
        AWS_WITH_REGION,
        &[("AWS_ENDPOINT_URL", "http://aws.test")],
        &[
            "environment: AWS_ENDPOINT_URL, which stands in for providers.a.endpoint: is http, which protects neither \
             keys nor tokens; expected https, or insecureEndpoint: true",
            "environment: AWS_ENDPOINT_URL, which stands in for providers.a.stsEndpoint: is http, which protects \
             neither keys nor tokens; expected https, or insecureEndpoint: true",
        ],
    ),
    (
        AWS_WITH_REGION,
        &[("AWS_MAX_ATTEMPTS", "many")],
        &[
            "environment: AWS_MAX_ATTEMPTS, which stands in for providers.a.calls.attempts: expected a number from 1 to \
           20, not \"many\"",
        ],
    ),
    (
        SECOND,
        &[("AWS_REGION", "eu-central-1")],
        &["providers.b.region: is missing; expected a region such as eu-central-1; AWS_REGION is set, and counts for \
           the default provider only"],
    ),
    (
        AZURE,
        &[("AZURE_TENANT_ID", "a b"), ("AZURE_CLIENT_ID", "c"), ("AZURE_FEDERATED_TOKEN_FILE", "/t")],
        &["environment: AZURE_TENANT_ID, which stands in for providers.a.auth.tenantId: expected the id of a \
           directory, not \"a b\""],
    ),
    (
        TRANSIT,
        &[("BAO_ADDR", "http://bao.test")],
        &["environment: BAO_ADDR, which stands in for providers.a.address: is http, which protects neither keys nor \
           tokens; expected https, or insecureEndpoint: true"],
    ),
    (
        STORE,
        &[("AWS_REGION", "EU")],
        &["environment: AWS_REGION, which stands in for store.region: expected a region such as eu-central-1, not \
           \"EU\""],
    ),
    (
        STORE,
        &[("AWS_REGION", ""), ("AWS_MAX_ATTEMPTS", "many")],
        &["store.region: is missing; expected a region such as eu-central-1, here or in AWS_REGION or \
           AWS_DEFAULT_REGION"],
    ),
];

#[test]
fn wrong_environments_are_refused_with_these_words() {
    for (text, variables, faults) in WRONG {
        expect_faults(text, variables, faults);
    }
}

fn good(text: &str, variables: Variables<'_>) -> FileConfig {
    read_with(text, variables).unwrap_or_else(|faults| panic!("{text} with {variables:?}\n{faults}"))
}

fn aws<'a>(config: &'a FileConfig, name: &str) -> &'a AwsKms {
    match config.providers.get(name) {
        Some(ProviderConfig::Kms(kms)) => match &kms.settings {
            Settings::AwsKms(settings) => settings,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn source(config: &FileConfig, key: &str) -> String {
    let given = config.values.iter().find(|given| given.key == key);
    given.map_or_else(|| "nowhere".to_owned(), |given| given.source.to_string())
}

#[test]
fn the_file_stands_over_the_environment_and_the_environment_over_the_default() {
    let variables = [("AWS_REGION", "eu-west-1"), ("AWS_DEFAULT_REGION", "eu-west-2"), ("AWS_MAX_ATTEMPTS", "7")];
    let config = good(AWS_WITH_REGION, &variables);
    assert_eq!(aws(&config, "a").access.region, "eu-central-1");
    assert_eq!(source(&config, "providers.a.region"), "file");
    assert_eq!(source(&config, "providers.a.calls.attempts"), "environment AWS_MAX_ATTEMPTS");
    assert_eq!(source(&config, "providers.a.calls.timeout"), "default");
    let config = good(AWS, &variables);
    assert_eq!(aws(&config, "a").access.region, "eu-west-1");
    assert_eq!(source(&config, "providers.a.region"), "environment AWS_REGION");
    let config = good(AWS, &variables[1..]);
    assert_eq!(aws(&config, "a").access.region, "eu-west-2");
    let Some(ProviderConfig::Kms(kms)) = config.providers.get("a") else { panic!("a KMS") };
    assert_eq!(kms.common.calls.attempts, 7);
}

#[test]
fn a_service_s_own_endpoint_stands_over_the_general_one() {
    let variables =
        [("AWS_ENDPOINT_URL", "https://all.test"), ("AWS_ENDPOINT_URL_KMS", "https://kms.test"), ("AWS_REGION", "r")];
    let text = format!("{AWS}\nstore: {{type: s3, bucket: records}}");
    let config = good(&text, &variables);
    let access = &aws(&config, "a").access;
    let url = |endpoint: &Option<coffer::key::access::Endpoint>| endpoint.as_ref().map(|one| one.url.to_string());
    assert_eq!(url(&access.endpoint).as_deref(), Some("https://kms.test/"));
    assert_eq!(url(&access.sts_endpoint).as_deref(), Some("https://all.test/"));
    let Some(coffer::key::store::Settings::S3(s3)) = &config.store else { panic!("{:?}", config.store) };
    assert_eq!(url(&s3.access.endpoint).as_deref(), Some("https://all.test/"));
    assert_eq!(source(&config, "store.region"), "environment AWS_REGION");
    assert_eq!(source(&config, "store.calls.attempts"), "default");
}

#[test]
fn other_clouds_have_their_own_names() {
    let variables = [
        ("AZURE_TENANT_ID", "t"),
        ("AZURE_CLIENT_ID", "c"),
        ("AZURE_FEDERATED_TOKEN_FILE", "/t"),
        ("AZURE_AUTHORITY_HOST", "https://login.test/"),
    ];
    let config = good(AZURE, &variables);
    for (key, name) in [("auth.tenantId", 0), ("auth.clientId", 1), ("auth.tokenFile", 2), ("authorityHost", 3)] {
        let expected = format!("environment {}", variables[name].0);
        assert_eq!(source(&config, &format!("providers.a.{key}")), expected);
    }
    let config = good(TRANSIT, &[("VAULT_ADDR", "https://v.test"), ("BAO_ADDR", "https://b.test"), ("BAO_TOKEN", "x")]);
    assert_eq!(source(&config, "providers.a.address"), "environment BAO_ADDR");
    assert_eq!(config.warnings, ["environment: BAO_TOKEN does nothing; a token is read from auth.tokenFile"]);
}

#[test]
fn variables_that_do_nothing_are_told() {
    let variables = [("AWS_ENDPOINT", "x"), ("AWS_KMS_ENDPOINT", "x"), ("AWS_MAX_CONNECTIONS", "9")];
    assert_eq!(
        good(AWS_WITH_REGION, &variables).warnings,
        [
            "environment: AWS_ENDPOINT does nothing; AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_KMS and AWS_ENDPOINT_URL_S3 are \
             read",
            "environment: AWS_KMS_ENDPOINT does nothing; AWS_ENDPOINT_URL_KMS is read",
            "environment: AWS_MAX_CONNECTIONS does nothing; set calls.concurrency in the file",
        ]
    );
    let other = format!("clusterId: {CLUSTER}\nprovider: {{type: local, keyFile: k, insecureLocalKey: true}}");
    assert_eq!(good(&other, &variables).warnings, Vec::<String>::new());
}

#[test]
fn what_the_sdk_reads_by_itself_is_told_and_nothing_secret_is() {
    let variables =
        [("AWS_ACCESS_KEY_ID", "AKIAMARK"), ("AWS_SECRET_ACCESS_KEY", "secretmark"), ("AWS_PROFILE", "blue")];
    let config = good(AWS_WITH_REGION, &variables);
    let read: Vec<_> = config.values.iter().filter(|given| matches!(given.source, Source::Sdk(_))).collect();
    let told: Vec<_> = read.iter().map(|given| (given.source.to_string(), given.value.to_string())).collect();
    assert_eq!(
        told,
        [
            ("environment AWS_ACCESS_KEY_ID, read by the SDK".to_owned(), "\"set\"".to_owned()),
            ("environment AWS_PROFILE, read by the SDK".to_owned(), "\"blue\"".to_owned()),
        ]
    );
    let all = format!("{config:?}{:?}", crate::environment(&variables));
    assert!(!all.contains("secretmark") && !all.contains("AKIAMARK"), "{all}");
    let second = format!("{SECOND}\n").replace("keyId: alias/a", "keyId: alias/a, region: eu-central-1");
    assert_eq!(
        good(&second, &variables[2..]).warnings,
        ["providers.b.auth: type chain reads AWS_PROFILE, which is meant for the default provider; name another type"]
    );
}

#[test]
fn the_authorities_that_the_sdk_of_google_reads_by_itself_are_told() {
    let key = "projects/p/locations/l/keyRings/r/cryptoKeys/k";
    let google = format!("clusterId: {CLUSTER}\nprovider: {{type: gcp-kms, keyName: {key}}}");
    let config = good(&google, &[("SSL_CERT_DIR", "/etc/coffer/authorities"), ("SSL_CERT_FILE", "/etc/bundle.crt")]);
    let told = |name: &'static str| {
        let given = config.values.iter().find(|given| given.source == Source::Sdk(name));
        given.map(|given| given.value.clone())
    };
    assert_eq!(told("SSL_CERT_FILE"), Some("/etc/bundle.crt".into()));
    assert_eq!(told("SSL_CERT_DIR"), Some("/etc/coffer/authorities".into()));
}
