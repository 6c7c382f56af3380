//! Values: what is refused and with which words, and what the rest comes to.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use testbed::project;

use super::rendering::{examples, helm, object, plain, render, said, text};

const CLUSTER: &str = "clusterId=6f9c9f0e-5a5c-4f0e-9f44-0c7d3f5b7a11";

/// Values that are wrong, and what Helm says to them.
const WRONG: &[(&[&str], &str)] = &[
    (&["keyservice.replicas=0"], "at '/keyservice/replicas': minimum: got 0, want 1"),
    (&["keyservice.replica=3"], "at '/keyservice': additional properties 'replica' not allowed"),
    (&["keyservices.replicas=3"], "additional properties 'keyservices' not allowed"),
    (&["log.level=loud"], "at '/log/level': value must be one of 'error', 'warn', 'info', 'debug', 'trace'"),
    (&["clusterId=production"], "at '/clusterId': 'production' does not match pattern"),
    (&["images.coffer.digest=sha256:12"], "at '/images/coffer/digest': 'sha256:12' does not match pattern"),
    (&["providers.Main.type=cluster-key"], "at '/providers': additional properties 'Main' not allowed"),
    (
        &["providers.main.type=vault"],
        "at '/providers/main/type': value must be one of 'cluster-key', 'local', 'aws-kms'",
    ),
    (&["providers.main.keyId=x"], "at '/providers/main': missing property 'type'"),
    (
        &["providers.aws.type=aws-kms", "providers.aws.keyID=x", CLUSTER],
        "at '/providers/aws': additional properties 'keyID' not allowed",
    ),
    (
        &["store.type=sql"],
        "at '/store/type': value must be one of 'kubernetes', 'filesystem', 's3', 'gcs', 'azure-blob'",
    ),
    (&["store.bucket=x"], "at '/store': additional properties 'bucket' not allowed"),
    (&["policies[0]=lab"], "at '/policies/0': got string, want object"),
    (&["policies[0].name=7"], "at '/policies/0/name': got number, want string"),
    (&["policies[0].keyID=x"], "at '/policies/0': additional properties 'keyID' not allowed"),
    (&["policies[0].keyId=x"], "at '/policies/0': properties 'provider' required, if 'keyId' exists"),
    (
        &["policies[0].match.storageclass=gold"],
        "at '/policies/0/match': additional properties 'storageclass' not allowed",
    ),
    (
        &["policies[0].provider=main", "policies[0].mandatory=maybe"],
        "at '/policies/0/mandatory': got string, want boolean",
    ),
    (&["policies[0].mandatory=true"], "at '/policies/0': missing property 'provider'"),
    (
        &["policies[0].provider=main", "policies[0].mandatory=true", "policies[0].allowOverride=true"],
        "at '/policies/0/allowOverride': value must be false",
    ),
    (
        &["policies[0].provider=main", "policies[0].role.externalId=blue"],
        "at '/policies/0/role': missing property 'arn'",
    ),
    (
        &["policies[0].provider=main", "policies[0].role.arn=blue"],
        "at '/policies/0/role/arn': 'blue' does not match pattern",
    ),
    (&["policies[0].context.cluster=x"], "at '/policies/0/context/cluster': false schema"),
    (&["policies[0].context.team=7"], "at '/policies/0/context/team': got number, want string"),
    (&["config.auditlog=/var/log/audit"], "at '/config': additional properties 'auditlog' not allowed"),
    (&["config.provider.type=local"], "at '/config': additional properties 'provider' not allowed"),
    (&["config.listen=0.0.0.0:7443"], "at '/config/listen': got string, want object"),
    (&["config.policies[0].mandatory=true"], "at '/config/policies/0': missing property 'provider'"),
    (&["keyservice.reviewExpiry=10"], "at '/keyservice/reviewExpiry'"),
    (&["node.kubeletDir=var/lib/kubelet"], "at '/node/kubeletDir': 'var/lib/kubelet' does not match pattern"),
    (&["node.maxUnavailable=0"], "at '/node/maxUnavailable': minimum: got 0, want 1"),
    (&["storageClasses.gold.fsType=xfs"], "at '/storageClasses/gold': additional properties 'fsType' not allowed"),
    (&["storageClasses.gold.reclaimPolicy=Keep"], "value must be one of 'Delete', 'Retain'"),
    (&["tls.authority=none"], "at '/tls/authority': 'none' does not match pattern"),
    (&["providers.aws.type=aws-kms"], "clusterId: a UUID is needed"),
    (
        &["providers.a.type=cluster-key", "providers.b.type=local"],
        "defaultProvider: one of a, b is needed, as there is more than one",
    ),
    (&["defaultProvider=gold"], "defaultProvider: gold is no provider"),
    (&["setup.enabled=false"], "keys.existingSecret: needed"),
    (&["setup.enabled=false", "keys.existingSecret=k"], "tls.existingSecret: needed"),
    (&["certManager.enabled=true"], "certManager.issuerRef.name: needed"),
    (&["certManager.enabled=true", "certManager.issuerRef.name=x"], "tls.authority or tls.authorityConfigMap: needed"),
    (&["certManager.enabled=true", "tls.existingSecret=x"], "only one of them"),
    (&["tls.authorityConfigMap=x"], "for a certificate of your own only"),
    (&["keyservice.auditLog=/var/log/audit"], "keyservice.auditLog: /var/log/audit is on no volume"),
    (&["store.type=filesystem", "store.path=/r"], "keyservice.replicas: 1 at most with store.type filesystem"),
];

