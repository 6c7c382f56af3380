//! Where a value comes from: the file, the environment, or the default.

use std::{collections::BTreeMap, ffi::OsString, fmt, path::PathBuf};

use serde_json::Value;

/// Variables whose values are nobody's business: only that they are set is kept.
const SECRET: [&str; 5] =
    ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "BAO_TOKEN", "VAULT_TOKEN"];
/// What the names of variables begin with that are looked at.
const PREFIXES: [&str; 6] = ["AWS_", "AZURE_", "BAO_", "GOOGLE_", "SSL_CERT_", "VAULT_"];

/// The variables that can stand in for what a file leaves out. An empty one counts as not set.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Takes what counts out of all variables of a process.
    #[must_use]
    pub fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let counting = |(name, value): (OsString, OsString)| {
            let (name, value) = (name.into_string().ok()?, value.to_string_lossy().into_owned());
            let counts = PREFIXES.iter().any(|prefix| name.starts_with(prefix)) && !value.is_empty();
            let value = if SECRET.contains(&name.as_str()) { "set".to_owned() } else { value };
            counts.then_some((name, value))
        };
        Self(variables.into_iter().filter_map(counting).collect())
    }

    /// The value of a variable that is set.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The file.
    File,
    /// This variable.
    Environment(&'static str),
    /// Neither has it.
    Default,
    /// This variable, which the SDK of a cloud reads by itself.
    Sdk(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("file"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Default => f.write_str("default"),
            Self::Sdk(name) => write!(f, "environment {name}, read by the SDK"),
        }
    }
}

/// A key with what it has come to. Nothing secret is among the values: the file holds only the names of files that do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The dotted key.
    pub key: String,
    /// The value; paths are whole.
    pub value: Value,
    /// Where it comes from.
    pub source: Source,
    /// The file that it names, where somebody will read it.
    pub file: Option<PathBuf>,
}
