//! Health and metrics: what the pages say, how an RPC, a KMS and the records are counted, and that `docs/metrics.md`, the
//! program's own list and the code name the same metrics.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use coffer::{
    exec::Deadline,
    key::{
        cluster::ClusterKeys,
        embedded::Embedded,
        kms::{guarded::Guarded, local::Local, settings::Common},
        providers::{KmsProvider, Provider, Providers},
        service::{KeyService, NewKey},
        store::{
            DekStore,
            census::{self, Group},
            measured::Measured as MeasuredStore,
            memory::Memory,
        },
    },
    proto::csi::{
        GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
        ProbeRequest, ProbeResponse,
        identity_client::IdentityClient,
        identity_server::{Identity, IdentityServer},
    },
    secret::LocalKek,
    server::{
        http::{Health, serve, serve_on},
        measured::Measured,
    },
    telemetry::metrics::{self, Kind, METRICS},
    volume::{Content, FsType, Parameters, VolumeId},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Response, Status, async_trait,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint, Server},
};
use uuid::Uuid;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("its address");
    (listener, address)
}

/// Health and metrics at work: where, what they tell of, and their end.
async fn pages() -> (SocketAddr, Health, CancellationToken, JoinHandle<std::io::Result<()>>) {
    let ((listener, address), health, end) = (listener().await, Health::new(), CancellationToken::new());
    let served = tokio::spawn(serve_on(listener, health.clone(), end.clone()));
    (address, health, end, served)
}

/// Everything that is answered to a request.
async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("somebody listens");
    stream.write_all(request.as_bytes()).await.expect("the request is taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer in text");
    answer
}

async fn get(address: SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: coffer\r\n\r\n")).await
}

/// The value of a metric with these labels; none where there is no such line.
fn value(name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let text = metrics::rendered();
    let line = text.lines().find(|line| {
        let named = line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        named && labels.iter().all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
    });
    line.map(|line| line.rsplit(' ').next().unwrap_or_default().parse().expect("a number"))
}

/// Waits until a condition holds.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what} did not come; there is:\n{}", metrics::rendered());
}

#[tokio::test]
async fn the_pages_say_how_the_program_is() {
    let (address, health, end, served) = pages().await;
    assert!(get(address, "/healthz").await.ends_with("\r\n\r\nalive\n"));
    assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200 OK\r\n"));
    health.set_ready("key service", false);
    health.set_ready("registration", false);
    let told = get(address, "/readyz").await;
    assert!(told.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{told}");
    assert!(told.ends_with("\r\n\r\nkey service is not ready\nregistration is not ready\n"), "{told}");
    assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200 OK\r\n"), "not ready is not dead");
    health.set_alive("watch", false);
    assert!(get(address, "/healthz").await.ends_with("\r\n\r\nwatch is not alive\n"));

    let text = get(address, "/metrics").await;
    assert!(text.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{text}");
    assert!(text.contains(&format!("coffer_build_info{{version=\"{}\"}} 1\n", env!("CARGO_PKG_VERSION"))), "{text}");
    assert!(text.contains("# TYPE coffer_build_info gauge\n"), "{text}");

    let head = ask(address, "HEAD /readyz HTTP/1.1\r\nHost: coffer\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 503 ") && head.ends_with("\r\n\r\n"), "{head}");
    for path in ["/", "/metrics/", "/debug", "/healthz/../etc/passwd"] {
        assert!(get(address, path).await.starts_with("HTTP/1.1 404 "), "{path}");
    }
    assert!(ask(address, "POST /readyz HTTP/1.1\r\nHost: coffer\r\n\r\n").await.starts_with("HTTP/1.1 405 "));
    let long = format!("GET /{} HTTP/1.1\r\nHost: coffer\r\n\r\n", "a".repeat(100_000));
    let mut stream = TcpStream::connect(address).await.expect("somebody listens");
    // It may be hung up on before all of it is written.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 2"), "a request without bounds is not answered");
    assert!(get(address, "/metrics").await.starts_with("HTTP/1.1 200 OK\r\n"), "and others are");

    end.cancel();
    served.await.expect("no panic").expect("it ends");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn an_address_that_is_taken_is_an_error() {
    let (_taken, address) = listener().await;
    let error = serve(address, Health::new(), CancellationToken::new()).await.expect_err("it is taken");
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
}

/// The clock runs ahead while all wait.
#[tokio::test(start_paused = true)]
async fn clients_that_say_nothing_hold_up_nobody_for_long() {
    let (address, _, end, served) = pages().await;
    let mut silent = Vec::new();
    for number in 0..40 {
        let mut stream = TcpStream::connect(address).await.expect("somebody listens");
        if number % 2 == 0 {
            stream.write_all(b"GET /healthz HTTP/1.1\r\n").await.expect("half a request");
        }
        silent.push(stream);
    }
    assert!(get(address, "/healthz").await.ends_with("alive\n"));
    for mut stream in silent {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("it is hung up on");
        assert!(!answer.starts_with(b"HTTP/1.1 2"));
    }
    let _last = TcpStream::connect(address).await.expect("somebody listens");
    end.cancel();
    served.await.expect("no panic").expect("it ends, whoever is there");
}

/// A CSI driver that answers, refuses, or never comes to an end.
#[derive(Default)]
struct Driver {
    asked: Arc<Notify>,
}

#[async_trait]
impl Identity for Driver {
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }

    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Err(Status::failed_precondition("refused"))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        self.asked.notify_one();
        std::future::pending().await
    }
}

