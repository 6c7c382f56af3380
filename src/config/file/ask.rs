//! A key that is asked for: in the file, then in the environment, then its default.

use std::path::PathBuf;

use serde_json::Value;

use crate::config::file::{
    reading::{Asked, Reading},
    section::Section,
    source::Source,
    value::{Misfit, join, plain, text},
};

/// A key that is asked for.
pub(super) struct Ask<'s> {
    section: &'s mut Section,
    key: &'static str,
    expected: String,
    default: String,
    environment: &'static [&'static str],
}

enum Outcome<T> {
    Good(T, Value, Source),
    Absent,
    Wrong,
}

impl<'s> Ask<'s> {
    pub(super) fn of(section: &'s mut Section, key: &'static str, expected: String) -> Self {
        Self { section, key, expected, default: String::new(), environment: &[] }
    }

    /// Variables that stand in for the key, the first that is set.
    pub(super) fn or_from(self, environment: &'static [&'static str]) -> Self {
        Self { environment, ..self }
    }

    /// Says in words what counts where the key is left out.
    pub(super) fn documented(self, default: &str) -> Self {
        Self { default: default.to_owned(), ..self }
    }

    /// The value, where there is one.
    pub(super) fn optional<T>(
        mut self,
        reading: &mut Reading<'_>,
        parse: impl FnOnce(&Value) -> Result<T, Misfit>,
    ) -> Option<T> {
        let outcome = self.read(reading, parse);
        self.given(outcome, reading)
    }

    /// The value of a key that must be there.
    pub(super) fn required<T>(
        mut self,
        reading: &mut Reading<'_>,
        parse: impl FnOnce(&Value) -> Result<T, Misfit>,
    ) -> Option<T> {
        let outcome = self.read(reading, parse);
        self.expect_there(&outcome, reading);
        self.given(outcome, reading)
    }

    /// The value, or a default.
    pub(super) fn or<T>(
        mut self,
        default: impl Into<Value>,
        reading: &mut Reading<'_>,
        parse: impl Fn(&Value) -> Result<T, Misfit>,
    ) -> T {
        let default = default.into();
        if self.default.is_empty() {
            self.default = plain(&default);
        }
        let outcome = self.read(reading, &parse);
        if let Outcome::Absent = outcome {
            reading.give(self.section.place(self.key), default.clone(), Source::Default);
        }
        let given = self.given(outcome, reading);
        given.unwrap_or_else(|| parse(&default).expect("a default passes its own check"))
    }

    /// The path of a file that somebody will read.
    pub(super) fn optional_file(mut self, reading: &mut Reading<'_>) -> Option<PathBuf> {
        let outcome = self.read(reading, path);
        self.given_path(outcome, true, reading)
    }

    /// As [`Ask::optional_file`], of a key that must be there.
    pub(super) fn required_file(mut self, reading: &mut Reading<'_>) -> Option<PathBuf> {
        let outcome = self.read(reading, path);
        self.expect_there(&outcome, reading);
        self.given_path(outcome, true, reading)
    }

    /// The path of a file that somebody will read, or the usual one.
    pub(super) fn file_or(mut self, default: &'static str, reading: &mut Reading<'_>) -> PathBuf {
        default.clone_into(&mut self.default);
        let outcome = self.read(reading, path);
        let usual = PathBuf::from(default);
        if let Outcome::Absent = outcome {
            return reading.give_path(self.section.place(self.key), &usual, Source::Default, true);
        }
        self.given_path(outcome, true, reading).unwrap_or(usual)
    }

    /// The path of what is not read: a folder, a socket, a log.
    pub(super) fn optional_path(mut self, reading: &mut Reading<'_>) -> Option<PathBuf> {
        let outcome = self.read(reading, path);
        self.given_path(outcome, false, reading)
    }

    /// As [`Ask::optional_path`], of a key that must be there.
    pub(super) fn required_path(mut self, reading: &mut Reading<'_>) -> Option<PathBuf> {
        let outcome = self.read(reading, path);
        self.expect_there(&outcome, reading);
        self.given_path(outcome, false, reading)
    }

    /// The value of a key that holds others: they speak for themselves.
    pub(super) fn silent<T>(
        mut self,
        reading: &mut Reading<'_>,
        parse: impl FnOnce(&Value) -> Result<T, Misfit>,
    ) -> Option<T> {
        match self.read(reading, parse) {
            Outcome::Good(parsed, ..) => Some(parsed),
            Outcome::Absent | Outcome::Wrong => None,
        }
    }

    fn given<T>(&self, outcome: Outcome<T>, reading: &mut Reading<'_>) -> Option<T> {
        let Outcome::Good(parsed, value, source) = outcome else { return None };
        reading.give(self.section.place(self.key), value, source);
        Some(parsed)
    }

    fn given_path(&self, outcome: Outcome<PathBuf>, is_read: bool, reading: &mut Reading<'_>) -> Option<PathBuf> {
        let Outcome::Good(path, _, source) = outcome else { return None };
        Some(reading.give_path(self.section.place(self.key), &path, source, is_read))
    }

    fn expect_there<T>(&self, outcome: &Outcome<T>, reading: &mut Reading<'_>) {
        let Outcome::Absent = outcome else { return };
        let mut what = format!("is missing; expected {}", self.expected);
        let set = self.environment.iter().find(|name| reading.environment.get(name).is_some());
        if self.section.environment && !self.environment.is_empty() {
            what += &format!(", here or in {}", join(self.environment, "or"));
        } else if let Some(name) = set {
            what += &format!("; {name} is set, and counts for the default provider only");
        }
        self.section.fault(self.key, &what, reading);
    }

    fn read<T>(&mut self, reading: &mut Reading<'_>, parse: impl FnOnce(&Value) -> Result<T, Misfit>) -> Outcome<T> {
        self.section.asked.push(self.key);
        reading.ask(Asked {
            section: self.section.title,
            key: self.key,
            expected: self.expected.clone(),
            default: self.default.clone(),
            environment: self.environment,
            at: self.section.at.clone(),
        });
        let in_file = self.section.map.remove(self.key).filter(|value| !value.is_null());
        let (value, source) = match in_file {
            Some(value) => (value, Source::File),
            None => match self.variable(reading) {
                Some((name, text)) => (Value::from(text), Source::Environment(name)),
                None => return Outcome::Absent,
            },
        };
        match (parse(&value), source) {
            (Ok(parsed), source) => Outcome::Good(parsed, value, source),
            (Err(misfit), source) => {
                let what = misfit.text(&self.expected);
                match source {
                    Source::Environment(name) => {
                        let place = self.section.place(self.key);
                        reading.environment_fault(&format!("{name}, which stands in for {place}: {what}"));
                    }
                    _ => self.section.fault(self.key, &what, reading),
                }
                Outcome::Wrong
            }
        }
    }

    fn variable(&self, reading: &Reading<'_>) -> Option<(&'static str, String)> {
        let mut names = self.environment.iter().filter(|_| self.section.environment);
        names.find_map(|name| Some((*name, reading.environment.get(name)?.to_owned())))
    }
}

fn path(value: &Value) -> Result<PathBuf, Misfit> {
    text(value).map(PathBuf::from)
}
