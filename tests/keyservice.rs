//! The key service over the wire: who gets what, what is written down, and certificates that change.

use std::{
    collections::BTreeMap,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use coffer::{
    exec::Deadline,
    key::{
        derive::Tag,
        embedded::Embedded,
        kms::local::Local,
        providers::{KmsProvider, Provider, Providers},
        record::State,
        service::{Attempt, KeyFailure, KeyInfo, KeyService, NewKey, Page, Refusal, VolumeKey},
        store::memory::Memory,
    },
    keyservice::{
        audit::Audit,
        client::{Address, Remote},
        server::Server,
    },
    proto::keyservice::key_service_server::KeyServiceServer,
    secret::LocalKek,
    server::{
        Reach, listen_unix,
        tls::{ClientTls, Clients, Files, ServerFiles, ServerTls, incoming},
    },
    volume::{Content, FsType, Parameters, VolumeId},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_stream::wrappers::UnixListenerStream;
use uuid::Uuid;

fn soon() -> Deadline {
    Deadline::within(Duration::from_secs(20))
}

/// Time enough for one answer, and for little asking again.
fn at_once() -> Deadline {
    Deadline::within(Duration::from_secs(1))
}

fn id(text: &str) -> VolumeId {
    text.parse().expect("a volume id")
}

fn new(volume_id: &str, node: &str) -> NewKey {
    NewKey {
        volume_id: id(volume_id),
        name: volume_id.to_owned(),
        parameters: Parameters::of(Content::Filesystem(FsType::Ext4)),
        node: Some(node.to_owned()).filter(|node| !node.is_empty()),
        tenant: Some("blue".to_owned()),
        storage_class: None,
        claim: None,
        key_id: None,
        provider: None,
        context: BTreeMap::from([("team".to_owned(), "blue".to_owned())]),
    }
}

fn embedded() -> Arc<Embedded> {
    let local = Local::new(LocalKek::born(|kek| kek.fill(7)));
    let providers = Providers {
        by_name: [("main".to_owned(), Provider::Kms(KmsProvider::new(Arc::new(local))))].into(),
        default: "main".to_owned(),
    };
    Arc::new(Embedded::new(Uuid::from_u128(1), providers, Arc::new(Memory::default())))
}

/// What was written to the audit log.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic while it is held").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Written {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panic while it is held").clone()).expect("text")
    }

    fn lines(&self) -> Vec<serde_json::Value> {
        self.text().lines().map(|line| serde_json::from_str(line).expect("one JSON object a line")).collect()
    }

    fn last(&self) -> serde_json::Value {
        self.lines().pop().expect("a line")
    }
}

/// An authority, and the files of those whom it has certified.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).expect("written");
        Self { issuer, folder }
    }

    /// Certificate and key for a name, and our own certificate as the authority of the other side.
    fn certify(&self, name: &str, san: Option<SanType>) -> Files {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.subject_alt_names.extend(san);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let path = |suffix: &str| self.folder.path().join(format!("{name}{suffix}"));
        std::fs::write(path(".crt"), certificate.pem()).expect("written");
        std::fs::write(path(".key"), key.serialize_pem()).expect("written");
        Files { certificate: path(".crt"), private_key: path(".key"), authority: self.folder.path().join("ca.pem") }
    }

    fn server(&self) -> Files {
        self.certify("server", Some(SanType::DnsName("localhost".try_into().expect("a name"))))
    }

    fn client(&self, uri: &str) -> Files {
        let san = (!uri.is_empty()).then(|| SanType::URI(uri.try_into().expect("a URI")));
        self.certify(&uri.replace(['/', ':'], "-"), san)
    }
}

/// A server over TLS on loopback.
async fn serve_tls(inner: Arc<dyn KeyService>, audit: Written, files: Files) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let Files { certificate, private_key, authority } = files;
    let files = ServerFiles { certificate, private_key, clients: Clients::Certified(authority) };
    let tls = Arc::new(ServerTls::server(files).expect("the files fit together"));
    let server = KeyServiceServer::new(Server::new(inner, Arc::new(Audit::to(audit)), Vec::new()));
    let service = tonic::transport::Server::builder().add_service(server);
    tokio::spawn(service.serve_with_incoming(incoming(listener, tls)));
    address
}

/// A server on a unix socket.
fn serve_unix(inner: Arc<dyn KeyService>, audit: Written, uids: Vec<u32>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("key.sock");
    let listener = listen_unix(&path, Reach::Everybody).expect("a socket");
    let server = KeyServiceServer::new(Server::new(inner, Arc::new(Audit::to(audit)), uids));
    let service = tonic::transport::Server::builder().add_service(server);
    tokio::spawn(service.serve_with_incoming(UnixListenerStream::new(listener)));
    (folder, path)
}