#[tokio::test]
async fn each_rpc_is_counted_with_its_code_and_its_time() {
    metrics::start();
    let (driver, (listener, address), end) = (Driver::default(), listener().await, CancellationToken::new());
    let asked = driver.asked.clone();
    let served = tokio::spawn(
        Server::builder()
            .layer(Measured)
            .add_service(IdentityServer::new(driver))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), end.clone().cancelled_owned()),
    );
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let channel: Channel = endpoint.connect().await.expect("a connection");
    let mut client = IdentityClient::new(channel.clone());
    let of = |method: &'static str, code: &'static str| {
        value("coffer_rpc_total", &[("service", "csi.v1.Identity"), ("method", method), ("code", code)])
    };

    // Its code is in trailers.
    assert_eq!(client.probe(ProbeRequest {}).await.expect("ready").into_inner().ready, Some(true));
    client.probe(ProbeRequest {}).await.expect("ready");
    // Its code is in headers, and there is no body.
    let refused = client.get_plugin_info(GetPluginInfoRequest {}).await.expect_err("refused");
    assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, "refused"), "it passes by unchanged");
    until("the answers", || of("Probe", "OK") == Some(2.0) && of("GetPluginInfo", "FAILED_PRECONDITION") == Some(1.0))
        .await;
    let timed = value("coffer_rpc_seconds_count", &[("service", "csi.v1.Identity"), ("method", "Probe")]);
    assert_eq!(timed, Some(2.0));
    assert!(metrics::rendered().contains("coffer_rpc_seconds_bucket"), "a histogram has buckets");

    // Its caller hangs up.
    let running = || value("coffer_rpc_running", &[("service", "csi.v1.Identity")]);
    let call = tokio::spawn(async move { client.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await });
    asked.notified().await;
    assert_eq!(running(), Some(1.0));
    call.abort();
    until("the end of the call", || of("GetPluginCapabilities", "CANCELLED") == Some(1.0)).await;
    assert_eq!(running(), Some(0.0));

    // What there is not has no name of its own.
    for path in ["/csi.v1.Identity/MadeUp", "/made.up.Service/Probe"] {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.expect("the connection is there");
        let codec = tonic_prost::ProstCodec::<ProbeRequest, ProbeResponse>::default();
        let path = PathAndQuery::from_static(path);
        let answer: Result<Response<ProbeResponse>, Status> =
            grpc.unary(Request::new(ProbeRequest {}), path, codec).await;
        assert_eq!(answer.expect_err("there is no such RPC").code(), Code::Unimplemented);
    }
    let other = [("service", "other"), ("method", "other"), ("code", "UNIMPLEMENTED")];
    until("the others", || value("coffer_rpc_total", &other) == Some(2.0)).await;
    let text = metrics::rendered();
    assert!(!text.contains("MadeUp") && !text.contains("made.up"), "{text}");
    end.cancel();
    drop(channel);
    served.await.expect("no panic").expect("it ends");
}

