//! A client of key services that come and go: what is asked of one that ends is answered by another, what a service says
//! is said once, and a token goes along with each request.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use coffer::{
    exec::Deadline,
    key::{
        derive::Tag,
        embedded::Embedded,
        service::{Attempt, KeyFailure, KeyInfo, KeyService, NewKey, Page, Refusal, VolumeKey},
    },
    keyservice::{
        audit::Audit,
        client::{Address, Remote},
        server::Server,
        token::Token,
    },
    proto::keyservice::key_service_server::KeyServiceServer,
    server::tls::{ClientTls, Clients, ServerFiles},
    volume::VolumeId,
};
use tempfile::TempDir;
use testbed::{
    conformance::{soon, store::new_key},
    keyservice::{
        authority::Authority,
        served::{self, embedded},
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    transport::server::{TcpConnectInfo, TlsConnectInfo, UdsConnectInfo},
};

/// Calls at once.
const CALLERS: usize = 20;
/// Calls that each of them makes at least.
const CALLS: usize = 10;

fn id(text: &str) -> VolumeId {
    text.parse().expect("a volume id")
}

fn server(inner: Arc<dyn KeyService>) -> Server {
    let uid = rustix::process::getuid().as_raw();
    Server::new(inner, Arc::new(Audit::to(std::io::sink())), vec![uid])
}

fn authority() -> (TempDir, Authority) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let authority = Authority::new(folder.path()).expect("an authority");
    (folder, authority)
}

/// A server, which lets in everybody.
fn files(authority: &Authority) -> ServerFiles {
    authority.server(Clients::Anybody).expect("certified")
}

fn over_tls(authority: &Authority, address: SocketAddr, token: Option<Token>) -> Remote {
    served::client(address, ClientTls::trusting(authority.certificate()).expect("a certificate"), token)
}

/// A replica in a runtime of its own, so that it can end as a process does.
struct Replica {
    runtime: Option<Runtime>,
    address: SocketAddr,
    end: CancellationToken,
}

impl Replica {
    fn start(keys: Arc<Embedded>, files: &ServerFiles) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let (runtime, end) = (runtime.expect("a runtime"), CancellationToken::new());
        // Who calls is not what this is about: everybody is a process that may have everything.
        let service = KeyServiceServer::with_interceptor(server(keys), trusted);
        let service = tonic::transport::Server::builder().add_service(service);
        let served = served::over_tls(service, files.clone(), end.clone().cancelled_owned());
        let (address, served) = served.expect("the files fit together");
        runtime.spawn(served);
        Self { runtime: Some(runtime), address, end }
    }
}

impl Drop for Replica {
    /// As by `kill -9`: every connection is cut, whatever is under way.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Takes a request over TLS for one of this very process on a unix socket.
fn trusted(mut request: Request<()>) -> Result<Request<()>, Status> {
    let (ours, _theirs) = tokio::net::UnixStream::pair()?;
    let info = UdsConnectInfo { peer_addr: None, peer_cred: Some(ours.peer_cred()?) };
    request.extensions_mut().remove::<TlsConnectInfo<TcpConnectInfo>>();
    request.extensions_mut().insert(info);
    Ok(request)
}

/// One address in front of the replicas: a connection goes to the one that is in service when it is made.
#[derive(Clone)]
struct Front {
    address: SocketAddr,
    to: Arc<Mutex<SocketAddr>>,
}

impl Front {
    async fn of(replica: &Replica) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let to = Arc::new(Mutex::new(replica.address));
        let front = Self { address, to };
        let forward = front.clone();
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut from, _)) = listener.accept().await {
                let to = *forward.to.lock().expect("no panic while it is held");
                connections.spawn(async move {
                    // A replica that has just ended refuses: its client sees the connection end.
                    if let Ok(mut to) = TcpStream::connect(to).await {
                        let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                    }
                });
            }
        });
        front
    }

    fn lead_to(&self, replica: &Replica) {
        *self.to.lock().expect("no panic while it is held") = replica.address;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_end_one_after_the_other_lose_no_request() {
    let (_folder, authority) = authority();
    let files = files(&authority);
    let keys = embedded();
    keys.create(new_key("shared"), soon()).await.expect("a new key");
    let key = Arc::new(keys.get(&id("shared"), soon()).await.expect("a key"));
    let first = Replica::start(keys.clone(), &files);
    let front = Front::of(&first).await;
    let client = over_tls(&authority, front.address, None);
    let (done, over) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (client, key, done, over) = (client.clone(), key.clone(), done.clone(), over.clone());
        callers.spawn(async move {
            let mut calls = 0;
            while calls < CALLS || !over.is_cancelled() {
                let name = format!("volume-{caller}-{calls}");
                let made = client.create(new_key(&name), soon()).await.expect("a new key");
                assert_eq!(client.describe(&made.volume_id, soon()).await.expect("an answer"), Some(made));
                let got = client.get(&id("shared"), soon()).await.expect("a key");
                assert_eq!(got.dek.expose_secret(), key.dek.expose_secret());
                calls += 1;
                done.fetch_add(1, SeqCst);
            }
            calls
        });
    }
    let reach = |calls: usize| {
        let done = done.clone();
        let more = async move {
            let target = done.load(SeqCst) + calls;
            while done.load(SeqCst) < target {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        async { tokio::time::timeout(Duration::from_secs(60), more).await.expect("calls are answered") }
    };
    reach(CALLERS).await;
    // Rolled: the next one is in service before the first is told to end, and ends.
    let second = Replica::start(keys.clone(), &files);
    front.lead_to(&second);
    first.end.cancel();
    reach(CALLERS).await;
    // Killed: for a moment nobody is in service at all.
    drop(second);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let third = Replica::start(keys, &files);
    front.lead_to(&third);
    reach(CALLERS).await;
    over.cancel();
    let calls: usize = callers.join_all().await.into_iter().sum();
    assert!(calls >= CALLERS * CALLS, "{calls}");
}

#[tokio::test(start_paused = true)]
async fn a_caller_knows_within_seconds_that_there_is_nobody() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("key.sock");
    let client = Remote::at(Address::Unix(path.clone()));
    let began = Instant::now();
    let failed = client.get(&id("a"), Deadline::within(Duration::from_secs(100))).await.expect_err("nobody is there");
    assert_eq!(failed.refusal(), Refusal::Unavailable);
    assert!(failed.to_string().contains(path.to_str().expect("text")), "{failed} does not name the address");
    let took = began.elapsed();
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(10), "it took {took:?}");
    let began = Instant::now();
    let failed = client.get(&id("a"), Deadline::within(Duration::from_secs(1))).await.expect_err("nobody is there");
    assert_eq!(failed.refusal(), Refusal::Unavailable, "what happened is hidden by the deadline");
    assert!(began.elapsed() <= Duration::from_secs(1), "it outlasts its caller");
}