fn over_tls(address: SocketAddr, files: Files) -> Remote {
    let tls = Arc::new(ClientTls::client(files).expect("the files fit together"));
    let name = ServerName::try_from("localhost").expect("a name");
    Remote::at(Address::Tls { authority: address.to_string(), name, tls, token: None })
}

fn over_unix(path: &Path) -> Remote {
    Remote::at(Address::Unix(path.to_owned()))
}

fn refusal<T>(answer: Result<T, KeyFailure>) -> Refusal {
    match answer {
        Ok(_) => panic!("expected a refusal"),
        Err(failure) => failure.refusal(),
    }
}

/// What every key service does, wherever it is.
async fn conforms(service: &dyn KeyService) {
    let volume = id("conforms");
    assert_eq!(refusal(service.get(&volume, soon()).await), Refusal::Missing);
    assert_eq!(service.describe(&volume, soon()).await.expect("it answers"), None);
    let made = service.create(new("conforms", "n1"), soon()).await.expect("a new key");
    assert_eq!((made.state, made.generation, made.node.as_deref()), (State::Prepared, 1, Some("n1")));
    assert_eq!(service.create(new("conforms", "n1"), soon()).await.expect("the same"), made);
    let other = NewKey { parameters: Parameters::of(Content::Block), ..new("conforms", "n1") };
    assert_eq!(refusal(service.create(other, soon()).await), Refusal::Exists);
    let unknown = NewKey { provider: Some("aws".to_owned()), ..new("unknown", "n1") };
    assert_eq!(refusal(service.create(unknown, soon()).await), Refusal::Invalid);
    let key = service.get(&volume, soon()).await.expect("a key");
    assert_eq!(key.info, made);
    let begun = service.begin_format(&volume, 1, soon()).await.expect("begun");
    assert_eq!((begun.state, begun.format_attempt), (State::Formatting, 1));
    let (header, attempt) = (Tag::from_bytes([5; 32]), Attempt { generation: 1, number: 1 });
    let stale = Attempt { generation: 1, number: 0 };
    assert_eq!(refusal(service.mark_ready(&volume, stale, header, soon()).await), Refusal::Busy);
    let ready = service.mark_ready(&volume, attempt, header, soon()).await.expect("ready");
    assert_eq!((ready.state, ready.header_tag), (State::Ready, Some(header)));
    assert_eq!(refusal(service.begin_format(&volume, 1, soon()).await), Refusal::State);
    let again = service.get(&volume, soon()).await.expect("a key");
    assert_eq!(again.dek.expose_secret(), key.dek.expose_secret());
    for number in 0..5 {
        service.create(new(&format!("listed-{number}"), "n1"), soon()).await.expect("a new key");
    }
    let page = service.list(Some(&volume), 3, soon()).await.expect("a page");
    let names: Vec<_> = page.infos.iter().map(|info| info.volume_id.to_string()).collect();
    assert_eq!(names, ["listed-0", "listed-1", "listed-2"]);
    assert_eq!(page.next, Some(id("listed-2")));
    service.destroy(&volume, 1, soon()).await.expect("destroyed");
    service.destroy(&volume, 1, soon()).await.expect("destroyed already");
    assert_eq!(refusal(service.get(&volume, soon()).await), Refusal::State);
    assert_eq!(service.describe(&volume, soon()).await.expect("it answers"), None);
}

#[tokio::test]
async fn the_embedded_service_conforms() {
    conforms(embedded().as_ref()).await;
}

#[tokio::test]
async fn the_service_on_a_unix_socket_conforms() {
    let uid = rustix::process::getuid().as_raw();
    let (_folder, path) = serve_unix(embedded(), Written::default(), vec![uid]);
    conforms(&over_unix(&path)).await;
}

#[tokio::test]
async fn the_service_over_tls_conforms_for_a_node() {
    let authority = Authority::new();
    let address = serve_tls(embedded(), Written::default(), authority.server()).await;
    conforms(&over_tls(address, authority.client("coffer://node/n1"))).await;
}

#[tokio::test]
async fn a_uid_that_is_not_allowed_gets_nothing_and_is_written_down() {
    let audit = Written::default();
    let uid = rustix::process::getuid().as_raw();
    let (_folder, path) = serve_unix(embedded(), audit.clone(), vec![uid + 1]);
    let client = over_unix(&path);
    assert_eq!(refusal(client.create(new("a", "n1"), soon()).await), Refusal::Denied);
    assert_eq!(refusal(client.get(&id("a"), soon()).await), Refusal::Denied);
    assert_eq!(refusal(client.list(None, 1, soon()).await), Refusal::Denied);
    assert_eq!(audit.lines().len(), 3);
    assert_eq!(audit.last()["who"], format!("uid:{uid}"));
    assert_eq!(audit.last()["result"], "refused");
}

