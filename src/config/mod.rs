//! Configuration: the command line, the environment (`COFFER_*`, each the twin of a flag) and a file, as typed values.
//!
//! Nothing else reads the environment. Everything is checked before anything is started, and all faults are told at
//! once; a program that ends because of them ends with status 64.

pub mod args;
#[cfg(feature = "keyservice")]
pub mod file;

use std::fmt;

/// The exit status of a program whose configuration is at fault (sysexits(3), EX_USAGE).
pub const EXIT_FAULTS: u8 = 64;

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(Vec<String>);

impl Faults {
    /// One fault.
    #[must_use]
    pub fn one(fault: impl Into<String>) -> Self {
        Self(vec![fault.into()])
    }

    /// Adds a fault.
    pub fn add(&mut self, fault: impl Into<String>) {
        self.0.push(fault.into());
    }

    /// Adds all faults of another list.
    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Whether a fault is told already.
    #[must_use]
    pub fn contains(&self, fault: &str) -> bool {
        self.0.iter().any(|told| told == fault)
    }

    /// The value, where there is no fault.
    ///
    /// # Errors
    /// There are faults.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Faults {}

/// The known name that is most like another, as a question; empty where none is near.
#[must_use]
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let likeness = |known: &&str| strsim::jaro_winkler(&name.to_lowercase(), &known.to_lowercase());
    let nearest = known.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match nearest.filter(|nearest| likeness(nearest) > 0.75) {
        Some(nearest) => format!("; did you mean {nearest}?"),
        None => String::new(),
    }
}
