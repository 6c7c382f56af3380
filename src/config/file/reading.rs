//! The reading of one file: the faults, the warnings, the values and where they came from, and every key that was asked
//! for, so that what can be written is known from the readers themselves.

use std::path::{Path, PathBuf};

use serde_json::Value;
use uuid::Uuid;

use crate::config::{
    Faults,
    file::source::{Environment, Given, Source},
};

/// A key that a reader asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The section that it stands in, by its title.
    pub section: &'static str,
    /// The key.
    pub key: &'static str,
    /// What is expected of its value.
    pub expected: String,
    /// What counts where it is left out; empty where nothing does.
    pub default: String,
    /// Variables that stand in for it, the first that is set.
    pub environment: &'static [&'static str],
    /// The dotted place of its section in the file that was read.
    pub(super) at: String,
}

/// What has been found so far.
pub(super) struct Reading<'e> {
    pub(super) environment: &'e Environment,
    /// The installation, where the file names it.
    pub(super) cluster_id: Option<Uuid>,
    /// Every section is there, so that every key is asked for.
    pub(super) everything: bool,
    file: String,
    folder: PathBuf,
    faults: Faults,
    warnings: Vec<String>,
    values: Vec<Given>,
    asked: Vec<Asked>,
}

impl<'e> Reading<'e> {
    pub(super) fn of(path: &Path, environment: &'e Environment) -> Self {
        Self {
            environment,
            cluster_id: None,
            everything: false,
            file: path.display().to_string(),
            folder: path.parent().unwrap_or(Path::new("")).to_owned(),
            faults: Faults::default(),
            warnings: Vec::new(),
            values: Vec::new(),
            asked: Vec::new(),
        }
    }

    /// A reading of a file that has every section and no value: what it asks for is all that can be written.
    pub(super) fn of_everything(environment: &'e Environment) -> Self {
        Self { everything: true, ..Self::of(Path::new(""), environment) }
    }

    /// Warnings and values, where there is no fault.
    pub(super) fn finish(self) -> Result<(Vec<String>, Vec<Given>), Faults> {
        self.faults.or((self.warnings, self.values))
    }

    /// Every key that was asked for, in that order.
    pub(super) fn asked(&self) -> &[Asked] {
        &self.asked
    }

    /// Notes that a key is asked for.
    pub(super) fn ask(&mut self, asked: Asked) {
        self.asked.push(asked);
    }

    /// A fault of the file's, at the dotted place of a key.
    pub(super) fn fault(&mut self, place: &str, what: &str) {
        self.faults.add(format!("{}: {place}: {what}", self.file));
    }

    /// A fault of the environment's; told once.
    pub(super) fn environment_fault(&mut self, what: &str) {
        let text = format!("environment: {what}");
        if !self.faults.contains(&text) {
            self.faults.add(text);
        }
    }

    /// Something that is no fault and that somebody should know; told once.
    pub(super) fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// Notes what a key has come to.
    pub(super) fn give(&mut self, key: String, value: impl Into<Value>, source: Source) {
        self.values.push(Given { key, value: value.into(), source, file: None });
    }

    /// Notes a path and gives it back whole: in the file it begins at the file's folder.
    pub(super) fn give_path(&mut self, key: String, path: &Path, source: Source, is_read: bool) -> PathBuf {
        let path = if source == Source::File { self.folder.join(path) } else { path.to_owned() };
        let value = Value::from(path.to_string_lossy().into_owned());
        self.values.push(Given { key, value, source, file: is_read.then(|| path.clone()) });
        path
    }
}
