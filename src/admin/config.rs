//! `coffer config …`

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use serde_json::Value;

use crate::{
    admin::answer::table,
    config::{
        Faults,
        file::{Environment, FileConfig, Given, ProviderConfig, Source},
    },
    key::store::Settings,
};

/// What is shown of each value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// The value, as a file would have it.
    Values,
    /// Where it comes from, too.
    Sources,
}

impl Show {
    /// What `--sources`, or its absence, asks for.
    #[must_use]
    pub fn of(sources: bool) -> Self {
        if sources { Self::Sources } else { Self::Values }
    }
}

/// `coffer config check`: reads a file and tells what is in it. A file that it names and that cannot be read is told as
/// well, but is no fault: it may be where the key service runs, and not here.
///
/// # Errors
/// Everything that is wrong with the file.
pub fn check(file: &Path, environment: &Environment, out: &mut impl Write) -> Result<(), Faults> {
    let config = FileConfig::load(file, environment)?;
    let unreadable = config.values.iter().filter_map(|given| {
        let path = given.file.as_ref()?;
        let error = File::open(path).err()?;
        Some(format!("{}: {}: {error}; the key service will need it", given.key, path.display()))
    });
    for warning in config.warnings.iter().cloned().chain(unreadable) {
        writeln!(out, "warning: {warning}").map_err(told)?;
    }
    writeln!(out, "{}: good: {}", file.display(), summary(&config)).map_err(told)
}

/// `coffer config show`: what a file, the environment and the defaults come to. Nothing of it is secret.
///
/// # Errors
/// Everything that is wrong with the file.
pub fn show(file: &Path, show: Show, environment: &Environment, out: &mut impl Write) -> Result<(), Faults> {
    let config = FileConfig::load(file, environment)?;
    match show {
        Show::Values => out.write_all(as_file(&config.values).as_bytes()),
        Show::Sources => {
            let row = |given: &Given| [given.key.clone(), scalar(&given.value), given.source.to_string()];
            let rows: Vec<_> = config.values.iter().map(row).collect();
            table(["KEY", "VALUE", "SOURCE"], &rows, out)
        }
    }
    .map_err(told)
}

fn told(error: io::Error) -> Faults {
    Faults::one(format!("standard output: {error}"))
}

fn summary(config: &FileConfig) -> String {
    let provider = |(name, provider): (&String, &ProviderConfig)| {
        let default = if *name == config.default_provider { ", the default" } else { "" };
        format!("{name} ({}{default})", provider.kind())
    };
    let providers: Vec<_> = config.providers.iter().map(provider).collect();
    let store = match &config.store {
        None => "none",
        Some(Settings::Filesystem(_)) => "filesystem",
        Some(Settings::S3(_)) => "s3",
        Some(Settings::Gcs(_)) => "gcs",
        Some(Settings::AzureBlob(_)) => "azure-blob",
        Some(Settings::Kubernetes) => "kubernetes",
    };
    format!("providers: {}; store: {store}; policies: {}", providers.join(", "), config.policies.len())
}

/// Values as a file that means the same.
#[must_use]
pub fn as_file(values: &[Given]) -> String {
    let (mut text, mut open): (String, Vec<&str>) = (String::new(), Vec::new());
    // What an SDK reads by itself stands in no file.
    for given in values.iter().filter(|given| !matches!(given.source, Source::Sdk(_))) {
        let mut sections = steps(&given.key);
        let Some(key) = sections.pop() else { continue };
        let shared = open.iter().zip(&sections).take_while(|(a, b)| a == b).count();
        for (depth, section) in sections.iter().enumerate().skip(shared) {
            let line = if section.starts_with('[') { "-".to_owned() } else { format!("{}:", word(section)) };
            text += &format!("{}{line}\n", "  ".repeat(depth));
        }
        text += &format!("{}{}: {}\n", "  ".repeat(sections.len()), word(key), scalar(&given.value));
        open = sections;
    }
    text
}

/// The parts of a dotted key: `policies[0].name` has three.
fn steps(key: &str) -> Vec<&str> {
    let parts = key.split('.');
    parts
        .flat_map(|part| match part.find('[') {
            Some(at) => [Some(&part[..at]), Some(&part[at..])],
            None => [Some(part), None],
        })
        .flatten()
        .collect()
}

fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), word)
}

/// A text as it stands in YAML: in quotes where it could mean something else.
fn word(text: &str) -> String {
    const MEANING: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:-".contains(c);
    let begins_well = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let is_time = text.starts_with(|c: char| c.is_ascii_digit()) && text.ends_with(['s', 'm', 'h']);
    let is_plain = (begins_well || is_time) && text.chars().all(plain) && !text.ends_with(':');
    let means_more = MEANING.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is_plain && !means_more { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dotted_keys_become_a_file() {
        let given = |key: &str, value: Value| Given { key: key.to_owned(), value, source: Source::File, file: None };
        let values = [
            given("providers.a.type", "local".into()),
            given("providers.a.auth.role", "on".into()),
            given("providers.a.context", serde_json::json!({"k": "v"})),
            given("policies[0].name", "x y".into()),
            given("policies[1].match.claim", "db-*".into()),
            given("policies[1].mandatory", false.into()),
            given("timeout", "10s".into()),
        ];
        let expected = "\
providers:
  a:
    type: local
    auth:
      role: \"on\"
    context: {\"k\":\"v\"}
policies:
  -
    name: \"x y\"
  -
    match:
      claim: \"db-*\"
    mandatory: false
timeout: 10s
";
        assert_eq!(as_file(&values), expected);
    }
}
