//! What was shown on what, and what was not.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use testbed::cloud::Standing;

static ROWS: Mutex<BTreeMap<Place, Row>> = Mutex::new(BTreeMap::new());

/// Where something is tried: a provider or a store, and the server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    joint: &'static str,
    kind: String,
    server: String,
    standing: String,
}

#[derive(Default)]
struct Row {
    shown: BTreeSet<String>,
    not_shown: BTreeSet<String>,
}

/// The table's row of one server.
#[derive(Clone, Debug)]
pub(crate) struct Notes(Place);

impl Notes {
    /// The row of a provider.
    pub(crate) fn provider(kind: &str, server: String, standing: Standing) -> Self {
        Self(Place { joint: "provider", kind: kind.to_owned(), server, standing: standing.to_string() })
    }

    /// The row of a store.
    pub(crate) fn store(kind: &str, server: String, standing: Standing) -> Self {
        Self(Place { joint: "store", kind: kind.to_owned(), server, standing: standing.to_string() })
    }

    pub(crate) fn shown(&self, what: impl Into<String>) {
        self.row(|row| row.shown.insert(what.into()));
    }

    /// What cannot be shown here, with the reason.
    pub(crate) fn not_shown(&self, what: impl Into<String>) {
        let what = what.into();
        println!("not shown: {} {} on {}: {what}", self.0.joint, self.0.kind, self.0.server);
        self.row(|row| row.not_shown.insert(what));
    }

    fn row(&self, change: impl FnOnce(&mut Row) -> bool) {
        let mut rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
        change(rows.entry(self.0.clone()).or_default());
    }
}

/// Prints all rows, in Markdown.
pub(crate) fn print() {
    let rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
    println!("\n| provider or store | server | standing | shown | not shown |\n|---|---|---|---|---|");
    let list = |items: &BTreeSet<String>| items.iter().map(String::as_str).collect::<Vec<_>>().join("; ");
    for (Place { joint, kind, server, standing }, Row { shown, not_shown }) in rows.iter() {
        println!("| {joint} {kind} | {server} | {standing} | {} | {} |", list(shown), list(not_shown));
    }
}
