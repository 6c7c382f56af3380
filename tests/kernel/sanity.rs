//! The CSI project's own conformance tests, csi-sanity, against a driver on a real kernel.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;

use crate::{Bed, loops, mappings, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("csi_sanity_finds_nothing", sanity)]
}

/// What a spec that is skipped may name: capabilities that the driver does not advertise.
const NOT_ADVERTISED: &[&str] = &[
    "Snapshot",
    "snapshot",
    "GroupController",
    "ControllerGetVolume",
    "ControllerPublishVolume",
    "ControllerUnpublishVolume",
    "volume lifecycle",
    "volume from an existing source",
    "volume source",
    "volume attribute class",
    "ControllerModify",
    "ModifyVolume",
    "GET_VOLUME",
];

async fn sanity(bed: Bed) -> Result<()> {
    let program = testbed::project().join("target/tools/csi-sanity");
    if !program.exists() {
        bail!(
            "there is no {}; install it: GOBIN={} go install github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v5.5.0",
            program.display(),
            program.parent().context("a folder")?.display()
        );
    }
    let path = |name: &str| bed.path(name).display().to_string();
    let report = bed.path("report.json");
    let output = Command::new(&program)
        .arg(format!("--csi.endpoint=unix://{}", bed.driver.state_dir().join("csi.sock").display()))
        .arg(format!("--csi.mountdir={}", path("mount")))
        .arg(format!("--csi.stagingdir={}", path("staging")))
        .args(["--csi.testvolumesize=67108864", "--csi.testvolumeexpandsize=134217728"])
        .args(["--ginkgo.no-color", &format!("--ginkgo.json-report={}", report.display())])
        .output()
        .context("start csi-sanity")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(&report).context(text.to_string())?)?;
    let specs = told[0]["SpecReports"].as_array().context("the report has specs")?;
    let name = |spec: &serde_json::Value| {
        let mut words: Vec<_> = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten().collect();
        words.push(&spec["LeafNodeText"]);
        words.into_iter().filter_map(serde_json::Value::as_str).collect::<Vec<_>>().join(" ")
    };
    let with = |state: &str| specs.iter().filter(|spec| spec["State"] == state).map(name).collect::<Vec<_>>();
    let (passed, skipped) = (with("passed"), with("skipped"));
    let failed: Vec<_> = ["failed", "panicked", "timedout", "interrupted"].into_iter().flat_map(with).collect();
    println!("csi-sanity: {} passed, {} failed, {} skipped", passed.len(), failed.len(), skipped.len());
    for spec in &skipped {
        println!("  skipped: {spec}");
    }
    ensure!(failed.is_empty() && output.status.success(), "{failed:#?}\n{text}");
    ensure!(passed.len() > 40, "only {} specs ran", passed.len());
    for spec in &skipped {
        ensure!(NOT_ADVERTISED.iter().any(|capability| spec.contains(capability)), "{spec} should not be skipped");
    }
    ensure!(mappings().is_empty() && loops() == 0, "something stays open");
    Ok(())
}