fn soon() -> Deadline {
    Deadline::within(Duration::from_secs(30))
}

fn id(text: &str) -> VolumeId {
    text.parse().expect("a volume id")
}

fn new(volume_id: &str, provider: &str) -> NewKey {
    NewKey {
        volume_id: id(volume_id),
        name: volume_id.to_owned(),
        parameters: Parameters::of(Content::Filesystem(FsType::Ext4)),
        node: None,
        tenant: None,
        storage_class: None,
        claim: None,
        key_id: None,
        provider: Some(provider.to_owned()),
        context: BTreeMap::new(),
    }
}

/// A key service with two providers, `derived` and `wrapped`.
fn service(store: Arc<dyn DekStore>) -> Embedded {
    let key_file = root().join("tests/vectors/cluster-key.json");
    // A checkout makes files that the world can read, which a cluster key must not be.
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).expect("chmod");
    let cluster = Provider::Cluster(ClusterKeys::load(&key_file).expect("the vector is a cluster key"));
    let local = Arc::new(Local::new(LocalKek::born(|kek| kek.fill(7))));
    let guarded = Guarded::new(local, "wrapped", Common::default());
    let kms = Provider::Kms(KmsProvider::new(Arc::new(guarded)));
    let by_name = [("derived".to_owned(), cluster), ("wrapped".to_owned(), kms)].into();
    Embedded::new(Uuid::from_u128(1), Providers { by_name, default: "derived".to_owned() }, store)
}

#[tokio::test]
async fn keys_kms_cache_store_and_records_are_counted() {
    metrics::start();
    let memory: Arc<dyn DekStore> = Arc::new(Memory::default());
    let service = service(Arc::new(MeasuredStore::new(memory.clone())));
    for volume_id in ["a", "b"] {
        service.create(new(volume_id, "derived"), soon()).await.expect("a new key");
    }
    service.create(new("c", "wrapped"), soon()).await.expect("a new key");
    service.destroy(&id("b"), 1, soon()).await.expect("destroyed");
    for _ in 0..3 {
        service.get(&id("c"), soon()).await.expect("a key");
    }

    let kms = |operation: &'static str| {
        value("coffer_kms_calls_total", &[("provider", "wrapped"), ("operation", operation), ("result", "ok")])
    };
    // The KEK is tried, the key wrapped and unwrapped again, and read once by whoever asks three times.
    assert_eq!((kms("describe"), kms("wrap"), kms("unwrap")), (Some(1.0), Some(2.0), Some(3.0)));
    let timed = value("coffer_kms_seconds_count", &[("provider", "wrapped"), ("operation", "unwrap")]);
    assert_eq!(timed, Some(3.0));
    let cache =
        |result: &'static str| value("coffer_cache_requests_total", &[("provider", "wrapped"), ("result", result)]);
    assert_eq!((cache("miss"), cache("hit"), cache("offline")), (Some(1.0), Some(2.0), None));
    assert_eq!(value("coffer_store_calls_total", &[("operation", "create"), ("result", "ok")]), Some(3.0));
    assert_eq!(value("coffer_store_seconds_count", &[("operation", "create")]), Some(3.0));

    let group = |state: &str, provider: &str, key_version: &str| Group {
        state: state.to_owned(),
        provider: provider.to_owned(),
        key_version: key_version.to_owned(),
    };
    let counted = census::count(memory.as_ref()).await.expect("the store answers");
    let version = service.describe(&id("a"), soon()).await.expect("described").expect("a record").kek_id;
    let version = version.strip_prefix("cluster-key:v").expect("a version").to_owned();
    let expected = [
        (group("prepared", "derived", &version), 1),
        (group("destroyed", "derived", ""), 1),
        (group("prepared", "wrapped", ""), 1),
    ];
    assert_eq!(counted, BTreeMap::from(expected));

    let end = CancellationToken::new();
    let kept = tokio::spawn(census::keep(memory, end.clone()));
    let destroyed = [("state", "destroyed"), ("provider", "derived"), ("key_version", "")];
    until("the census", || value("coffer_records", &destroyed) == Some(1.0)).await;
    until("its time", || value("coffer_records_counted_seconds", &[]).is_some_and(|time| time > 1.7e9)).await;
    end.cancel();
    kept.await.expect("it ends");
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// A metric's name, kind and labels.
type Row = (String, String, BTreeSet<String>);

