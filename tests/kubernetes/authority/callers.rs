//! Those who call: what a node's token and a controller's are good for, how often, and for how long.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use coffer::{
    key::service::{KeyService, NewKey, Refusal},
    proto::keyservice::{BeginFormatRequest, CreateKeyRequest, DestroyKeyRequest, ListKeysRequest, MarkReadyRequest},
    volume::{Content, FsType, Parameters},
};
use futures::future::join_all;
use testbed::{
    conformance::{soon, store::new_key},
    kube::ApiServer,
};
use tonic::{Code, Status};

use super::{BELIEVED, FORGOTTEN, Place, Volume, describe};

pub(super) async fn nodes(server: Arc<ApiServer>) -> Result<()> {
    let place = Place::new(server, "authority-around").await?;
    let (one, two) = (place.node("n1").await?, place.node("n2").await?);
    let own = place.key("own", Some("n1")).await?;
    place.objects.volume(&own.name, "coffer.csi", &own.handle, &["n1"]).await?;
    let free = place.attachable("free").await?;
    let expect_denied = |what: &str, outcome: Result<(), Status>| {
        let line = place.service.last();
        let who = line["who"].clone();
        match outcome {
            Err(status) if status.code() == Code::PermissionDenied && who == "node:n2" => Ok(()),
            outcome => bail!("{what}: {outcome:?}, {line}"),
        }
    };
    for (bearer, limit) in [(&one, 0), (&two, 1)] {
        let listed = bearer.client().list_keys(bearer.request(ListKeysRequest { after: String::new(), limit })).await;
        ensure!(listed.err().map(|status| status.code()) == Some(Code::PermissionDenied), "a node can list");
        ensure!(place.service.last()["operation"] == "list", "{}", place.service.last());
    }
    for volume in [&own, &free] {
        let volume_id = volume.handle.clone();
        let answer = describe(&two, volume).await.map(drop);
        expect_denied("describe", answer)?;
        let request = BeginFormatRequest { volume_id: volume_id.clone(), generation: 1 };
        expect_denied("begin format", two.client().begin_format(two.request(request)).await.map(drop))?;
        let request = MarkReadyRequest {
            volume_id: volume_id.clone(),
            generation: 1,
            format_attempt: 1,
            header_mac: vec![1; 32],
        };
        expect_denied("mark ready", two.client().mark_ready(two.request(request)).await.map(drop))?;
        let request = DestroyKeyRequest { volume_id, generation: 1 };
        expect_denied("destroy", two.client().destroy_key(two.request(request)).await.map(drop))?;
    }
    // Not even what is or would be its own.
    let request = DestroyKeyRequest { volume_id: own.handle.clone(), generation: 1 };
    let destroyed = one.client().destroy_key(one.request(request)).await;
    ensure!(destroyed.err().map(|status| status.code()) == Some(Code::PermissionDenied), "a node can destroy");
    let parameters_json = serde_json::to_string(&Parameters::of(Content::Filesystem(FsType::Ext4)))?;
    let request = CreateKeyRequest {
        volume_id: "made".into(),
        node: "n1".into(),
        parameters_json,
        ..CreateKeyRequest::default()
    };
    let created = one.client().create_key(one.request(request)).await;
    ensure!(created.err().map(|status| status.code()) == Some(Code::PermissionDenied), "a node can create");
    // A record that there is not is told as that, and one of its own is described, also when its volume is gone.
    let missing = Volume { name: "missing".into(), handle: "missing".into() };
    ensure!(!describe(&two, &missing).await?, "there is none");
    place.objects.delete_volume(&own.name).await?;
    ensure!(describe(&one, &own).await?, "it is its own");
    place.service.keys().destroy(&own.id(), 1, soon()).await?;
    ensure!(!describe(&one, &own).await?, "a node learns that its key is gone");
    Ok(())
}

pub(super) async fn controllers(server: Arc<ApiServer>) -> Result<()> {
    let place = Place::new(server, "authority-controllers").await?;
    let token = place.token("coffer-controller", "controller-0", "n1").await?;
    let controller = place.service.remote(&token)?;
    let volume = place.key("made", Some("n1")).await?;
    let (name, parameters) = ("authority-controllers-new".to_owned(), Parameters::of(Content::Block));
    let new = NewKey { name, parameters, ..new_key("controllers.new") };
    let made = controller.create(new, soon()).await?;
    let line = place.service.last();
    ensure!(line["who"] == "controller:controller-0" && line["pod"]["name"] == "controller-0", "{line}");
    ensure!(controller.list(None, 10, soon()).await?.infos.len() == 2, "a controller lists");
    ensure!(controller.describe(&volume.id(), soon()).await?.is_some(), "a controller describes");
    let got = controller.get(&volume.id(), soon()).await;
    ensure!(got.err().map(|failure| failure.refusal()) == Some(Refusal::Denied), "a controller got a key");
    controller.destroy(&made.volume_id, made.generation, soon()).await?;
    Ok(())
}

