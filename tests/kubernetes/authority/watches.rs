//! What the watches know: a fresh attachment at once, and nothing any more while the API server is away.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use testbed::kube::{ApiServer, keys::WATCH_EXPIRY};
use tonic::Code;

use super::{BELIEVED, FORGOTTEN, Place, describe, get, line::Line, table::Table};

pub(super) async fn fresh(server: Arc<ApiServer>) -> Result<()> {
    let place = Place::new(server, "authority-fresh").await?;
    let (one, two) = (place.node("n1").await?, place.node("n2").await?);
    for number in 0..10 {
        let volume = place.attachable(&format!("v{number}")).await?;
        ensure!(get(&one, &volume).await.is_err(), "{}: before it is attached", volume.name);
        let attachment = place.objects.attach(&volume.name, "attached.csi", &volume.handle, "n1").await?;
        get(&one, &volume).await.with_context(|| format!("{}: attached a moment ago", volume.name))?;
        ensure!(get(&two, &volume).await.is_err(), "{}: attached elsewhere", volume.name);
        // And to the other node, as it is when a pod moves.
        place.objects.detach(&attachment).await?;
        place.objects.attach(&volume.name, "attached.csi", &volume.handle, "n2").await?;
        get(&two, &volume).await.with_context(|| format!("{}: moved a moment ago", volume.name))?;
    }
    let local = place.key("local", Some("n1")).await?;
    place.objects.volume(&local.name, "coffer.csi", &local.handle, &["n1"]).await?;
    get(&one, &local).await.context("a local volume of a moment ago")?;
    Ok(())
}

pub(super) async fn away(server: Arc<ApiServer>) -> Result<()> {
    let mut line = Line::to(&server).await?;
    let client = line.client(server.kubeconfig()).await?;
    let place = Place::with(server, "authority-away", client, 10_000).await?;
    let mut table = Table::default();
    let attached = place.attachable("attached").await?;
    let attachment = place.objects.attach(&attached.name, "attached.csi", &attached.handle, "n1").await?;
    let own = place.key("own", Some("n1")).await?;
    let (bearer, stranger) = (place.node("n1").await?, place.node("n2").await?);
    get(&bearer, &attached).await?;
    ensure!(describe(&bearer, &own).await?, "its own");

    line.cut();
    let cut = Instant::now();
    let answer = get(&stranger, &attached).await;
    table.refused(&place, "API server away, token new", answer, (Code::Unavailable, "connect", "cannot be asked"))?;
    // A watch knew that it was attached, and cannot know any more: once it is broken it is not believed.
    let answer = loop {
        match get(&bearer, &attached).await {
            Ok(()) => ensure!(cut.elapsed() < BELIEVED, "a key was released on what nobody confirms any more"),
            refused => break refused,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let (operation, reason) = match place.service.last()["operation"].as_str() {
        Some("connect") => ("connect", "cannot be asked"),
        _ => ("release", "nobody can say now which node holds"),
    };
    table.refused(&place, "API server away, token known", answer, (Code::Unavailable, operation, reason))?;
    // What needs no volume is answered for as long as the token is believed, and no longer.
    let status = loop {
        match describe(&bearer, &own).await {
            Ok(_) => ensure!(cut.elapsed() < BELIEVED + Duration::from_secs(2), "it is believed for too long"),
            Err(status) => break status,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    ensure!(status.code() == Code::Unavailable, "{status:?}");

    // What happened meanwhile counts: it is never had from what was known before.
    place.objects.detach(&attachment).await?;
    line.mend().await?;
    let mended = Instant::now();
    let answer = loop {
        match get(&bearer, &attached).await {
            Err(status) if status.code() == Code::Unavailable => {}
            answer => break answer,
        }
        ensure!(mended.elapsed() < FORGOTTEN, "the API server is not found again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    table.refused(&place, "detached meanwhile", answer, (Code::PermissionDenied, "release", "neither attached"))?;
    place.objects.attach(&attached.name, "attached.csi", &attached.handle, "n1").await?;
    get(&bearer, &attached).await.context("attached again")?;
    table.tell();
    Ok(())
}

/// A line on which nothing comes any more looks like one on which nothing happens.
pub(super) async fn silent(server: Arc<ApiServer>) -> Result<()> {
    let line = Line::to(&server).await?;
    let client = line.client(server.kubeconfig()).await?;
    // Tokens are believed all the time: what is looked at is who holds a volume.
    let place = Place::believing(server, "authority-silent", client, 10 * WATCH_EXPIRY).await?;
    let mut table = Table::default();
    let attached = place.attachable("attached").await?;
    let attachment = place.objects.attach(&attached.name, "attached.csi", &attached.handle, "n1").await?;
    let bearer = place.node("n1").await?;
    get(&bearer, &attached).await?;

    line.silence();
    let silent = Instant::now();
    place.objects.detach(&attachment).await?;
    get(&bearer, &attached).await.context("nobody can know yet that it is silent")?;
    let answer = loop {
        match get(&bearer, &attached).await {
            Ok(()) => ensure!(silent.elapsed() < WATCH_EXPIRY, "a key was released on what is older than configured"),
            refused => break refused,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let reason = "nobody can say now which node holds";
    table.refused(&place, "API server silent", answer, (Code::Unavailable, "release", reason))?;
    table.tell();
    Ok(())
}
