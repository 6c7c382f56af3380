//! Who gets a key, in the eyes of the API server: a token is believed only when it confirms it, and a volume's key goes
//! only to the node that holds the volume. Every refusal has its code and its line in the audit log.

mod line;
mod objects;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use coffer::{
    exec::Deadline,
    key::service::{KeyService, NewKey, Refusal},
    keyservice::audit::verify,
    proto::keyservice::{
        BeginFormatRequest, CreateKeyRequest, DescribeKeyRequest, DestroyKeyRequest, GetKeyRequest, ListKeysRequest,
        MarkReadyRequest,
    },
    volume::{Content, FsType, Parameters, VolumeId},
};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use tempfile::TempDir;
use testbed::kube::{
    ApiServer,
    keys::{Bearer, Callers, KeyServer, settings},
};
use tonic::{Code, Status};

use crate::Bed;
use line::Line;
use objects::Objects;

/// How long a token is believed that the API server has confirmed.
const BELIEVED: Duration = Duration::from_secs(3);
/// The ten seconds for which the API server itself remembers a good token, and some time for a slow machine.
const FORGOTTEN: Duration = Duration::from_secs(30);

pub(crate) fn trials(bed: &Bed) -> Vec<Trial> {
    vec![
        bed.trial("every_refusal_has_its_code_and_its_line_in_the_audit_log", refusals),
        bed.trial("a_fresh_attachment_is_had_at_once", fresh_attachments),
        bed.trial("a_nodes_token_is_not_enough_to_look_around", looking_around),
        bed.trial("a_controllers_token_makes_and_destroys_and_gets_no_key", controllers),
        bed.trial("a_node_that_asks_too_often_is_told_when_to_come_again", rates),
        bed.trial("a_token_is_believed_no_longer_than_configured", expiry),
        bed.trial("without_the_api_server_nobody_gets_a_key", away),
    ]
}

/// A key service on the API server, and a namespace with what callers need.
struct Place {
    server: Arc<ApiServer>,
    service: KeyServer,
    objects: Objects,
    namespace: &'static str,
    _folder: TempDir,
}

impl Place {
    async fn new(server: Arc<ApiServer>, namespace: &'static str) -> Result<Self> {
        let client = server.client();
        Self::with(server, namespace, client, 10_000).await
    }

    async fn with(
        server: Arc<ApiServer>,
        namespace: &'static str,
        client: kube::Client,
        per_second: u32,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        server.account(namespace, "coffer-node").await?;
        let callers = Callers::Bearers(Box::new((client, settings(namespace, BELIEVED, per_second))));
        let service = KeyServer::start(folder.path(), callers).await?;
        service.synced().await?;
        let objects = Objects { client: server.client() };
        Ok(Self { server, service, objects, namespace, _folder: folder })
    }

    /// The token of a pod of an account on a node.
    async fn token(&self, account: &str, pod: &str, node: &str) -> Result<String> {
        self.server.pod(self.namespace, account, pod, node).await?;
        self.server.token(self.namespace, account, "coffer", Some(pod)).await
    }

    /// A node's pod, which asks.
    async fn node(&self, node: &str) -> Result<Bearer> {
        self.service.bearer(Some(&self.token("coffer-node", &format!("pod-{node}"), node).await?))
    }

    /// A volume's key, made past everybody, and the name of its PersistentVolume, which is to be.
    async fn key(&self, name: &str, node: Option<&str>) -> Result<Volume> {
        let volume =
            Volume { name: format!("{}-{name}", self.namespace), handle: format!("{}.{name}", self.namespace) };
        let new = NewKey {
            volume_id: volume.id(),
            name: volume.name.clone(),
            parameters: Parameters::of(Content::Filesystem(FsType::Ext4)),
            node: node.map(str::to_owned),
            tenant: None,
            storage_class: None,
            claim: None,
            provider: None,
            key_id: None,
            context: BTreeMap::new(),
        };
        self.service.keys().create(new, soon()).await?;
        Ok(volume)
    }

    /// A volume of a driver that attaches, with its key and its PersistentVolume.
    async fn attachable(&self, name: &str) -> Result<Volume> {
        let volume = self.key(name, None).await?;
        self.objects.volume(&volume.name, "attached.csi", &volume.handle, &[]).await?;
        Ok(volume)
    }
}

/// A volume: its PersistentVolume is not called as its driver calls it.
struct Volume {
    name: String,
    handle: String,
}

impl Volume {
    fn id(&self) -> VolumeId {
        self.handle.parse().expect("a volume id")
    }
}

fn soon() -> Deadline {
    Deadline::within(Duration::from_secs(20))
}

async fn get(bearer: &Bearer, volume: &Volume) -> Result<(), Status> {
    // Any point of the curve does; what is sealed to it nobody opens.
    let request = GetKeyRequest { volume_id: volume.handle.clone(), public_key: vec![9; 32] };
    bearer.client().get_key(bearer.request(request)).await.map(drop)
}

async fn describe(bearer: &Bearer, volume: &Volume) -> Result<bool, Status> {
    let request = DescribeKeyRequest { volume_id: volume.handle.clone() };
    Ok(bearer.client().describe_key(bearer.request(request)).await?.into_inner().info.is_some())
}

/// What was refused, and how.
#[derive(Default)]
struct Table(String);

impl Table {
    /// Checks an answer and the line that was written of it.
    fn refused<T>(
        &mut self,
        place: &Place,
        what: &str,
        answer: Result<T, Status>,
        (code, operation, reason): (Code, &str, &str),
    ) -> Result<()> {
        let Err(status) = answer else { bail!("{what}: it was not refused") };
        let line = place.service.last();
        let told = line["reason"].as_str().unwrap_or_default();
        let result = if code == Code::Unavailable { "failed" } else { "refused" };
        ensure!(status.code() == code, "{what}: {status:?}");
        ensure!(line["operation"] == operation && line["result"] == result, "{what}: {line}");
        ensure!(told.contains(reason), "{what}: {line}");
        let code = format!("{code:?}");
        self.0 += &format!("{what:<44} {code:<18} {operation:<13} {told}\n");
        Ok(())
    }

    #[expect(clippy::print_stdout, reason = "the refusals are to be seen")]
    fn tell(&self) {
        println!("{:<44} {:<18} {:<13} reason in the audit log\n{}", "refused", "code", "operation", self.0);
    }
}

async fn refusals(server: Arc<ApiServer>) -> Result<()> {
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
    table.0 += &format!("the right token, for the first time: {} ms\n", took.as_millis());
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

async fn fresh_attachments(server: Arc<ApiServer>) -> Result<()> {
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

async fn looking_around(server: Arc<ApiServer>) -> Result<()> {
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

async fn controllers(server: Arc<ApiServer>) -> Result<()> {
    let place = Place::new(server, "authority-controllers").await?;
    let token = place.token("coffer-controller", "controller-0", "n1").await?;
    let controller = place.service.remote(&token)?;
    let volume = place.key("made", Some("n1")).await?;
    let new = NewKey {
        volume_id: "controllers.new".parse()?,
        name: "authority-controllers-new".to_owned(),
        parameters: Parameters::of(Content::Block),
        node: Some("n1".to_owned()),
        tenant: None,
        storage_class: None,
        claim: None,
        provider: None,
        key_id: None,
        context: BTreeMap::new(),
    };
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

async fn rates(server: Arc<ApiServer>) -> Result<()> {
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

async fn expiry(server: Arc<ApiServer>) -> Result<()> {
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

async fn away(server: Arc<ApiServer>) -> Result<()> {
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