pub(super) async fn rates(server: Arc<ApiServer>) -> Result<()> {
    let client = server.client();
    let place = Place::with(server, "authority-rates", client, 5).await?;
    let (one, two) = (place.node("n1").await?, place.node("n2").await?);
    let missing = Volume { name: "missing".into(), handle: "missing".into() };
    let start = Instant::now();
    let (mut served, mut refused) = (0, None);
    while refused.is_none() {
        match describe(&one, &missing).await {
            Ok(_) => served += 1,
            Err(status) => refused = Some(status),
        }
        ensure!(start.elapsed() < FORGOTTEN, "{served} requests were served");
    }
    let refused = refused.context("the loop ended with one")?;
    ensure!(refused.code() == Code::ResourceExhausted && served >= 10, "{refused:?} after {served}");
    let line = place.service.last();
    ensure!(line["operation"] == "connect" && line["who"] == "node:n1" && line["result"] == "refused", "{line}");
    ensure!(line["reason"].as_str().is_some_and(|reason| reason.contains("more than 5 times a second")), "{line}");
    let pause = refused.metadata().get("grpc-retry-pushback-ms").context("it is not told when to come again")?;
    let pause: u64 = pause.to_str()?.parse()?;
    ensure!(pause <= 201, "{pause} ms");
    describe(&two, &missing).await.context("another node")?;
    tokio::time::sleep(Duration::from_millis(pause)).await;
    describe(&one, &missing).await.context("when it was told to come again")?;
    Ok(())
}

/// Whoever comes with tokens that nobody knows makes work for the API server; whoever comes with a known one makes none.
pub(super) async fn strangers(server: Arc<ApiServer>) -> Result<()> {
    const AT_ONCE: usize = 60;
    let place = Place::with(server.clone(), "authority-strangers", server.client(), 100_000).await?;
    let own = place.key("own", Some("n1")).await?;
    let token = place.token("coffer-node", "pod-n1", "n1").await?;
    let known = place.service.bearer(Some(&token))?;
    ensure!(describe(&known, &own).await?, "the first request of a token");
    for _ in 0..50 {
        for answer in join_all((0..AT_ONCE).map(|_| describe(&known, &own))).await {
            ensure!(answer.context("a token that is known")?, "its own volume");
        }
    }
    let (claims, _) = token.rsplit_once('.').context("a token has a signature")?;
    let start = Instant::now();
    for round in 0.. {
        let forged: Vec<_> = (0..AT_ONCE)
            .map(|number| place.service.bearer(Some(&format!("{claims}.{:0>86}", round * AT_ONCE + number))))
            .collect::<Result<_>>()?;
        let answers = join_all(forged.iter().map(|bearer| describe(bearer, &own))).await;
        let mut codes = answers.into_iter().map(|answer| answer.err().map(|status| status.code()));
        if codes.any(|code| code == Some(Code::ResourceExhausted)) {
            break;
        }
        ensure!(start.elapsed() < Duration::from_secs(30), "{} forged tokens were looked at", (round + 1) * AT_ONCE);
    }
    ensure!(describe(&known, &own).await?, "who is known is served all the same");
    Ok(())
}

pub(super) async fn expiry(server: Arc<ApiServer>) -> Result<()> {
    let place = Place::new(server, "authority-expiry").await?;
    let own = place.key("own", Some("n1")).await?;
    let bearer = place.node("n1").await?;
    ensure!(describe(&bearer, &own).await?, "the pod runs");
    place.objects.delete_pod(place.namespace, "pod-n1").await?;
    let deleted = Instant::now();
    // It may ask on for as long as it is believed; and the API server remembers a good token for ten seconds.
    let status = loop {
        match describe(&bearer, &own).await {
            Ok(_) => ensure!(deleted.elapsed() < BELIEVED + FORGOTTEN, "it is believed for too long"),
            Err(status) => break status,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    ensure!(status.code() == Code::Unauthenticated, "{status:?}");
    let reason = place.service.last()["reason"].clone();
    ensure!(reason.as_str().is_some_and(|reason| reason.contains("does not confirm")), "{reason}");
    Ok(())
}
