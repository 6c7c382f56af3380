//! Every value has a comment, a place in the schema and a row of docs/helm.md, and all three say the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context, Result, ensure};
use coffer::{config::file::reference, key::policy::RESERVED_CONTEXT};
use libtest_mimic::Trial;
use serde_json::Value;
use testbed::project;

use super::rendering::{parse, plain};

/// Whose keys a provider or a store of a type has, by their headings in docs/configuration.md.
const TYPES: &[(&str, &[&str])] = &[
    ("cluster-key", &["cluster-key"]),
    ("local", &["local"]),
    ("aws-kms", &["aws-kms", "How AWS is reached", "Every KMS"]),
    ("azure-key-vault", &["azure-key-vault", "How Azure is reached", "Every KMS"]),
    ("gcp-kms", &["gcp-kms", "How Google is reached", "Every KMS"]),
    ("transit", &["transit", "Every KMS"]),
    ("kes", &["kes", "Every KMS"]),
    ("kubernetes", &["kubernetes"]),
    ("filesystem", &["filesystem"]),
    ("s3", &["s3", "How AWS is reached", "Every store of objects"]),
    ("gcs", &["gcs", "How Google is reached", "Every store of objects"]),
    ("azure-blob", &["azure-blob", "How Azure is reached", "Every store of objects"]),
];

pub(super) fn trials() -> Vec<Trial> {
    vec![
        plain("chart_every_value_is_explained_in_three_places_with_the_same_words", explained),
        plain("chart_the_schema_knows_nothing_that_is_no_value", nothing_else),
        plain("chart_the_schema_has_the_keys_of_each_provider_and_store", keys_of_types),
        plain("chart_the_schema_has_the_keys_of_a_policy_and_of_the_file", keys_of_the_file),
        plain("chart_the_image_of_a_node_has_each_program_that_the_driver_starts", programs),
    ]
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(project().join(path)).with_context(|| format!("read {path}"))
}

fn schema() -> Result<Value> {
    Ok(serde_json::from_str(&read("charts/coffer/values.schema.json")?)?)
}

/// The comment above each key of values.yaml, by its dotted path.
fn comments() -> Result<BTreeMap<String, String>> {
    let (mut all, mut path, mut comment) = (BTreeMap::new(), Vec::<String>::new(), Vec::<String>::new());
    for line in read("charts/coffer/values.yaml")?.lines() {
        let words = line.trim();
        if let Some(words) = words.strip_prefix('#') {
            comment.push(words.trim().to_owned());
            continue;
        }
        // An item of a list belongs to its key.
        if let Some((key, _)) = words.split_once(':').filter(|_| !words.starts_with('-')) {
            path.truncate((line.len() - line.trim_start().len()) / 2);
            path.push(key.to_owned());
            let path = path.join(".");
            ensure!(!comment.is_empty(), "values.yaml: {path} has no comment");
            all.insert(path, comment.join(" "));
        }
        comment.clear();
    }
    Ok(all)
}

/// The values that are no group of others, with their defaults.
fn leaves(path: &str, value: &Value, found: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(&path, value, found);
            }
        }
        _ => {
            found.insert(path.to_owned(), value.clone());
        }
    }
}

fn defaults() -> Result<BTreeMap<String, Value>> {
    let values = parse(&read("charts/coffer/values.yaml")?)?;
    let mut found = BTreeMap::new();
    leaves("", &values, &mut found);
    ensure!(found.len() > 100, "only {} values", found.len());
    Ok(found)
}

/// What the schema has at a dotted path. Of objects by name every one is alike.
fn in_schema<'a>(schema: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(schema, |schema, key| {
        let named = schema["properties"].get(key);
        named.or_else(|| schema["patternProperties"].as_object()?.values().next())
    })
}