/// Files that others put into the key service's container: a webhook of Azure, the kubelet.
const INJECTED: [&str; 2] = ["/var/run/secrets/azure/tokens/", "/var/run/secrets/kubernetes.io/serviceaccount/"];

pub(super) fn trials() -> Vec<Trial> {
    vec![
        plain("chart_lint_finds_nothing", lint),
        plain("chart_wrong_values_are_refused_with_their_place", wrong),
        plain("chart_the_configuration_of_each_example_is_good", configuration),
        plain("chart_manifests_are_what_the_chart_renders_to", manifests),
        plain("chart_the_notes_tell_the_next_commands_and_how_to_keep_the_key", notes),
        plain("chart_a_key_and_a_certificate_that_are_there_are_not_made", setup),
    ]
}

fn lint() -> Result<()> {
    for example in examples()? {
        let output = said(&["lint", "--strict", "charts/coffer", "--values", &example])?;
        ensure!(output.status.success(), "{example}: {}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}

fn wrong() -> Result<()> {
    for (sets, expected) in WRONG {
        let mut words = vec!["template", "coffer", "charts/coffer", "--kube-version", "1.34"];
        words.extend(sets.iter().flat_map(|set| ["--set", *set]));
        let output = said(&words)?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{sets:?} passes");
        ensure!(told.contains(expected), "{sets:?}: expected {expected:?} in:\n{told}");
    }
    let old = said(&["template", "coffer", "charts/coffer", "--kube-version", "1.32"])?;
    let told = String::from_utf8_lossy(&old.stderr);
    ensure!(!old.status.success() && told.contains("requires kubeVersion"), "{told}");
    Ok(())
}

/// The program itself reads what the chart makes of values, and each file that it names is mounted.
fn configuration() -> Result<()> {
    for example in examples()? {
        let objects = render("coffer-system", "coffer", &["--values", &example])?;
        let config = text(object(&objects, "ConfigMap", "coffer-keyservice")?, "/data/config.yaml");
        let deployment = object(&objects, "Deployment", "coffer-keyservice")?;
        let mounts = deployment.pointer("/spec/template/spec/containers/0/volumeMounts").and_then(Value::as_array);
        let mounts: Vec<_> = mounts.context("volume mounts")?.iter().map(|mount| text(mount, "/mountPath")).collect();
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("config.yaml");
        fs::write(&file, config)?;
        let output = Command::new(env!("CARGO_BIN_EXE_coffer")).args(["config", "check"]).arg(&file).output()?;
        let (told, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{example}:\n{config}\n{failed}");
        for line in told.lines().filter(|line| line.ends_with("the key service will need it")) {
            let path = line.split(": ").find(|part| part.starts_with('/')).with_context(|| line.to_owned())?;
            // In the container the file lies in /etc/coffer, where paths begin that are not absolute.
            let path = path.replace(&folder.path().display().to_string(), "/etc/coffer");
            let is_below = |mount: &&str| path.starts_with(&format!("{mount}/"));
            let is_there = mounts.iter().any(is_below) || INJECTED.iter().any(|place| path.starts_with(place));
            ensure!(is_there, "{example}: nothing is mounted at {path}: {mounts:?}");
        }
    }
    Ok(())
}

fn manifests() -> Result<()> {
    let output = Command::new(project().join("charts/render")).arg("--check").env("HELM", helm()?).output()?;
    let (told, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{told}{failed}");
    Ok(())
}

fn notes() -> Result<()> {
    let as_it_is = [
        "kubectl apply -f -",
        "storageClassName: coffer-local",
        "kubectl get volumekeys",
        "helm test coffer --namespace coffer-system",
        "get secret coffer-cluster-key",
        r#"-o go-template='{{index .data "cluster-key.json" | base64decode}}'"#,
    ];
    noted(&[], &as_it_is, &[])?;
    let make_one = ["kind: StorageClass", "provisioner: coffer.csi"];
    noted(&["--set", "storageClasses.coffer-local=null"], &make_one, &["PersistentVolumeClaim", "helm test"])?;
    let in_a_bucket = ["--set", "config.store.type=s3"];
    noted(&in_a_bucket, &["/coffer records list --config /etc/coffer/config.yaml"], &["kubectl get volumekeys"])
}

/// What the notes of an installation with these words hold, and what they do not.
fn noted(words: &[&str], with: &[&str], without: &[&str]) -> Result<()> {
    let install = ["install", "coffer", "charts/coffer", "--namespace", "coffer-system", "--dry-run=client"];
    let output = said(&[&install[..], words].concat())?;
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (_, notes) = told.split_once("NOTES:").context("there are no notes")?;
    for (texts, expected) in [(with, true), (without, false)] {
        for text in texts {
            let what = if expected { "is not" } else { "is" };
            ensure!(notes.contains(text) == expected, "{words:?}: {text:?} {what} in:\n{notes}");
        }
    }
    Ok(())
}

fn setup() -> Result<()> {
    let words = |sets: &[&str]| -> Result<Option<Vec<String>>> {
        let sets: Vec<_> = sets.iter().flat_map(|set| ["--set", *set]).collect();
        let objects = render("coffer-system", "coffer", &sets)?;
        let Ok(job) = object(&objects, "Job", "coffer-setup") else { return Ok(None) };
        let args =
            job.pointer("/spec/template/spec/containers/0/args").and_then(Value::as_array).context("arguments")?;
        Ok(Some(args.iter().filter_map(Value::as_str).map(str::to_owned).collect()))
    };
    let (key, certificate) =
        ("keys.existingSecret=key", ["tls.existingSecret=tls", "tls.authorityConfigMap=authority"]);
    let only =
        |words: Option<Vec<String>>| words.map(|words| words.iter().find(|word| word.starts_with("--only")).cloned());
    ensure!(only(words(&[])?) == Some(None));
    ensure!(only(words(&[key])?) == Some(Some("--only=certificates".to_owned())));
    ensure!(only(words(&certificate)?) == Some(Some("--only=cluster-key".to_owned())));
    ensure!(only(words(&[key, certificate[0], certificate[1]])?).is_none());
    let kms = ["providers.bao.type=transit", CLUSTER];
    ensure!(only(words(&kms)?) == Some(Some("--only=certificates".to_owned())), "a KMS needs no cluster key");
    let service = "--service-name=coffer-keyservice.coffer-system.svc";
    ensure!(words(&[])?.is_some_and(|words| words.iter().any(|word| word == service)));
    // What a hook has made is no object of the release, so nothing of Helm's takes it away.
    let objects = render("coffer-system", "coffer", &[])?;
    let kinds: BTreeSet<_> = objects.iter().map(|object| text(object, "/kind")).collect();
    ensure!(!kinds.contains("Secret"), "{kinds:?}");
    Ok(())
}
