//! A node writes what is its own: what no role can say, an admission policy does.

use anyhow::{Result, ensure};
use axum::http::{Method, Request};
use kube::{
    Client, Config,
    api::PatchParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use testbed::kube::{ApiServer, ISSUER};
use tokio::time::{Instant, sleep};

use super::{
    rendering::{MANAGER, apply},
    rights::{POLL, SEEN, install_rights},
};
use crate::Bed;

pub(super) fn trials(bed: &Bed) -> Vec<Trial> {
    vec![bed.trial("chart_a_node_writes_what_is_its_own_and_nothing_of_another", |server| async move {
        own_alone(&server).await
    })]
}

/// A client with a token. In that of a Pod the API server has written its node.
async fn with_token(server: &ApiServer, token: &str) -> Result<Client> {
    let mut config: Value = serde_json::from_slice(&std::fs::read(server.kubeconfig())?)?;
    config["users"][0]["user"] = json!({ "token": token });
    let config: Kubeconfig = serde_json::from_value(config)?;
    Ok(Client::try_from(Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?)?)
}

async fn own_alone(server: &ApiServer) -> Result<()> {
    const NAMESPACE: &str = "chart-admission";
    const ACCOUNT: &str = "chart-admission-node";
    let (ours, others) = ("chart-node-1", "chart-node-2");
    install_rights(server, NAMESPACE, NAMESPACE, &[]).await?;
    server.pod(NAMESPACE, ACCOUNT, "driver", ours).await?;
    let how = PatchParams::apply(MANAGER).force();
    for node in [ours, others] {
        let metadata = json!({ "name": format!("vol-of-{node}"), "finalizers": ["coffer.csi/file"] });
        let spec = json!({ "nodeName": node, "sizeBytes": 4096 });
        let kind = json!({ "apiVersion": "coffer.csi/v1", "kind": "LocalVolume", "metadata": metadata, "spec": spec });
        apply(server, &kind, &how).await?;
    }
    let node = with_token(server, &server.token(NAMESPACE, ACCOUNT, ISSUER, Some("driver")).await?).await?;
    let nowhere = with_token(server, &server.token(NAMESPACE, ACCOUNT, ISSUER, None).await?).await?;
    let volume = |node: &str, more: &str| format!("/apis/coffer.csi/v1/localvolumes/vol-of-{node}{more}");
    let (pools, status) = ("/apis/coffer.csi/v1/localpools".to_owned(), json!({ "status": { "phase": "Ready" } }));
    let pool = |node: &str| json!({ "apiVersion": "coffer.csi/v1", "kind": "LocalPool", "metadata": { "name": node } });
    let free = json!({ "metadata": { "finalizers": [] } });
    let own = "its own node only";

    // Policies take a moment until they hold.
    let (start, dry_run) = (Instant::now(), format!("{pools}?dryRun=All"));
    while told(&node, Method::PATCH, &volume(others, "/status"), &status).await?.is_ok()
        || told(&node, Method::POST, &dry_run, &pool(others)).await?.is_ok()
    {
        ensure!(start.elapsed() < SEEN, "a node writes what is another's");
        sleep(POLL).await;
    }
    let cases = [
        (&node, Method::PATCH, volume(ours, "/status"), &status, ""),
        (&node, Method::PATCH, volume(ours, ""), &free, ""),
        (&node, Method::POST, pools.clone(), &pool(ours), ""),
        (&node, Method::PATCH, format!("{pools}/{ours}/status"), &json!({ "status": room() }), ""),
        (&node, Method::PATCH, volume(others, "/status"), &status, own),
        (&node, Method::PATCH, volume(others, ""), &free, own),
        (
            &node,
            Method::PATCH,
            volume(ours, ""),
            &json!({ "spec": { "sizeBytes": 8192 } }),
            "what a LocalVolume is to be",
        ),
        (&node, Method::POST, pools.clone(), &pool(others), "the node of its name only"),
        (&nowhere, Method::PATCH, volume(ours, "/status"), &status, own),
        (&nowhere, Method::POST, pools.clone(), &pool("chart-node-3"), "the node of its name only"),
    ];
    for (client, method, path, body, refusal) in cases {
        let answer = told(client, method.clone(), &path, body).await?;
        match answer {
            Ok(()) => ensure!(refusal.is_empty(), "{method} {path}: {body} passes"),
            Err(why) => ensure!(!refusal.is_empty() && why.contains(refusal), "{method} {path}: {why}"),
        }
    }
    Ok(())
}

fn room() -> Value {
    json!({ "availableBytes": 1, "updated": "2026-01-01T00:00:00Z" })
}

/// What the API server says to a request: nothing against it, or why not.
async fn told(client: &Client, method: Method, path: &str, body: &Value) -> Result<Result<(), String>> {
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder().method(method).uri(path).header("content-type", kind);
    match client.request_text(request.body(body.to_string().into_bytes())?).await {
        Ok(_) => Ok(Ok(())),
        Err(kube::Error::Api(status)) => Ok(Err(status.message.clone())),
        Err(error) => Err(error.into()),
    }
}