/// A key service whose KMS is away, and how often it was asked.
#[derive(Default)]
struct Away(AtomicUsize);

impl Away {
    fn asked<T>(&self) -> Result<T, KeyFailure> {
        self.0.fetch_add(1, SeqCst);
        let source = "no route to the KMS".into();
        Err(KeyFailure::Kms { provider: "main".to_owned(), refusal: Refusal::Unavailable, source })
    }
}

#[async_trait]
impl KeyService for Away {
    async fn create(&self, _: NewKey, _: Deadline) -> Result<KeyInfo, KeyFailure> {
        self.asked()
    }
    async fn get(&self, _: &VolumeId, _: Deadline) -> Result<VolumeKey, KeyFailure> {
        self.asked()
    }
    async fn describe(&self, _: &VolumeId, _: Deadline) -> Result<Option<KeyInfo>, KeyFailure> {
        self.asked()
    }
    async fn begin_format(&self, _: &VolumeId, _: u32, _: Deadline) -> Result<KeyInfo, KeyFailure> {
        self.asked()
    }
    async fn mark_ready(&self, _: &VolumeId, _: Attempt, _: Tag, _: Deadline) -> Result<KeyInfo, KeyFailure> {
        self.asked()
    }
    async fn destroy(&self, _: &VolumeId, _: u32, _: Deadline) -> Result<(), KeyFailure> {
        self.asked()
    }
    async fn list(&self, _: Option<&VolumeId>, _: usize, _: Deadline) -> Result<Page, KeyFailure> {
        self.asked()
    }
}

#[tokio::test]
async fn what_the_service_says_of_its_kms_is_said_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (path, away) = (folder.path().join("key.sock"), Arc::new(Away::default()));
    let service = tonic::transport::Server::builder().add_service(KeyServiceServer::new(server(away.clone())));
    tokio::spawn(served::on_socket(service, &path).expect("a socket"));
    let failed = Remote::at(Address::Unix(path)).create(new_key("a"), soon()).await.expect_err("its KMS is away");
    assert_eq!(failed.refusal(), Refusal::Unavailable);
    assert!(failed.to_string().contains("no route to the KMS"), "{failed}");
    assert_eq!(away.0.load(SeqCst), 1, "a KMS that is away was asked again");
}

#[tokio::test]
async fn a_token_goes_along_with_each_request_and_without_one_nobody_is_asked() {
    let (folder, authority) = authority();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = {
        let seen = seen.clone();
        move |request: Request<()>| {
            let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
            seen.lock().expect("no panic while it is held").push(header.unwrap_or_default().to_owned());
            trusted(request)
        }
    };
    let service = KeyServiceServer::with_interceptor(server(embedded()), note);
    let service = tonic::transport::Server::builder().add_service(service);
    let served = served::over_tls(service, files(&authority), std::future::pending());
    let (address, served) = served.expect("the files fit together");
    tokio::spawn(served);

    let path = folder.path().join("token");
    let client = over_tls(&authority, address, Some(Token::in_file(&path)));
    let failed = client.describe(&id("a"), soon()).await.expect_err("no token");
    assert_eq!(failed.refusal(), Refusal::Unavailable);
    assert!(failed.to_string().contains(path.to_str().expect("text")), "{failed} does not name the file");
    for token in ["first", "second"] {
        std::fs::write(&path, token).expect("written");
        client.describe(&id("a"), soon()).await.expect("an answer");
    }
    assert_eq!(*seen.lock().expect("no panic while it is held"), ["Bearer first", "Bearer second"]);
}

#[tokio::test]
async fn a_service_that_nobody_trusts_is_told_at_once() {
    let ((_folder, ours), (_elsewhere, others)) = (authority(), authority());
    let replica = Replica::start(embedded(), &files(&ours));
    let began = Instant::now();
    let failed = over_tls(&others, replica.address, None).describe(&id("a"), soon()).await;
    let failed = failed.expect_err("its certificate is nobody's");
    assert_eq!(failed.refusal(), Refusal::Unavailable);
    assert!(failed.to_string().contains("certificate"), "{failed}");
    assert!(began.elapsed() < Duration::from_secs(3), "it was asked again and again");
}
