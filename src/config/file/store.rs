//! The store of key records.

use serde_json::Value;

use crate::{
    config::file::{
        aws, azure,
        family::Family,
        google,
        provider::{Attempts, calls},
        reading::Reading,
        section::Section,
        value::{Misfit, Plain, checked, endpoint, flag, text, word},
    },
    key::store::{
        Settings,
        settings::{AzureBlob, Gcs, ObjectPlace, S3},
    },
};

/// The types of stores.
pub(super) static TYPES: Family<Settings> = Family {
    name: "store type",
    title: "Every store",
    kinds: &[
        ("filesystem", filesystem),
        ("s3", s3),
        ("gcs", gcs),
        ("azure-blob", azure_blob),
        ("kubernetes", kubernetes),
    ],
    refused: &[("memory", "is for tests only: every key would be lost with the process; name another store")],
};

const PREFIX: &str = "a path of A-Z, a-z, 0-9, _, ., - and /";
/// The longest prefix, so that the names of objects stay within what every store takes.
const PREFIX_BYTES: usize = 256;

/// Reads the store, where the file has one.
pub(super) fn read(top: &mut Section, reading: &mut Reading<'_>) -> Option<Settings> {
    let section = top.section("store", TYPES.title, reading)?;
    section.read_as(&TYPES, None, reading)
}

fn filesystem(section: &mut Section, reading: &mut Reading<'_>) -> Option<Settings> {
    section.title = "filesystem";
    section.ask("path", "a path").required_path(reading).map(Settings::Filesystem)
}

fn s3(section: &mut Section, reading: &mut Reading<'_>) -> Option<Settings> {
    section.title = "s3";
    let names = "3 to 63 of a-z, 0-9, . and -";
    let bucket = section.ask("bucket", names).required(reading, checked(|text| bucket(text, 63, b".-")));
    let path_style = section.ask("pathStyle", "true or false").or(false, reading, flag);
    let place = object_place(section, reading);
    section.environment = true;
    let access = aws::access(section, aws::Service::S3, reading);
    Some(Settings::S3(S3 { bucket: bucket?, path_style, place, access: access? }))
}

fn gcs(section: &mut Section, reading: &mut Reading<'_>) -> Option<Settings> {
    section.title = "gcs";
    let names = "3 to 222 of a-z, 0-9, _, . and -";
    let bucket = section.ask("bucket", names).required(reading, checked(|text| bucket(text, 222, b"_.-")));
    let project = section.ask("project", "the id of a project").optional(reading, word(128, "-.:"));
    let place = object_place(section, reading);
    let access = google::access(section, reading);
    if place.create_if_missing && project.is_none() {
        section.fault("project", "is missing; createIfMissing: true needs it to make a bucket in", reading);
    }
    Some(Settings::Gcs(Gcs { bucket: bucket?, project, place, access: access? }))
}

fn azure_blob(section: &mut Section, reading: &mut Reading<'_>) -> Option<Settings> {
    section.title = "azure-blob";
    let plain = Plain::Asked(aws::insecure(section, reading));
    let account = section.ask("accountUrl", "a URL such as https://NAME.blob.core.windows.net");
    let account = account.required(reading, endpoint(plain));
    let names = "3 to 63 of a-z, 0-9 and -";
    let container = section.ask("container", names).required(reading, checked(|text| bucket(text, 63, b"-")));
    let place = object_place(section, reading);
    let access = azure::access(section, &azure::BLOB_AUTH, plain, reading);
    let account_url = account?.url;
    Some(Settings::AzureBlob(AzureBlob { account_url, container: container?, place, access: access? }))
}

/// It has no keys: the cluster is the one that the program runs in, or the one of its kubeconfig.
fn kubernetes(section: &mut Section, _: &mut Reading<'_>) -> Option<Settings> {
    section.title = "kubernetes";
    Some(Settings::Kubernetes)
}

/// Reads what every store of objects has.
fn object_place(section: &mut Section, reading: &mut Reading<'_>) -> ObjectPlace {
    section.title = "Every store of objects";
    let prefix = section.ask("prefix", PREFIX).documented("none").or("", reading, prefix);
    let create_if_missing = section.ask("createIfMissing", "true or false").or(false, reading, flag);
    let calls = calls(section, Attempts::FromFile, reading);
    ObjectPlace { prefix, create_if_missing, calls }
}

/// A prefix: empty, or with a slash at its end.
fn prefix(value: &Value) -> Result<String, Misfit> {
    if value == "" {
        return Ok(String::new());
    }
    let given = text(value)?;
    let path = given.strip_suffix('/').unwrap_or(&given);
    let is_good = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    };
    if path.len() > PREFIX_BYTES || !path.split('/').all(is_good) {
        return Err(Misfit::Not(given));
    }
    Ok(format!("{path}/"))
}

fn bucket(text: &str, most: usize, others: &[u8]) -> Result<String, Misfit> {
    let is_plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let allowed = |byte: u8| is_plain(&byte) || others.contains(&byte);
    let ends_are_plain = [text.as_bytes().first(), text.as_bytes().last()].into_iter().flatten().all(is_plain);
    if (3..=most).contains(&text.len()) && text.bytes().all(allowed) && ends_are_plain {
        return Ok(text.to_owned());
    }
    Err(Misfit::Not(text.to_owned()))
}