fn explained() -> Result<()> {
    let (comments, defaults, schema, page) = (comments()?, defaults()?, schema()?, read("docs/helm.md")?);
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| `")).collect();
    for (path, comment) in &comments {
        let found = in_schema(&schema, path).with_context(|| format!("values.schema.json has no {path}"))?;
        // A class is explained as a class, and not as this one.
        if path != "storageClasses.coffer-local" {
            let told = found["description"].as_str().unwrap_or_default();
            ensure!(told == comment, "values.schema.json: {path}: {told}, and not: {comment}");
        }
        let Some(default) = defaults.get(path) else { continue };
        let row = format!("| `{path}` | `{default}` | {} |", comment.replace('|', "\\|"));
        ensure!(rows.contains(&row.as_str()), "docs/helm.md has no row:\n{row}");
    }
    for path in defaults.keys() {
        ensure!(comments.contains_key(path), "values.yaml: {path} has no comment of its own");
    }
    let is_value = |row: &&&str| row.matches('|').count() >= 4 && row.contains("` | `");
    let documented = rows.iter().filter(is_value).count();
    ensure!(documented == defaults.len(), "docs/helm.md: {documented} rows for {} values", defaults.len());
    Ok(())
}

fn nothing_else() -> Result<()> {
    fn properties(path: &str, schema: &Value, found: &mut Vec<String>) {
        for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            properties(&path, inner, found);
            found.push(path);
        }
    }
    let (comments, mut found) = (comments()?, Vec::new());
    properties("", &schema()?, &mut found);
    // Of a parent chart; of Secrets, which have no default; and limits that some have none of.
    let others = ["global", "store.existingSecret", "node.resources.limits"];
    // What config may hold is the program's, and is compared with what that reads.
    found.retain(|path| !path.starts_with("config."));
    for path in found {
        ensure!(
            comments.contains_key(&path) || others.contains(&path.as_str()),
            "{path} is in the schema, and no value"
        );
    }
    Ok(())
}

/// A key that the program would refuse is refused by Helm already.
fn keys_of_types() -> Result<()> {
    let (schema, reference) = (schema()?, reference());
    let provider = schema["properties"]["providers"]["patternProperties"].as_object().context("providers")?;
    let provider = provider.values().next().context("a provider")?;
    for (place, what) in [(provider, "Every provider"), (&schema["properties"]["store"], "Every store")] {
        let types = place["properties"]["type"]["enum"].as_array().context("types")?;
        let expected = reference.iter().find(|key| key.section == what && key.key == "type").context(what)?;
        let mut told: Vec<_> = expected.expected.split(", ").collect();
        let mut known: Vec<_> = types.iter().filter_map(Value::as_str).collect();
        told.sort_unstable();
        known.sort_unstable();
        ensure!(told == known, "{what}: the program has {told:?}, the schema {known:?}");
        for rule in place["allOf"].as_array().context("rules")? {
            let kind = rule["if"]["properties"]["type"]["const"].as_str().context("a type")?;
            let (_, sections) = TYPES.iter().find(|(name, _)| *name == kind).with_context(|| format!("{kind}?"))?;
            let keys = reference.iter().filter(|key| sections.contains(&key.section)).map(|key| key.key);
            let mut keys: Vec<_> = keys.chain(["existingSecret", "type"]).collect();
            keys.sort_unstable();
            keys.dedup();
            let mut known: Vec<_> =
                rule["then"]["properties"].as_object().context("keys")?.keys().map(String::as_str).collect();
            known.sort_unstable();
            ensure!(keys == known, "{kind}: the program reads {keys:?}, the schema has {known:?}");
        }
    }
    Ok(())
}

/// What a value is in JSON, by what the program expects.
fn kind(expected: &str) -> &'static str {
    match expected {
        "true or false" => "boolean",
        "keys and values" | "keys and texts" => "object",
        "a list of keys and values" => "array",
        _ => "string",
    }
}

/// A key that the program would refuse in a policy, or at the top of its file, is refused by Helm already.
fn keys_of_the_file() -> Result<()> {
    let (schema, reference) = (schema()?, reference());
    let policy = &schema["properties"]["policies"]["items"];
    let places = [
        ("policies", policy),
        ("match", &policy["properties"]["match"]),
        ("role of AWS", &policy["properties"]["role"]),
        ("The file", &schema["properties"]["config"]),
    ];
    for (section, place) in places {
        // The short form stands in place of providers, which the chart always writes.
        let is_short = |key: &str| section == "The file" && key == "provider";
        let asked = reference.iter().filter(|key| key.section == section && !is_short(key.key));
        let keys: BTreeMap<_, _> = asked.map(|key| (key.key, kind(&key.expected))).collect();
        let known = place["properties"].as_object().context(section)?;
        let known: BTreeMap<_, _> =
            known.iter().map(|(key, rule)| (key.as_str(), rule["type"].as_str().unwrap_or_default())).collect();
        ensure!(keys == known, "{section}: the program reads {keys:?}, the schema has {known:?}");
        let is_closed = place["additionalProperties"] == Value::Bool(false);
        ensure!(is_closed, "{section}: the schema lets keys through that the program does not know");
    }
    let own = policy["properties"]["context"]["properties"].as_object().context("Coffer's own keys")?;
    let refused = own.iter().filter(|(_, rule)| **rule == Value::Bool(false));
    let refused: BTreeSet<_> = refused.map(|(key, _)| key.as_str()).collect();
    let reserved = BTreeSet::from(RESERVED_CONTEXT);
    ensure!(refused == reserved, "context: Coffer's own keys are {reserved:?}, the schema refuses {refused:?}");
    Ok(())
}

/// An image without a shell has what it was given, and nothing else.
fn programs() -> Result<()> {
    let build = read("images/build")?;
    let (_, list) = build.split_once("PROGRAMS=\"").context("the list of programs")?;
    let list: Vec<_> = list.split('"').next().unwrap_or_default().split_whitespace().collect();
    let mut started = Vec::new();
    for file in ["src/node/luks.rs", "src/node/filesystem.rs"] {
        let source = read(file)?;
        let code = source.split("#[cfg(test)]").next().unwrap_or_default();
        let texts = code.split('"').skip(1).step_by(2);
        let is_program = |text: &&str| {
            let families = ["mkfs.", "xfs_", "e2", "resize2", "btrfs", "cryptsetup", "dmsetup", "fsck", "tune", "blk"];
            let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.' || byte == b'_';
            families.iter().any(|family| text.starts_with(family)) && text.bytes().all(is_word)
        };
        started.extend(texts.filter(is_program).map(str::to_owned));
    }
    for program in ["cryptsetup", "dmsetup", "mkfs.ext4", "e2fsck", "xfs_growfs"] {
        ensure!(started.iter().any(|name| name == program), "{program} was not found among {started:?}");
    }
    for program in started {
        ensure!(list.contains(&program.as_str()), "{program} is not in PROGRAMS of images/build");
    }
    Ok(())
}