/// What the code counts: each use of the macros, by the text of the sources.
fn used() -> BTreeSet<Row> {
    let (mut files, mut used) = (Vec::new(), BTreeSet::new());
    sources(&root().join("src"), &mut files);
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        for (place, _) in text.match_indices("\"coffer_") {
            let before = text[..place].trim_end();
            let kind = ["counter", "gauge", "histogram"]
                .into_iter()
                .find(|kind| before.ends_with(&format!(" {kind}!(")) || before.ends_with(&format!(":{kind}!(")));
            let Some(kind) = kind else { continue };
            let (name, rest) = text[place + 1..].split_once('"').expect("a name ends");
            // What is done with the metric follows its labels.
            let ends = [".increment(", ".decrement(", ".set(", ".record("].into_iter().filter_map(|end| rest.find(end));
            let labels =
                &rest[..ends.min().unwrap_or_else(|| panic!("{}: nothing is done with {name}", file.display()))];
            let labels = labels.split("=>").filter_map(|part| {
                let label = part.trim_end().strip_suffix('"')?;
                label.rsplit('"').next().map(str::to_owned)
            });
            used.insert((name.to_owned(), kind.to_owned(), labels.collect()));
        }
    }
    used
}

#[test]
fn the_code_the_list_and_the_documentation_name_the_same_metrics() {
    let kind = |kind| match kind {
        Kind::Counter => "counter".to_owned(),
        Kind::Gauge => "gauge".to_owned(),
        Kind::Histogram => "histogram".to_owned(),
    };
    let labels = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect();
    let listed: BTreeSet<Row> =
        METRICS.iter().map(|metric| (metric.name.to_owned(), kind(metric.kind), labels(metric.labels))).collect();
    assert_eq!(listed.len(), METRICS.len(), "a metric is listed twice");
    assert_eq!(used(), listed, "left: the code; right: telemetry::metrics::METRICS");

    let page = fs::read_to_string(root().join("docs/metrics.md")).expect("the page");
    let mut documented = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("| `coffer_")) {
        let cells: Vec<_> = line.split('|').map(|cell| cell.replace('`', "").trim().to_owned()).collect();
        let labels = cells[3].split(", ").filter(|label| !label.is_empty()).map(str::to_owned);
        documented.insert((cells[1].clone(), cells[2].clone(), labels.collect()));
    }
    assert_eq!(documented, listed, "left: docs/metrics.md; right: telemetry::metrics::METRICS");
}

#[test]
fn no_label_grows_with_the_cluster() {
    for metric in METRICS {
        for label in metric.labels {
            let bounded = [
                "certificate",
                "code",
                "endpoint",
                "key_version",
                "method",
                "operation",
                "provider",
                "reason",
                "result",
                "service",
                "state",
                "version",
            ];
            assert!(bounded.contains(label), "{}: is the number of its {label} bounded?", metric.name);
        }
    }
}
