//! The configuration file: what is refused and with which words, what is accepted and what it comes to, and that the
//! documentation says the same as the program.

mod documents;
mod environments;
mod good;
mod policies;
mod providers;
mod stores;
mod top;

use std::{ffi::OsString, path::Path};

use coffer::config::{
    Faults,
    file::{Environment, FileConfig},
};

const FILE: &str = "/etc/coffer.yaml";
const CLUSTER: &str = "6f9c9f0e-5a5c-4f0e-9f44-0c7d3f5b7a11";

/// Variables, by name and value.
type Variables<'a> = &'a [(&'a str, &'a str)];

fn environment(variables: Variables<'_>) -> Environment {
    Environment::new(variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))))
}

fn read_with(text: &str, variables: Variables<'_>) -> Result<FileConfig, Faults> {
    FileConfig::parse(text, Path::new(FILE), &environment(variables))
}

fn read(text: &str) -> FileConfig {
    read_with(text, &[]).unwrap_or_else(|faults| panic!("{text}\n{faults}"))
}

/// A file is refused with exactly these faults, in whatever order; each begins with the key, or with `environment`.
fn expect_faults(text: &str, variables: Variables<'_>, expected: &[&str]) {
    let faults = read_with(text, variables).expect_err(text).to_string();
    let mut told: Vec<_> = faults.lines().map(str::to_owned).collect();
    let whole = |fault: &&str| match fault.strip_prefix("environment: ") {
        Some(_) => (*fault).to_owned(),
        None => format!("{FILE}: {fault}"),
    };
    let mut expected: Vec<_> = expected.iter().map(whole).collect();
    told.sort();
    expected.sort();
    assert_eq!(told, expected, "of {text} with {variables:?}");
}

#[test]
fn the_tables_hold_what_was_promised() {
    let cases = top::WRONG.len()
        + providers::WRONG.len()
        + stores::WRONG.len()
        + policies::WRONG.len()
        + environments::WRONG.len();
    assert!(cases >= 60, "{cases} wrong files and environments");
}
