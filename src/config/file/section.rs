//! One level of the file: its keys are asked for one by one, and what is left over is not known.

use serde_json::{Map, Value};

use crate::config::{
    did_you_mean,
    file::{
        ask::Ask,
        family::Family,
        reading::Reading,
        value::{Misfit, join},
    },
};

/// What is expected where a section is.
const SECTION: &str = "keys and values";

/// One level of the file.
pub(super) struct Section {
    /// Under which title its keys are documented.
    pub(super) title: &'static str,
    /// Whether variables stand in for what it leaves out.
    pub(super) environment: bool,
    pub(super) at: String,
    pub(super) map: Map<String, Value>,
    pub(super) asked: Vec<&'static str>,
}

impl Section {
    /// The whole file.
    pub(super) fn top(title: &'static str, map: Map<String, Value>) -> Self {
        Self { title, environment: false, at: String::new(), map, asked: Vec::new() }
    }

    /// Asks for a key.
    pub(super) fn ask(&mut self, key: &'static str, expected: impl Into<String>) -> Ask<'_> {
        Ask::of(self, key, expected.into())
    }

    /// Whether a key is there and holds something.
    pub(super) fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    /// The keys that nobody has asked for yet.
    pub(super) fn names(&self) -> Vec<String> {
        self.map.keys().cloned().collect()
    }

    /// The section below a key.
    pub(super) fn section(
        &mut self,
        key: &'static str,
        title: &'static str,
        reading: &mut Reading<'_>,
    ) -> Option<Self> {
        match self.ask(key, SECTION).silent(reading, map) {
            Some(map) => Some(self.below(key, title, map)),
            None => reading.everything.then(|| self.below(key, title, Map::new())),
        }
    }

    /// The section below a key, empty where there is none: its defaults count.
    pub(super) fn section_or_empty(
        &mut self,
        key: &'static str,
        title: &'static str,
        reading: &mut Reading<'_>,
    ) -> Self {
        let map = self.ask(key, SECTION).silent(reading, map).unwrap_or_default();
        self.below(key, title, map)
    }

    /// The sections of a list below a key.
    pub(super) fn sections(&mut self, key: &'static str, title: &'static str, reading: &mut Reading<'_>) -> Vec<Self> {
        let list = |value: &Value| value.as_array().cloned().ok_or(Misfit::Other);
        let items = self.ask(key, "a list of keys and values").silent(reading, list).unwrap_or_default();
        let mut sections = Vec::new();
        for (place, item) in items.into_iter().enumerate() {
            let at = format!("{key}[{place}]");
            match item {
                Value::Object(map) => sections.push(self.below(&at, title, map)),
                _ => self.fault(&at, &format!("expected {SECTION}"), reading),
            }
        }
        if reading.everything {
            sections.push(self.below(key, title, Map::new()));
        }
        sections
    }

    /// The section below a name.
    pub(super) fn named(&mut self, name: &str, title: &'static str, reading: &mut Reading<'_>) -> Option<Self> {
        match self.map.remove(name) {
            Some(Value::Object(map)) => return Some(self.below(name, title, map)),
            Some(Value::Null) => self.fault(name, &format!("is empty; expected {SECTION}"), reading),
            _ => self.fault(name, &format!("expected {SECTION}"), reading),
        }
        None
    }

    fn below(&self, key: &str, title: &'static str, map: Map<String, Value>) -> Self {
        let at = format!("{}{key}.", self.at);
        Self { title, environment: self.environment, at, map, asked: Vec::new() }
    }

    /// The dotted place of a key in the file.
    pub(super) fn place(&self, key: &str) -> String {
        format!("{}{key}", self.at)
    }

    /// A fault of a key's.
    pub(super) fn fault(&self, key: &str, what: &str, reading: &mut Reading<'_>) {
        reading.fault(&self.place(key), what);
    }

    /// What is left over is not known.
    pub(super) fn finish(self, reading: &mut Reading<'_>) {
        for key in self.map.keys() {
            self.unknown(key, reading);
        }
    }

    fn unknown(&self, key: &str, reading: &mut Reading<'_>) {
        let hint = did_you_mean(key, self.asked.iter().copied());
        self.fault(key, &format!("is not known{hint}"), reading);
    }

    /// Reads the section as its type says.
    pub(super) fn read_as<T: 'static>(
        mut self,
        family: &Family<T>,
        default: Option<&'static str>,
        reading: &mut Reading<'_>,
    ) -> Option<T> {
        self.title = family.title;
        let is_given = self.has("type");
        let kinds = family.names();
        let find = |value: &Value| {
            let text = value.as_str().ok_or(Misfit::Other)?;
            if let Some((_, why)) = family.refused.iter().find(|(name, _)| *name == text) {
                return Err(Misfit::Said(format!("{text} {why}")));
            }
            family.kinds.iter().find(|(name, _)| *name == text).copied().ok_or_else(|| Misfit::choice(text, &kinds))
        };
        let ask = self.ask("type", kinds.join(", ")).documented(default.unwrap_or_default());
        // What else belongs to it is known only when its type is.
        let (kind, read) = match default {
            Some(default) if !is_given => ask.or(default, reading, find),
            _ => ask.required(reading, find)?,
        };
        let value = read(&mut self, reading);
        for key in self.map.keys() {
            let others = family.kinds_with(key);
            if others.is_empty() || others.contains(&kind) {
                self.unknown(key, reading);
            } else {
                let what = format!("belongs to {} {}, and this is {kind}", family.name, join(&others, "or"));
                self.fault(key, &what, reading);
            }
        }
        value
    }
}

fn map(value: &Value) -> Result<Map<String, Value>, Misfit> {
    value.as_object().cloned().ok_or(Misfit::Other)
}
