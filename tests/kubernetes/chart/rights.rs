//! What the accounts of the chart may do, as it is rendered, and requests that need just that.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::http::{Method, Request, StatusCode};
use kube::{Client, api::PatchParams, client::Body};
use serde_json::Value;
use testbed::kube::ApiServer;
use tokio::time::{Instant, sleep};

use super::rendering::{MANAGER, apply, render, text};

/// How long the API server may take to see a change of its own roles.
pub(super) const SEEN: Duration = Duration::from_secs(20);
/// How often it is looked whether it has.
pub(super) const POLL: Duration = Duration::from_millis(50);

/// What makes an account and its rights.
const KINDS: [&str; 7] = [
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

const CLUSTER_WIDE: [&str; 9] = [
    "tokenreviews",
    "persistentvolumes",
    "volumeattachments",
    "volumekeys",
    "localvolumes",
    "localpools",
    "storageclasses",
    "csinodes",
    "nodes",
];

/// Installs the accounts of the chart with their rights, and nothing else of it: `server.as_account(namespace,
/// "FULLNAME-keyservice")` then may do exactly what the chart lets the key service do. It returns when the API server
/// has seen them. Other words are Helm's, such as `--set store.type=s3`.
pub(crate) async fn install_rights(server: &ApiServer, namespace: &str, fullname: &str, words: &[&str]) -> Result<()> {
    let objects = render(namespace, fullname, words)?;
    install(server, namespace, &objects).await?;
    for right in &rights(&objects)? {
        right.until_allowed(server, &right.account).await?;
    }
    Ok(())
}

pub(super) async fn install(server: &ApiServer, namespace: &str, objects: &[Value]) -> Result<()> {
    server.namespace(namespace).await?;
    let how = PatchParams::apply(MANAGER).force();
    for object in objects.iter().filter(|object| KINDS.contains(&text(object, "/kind"))) {
        apply(server, object, &how).await?;
    }
    Ok(())
}

/// One verb on one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Right {
    /// Who has it, as the API server calls it.
    pub(super) account: String,
    /// The role that gives it.
    pub(super) role: String,
    /// Where; none for everywhere.
    pub(super) namespace: Option<String>,
    pub(super) group: String,
    pub(super) resource: String,
    pub(super) verb: String,
    /// Of which objects; none for all.
    pub(super) names: Vec<String>,
}

impl Right {
    /// What it is a right to, with its group.
    pub(super) fn of(&self) -> String {
        if self.group.is_empty() { self.resource.clone() } else { format!("{}/{}", self.group, self.resource) }
    }

    /// The request that it allows. It changes nothing: what it writes is no object, or a dry run.
    fn request(&self, as_account: &str) -> Result<Request<Body>> {
        let (resource, subresource) = self.resource.split_once('/').unwrap_or((&self.resource, ""));
        let mut path = match self.group.as_str() {
            "" => "/api/v1".to_owned(),
            group => format!("/apis/{group}/v1"),
        };
        let has_name = matches!(self.verb.as_str(), "get" | "update" | "patch" | "delete");
        if !CLUSTER_WIDE.contains(&resource) {
            match &self.namespace {
                Some(namespace) => path += &format!("/namespaces/{namespace}"),
                None if has_name || self.verb == "create" => path += "/namespaces/default",
                None => {}
            }
        }
        path += &format!("/{resource}");
        if has_name {
            path += &format!("/{}", self.names.first().map_or("none", String::as_str));
        }
        if !subresource.is_empty() {
            path += &format!("/{subresource}");
        }
        let (method, query) = match self.verb.as_str() {
            "get" => (Method::GET, ""),
            "list" => (Method::GET, "?limit=1"),
            "watch" => (Method::GET, "?watch=true&timeoutSeconds=1"),
            "create" => (Method::POST, "?dryRun=All"),
            "update" => (Method::PUT, "?dryRun=All"),
            "patch" => (Method::PATCH, "?dryRun=All"),
            "delete" => (Method::DELETE, "?dryRun=All"),
            verb => anyhow::bail!("{verb} is no verb of a request"),
        };
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path + query).header("content-type", kind);
        Ok(request.header("impersonate-user", as_account).body(Body::from(b"{}".to_vec()))?)
    }

    /// What the API server answers to the request.
    pub(super) async fn answer(&self, client: &Client, as_account: &str) -> Result<StatusCode> {
        let answer = client.send(self.request(as_account)?).await;
        Ok(answer.with_context(|| format!("{} {}", self.verb, self.of()))?.status())
    }

    /// Waits until the request is not refused.
    pub(super) async fn until_allowed(&self, server: &ApiServer, as_account: &str) -> Result<()> {
        let (client, start) = (server.client(), Instant::now());
        while self.answer(&client, as_account).await? == StatusCode::FORBIDDEN {
            let (verb, of) = (&self.verb, self.of());
            ensure!(start.elapsed() < SEEN, "{as_account} may not {verb} {of} {:?}", self.names);
            sleep(POLL).await;
        }
        Ok(())
    }
}

/// Every right of every account.
pub(super) fn rights(objects: &[Value]) -> Result<Vec<Right>> {
    let mut all = Vec::new();
    for binding in objects.iter().filter(|object| text(object, "/kind").ends_with("RoleBinding")) {
        let name = text(binding, "/roleRef/name");
        let is_role = |object: &&Value| {
            text(object, "/kind") == text(binding, "/roleRef/kind")
                && text(object, "/metadata/name") == name
                && text(object, "/metadata/namespace") == text(binding, "/metadata/namespace")
        };
        let role = objects.iter().find(is_role).with_context(|| format!("{name} is bound and not there"))?;
        let namespace = Some(text(role, "/metadata/namespace").to_owned()).filter(|namespace| !namespace.is_empty());
        for subject in binding["subjects"].as_array().context("subjects")? {
            ensure!(text(subject, "/kind") == "ServiceAccount", "{subject} is no account");
            let account = format!("system:serviceaccount:{}:{}", text(subject, "/namespace"), text(subject, "/name"));
            for rule in role["rules"].as_array().context("rules")? {
                for (group, resource, verb) in combined(rule)? {
                    let names = list(rule, "resourceNames");
                    let (account, role, namespace) = (account.clone(), name.to_owned(), namespace.clone());
                    all.push(Right { account, role, namespace, group, resource, verb, names });
                }
            }
        }
    }
    ensure!(all.len() > 50, "only {} rights", all.len());
    Ok(all)
}

fn combined(rule: &Value) -> Result<Vec<(String, String, String)>> {
    let (groups, resources, verbs) = (list(rule, "apiGroups"), list(rule, "resources"), list(rule, "verbs"));
    let mut all = Vec::new();
    for group in &groups {
        for resource in &resources {
            all.extend(verbs.iter().map(|verb| (group.clone(), resource.clone(), verb.clone())));
        }
    }
    ensure!(!all.is_empty(), "{rule} allows nothing");
    Ok(all)
}

fn list(rule: &Value, key: &str) -> Vec<String> {
    let texts = rule[key].as_array().into_iter().flatten();
    texts.filter_map(Value::as_str).map(str::to_owned).collect()
}
