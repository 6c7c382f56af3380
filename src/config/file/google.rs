//! How Google is reached, and as whom: what `gcp-kms` and `gcs` have in common.

use crate::{
    config::file::{
        aws::{FILE, URL, insecure},
        family::Family,
        reading::Reading,
        section::Section,
        source::Source,
        value::{Plain, endpoint},
    },
    key::access::{GoogleAccess, GoogleAuth},
};

const CREDENTIALS: &str = "GOOGLE_APPLICATION_CREDENTIALS";
/// Where the SDK looks for authorities, in place of where the system has them.
const AUTHORITIES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];
const NO_CA_FILE: &str = "is not for Google, whose client library takes authorities from the environment alone; take it \
                          out, and let SSL_CERT_FILE name the system's bundle and SSL_CERT_DIR the folder of your own";

/// The sources of credentials.
pub(super) static AUTH: Family<GoogleAuth> = Family {
    name: "auth type",
    title: "auth of Google",
    kinds: &[("default", by_default), ("credentials-file", credentials_file), ("anonymous", anonymous)],
    refused: &[],
};

/// Reads how a service of Google is reached.
pub(super) fn access(section: &mut Section, reading: &mut Reading<'_>) -> Option<GoogleAccess> {
    section.title = "How Google is reached";
    let insecure = insecure(section, reading);
    let own_endpoint = section.ask("endpoint", URL).optional(reading, endpoint(Plain::Asked(insecure)));
    // It has a name elsewhere, and here it would be left out without a word.
    if section.map.remove("caFile").is_some() {
        section.fault("caFile", NO_CA_FILE, reading);
    }
    let auth = section.section_or_empty("auth", AUTH.title, reading).read_as(&AUTH, Some("default"), reading);
    if auth == Some(GoogleAuth::Anonymous) && !insecure {
        let what = "anonymous is for test servers; expected insecureEndpoint: true beside auth";
        section.fault("auth.type", what, reading);
    }
    let environment = reading.environment;
    if let (Some(GoogleAuth::Default), Some(file)) = (&auth, environment.get(CREDENTIALS)) {
        reading.give(section.place("auth"), file, Source::Sdk(CREDENTIALS));
    }
    for name in AUTHORITIES {
        if let Some(path) = environment.get(name) {
            reading.give(section.place("caFile"), path, Source::Sdk(name));
        }
    }
    Some(GoogleAccess { auth: auth?, endpoint: own_endpoint })
}

fn by_default(_: &mut Section, _: &mut Reading<'_>) -> Option<GoogleAuth> {
    Some(GoogleAuth::Default)
}

fn credentials_file(section: &mut Section, reading: &mut Reading<'_>) -> Option<GoogleAuth> {
    section.ask("credentialsFile", FILE).required_file(reading).map(GoogleAuth::CredentialsFile)
}

fn anonymous(_: &mut Section, _: &mut Reading<'_>) -> Option<GoogleAuth> {
    Some(GoogleAuth::Anonymous)
}
