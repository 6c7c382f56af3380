//! How AWS is reached, and as whom: what `aws-kms` and `s3` have in common.

use serde_json::Value;

use crate::{
    config::file::{
        family::Family,
        reading::Reading,
        section::Section,
        source::Source,
        value::{Misfit, Plain, checked, endpoint, flag, text, word},
    },
    key::{
        access::{AwsAccess, AwsAuth},
        record::AwsRole,
    },
};

pub(super) const REGION: &str = "a region such as eu-central-1";
pub(super) const URL: &str = "an https URL; http with insecureEndpoint: true";
pub(super) const FILE: &str = "a path";
const ROLE_ARN: &str = "the ARN of a role, such as arn:aws:iam::111122223333:role/coffer";
const SESSION_NAME: &str = "2 to 64 of A-Z, a-z, 0-9 and _+=,.@-";

/// Where the SDK's chain looks for credentials by itself.
const CHAIN: [&str; 8] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];
/// Names that other programs know, and what there is in their place.
const NOT_READ: [(&str, &str); 6] = [
    ("AWS_ENDPOINT", "AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_KMS and AWS_ENDPOINT_URL_S3 are read"),
    ("AWS_KMS_ENDPOINT", "AWS_ENDPOINT_URL_KMS is read"),
    ("AWS_USE_FIPS_ENDPOINT", "name the FIPS endpoint in endpoint"),
    ("AWS_USE_DUALSTACK_ENDPOINT", "name the dual-stack endpoint in endpoint"),
    ("AWS_CA_BUNDLE", "set caFile in the file"),
    ("AWS_MAX_CONNECTIONS", "set calls.concurrency in the file"),
];

/// Which of its services is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Kms,
    S3,
}

/// The sources of credentials.
pub(super) static AUTH: Family<AwsAuth> = Family {
    name: "auth type",
    title: "auth of AWS",
    kinds: &[
        ("chain", chain),
        ("static", files),
        ("profile", profile),
        ("web-identity", web_identity),
        ("container", container),
        ("imds", imds),
    ],
    refused: &[],
};

/// Reads how a service of AWS is reached.
pub(super) fn access(section: &mut Section, service: Service, reading: &mut Reading<'_>) -> Option<AwsAccess> {
    section.title = "How AWS is reached";
    for (name, instead) in NOT_READ {
        if reading.environment.get(name).is_some() {
            reading.warn(format!("environment: {name} does nothing; {instead}"));
        }
    }
    let region = section.ask("region", REGION).or_from(&["AWS_REGION", "AWS_DEFAULT_REGION"]);
    let region = region.required(reading, checked(region_name));
    let plain = Plain::Asked(insecure(section, reading));
    let variables: &[&str] = match service {
        Service::Kms => &["AWS_ENDPOINT_URL_KMS", "AWS_ENDPOINT_URL"],
        Service::S3 => &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"],
    };
    let own_endpoint = section.ask("endpoint", URL).or_from(variables).optional(reading, endpoint(plain));
    let sts = section.ask("stsEndpoint", URL).or_from(&["AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL"]);
    let sts_endpoint = sts.optional(reading, endpoint(plain));
    let ca_file = section.ask("caFile", FILE).optional_file(reading);
    let mut auth = section.section_or_empty("auth", AUTH.title, reading);
    // Of what is not the default provider, only where it is comes from the environment.
    auth.environment &= service == Service::Kms;
    let auth = auth.read_as(&AUTH, Some("chain"), reading);
    if auth == Some(AwsAuth::Chain) {
        check_chain(section, service, reading);
    }
    let roles = role_in(section, reading).into_iter().collect();
    Some(AwsAccess { region: region?, endpoint: own_endpoint, sts_endpoint, ca_file, auth: auth?, roles })
}

/// Reads the section `role`, where there is one.
pub(super) fn role_in(section: &mut Section, reading: &mut Reading<'_>) -> Option<AwsRole> {
    section.section("role", "role of AWS", reading).and_then(|section| role(section, reading))
}

/// Reads `insecureEndpoint`.
pub(super) fn insecure(section: &mut Section, reading: &mut Reading<'_>) -> bool {
    section.ask("insecureEndpoint", "true or false").or(false, reading, flag)
}

/// The name of a region; servers that are not AWS have names of their own.
pub(super) fn region_name(text: &str) -> Result<String, Misfit> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.len() <= 32 && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    Err(Misfit::Not(text.to_owned()))
}

