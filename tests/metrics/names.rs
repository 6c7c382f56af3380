//! The names of metrics and of their labels: the code, the program's own list and `docs/metrics.md` have the same.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use coffer::telemetry::metrics::{Kind, METRICS};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// A metric's name, kind and labels.
type Row = (String, String, BTreeSet<String>);

/// What the code counts: each use of the macros, by the text of the sources.
fn used() -> BTreeSet<Row> {
    let (mut files, mut used) = (Vec::new(), BTreeSet::new());
    sources(&root().join("src"), &mut files);
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        for (place, _) in text.match_indices("\"coffer_") {
            let before = text[..place].trim_end();
            let kind = ["counter", "gauge", "histogram"]
                .into_iter()
                .find(|kind| before.ends_with(&format!(" {kind}!(")) || before.ends_with(&format!(":{kind}!(")));
            let Some(kind) = kind else { continue };
            let (name, rest) = text[place + 1..].split_once('"').expect("a name ends");
            // What is done with the metric follows its labels.
            let ends = [".increment(", ".decrement(", ".set(", ".record("].into_iter().filter_map(|end| rest.find(end));
            let labels =
                &rest[..ends.min().unwrap_or_else(|| panic!("{}: nothing is done with {name}", file.display()))];
            let labels = labels.split("=>").filter_map(|part| {
                let label = part.trim_end().strip_suffix('"')?;
                label.rsplit('"').next().map(str::to_owned)
            });
            used.insert((name.to_owned(), kind.to_owned(), labels.collect()));
        }
    }
    used
}

#[test]
fn the_code_the_list_and_the_documentation_name_the_same_metrics() {
    let kind = |kind| match kind {
        Kind::Counter => "counter".to_owned(),
        Kind::Gauge => "gauge".to_owned(),
        Kind::Histogram => "histogram".to_owned(),
    };
    let labels = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect();
    let listed: BTreeSet<Row> =
        METRICS.iter().map(|metric| (metric.name.to_owned(), kind(metric.kind), labels(metric.labels))).collect();
    assert_eq!(listed.len(), METRICS.len(), "a metric is listed twice");
    assert_eq!(used(), listed, "left: the code; right: telemetry::metrics::METRICS");

    let page = fs::read_to_string(root().join("docs/metrics.md")).expect("the page");
    let mut documented = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("| `coffer_")) {
        let cells: Vec<_> = line.split('|').map(|cell| cell.replace('`', "").trim().to_owned()).collect();
        let labels = cells[3].split(", ").filter(|label| !label.is_empty()).map(str::to_owned);
        documented.insert((cells[1].clone(), cells[2].clone(), labels.collect()));
    }
    assert_eq!(documented, listed, "left: docs/metrics.md; right: telemetry::metrics::METRICS");
}

#[test]
fn no_label_grows_with_the_cluster() {
    for metric in METRICS {
        for label in metric.labels {
            let bounded = [
                "certificate",
                "code",
                "endpoint",
                "key_version",
                "method",
                "operation",
                "provider",
                "reason",
                "result",
                "service",
                "state",
                "version",
            ];
            assert!(bounded.contains(label), "{}: is the number of its {label} bounded?", metric.name);
        }
    }
}
