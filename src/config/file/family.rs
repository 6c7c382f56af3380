//! Sections that have a type, and the reader of each type.

use serde_json::Map;

use crate::config::file::{reading::Reading, section::Section, source::Environment};

/// Reads what belongs to a type.
pub(super) type Read<T> = fn(&mut Section, &mut Reading<'_>) -> Option<T>;

/// The types that a section can have.
pub(super) struct Family<T: 'static> {
    /// What the type is called.
    pub(super) name: &'static str,
    /// Under which title the key `type` is documented.
    pub(super) title: &'static str,
    /// The types, each with its reader.
    pub(super) kinds: &'static [(&'static str, Read<T>)],
    /// Types that somebody may look for, and why there is none.
    pub(super) refused: &'static [(&'static str, &'static str)],
}

impl<T: 'static> Family<T> {
    /// The names of the types.
    pub(super) fn names(&self) -> Vec<&'static str> {
        self.kinds.iter().map(|(name, _)| *name).collect()
    }

    /// Reads an empty section of each type, so that all its keys are asked for.
    pub(super) fn read_each(&self, reading: &mut Reading<'_>) {
        for (_, read) in self.kinds {
            let _ = read(&mut Section::top(self.title, Map::new()), reading);
        }
    }

    /// The types that have a key.
    pub(super) fn kinds_with(&self, key: &str) -> Vec<&'static str> {
        let has = |kind: &(&'static str, Read<T>)| {
            let environment = Environment::default();
            let mut reading = Reading::of_everything(&environment);
            let _ = (kind.1)(&mut Section::top(self.title, Map::new()), &mut reading);
            reading.asked().iter().any(|asked| asked.at.is_empty() && asked.key == key)
        };
        self.kinds.iter().filter(|kind| has(kind)).map(|(name, _)| *name).collect()
    }
}