/// What the SDK's chain will find in the environment.
fn check_chain(section: &Section, service: Service, reading: &mut Reading<'_>) {
    let environment = reading.environment;
    let is_set = |name: &str| environment.get(name).is_some();
    let expect_both = |first: &str, second: &str, reading: &mut Reading<'_>| {
        if is_set(first) && !is_set(second) {
            reading.environment_fault(&format!("{first} is set and {second} is not; expected both or neither"));
        }
    };
    expect_both("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", reading);
    expect_both("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", reading);
    expect_both("AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", reading);
    expect_both("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN", reading);
    let place = section.place("auth");
    for name in CHAIN {
        let Some(value) = environment.get(name) else { continue };
        reading.give(place.clone(), value, Source::Sdk(name));
        if service == Service::Kms && !section.environment {
            reading.warn(format!(
                "{place}: type chain reads {name}, which is meant for the default provider; name another type"
            ));
        }
    }
}

fn chain(_: &mut Section, _: &mut Reading<'_>) -> Option<AwsAuth> {
    Some(AwsAuth::Chain)
}

fn files(section: &mut Section, reading: &mut Reading<'_>) -> Option<AwsAuth> {
    let access_key_id_file = section.ask("accessKeyIdFile", FILE).required_file(reading);
    let secret_access_key_file = section.ask("secretAccessKeyFile", FILE).required_file(reading);
    let session_token_file = section.ask("sessionTokenFile", FILE).optional_file(reading);
    Some(AwsAuth::Static {
        access_key_id_file: access_key_id_file?,
        secret_access_key_file: secret_access_key_file?,
        session_token_file,
    })
}

fn profile(section: &mut Section, reading: &mut Reading<'_>) -> Option<AwsAuth> {
    let name = section.ask("profile", "the name of a profile").or_from(&["AWS_PROFILE"]).required(reading, text);
    let credentials = section.ask("credentialsFile", FILE).or_from(&["AWS_SHARED_CREDENTIALS_FILE"]);
    let credentials_file = credentials.optional_file(reading);
    let config_file = section.ask("configFile", FILE).or_from(&["AWS_CONFIG_FILE"]).optional_file(reading);
    Some(AwsAuth::Profile { name: name?, credentials_file, config_file })
}

fn web_identity(section: &mut Section, reading: &mut Reading<'_>) -> Option<AwsAuth> {
    let token = section.ask("tokenFile", FILE).or_from(&["AWS_WEB_IDENTITY_TOKEN_FILE"]);
    let token_file = token.required_file(reading);
    let role = section.ask("roleArn", ROLE_ARN).or_from(&["AWS_ROLE_ARN"]).required(reading, checked(role_arn));
    Some(AwsAuth::WebIdentity { token_file: token_file?, role_arn: role? })
}

fn container(_: &mut Section, _: &mut Reading<'_>) -> Option<AwsAuth> {
    Some(AwsAuth::Container)
}

fn imds(_: &mut Section, _: &mut Reading<'_>) -> Option<AwsAuth> {
    Some(AwsAuth::Imds)
}

fn role(mut section: Section, reading: &mut Reading<'_>) -> Option<AwsRole> {
    let arn = section.ask("arn", ROLE_ARN).required(reading, checked(role_arn));
    let usual = reading.cluster_id.map_or_else(|| "coffer".to_owned(), |id| format!("coffer-{id}"));
    let session_name = section.ask("sessionName", SESSION_NAME).documented("coffer-CLUSTERID");
    let session_name = session_name.or(usual, reading, session);
    let external_id = section.ask("externalId", "what the owner of the role asks for").optional(reading, text);
    section.finish(reading);
    Some(AwsRole { arn: arn?, session_name, external_id })
}

fn session(value: &Value) -> Result<String, Misfit> {
    let name = word(64, "_+=,.@-")(value)?;
    if name.len() < 2 { Err(Misfit::Not(name)) } else { Ok(name) }
}

fn role_arn(text: &str) -> Result<String, Misfit> {
    let parts: Vec<_> = text.splitn(6, ':').collect();
    match parts.as_slice() {
        ["arn", partition, "iam", "", account, role]
            if is_partition(partition) && is_account(account) && role.len() > 5 && role.starts_with("role/") =>
        {
            Ok(text.to_owned())
        }
        _ => Err(Misfit::Not(text.to_owned())),
    }
}

/// `aws`, `aws-cn`, `aws-us-gov`, …
pub(super) fn is_partition(text: &str) -> bool {
    text == "aws" || text.starts_with("aws-")
}

/// Twelve digits.
pub(super) fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}