#[tokio::test]
async fn a_key_goes_only_to_the_node_that_holds_the_volume() {
    let (authority, audit) = (Authority::new(), Written::default());
    let address = serve_tls(embedded(), audit.clone(), authority.server()).await;
    let controller = over_tls(address, authority.client("coffer://controller/c1"));
    let (one, two) = ("coffer://node/n1", "coffer://node/n2");
    let (one, two) = (over_tls(address, authority.client(one)), over_tls(address, authority.client(two)));
    controller.create(new("bound", "n1"), soon()).await.expect("a controller creates");
    controller.create(new("free", ""), soon()).await.expect("a controller creates");

    one.get(&id("bound"), soon()).await.expect("its own");
    assert_eq!(audit.last()["operation"], "release");
    assert_eq!(audit.last()["who"], "node:n1");
    assert_eq!(audit.last()["volumeId"], "bound");
    assert!(audit.last()["kekId"].as_str().is_some_and(|kek| kek.starts_with("local:")), "{}", audit.last());
    assert_eq!(refusal(two.get(&id("bound"), soon()).await), Refusal::Denied);
    assert_eq!((&audit.last()["result"], &audit.last()["who"]), (&"refused".into(), &"node:n2".into()));
    two.get(&id("free"), soon()).await.expect("bound to nobody");

    assert_eq!(refusal(two.describe(&id("bound"), soon()).await), Refusal::Denied);
    assert_eq!(refusal(two.begin_format(&id("bound"), 1, soon()).await), Refusal::Denied);
    let attempt = Attempt { generation: 1, number: 1 };
    assert_eq!(refusal(two.mark_ready(&id("bound"), attempt, Tag::from_bytes([1; 32]), soon()).await), Refusal::Denied);
    assert_eq!(refusal(two.destroy(&id("bound"), 1, soon()).await), Refusal::Denied);
    assert_eq!(refusal(two.destroy(&id("free"), 1, soon()).await), Refusal::Denied);
    assert_eq!(refusal(two.create(new("x", "n1"), soon()).await), Refusal::Denied);
    assert!(two.list(None, 10, soon()).await.expect("a page").infos.is_empty(), "a node sees another's volumes");

    assert_eq!(refusal(controller.get(&id("bound"), soon()).await), Refusal::Denied);
    assert_eq!(refusal(controller.get(&id("free"), soon()).await), Refusal::Denied);
    assert_eq!(refusal(controller.begin_format(&id("free"), 1, soon()).await), Refusal::Denied);
    assert_eq!(controller.list(None, 10, soon()).await.expect("a page").infos.len(), 2);
    controller.destroy(&id("bound"), 1, soon()).await.expect("a controller destroys");
    assert_eq!(audit.last()["operation"], "destroy");
}

#[tokio::test]
async fn a_certificate_that_names_nobody_or_comes_from_elsewhere_gets_nothing() {
    let (authority, elsewhere, audit) = (Authority::new(), Authority::new(), Written::default());
    let address = serve_tls(embedded(), audit.clone(), authority.server()).await;
    for uri in ["", "coffer://node/", "coffer://admin/x", "https://node/n1"] {
        let client = over_tls(address, authority.client(uri));
        assert_eq!(refusal(client.get(&id("a"), soon()).await), Refusal::Denied, "{uri}");
        assert_eq!(audit.last()["result"], "refused");
    }
    let written = audit.lines().len();
    // Their certificate is from elsewhere, or they do not trust ours: the handshake fails, and nothing is served.
    let mut forged = elsewhere.client("coffer://node/n1");
    forged.authority = authority.server().authority;
    assert_eq!(refusal(over_tls(address, forged).get(&id("a"), at_once()).await), Refusal::Unavailable);
    let mut mistrusting = authority.client("coffer://node/n1");
    mistrusting.authority = elsewhere.server().authority;
    assert_eq!(refusal(over_tls(address, mistrusting).get(&id("a"), soon()).await), Refusal::Unavailable);
    assert_eq!(audit.lines().len(), written);
}

#[tokio::test]
async fn certificates_are_read_again_when_they_change() {
    let (old, new_authority) = (Authority::new(), Authority::new());
    let files = old.server();
    let address = serve_tls(embedded(), Written::default(), files.clone()).await;
    let client = over_tls(address, old.client("coffer://node/n1"));
    client.create(new("before", "n1"), soon()).await.expect("served with the old ones");

    // Files that do not fit together leave the old ones in use.
    std::fs::write(&files.private_key, "half a key").expect("written");
    over_tls(address, old.client("coffer://node/n1")).get(&id("before"), soon()).await.expect("still the old ones");

    let fresh = new_authority.server();
    for (from, to) in [
        (&fresh.authority, &files.authority),
        (&fresh.certificate, &files.certificate),
        (&fresh.private_key, &files.private_key),
    ] {
        // Swapped as Kubernetes swaps them: another file under the same name.
        let beside = to.with_extension("new");
        std::fs::copy(from, &beside).expect("copied");
        std::fs::rename(&beside, to).expect("renamed");
    }
    let client = over_tls(address, new_authority.client("coffer://node/n1"));
    client.get(&id("before"), soon()).await.expect("served with the new ones");
    let mut late = old.client("coffer://node/n1");
    late.authority = new_authority.server().authority;
    assert_eq!(refusal(over_tls(address, late).get(&id("before"), at_once()).await), Refusal::Unavailable);
}

