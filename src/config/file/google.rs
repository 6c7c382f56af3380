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
    let auth = section.section_or_empty("auth", AUTH.title, reading).read_as(&AUTH, Some("default"), reading);
    if auth == Some(GoogleAuth::Anonymous) && !insecure {
        let what = "anonymous is for test servers; expected insecureEndpoint: true beside auth";
        section.fault("auth.type", what, reading);
    }
    let environment = reading.environment;
    if let (Some(GoogleAuth::Default), Some(file)) = (&auth, environment.get(CREDENTIALS)) {
        reading.give(section.place("auth"), file, Source::Sdk(CREDENTIALS));
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
