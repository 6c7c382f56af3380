//! The documentation says what the program does: every whole file in it loads, and the tables of keys are complete.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use coffer::config::file::{Environment, FileConfig, reference};
use serde_json::Value;

const HEAD: &str = "| key | expected | default | environment | meaning |";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
}

/// The blocks of YAML of a page.
fn blocks(page: &str) -> Vec<String> {
    let (mut blocks, mut open): (Vec<String>, Option<Vec<&str>>) = (Vec::new(), None);
    for line in page.lines() {
        match &mut open {
            None if line.trim() == "```yaml" => open = Some(Vec::new()),
            None => {}
            Some(lines) if line.trim() == "```" => {
                blocks.push(lines.join("\n"));
                open = None;
            }
            Some(lines) => lines.push(line),
        }
    }
    blocks
}

/// Whether a block is a configuration from its beginning to its end, and no part of one or something else.
fn is_whole(block: &str) -> bool {
    let Ok(Value::Object(map)) = serde_saphyr::from_str(block) else { return false };
    (map.contains_key("provider") || map.contains_key("providers")) && map.contains_key("store")
}

#[test]
fn every_whole_file_of_the_documentation_loads() {
    let mut pages = vec![root().join("README.md")];
    files(&root().join("docs"), "md", &mut pages);
    let mut whole = 0;
    for page in pages {
        for block in blocks(&fs::read_to_string(&page).expect("a page")).iter().filter(|block| is_whole(block)) {
            whole += 1;
            if let Err(faults) = FileConfig::parse(block, Path::new("/etc/coffer.yaml"), &Environment::default()) {
                panic!("{}\n{block}\n{faults}", page.display());
            }
        }
    }
    assert!(whole >= 2, "only {whole} were found");
}

#[test]
fn every_example_loads_and_is_whole() {
    let mut examples = Vec::new();
    files(&root().join("docs/examples"), "yaml", &mut examples);
    assert!(examples.len() >= 8, "only {} were found", examples.len());
    for example in examples {
        let config = FileConfig::load(&example, &Environment::default());
        let config = config.unwrap_or_else(|faults| panic!("{faults}"));
        assert!(config.store.is_some() && (config.unix.is_some() || config.tls.is_some()), "{}", example.display());
    }
}

/// A row of a table: key, expected, default, variables.
type Row = [String; 4];

/// The tables of keys of a page, by their headings.
fn tables(page: &str) -> BTreeMap<String, BTreeSet<Row>> {
    let mut tables: BTreeMap<String, BTreeSet<Row>> = BTreeMap::new();
    let (mut heading, mut inside) = (String::new(), false);
    for line in page.lines() {
        if line.starts_with('#') {
            heading = line.trim_start_matches('#').replace('`', "").trim().to_owned();
        }
        inside = line == HEAD || inside && line.starts_with('|');
        if inside && line != HEAD && !line.starts_with("|---") {
            let cells: Vec<_> = line.split('|').skip(1).map(|cell| cell.replace('`', "").trim().to_owned()).collect();
            let row: Row = std::array::from_fn(|place| cells.get(place).cloned().unwrap_or_default());
            assert!(tables.entry(heading.clone()).or_default().insert(row), "{heading}: {line} is there twice");
        }
    }
    tables
}

#[test]
fn the_documented_keys_are_those_that_the_readers_ask_for() {
    let page = fs::read_to_string(root().join("docs/configuration.md")).expect("the page");
    let mut asked: BTreeMap<String, BTreeSet<Row>> = BTreeMap::new();
    for key in reference() {
        let row = [key.key.to_owned(), key.expected, key.default, key.environment.join(", ")];
        asked.entry(key.section.to_owned()).or_default().insert(row);
    }
    let documented = tables(&page);
    let (none, mut wrong) = (BTreeSet::new(), Vec::new());
    let sections: BTreeSet<_> = asked.keys().chain(documented.keys()).collect();
    for section in sections {
        let (asked, documented) = (asked.get(section).unwrap_or(&none), documented.get(section).unwrap_or(&none));
        let line = |row: &Row| format!("{section}: | `{}` | {} |", row[0], row[1..].join(" | "));
        wrong.extend(asked.difference(documented).map(|row| format!("not documented: {}", line(row))));
        wrong.extend(documented.difference(asked).map(|row| format!("not asked for: {}", line(row))));
    }
    assert!(wrong.is_empty(), "docs/configuration.md:\n{}", wrong.join("\n"));
}

#[test]
fn the_reference_reaches_every_type() {
    let sections: BTreeSet<_> = reference().into_iter().map(|key| key.section).collect();
    for section in ["The file", "kes", "auth of transit", "role of AWS", "match", "azure-blob", "listen.tls", "cache"] {
        assert!(sections.contains(section), "{section} is not among {sections:?}");
    }
}