/// A key service that never answers.
struct Silent;

#[async_trait]
impl KeyService for Silent {
    async fn create(&self, _: NewKey, _: Deadline) -> Result<KeyInfo, KeyFailure> {
        std::future::pending().await
    }
    async fn get(&self, _: &VolumeId, deadline: Deadline) -> Result<VolumeKey, KeyFailure> {
        // It does know when its caller gives up.
        assert!(
            deadline.left() < Duration::from_secs(2),
            "the caller's deadline did not arrive: {:?}",
            deadline.left()
        );
        std::future::pending().await
    }
    async fn describe(&self, _: &VolumeId, _: Deadline) -> Result<Option<KeyInfo>, KeyFailure> {
        Ok(None)
    }
    async fn begin_format(&self, _: &VolumeId, _: u32, _: Deadline) -> Result<KeyInfo, KeyFailure> {
        std::future::pending().await
    }
    async fn mark_ready(&self, _: &VolumeId, _: Attempt, _: Tag, _: Deadline) -> Result<KeyInfo, KeyFailure> {
        std::future::pending().await
    }
    async fn destroy(&self, _: &VolumeId, _: u32, _: Deadline) -> Result<(), KeyFailure> {
        std::future::pending().await
    }
    async fn list(&self, _: Option<&VolumeId>, _: usize, _: Deadline) -> Result<Page, KeyFailure> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_callers_deadline_holds_on_both_sides_of_the_wire() {
    let uid = rustix::process::getuid().as_raw();
    let (_folder, path) = serve_unix(Arc::new(Silent), Written::default(), vec![uid]);
    let answer = over_unix(&path).get(&id("a"), Deadline::within(Duration::from_millis(300))).await;
    assert_eq!(refusal(answer), Refusal::Deadline);
}

#[tokio::test]
async fn a_service_that_is_away_is_unavailable_and_found_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("key.sock");
    let client = over_unix(&path);
    assert_eq!(refusal(client.get(&id("a"), at_once()).await), Refusal::Unavailable);
    let listener = listen_unix(&path, Reach::Everybody).expect("a socket");
    let uid = rustix::process::getuid().as_raw();
    let server = Server::new(embedded(), Arc::new(Audit::to(Written::default())), vec![uid]);
    let service = tonic::transport::Server::builder().add_service(KeyServiceServer::new(server));
    tokio::spawn(service.serve_with_incoming(UnixListenerStream::new(listener)));
    assert_eq!(refusal(client.get(&id("a"), soon()).await), Refusal::Missing);
}

/// A writer whose disk is full.
struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::StorageFull.into())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_key_that_cannot_be_written_down_is_not_released() {
    use coffer::keyservice::auth::{Caller, Guarded};
    let inner = embedded();
    inner.create(new("a", "n1"), soon()).await.expect("a new key");
    let guarded = Guarded::new(inner, Arc::new(Audit::to(Full)), Caller::Process);
    let failed = guarded.get(&id("a"), soon()).await.expect_err("no audit line, no key");
    assert!(matches!(failed, KeyFailure::Audit(_)), "{failed:?}");
}

#[tokio::test]
async fn the_audit_log_holds_no_byte_of_a_key() {
    let (authority, audit) = (Authority::new(), Written::default());
    let address = serve_tls(embedded(), audit.clone(), authority.server()).await;
    let client = over_tls(address, authority.client("coffer://node/n1"));
    conforms(&client).await;
    client.create(new("searched", "n1"), soon()).await.expect("a new key");
    let dek = client.get(&id("searched"), soon()).await.expect("a key").dek;
    let hex: String = dek.expose_secret().iter().map(|byte| format!("{byte:02x}")).collect();
    let base64: String = coffer::key::record::Base64::new(dek.expose_secret().to_vec()).into();
    let text = audit.text();
    assert!(!text.contains(&hex) && !text.contains(&base64), "{text}");
    let operations: Vec<_> = audit.lines().iter().map(|line| line["operation"].to_string()).collect();
    for operation in ["create", "release", "begin-format", "mark-ready", "destroy"] {
        assert!(operations.contains(&format!("{operation:?}")), "{operation} was not written down");
    }
}
