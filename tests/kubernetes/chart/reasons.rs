//! Who may do what: the rights of each account are those of a list with a reason for each, each is used by a request
//! that is refused without it, and what must not be possible is not.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use axum::http::StatusCode;
use kube::api::PatchParams;
use libtest_mimic::Trial;
use serde_json::json;
use testbed::kube::ApiServer;

use super::{
    rendering::{MANAGER, apply, plain, render, text},
    rights::{Right, install, install_rights, rights},
};
use crate::Bed;

/// Every right: account, resource, verbs, and who needs it for what. A right that is not here fails the test.
const RIGHTS: &[(&str, &str, &[&str], &str)] = &[
    ("keyservice", "authentication.k8s.io/tokenreviews", &["create"], "whose token this is"),
    (
        "keyservice",
        "persistentvolumes",
        &["get", "list", "watch"],
        "which volume it is: watched, and read before a refusal",
    ),
    ("keyservice", "storage.k8s.io/volumeattachments", &["get", "list", "watch"], "where it is attached, likewise"),
    ("keyservice", "coffer.csi/volumekeys", &["get", "list", "create", "update"], "records"),
    ("keyservice", "coffer.csi/volumekeys", &["watch"], "those that somebody deletes"),
    ("keyservice", "coffer.csi/localvolumes", &["list"], "coffer inventory, which is run in its Pod"),
    ("keyservice", "events.k8s.io/events", &["create", "patch"], "why a VolumeKey stays"),
    (
        "controller",
        "coffer.csi/localvolumes",
        &["get", "list", "watch", "create", "patch", "delete"],
        "files of volumes",
    ),
    ("controller", "coffer.csi/localpools", &["list"], "which node has room"),
    ("controller", "events.k8s.io/events", &["create", "patch"], "that a key was destroyed"),
    ("controller", "persistentvolumes", &["get"], "whether somebody was told of a volume that is taken back"),
    ("controller", "persistentvolumes", &["list", "watch", "create", "patch", "delete"], "external-provisioner"),
    ("controller", "persistentvolumeclaims", &["list", "watch", "update"], "external-provisioner"),
    ("controller", "persistentvolumeclaims/status", &["patch"], "external-resizer"),
    ("controller", "storage.k8s.io/storageclasses", &["list", "watch"], "external-provisioner"),
    ("controller", "storage.k8s.io/csinodes", &["list", "watch"], "external-provisioner: topology"),
    ("controller", "nodes", &["list", "watch"], "external-provisioner: topology"),
    ("controller", "events", &["create", "patch"], "both sidecars"),
    ("controller", "coordination.k8s.io/leases", &["create", "get", "update"], "both sidecars: who leads"),
    (
        "controller",
        "storage.k8s.io/csistoragecapacities",
        &["list", "watch", "create", "update", "delete"],
        "external-provisioner",
    ),
    ("controller", "pods", &["get"], "external-provisioner: who owns capacities"),
    ("controller", "apps/replicasets", &["get"], "external-provisioner: who owns capacities"),
    ("node", "coffer.csi/localvolumes", &["get", "list", "watch", "patch"], "its files, and their finalizers"),
    ("node", "coffer.csi/localvolumes/status", &["patch"], "what became of them"),
    ("node", "coffer.csi/localpools", &["create"], "its pool"),
    ("node", "coffer.csi/localpools/status", &["patch"], "the room in it"),
    ("node", "events.k8s.io/events", &["create", "patch"], "that a file is gone, or kept"),
    ("setup", "secrets", &["create", "get", "update"], "the cluster key once, authority and certificate"),
    ("setup", "configmaps", &["create", "get", "update"], "the authority, for nodes"),
    ("setup", "coffer.csi/volumekeys", &["list"], "whether records need a key that is gone"),
    ("renewal", "secrets", &["get", "update"], "authority and certificate"),
    ("renewal", "configmaps", &["get", "update"], "the authority, for nodes"),
];

/// What must not be possible: account, resource, verb, name.
const FORBIDDEN: &[(&str, &str, &str, &str)] = &[
    ("keyservice", "coffer.csi/volumekeys", "delete", "some"),
    ("keyservice", "coffer.csi/volumekeys", "patch", "some"),
    ("keyservice", "secrets", "get", "coffer-cluster-key"),
    ("keyservice", "secrets", "list", ""),
    ("keyservice", "persistentvolumes", "update", "some"),
    ("keyservice", "coffer.csi/localvolumes", "get", "some"),
    ("keyservice", "coffer.csi/localvolumes", "delete", "some"),
    ("keyservice", "pods", "create", "some"),
    ("controller", "coffer.csi/volumekeys", "get", "some"),
    ("controller", "coffer.csi/volumekeys", "list", ""),
    ("controller", "coffer.csi/localvolumes/status", "patch", "some"),
    ("controller", "secrets", "get", "coffer-cluster-key"),
    ("controller", "secrets", "list", ""),
    ("controller", "pods", "list", ""),
    ("controller", "coordination.k8s.io/leases", "update", "of-another"),
    ("node", "coffer.csi/volumekeys", "get", "some"),
    ("node", "coffer.csi/volumekeys", "list", ""),
    ("node", "coffer.csi/volumekeys", "watch", ""),
    ("node", "coffer.csi/localvolumes", "create", "some"),
    ("node", "coffer.csi/localvolumes", "update", "some"),
    ("node", "coffer.csi/localvolumes", "delete", "some"),
    ("node", "coffer.csi/localpools", "delete", "some"),
    ("node", "secrets", "get", "coffer-cluster-key"),
    ("node", "secrets", "list", ""),
    ("node", "persistentvolumes", "list", ""),
    ("node", "pods", "list", ""),
    ("setup", "secrets", "update", "CLUSTER-KEY"),
    ("setup", "secrets", "delete", "CLUSTER-KEY"),
    ("setup", "secrets", "get", "of-another"),
    ("setup", "secrets", "list", ""),
    ("renewal", "secrets", "get", "CLUSTER-KEY"),
    ("renewal", "secrets", "create", "some"),
    ("renewal", "secrets", "list", ""),
    ("renewal", "coffer.csi/volumekeys", "list", ""),
];

