//! Every refusal, beside what is granted: what is wrong is one change each.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use coffer::{key::service::KeyService, keyservice::audit::verify};
use serde_json::{Value, json};
use testbed::{
    conformance::soon,
    kube::{ApiServer, keys::Bearer},
};
use tonic::{Code, Status};

use super::{BELIEVED, FORGOTTEN, Place, Volume, get, table::Table};

pub(super) async fn all(server: Arc<ApiServer>) -> Result<()> {
    let place = Place::new(server.clone(), "authority-refusals").await?;
    let (mut table, ns) = (Table::default(), place.namespace);
    let unproven = |reason| (Code::Unauthenticated, "connect", reason);
    let denied = |reason| (Code::PermissionDenied, "release", reason);
    let volume = place.attachable("attached").await?;
    place.objects.attach(&volume.name, "attached.csi", &volume.handle, "n1").await?;
    let token = place.token("coffer-node", "pod-n1", "n1").await?;
    let bearer = |token: &str| place.service.bearer(Some(token));

    // The right one, and the same signed by us: so of what is refused below only the change is wrong.
    let start = Instant::now();
    get(&bearer(&token)?, &volume).await.context("the right token")?;
    let took = start.elapsed();
    get(&bearer(&server.resigned(&token, |_| {})?)?, &volume).await.context("the right token, signed again")?;
    let line = place.service.last();
    ensure!(line["who"] == "node:n1" && line["pod"]["name"] == "pod-n1" && line["result"] == "ok", "{line}");
    ensure!(line["pod"]["uid"].as_str().is_some_and(|uid| uid.len() == 36), "{line}");
    let key = place.service.remote(&token)?.get(&volume.id(), soon()).await.context("Coffer's own client")?;
    let own = place.service.keys().get(&volume.id(), soon()).await?;
    ensure!(key.dek.expose_secret() == own.dek.expose_secret(), "another key was released");

    // Tokens.
    let answer = get(&place.service.bearer(None)?, &volume).await;
    table.refused(&place, "token missing", answer, unproven("no bearer token"))?;
    let answer = get(&bearer("a.b.c")?, &volume).await;
    table.refused(&place, "token is none", answer, unproven("no token of a ServiceAccount"))?;
    let expired = server.resigned(&token, |claims| claims["exp"] = json!(1_700_000_000))?;
    table.refused(&place, "token expired", get(&bearer(&expired)?, &volume).await, unproven("has expired"))?;
    let longer = forged(&token, |claims| claims["exp"] = json!(4_000_000_000_u64))?;
    let answer = get(&bearer(&longer)?, &volume).await;
    table.refused(&place, "token forged (longer)", answer, unproven("does not confirm"))?;
    let other = forged(&token, |claims| claims["kubernetes.io"]["node"]["name"] = json!("n2"))?;
    let answer = get(&bearer(&other)?, &volume).await;
    table.refused(&place, "token forged (another node)", answer, unproven("does not confirm"))?;
    let vault = server.token(ns, "coffer-node", "vault", Some("pod-n1")).await?;
    table.refused(
        &place,
        "token for another audience",
        get(&bearer(&vault)?, &volume).await,
        unproven("not for audience"),
    )?;
    let tenant = place.token("tenant", "tenant", "n1").await?;
    table.refused(&place, "token of another account", get(&bearer(&tenant)?, &volume).await, unproven(":tenant"))?;
    let unbound = server.token(ns, "coffer-node", "coffer", None).await?;
    table.refused(&place, "token without a pod", get(&bearer(&unbound)?, &volume).await, unproven("names no pod"))?;
    place.objects.pod_without_node(ns, "coffer-node", "nowhere").await?;
    let nowhere = server.token(ns, "coffer-node", "coffer", Some("nowhere")).await?;
    table.refused(&place, "token without a node", get(&bearer(&nowhere)?, &volume).await, unproven("names no node"))?;
    let gone = place.token("coffer-node", "gone", "n1").await?;
    place.objects.delete_pod(ns, "gone").await?;
    // The API server's own list of pods may be a moment behind; then it remembers the token for ten seconds.
    let answer = eventually_refused(&bearer(&gone)?, &place, &volume).await?;
    table.refused(&place, "token of a deleted pod", answer, unproven("does not confirm"))?;

    // Volumes.
    let (one, two) = (bearer(&token)?, place.node("n2").await?);
    table.refused(&place, "attached elsewhere", get(&two, &volume).await, denied("neither attached"))?;
    let foreign = place.key("foreign", None).await?;
    place.objects.volume(&foreign.name, "other.csi", &foreign.handle, &[]).await?;
    place.objects.attach(&foreign.name, "other.csi", &foreign.handle, "n1").await?;
    table.refused(&place, "volume of another driver", get(&one, &foreign).await, denied("of driver other.csi"))?;
    let going = place.attachable("going").await?;
    let attachment = place.objects.attach(&going.name, "attached.csi", &going.handle, "n1").await?;
    get(&one, &going).await.context("not going yet")?;
    place.objects.begin_detach(&attachment).await?;
    let answer = eventually_refused(&one, &place, &going).await?;
    table.refused(&place, "VolumeAttachment being deleted", answer, denied("is being deleted"))?;
    let none = place.key("none", None).await?;
    table.refused(&place, "no PersistentVolume", get(&one, &none).await, denied("no PersistentVolume"))?;
    let local = place.key("local", Some("n2")).await?;
    place.objects.volume(&local.name, "coffer.csi", &local.handle, &["n2"]).await?;
    get(&two, &local).await.context("the node that the volume requires")?;
    table.refused(&place, "local to another node", get(&one, &local).await, denied("bound to another node"))?;
    let moved = place.key("moved", None).await?;
    place.objects.volume(&moved.name, "coffer.csi", &moved.handle, &["n2"]).await?;
    table.refused(&place, "required by another node only", get(&one, &moved).await, denied("neither attached"))?;
    let claimed = place.key("claimed", Some("n1")).await?;
    place.objects.volume(&claimed.name, "coffer.csi", &claimed.handle, &["n2"]).await?;
    table.refused(&place, "its own by record alone", get(&one, &claimed).await, denied("neither attached"))?;

    let lines = place.service.audit();
    ensure!(verify(lines.as_bytes())? == lines.lines().count() as u64, "the audit log does not hold together");
    table.note(&format!("the right token, for the first time: {} ms", took.as_millis()));
    table.tell();
    Ok(())
}

/// A token whose claims were changed by somebody who cannot sign.
fn forged(token: &str, change: impl FnOnce(&mut Value)) -> Result<String> {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    let parts: Vec<_> = token.split('.').collect();
    let [head, claims, signature] = parts.as_slice() else { bail!("it is no token") };
    let mut claims: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims)?)?;
    change(&mut claims);
    Ok(format!("{head}.{}.{signature}", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string())))
}

/// Asks until it is refused; what is refused for good is refused again.
async fn eventually_refused(bearer: &Bearer, place: &Place, volume: &Volume) -> Result<Result<(), Status>> {
    let start = Instant::now();
    while get(bearer, volume).await.is_ok() {
        let line = place.service.last();
        ensure!(start.elapsed() < BELIEVED + FORGOTTEN, "it was not refused in time: {line}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(get(bearer, volume).await)
}
