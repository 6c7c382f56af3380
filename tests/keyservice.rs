//! The key service over the wire: who gets what, what is written down, and certificates that change.

use std::{
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use coffer::{
    exec::Deadline,
    key::{
        derive::Tag,
        record::State,
        service::{Attempt, KeyFailure, KeyInfo, KeyService, NewKey, Page, Refusal, VolumeKey},
    },
    keyservice::{
        audit::Audit,
        client::{Address, Remote},
        server::Server,
    },
    proto::keyservice::key_service_server::KeyServiceServer,
    server::tls::{ClientTls, Clients, Files, ServerFiles},
    volume::{Content, Parameters, VolumeId},
};
use tempfile::TempDir;
use testbed::{
    conformance::{soon, store::new_key},
    keyservice::{
        authority::Authority,
        log::AuditLog,
        served::{self, embedded},
    },
};
use tonic::transport::server::Router;

/// Time enough for one answer, and for little asking again.
fn at_once() -> Deadline {
    Deadline::within(Duration::from_secs(1))
}

fn id(text: &str) -> VolumeId {
    text.parse().expect("a volume id")
}

fn new(volume_id: &str, node: &str) -> NewKey {
    let node = Some(node.to_owned()).filter(|node| !node.is_empty());
    NewKey { name: volume_id.to_owned(), node, tenant: Some("blue".to_owned()), ..new_key(volume_id) }
}

/// An authority, and the folder of all that it has certified.
struct Certifier {
    authority: Authority,
    _folder: TempDir,
}

impl Certifier {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let authority = Authority::new(folder.path()).expect("an authority");
        Self { authority, _folder: folder }
    }

    /// A server, which lets in those who are of the same authority.
    fn server(&self) -> ServerFiles {
        self.authority.server(Clients::Certified(self.root())).expect("certified")
    }

    fn client(&self, uri: &str) -> Files {
        self.authority.client(uri).expect("certified")
    }

    /// The authority's own certificate.
    fn root(&self) -> PathBuf {
        self.authority.certificate()
    }
}

fn service(inner: Arc<dyn KeyService>, audit: AuditLog, uids: Vec<u32>) -> Router {
    let server = Server::new(inner, Arc::new(Audit::to(audit)), uids);
    tonic::transport::Server::builder().add_service(KeyServiceServer::new(server))
}

/// A server over TLS on loopback.
fn serve_tls(inner: Arc<dyn KeyService>, audit: AuditLog, files: ServerFiles) -> SocketAddr {
    let service = service(inner, audit, Vec::new());
    let (address, served) = served::over_tls(service, files, std::future::pending()).expect("the files fit together");
    tokio::spawn(served);
    address
}

/// A server on a unix socket.
fn serve_unix(inner: Arc<dyn KeyService>, audit: AuditLog, uids: Vec<u32>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("key.sock");
    tokio::spawn(served::on_socket(service(inner, audit, uids), &path).expect("a socket"));
    (folder, path)
}

fn over_tls(address: SocketAddr, files: Files) -> Remote {
    served::client(address, ClientTls::client(files).expect("the files fit together"), None)
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
    let (_folder, path) = serve_unix(embedded(), AuditLog::default(), vec![uid]);
    conforms(&over_unix(&path)).await;
}

#[tokio::test]
async fn the_service_over_tls_conforms_for_a_node() {
    let authority = Certifier::new();
    let address = serve_tls(embedded(), AuditLog::default(), authority.server());
    conforms(&over_tls(address, authority.client("coffer://node/n1"))).await;
}

#[tokio::test]
async fn a_uid_that_is_not_allowed_gets_nothing_and_is_written_down() {
    let audit = AuditLog::default();
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
    let (authority, audit) = (Certifier::new(), AuditLog::default());
    let address = serve_tls(embedded(), audit.clone(), authority.server());
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
    let (authority, elsewhere, audit) = (Certifier::new(), Certifier::new(), AuditLog::default());
    let address = serve_tls(embedded(), audit.clone(), authority.server());
    for uri in ["", "coffer://node/", "coffer://admin/x", "https://node/n1"] {
        let client = over_tls(address, authority.client(uri));
        assert_eq!(refusal(client.get(&id("a"), soon()).await), Refusal::Denied, "{uri}");
        assert_eq!(audit.last()["result"], "refused");
    }
    let written = audit.lines().len();
    // Their certificate is from elsewhere, or they do not trust ours: the handshake fails, and nothing is served.
    let mut forged = elsewhere.client("coffer://node/n1");
    forged.authority = authority.root();
    assert_eq!(refusal(over_tls(address, forged).get(&id("a"), at_once()).await), Refusal::Unavailable);
    let mut mistrusting = authority.client("coffer://node/n1");
    mistrusting.authority = elsewhere.root();
    assert_eq!(refusal(over_tls(address, mistrusting).get(&id("a"), soon()).await), Refusal::Unavailable);
    assert_eq!(audit.lines().len(), written);
}

#[tokio::test]
async fn certificates_are_read_again_when_they_change() {
    let (old, new_authority) = (Certifier::new(), Certifier::new());
    let files = old.server();
    let address = serve_tls(embedded(), AuditLog::default(), files.clone());
    let client = over_tls(address, old.client("coffer://node/n1"));
    client.create(new("before", "n1"), soon()).await.expect("served with the old ones");

    // Files that do not fit together leave the old ones in use.
    std::fs::write(&files.private_key, "half a key").expect("written");
    over_tls(address, old.client("coffer://node/n1")).get(&id("before"), soon()).await.expect("still the old ones");

    let fresh = new_authority.server();
    for (from, to) in [
        (&new_authority.root(), &old.root()),
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
    late.authority = new_authority.root();
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
    let (_folder, path) = serve_unix(Arc::new(Silent), AuditLog::default(), vec![uid]);
    let answer = over_unix(&path).get(&id("a"), Deadline::within(Duration::from_millis(300))).await;
    assert_eq!(refusal(answer), Refusal::Deadline);
}

#[tokio::test]
async fn a_service_that_is_away_is_unavailable_and_found_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("key.sock");
    let client = over_unix(&path);
    assert_eq!(refusal(client.get(&id("a"), at_once()).await), Refusal::Unavailable);
    let uid = rustix::process::getuid().as_raw();
    let service = service(embedded(), AuditLog::default(), vec![uid]);
    tokio::spawn(served::on_socket(service, &path).expect("a socket"));
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
    let (authority, audit) = (Certifier::new(), AuditLog::default());
    let address = serve_tls(embedded(), audit.clone(), authority.server());
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