pub(super) fn trials(bed: &Bed) -> Vec<Trial> {
    vec![
        plain("chart_no_account_has_a_right_that_nobody_has_a_reason_for", reasons),
        bed.trial("chart_each_right_is_used_by_a_request_that_is_refused_without_it", |server| async move {
            each_is_needed(&server).await
        }),
        bed.trial("chart_no_account_can_reach_what_it_must_not", |server| async move { forbidden(&server).await }),
    ]
}

fn reasons() -> Result<()> {
    let listed = RIGHTS.iter().flat_map(|(account, of, verbs, reason)| {
        assert!(!reason.is_empty(), "{account}: {of} has no reason");
        verbs.iter().map(move |verb| format!("{account}: {verb} {of}"))
    });
    let listed: BTreeSet<_> = listed.collect();
    let objects = render("coffer-system", "coffer", &[])?;
    let rendered: BTreeSet<_> = rights(&objects)?
        .iter()
        .map(|right| {
            let account = right.account.trim_start_matches("system:serviceaccount:coffer-system:coffer-");
            format!("{account}: {} {}", right.verb, right.of())
        })
        .collect();
    let (more, fewer): (Vec<_>, Vec<_>) =
        (rendered.difference(&listed).collect(), listed.difference(&rendered).collect());
    ensure!(more.is_empty() && fewer.is_empty(), "without a reason: {more:?}; no right any more: {fewer:?}");
    // Where records are no custom resources, there is nothing to be done with them.
    let s3 = render("coffer-system", "coffer", &["--set", "store.type=s3"])?;
    ensure!(!rights(&s3)?.iter().any(|right| right.resource == "volumekeys" && right.account.ends_with("-keyservice")));
    for role in objects.iter().filter(|object| text(object, "/kind") == "ClusterRole") {
        let told = role["rules"].to_string();
        ensure!(!told.contains("secrets") && !told.contains('*'), "{}: {told}", text(role, "/metadata/name"));
    }
    Ok(())
}

/// For each right there is an account that has all others of the same account: its request is refused, and that of who
/// has all of them is not. So no right is given twice.
async fn each_is_needed(server: &ApiServer) -> Result<()> {
    let objects = render("chart-rights", "chart-rights", &[])?;
    install(server, "chart-rights", &objects).await?;
    let (all, how) = (rights(&objects)?, PatchParams::apply(MANAGER).force());
    for (number, right) in all.iter().enumerate() {
        let name = format!("chart-without-{number}");
        let without = format!("system:serviceaccount:chart-rights:{name}");
        let others: Vec<_> = all.iter().filter(|other| other.account == right.account && *other != right).collect();
        let roles: BTreeSet<_> = others.iter().map(|other| (&other.role, &other.namespace)).collect();
        for (place, (role, namespace)) in roles.into_iter().enumerate() {
            let given = others.iter().filter(|other| (&other.role, &other.namespace) == (role, namespace));
            let rules = given.map(|other| {
                json!({
                    "apiGroups": [other.group], "resources": [other.resource],
                    "verbs": [other.verb], "resourceNames": other.names,
                })
            });
            let kind = if namespace.is_some() { "Role" } else { "ClusterRole" };
            let mut metadata = json!({ "name": format!("{name}-{place}") });
            if let Some(namespace) = namespace {
                metadata["namespace"] = json!(namespace);
            }
            let role = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata,
                "rules": rules.collect::<Vec<_>>(),
            });
            let binding = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": format!("{kind}Binding"), "metadata": metadata,
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": format!("{name}-{place}") },
                "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": "chart-rights" }],
            });
            apply(server, &role, &how).await?;
            apply(server, &binding, &how).await?;
        }
        right.until_allowed(server, &right.account).await?;
        // What it still has is seen by then, role by role, so that a refusal means what it says.
        let mut seen = BTreeSet::new();
        for other in others {
            if seen.insert((&other.role, &other.namespace)) {
                other.until_allowed(server, &without).await?;
            }
        }
        let answer = right.answer(&server.client(), &without).await?;
        ensure!(answer == StatusCode::FORBIDDEN, "{right:?} is given twice: {answer}");
    }
    Ok(())
}

async fn forbidden(server: &ApiServer) -> Result<()> {
    const NAMESPACE: &str = "chart-forbidden";
    install_rights(server, NAMESPACE, NAMESPACE, &[]).await?;
    for (account, of, verb, name) in FORBIDDEN {
        let (group, resource) = match of.split_once('/') {
            Some((group, resource)) => (group, resource),
            None => ("", *of),
        };
        let names = vec![name.replace("CLUSTER-KEY", &format!("{NAMESPACE}-cluster-key"))];
        let right = Right {
            account: format!("system:serviceaccount:{NAMESPACE}:{NAMESPACE}-{account}"),
            role: String::new(),
            namespace: Some(NAMESPACE.to_owned()),
            group: group.to_owned(),
            resource: resource.to_owned(),
            verb: (*verb).to_owned(),
            names,
        };
        let answer = right.answer(&server.client(), &right.account).await?;
        ensure!(answer == StatusCode::FORBIDDEN, "{account}: {verb} {of} {name}: {answer}");
    }
    Ok(())
}
