//! Helm, and what the chart comes to.

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use anyhow::{Context, Result, anyhow, ensure};
use kube::{
    Api,
    api::{DynamicObject, GroupVersionKind, Patch, PatchParams},
    discovery::{self, Scope},
};
use libtest_mimic::{Failed, Trial};
use serde_json::Value;
use testbed::{kube::ApiServer, project};

/// Who applies what the chart renders to.
pub(super) const MANAGER: &str = "chart-test";

/// A test that asks no API server.
pub(super) fn plain(name: &str, test: fn() -> Result<()>) -> Trial {
    Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:?}"))))
}

/// Where Helm is.
pub(super) fn helm() -> Result<PathBuf> {
    let helm = project().join("target/tools/helm");
    ensure!(helm.is_file(), "there is no helm; `make test` builds it, and so does: tests/install helm");
    Ok(helm)
}

/// What Helm says, whether it is content or not.
pub(super) fn said(words: &[&str]) -> Result<Output> {
    let mut command = Command::new(helm()?);
    // No cluster is asked, whatever this machine's kubeconfig says.
    command.args(words).current_dir(project()).env("KUBECONFIG", "/nonexistent");
    command.output().context("start helm")
}

/// The files of values that users begin with.
pub(super) fn examples() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(project().join("charts/coffer/examples"))? {
        found.push(entry?.path().display().to_string());
    }
    found.sort();
    ensure!(found.len() >= 5, "only {found:?} were found");
    Ok(found)
}

/// The objects of an installation; `fullname` begins the names of all of them. More words are Helm's, such as
/// `--set node.udev=false`.
pub(super) fn render(namespace: &str, fullname: &str, words: &[&str]) -> Result<Vec<Value>> {
    let set = format!("fullnameOverride={fullname}");
    let mut all = vec!["template", "coffer", "charts/coffer", "--kube-version", "1.34"];
    all.extend(["--namespace", namespace, "--set", &set]);
    all.extend(words);
    let output = said(&all)?;
    ensure!(output.status.success(), "helm {}: {}", all.join(" "), String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let is_content = |line: &str| !line.trim().is_empty() && !line.starts_with('#');
    let documents = text.split("\n---\n").map(|document| document.trim_start_matches("---\n"));
    let content = documents.filter(|document| document.lines().any(is_content));
    content.map(parse).collect()
}

/// A document of YAML.
pub(super) fn parse(document: &str) -> Result<Value> {
    serde_saphyr::from_str(document).map_err(|error| anyhow!("this cannot be read: {error}\n{document}"))
}

/// A text of an object, by its JSON pointer; empty where there is none.
pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// What an object is called, for people.
pub(super) fn called(object: &Value) -> String {
    format!("{} {}", text(object, "/kind"), text(object, "/metadata/name"))
}

/// The rendered object of a kind and a name.
pub(super) fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    let is_it = |object: &&Value| text(object, "/kind") == kind && text(object, "/metadata/name") == name;
    objects.iter().find(is_it).with_context(|| format!("there is no {kind} {name}"))
}

/// Applies an object by server-side apply.
pub(super) async fn apply(server: &ApiServer, object: &Value, how: &PatchParams) -> Result<()> {
    let (client, version) = (server.client(), text(object, "/apiVersion"));
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let kind = GroupVersionKind::gvk(group, version, text(object, "/kind"));
    let (resource, capabilities) =
        discovery::pinned_kind(&client, &kind).await.with_context(|| format!("find {}", called(object)))?;
    let api: Api<DynamicObject> = match capabilities.scope {
        Scope::Cluster => Api::all_with(client, &resource),
        Scope::Namespaced => Api::namespaced_with(client, text(object, "/metadata/namespace"), &resource),
    };
    let applied = api.patch(text(object, "/metadata/name"), how, &Patch::Apply(object)).await;
    applied.map(drop).with_context(|| format!("apply {}", called(object)))
}
