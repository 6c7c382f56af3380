//! What the chart renders to, before a real API server: each object in strict validation, each Pod before the Pod
//! Security Standards.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use testbed::{kube::ApiServer, project};

use super::rendering::{MANAGER, apply, called, examples, parse, plain, render, text};
use crate::Bed;

/// The kinds that others define, of cert-manager and of the Prometheus operator.
const OTHERS: [&str; 2] = ["cert-manager.io_certificates", "monitoring.coreos.com_servicemonitors"];

/// Values that have everything at once.
const EVERYTHING: &str = r#"
commonLabels: { team: storage }
log: { level: debug, format: text }
images: { pullSecrets: [registry], coffer: { digest: "sha256:0000000000000000000000000000000000000000000000000000000000000000" } }
providers:
  main: { type: cluster-key }
  bao: { type: transit, address: "https://bao:8200", keyName: k, auth: { type: kubernetes, role: r }, existingSecret: bao }
defaultProvider: main
policies: [{ name: lab, match: { namespace: lab-* }, provider: bao }]
config: { listen: { unix: { path: /tmp/coffer.sock, allowedUids: [65532] } } }
tls: { authority: "-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----" }
certManager: { enabled: true, issuerRef: { name: house, kind: ClusterIssuer } }
keyservice:
  bindAddress: "::"
  auditLog: /var/log/coffer/audit.log
  serviceAccount: { annotations: { a: b }, labels: { a: b } }
  workloadIdentity: { azure: { clientId: c, tenantId: t }, aws: { roleArn: "arn:aws:iam::111122223333:role/r" } }
  podAnnotations: { a: b }
  podLabels: { a: b }
  nodeSelector: { a: b }
  tolerations: [{ operator: Exists }]
  affinity: { nodeAffinity: {} }
  extraEnv: [{ name: HTTPS_PROXY, value: "http://proxy:3128" }]
  extraVolumes: [{ name: audit, emptyDir: {} }]
  extraVolumeMounts: [{ name: audit, mountPath: /var/log/coffer }]
controller: { podAnnotations: { a: b }, podLabels: { a: b }, provisionerArgs: [--v=5], resizerArgs: [--v=5], extraEnv: [{ name: A, value: b }] }
node:
  udev: false
  podAnnotations: { a: b }
  podLabels: { a: b }
  extraEnv: [{ name: A, value: b }]
  extraVolumes: [{ name: more, emptyDir: {} }]
  extraVolumeMounts: [{ name: more, mountPath: /more }]
storageClasses:
  coffer-local: { default: true, annotations: { a: b }, mountOptions: [noatime] }
  gold: { parameters: { fsType: xfs, provider: bao, discard: true }, reclaimPolicy: Retain, volumeBindingMode: Immediate, allowVolumeExpansion: false }
networkPolicy:
  metricsFrom: [{ namespaceSelector: {} }]
  apiServer: { to: [{ ipBlock: { cidr: 10.0.0.1/32 } }] }
  egress: [{ ports: [{ port: 8200, protocol: TCP }] }]
serviceMonitor: { enabled: true, labels: { release: prometheus } }
priorityQuota: { enabled: true }
"#;

pub(super) fn trials(bed: &Bed) -> Vec<Trial> {
    vec![
        bed.trial("chart_every_example_passes_the_strict_validation_of_a_real_api_server", |server| async move {
            define_others(&server).await?;
            for example in examples()? {
                dry_run(&server, "chart-dry", &["--values", &example]).await.context(example)?;
            }
            Ok(())
        }),
        bed.trial("chart_every_value_at_once_passes_the_strict_validation_too", |server| async move {
            define_others(&server).await?;
            let folder = tempfile::tempdir()?;
            let file = folder.path().join("everything.yaml");
            std::fs::write(&file, EVERYTHING)?;
            dry_run(&server, "chart-everything", &["--values", &file.display().to_string()]).await
        }),
        bed.trial("chart_every_pod_but_the_nodes_is_restricted", |server| async move { restricted(&server).await }),
        plain("chart_no_image_is_taken_as_it_comes", pinned),
    ]
}

async fn dry_run(server: &ApiServer, namespace: &str, words: &[&str]) -> Result<()> {
    // The test's Pod is of this account, which a controller makes in a whole cluster.
    server.account(namespace, "default").await?;
    let how = PatchParams::apply(MANAGER).force().dry_run().validation_strict();
    let objects = render(namespace, namespace, words)?;
    ensure!(objects.len() > 25, "only {} objects", objects.len());
    for object in &objects {
        apply(server, object, &how).await?;
    }
    Ok(())
}

/// Their definitions, as their projects publish them.
async fn define_others(server: &ApiServer) -> Result<()> {
    for name in OTHERS {
        let path = project().join(format!("target/tools/definitions/{name}.yaml"));
        let missing = || format!("there is no {}; install it: tests/install kubernetes", path.display());
        let definition = std::fs::read_to_string(&path).with_context(missing)?;
        server.define(&serde_json::from_value(parse(&definition)?)?).await?;
    }
    Ok(())
}

/// The Pods that objects make: of each the name and the template.
fn templates(objects: &[Value]) -> Vec<(String, Value)> {
    let template = |object: &Value| {
        let template = match text(object, "/kind") {
            "Deployment" | "DaemonSet" | "Job" => object.pointer("/spec/template")?,
            "CronJob" => object.pointer("/spec/jobTemplate/spec/template")?,
            "Pod" => object,
            _ => return None,
        };
        Some((text(object, "/metadata/name").to_owned(), template.clone()))
    };
    objects.iter().filter_map(template).collect()
}

async fn restricted(server: &ApiServer) -> Result<()> {
    const NAMESPACE: &str = "chart-restricted";
    server.namespace(NAMESPACE).await?;
    let level = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": NAMESPACE, "labels": { "pod-security.kubernetes.io/enforce": "restricted" } },
    });
    let namespaces: Api<Namespace> = Api::all(server.client());
    namespaces.patch(NAMESPACE, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&level)).await?;
    let (pods, mut names): (Api<Pod>, Vec<String>) = (Api::namespaced(server.client(), NAMESPACE), Vec::new());
    for (name, template) in templates(&render(NAMESPACE, "coffer", &[])?) {
        if let Some(account) = template.pointer("/spec/serviceAccountName").and_then(Value::as_str) {
            server.account(NAMESPACE, account).await?;
        } else {
            server.account(NAMESPACE, "default").await?;
        }
        let labels = &template["metadata"]["labels"];
        let pod = json!({ "metadata": { "name": name, "labels": labels }, "spec": template["spec"] });
        let pod: Pod = serde_json::from_value(pod).with_context(|| format!("{name} is no Pod"))?;
        let made = pods.create(&PostParams { dry_run: true, field_manager: None }, &pod).await;
        if name == "coffer-node" {
            let refused = made.err().context("the driver of a node passes for restricted")?.to_string();
            ensure!(refused.contains("violates PodSecurity") && refused.contains("privileged"), "{refused}");
        } else {
            made.with_context(|| format!("{name} is not restricted"))?;
        }
        let containers = template["spec"]["containers"].as_array().context("containers")?;
        for container in containers {
            let read_only = &container["securityContext"]["readOnlyRootFilesystem"];
            ensure!(*read_only == json!(true), "{name}: the root of {} can be written", container["name"]);
            ensure!(
                container["resources"]["requests"]["memory"].is_string(),
                "{name}: {} asks for no memory",
                container["name"]
            );
        }
        names.push(name);
    }
    names.sort();
    let all = ["controller", "keyservice", "node", "renewal", "setup", "test", "uninstall"];
    ensure!(names == all.map(|name| format!("coffer-{name}")), "{names:?}");
    Ok(())
}

fn pinned() -> Result<()> {
    let mut images = 0;
    for (name, template) in templates(&render("coffer-system", "coffer", &[])?) {
        for container in template["spec"]["containers"].as_array().with_context(|| called(&template))? {
            let image = container["image"].as_str().with_context(|| format!("{name} has no image"))?;
            let tag = image.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
            ensure!(tag.is_some_and(|tag| tag != "latest" && !tag.is_empty()), "{name}: {image} names no version");
            images += 1;
        }
    }
    ensure!(images >= 9, "only {images} were found");
    let digest = format!("sha256:{}", "0".repeat(64));
    let words = ["--set", &format!("images.node.digest={digest}")];
    let node = render("coffer-system", "coffer", &words)?;
    let node = super::rendering::object(&node, "DaemonSet", "coffer-node")?;
    let image = text(node, "/spec/template/spec/containers/0/image");
    ensure!(image == format!("localhost/coffer-node@{digest}"), "{image}");
    Ok(())
}
