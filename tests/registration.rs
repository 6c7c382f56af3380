//! A driver makes itself known to its kubelet: the plugin registration socket, over real sockets.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use coffer::{
    csi::{
        DRIVER_NAME,
        registration::{Registration, RegistrationFault},
    },
    proto::{
        csi::{
            GetPluginInfoRequest, GetPluginInfoResponse,
            identity_server::{Identity, IdentityServer},
        },
        registration::{InfoRequest, PluginInfo, RegistrationStatus, registration_client::RegistrationClient},
    },
    server::{Reach, listen_unix},
};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::{net::UnixStream, task::JoinHandle, time::sleep};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status, async_trait,
    transport::{Channel, Endpoint, Server, Uri},
};
use tower::service_fn;

/// A driver that knows its name.
struct Named;

#[async_trait]
impl Identity for Named {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse { name: DRIVER_NAME.to_owned(), ..Default::default() }))
    }
}

/// A driver, its kubelet's folder, and the registration at work.
struct Node {
    folder: TempDir,
    registration: Arc<Registration>,
    end: CancellationToken,
    running: JoinHandle<Result<(), RegistrationFault>>,
}

impl Node {
    fn begin() -> Self {
        Self::begin_in(tempfile::tempdir().expect("a temporary folder"))
    }

    fn begin_in(folder: TempDir) -> Self {
        let csi = folder.path().join("csi.sock");
        let registration = Arc::new(Registration::new(folder.path(), &csi, Path::new("/host/csi.sock")));
        let end = CancellationToken::new();
        let running = tokio::spawn({
            let (registration, end) = (registration.clone(), end.clone());
            async move { registration.run(end).await }
        });
        Self { folder, registration, end, running }
    }

    fn serve_csi(&self) {
        let listener = listen_unix(&self.folder.path().join("csi.sock"), Reach::Owner).expect("a socket");
        let server = Server::builder().add_service(IdentityServer::new(Named));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("coffer.csi-reg@kubelet.sock")
    }

    /// The kubelet, once it finds a socket that answers.
    async fn kubelet(&self) -> RegistrationClient<Channel> {
        for _ in 0..2000 {
            if let Ok(client) = client(&self.socket()).await {
                return client;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("no socket that answers appears in the kubelet's folder")
    }
}

async fn client(socket: &Path) -> Result<RegistrationClient<Channel>, tonic::transport::Error> {
    let (socket, path) = (socket.to_owned(), socket.display().to_string());
    let connect = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    // As the kubelet calls it: the socket's path is the authority.
    let authority = path.replace('/', "%2F");
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))?;
    Ok(RegistrationClient::new(endpoint.connect_with_connector(connect).await?))
}

fn status(plugin_registered: bool, error: &str) -> RegistrationStatus {
    RegistrationStatus { plugin_registered, error: error.to_owned() }
}

#[tokio::test]
async fn a_driver_is_registered_once_its_csi_socket_answers_and_no_longer_when_it_ends() {
    let node = Node::begin();
    let asked = listen_unix(&node.folder.path().join("csi.sock"), Reach::Owner).expect("a socket");
    // The driver is asked for its name, and says nothing yet.
    let (asker, _) = asked.accept().await.expect("the registration asks");
    assert!(!node.socket().exists(), "registered before the driver serves");
    drop((asker, asked));
    node.serve_csi();
    let mut kubelet = node.kubelet().await;
    let info = kubelet.get_info(InfoRequest {}).await.expect("an answer").into_inner();
    let expected = PluginInfo {
        r#type: "CSIPlugin".to_owned(),
        name: "coffer.csi".to_owned(),
        endpoint: "/host/csi.sock".to_owned(),
        supported_versions: vec!["1.0.0".to_owned()],
    };
    assert_eq!(info, expected);
    let mut registered = node.registration.registered();
    assert!(!*registered.borrow_and_update(), "registered before the kubelet says so");
    kubelet.notify_registration_status(status(true, "")).await.expect("an answer");
    assert!(*registered.wait_for(|registered| *registered).await.expect("it runs"));
    node.end.cancel();
    node.running.await.expect("no panic").expect("it was told to end");
    assert!(!node.folder.path().join("coffer.csi-reg@kubelet.sock").exists(), "the socket of an ended driver stays");
}

#[tokio::test]
async fn a_kubelet_that_refuses_the_driver_is_shown_it_again() {
    let node = Node::begin();
    node.serve_csi();
    let mut kubelet = node.kubelet().await;
    kubelet.notify_registration_status(status(false, "no such node")).await.expect("an answer");
    while node.socket().exists() {
        sleep(Duration::from_millis(10)).await;
    }
    let info = node.kubelet().await.get_info(InfoRequest {}).await.expect("an answer").into_inner();
    assert_eq!(info.name, DRIVER_NAME);
}

#[tokio::test]
async fn a_socket_that_is_taken_away_is_put_there_again() {
    let node = Node::begin();
    node.serve_csi();
    let mut kubelet = node.kubelet().await;
    kubelet.notify_registration_status(status(true, "")).await.expect("an answer");
    let mut registered = node.registration.registered();
    fs::remove_file(node.socket()).expect("removed");
    registered.wait_for(|registered| !*registered).await.expect("it runs");
    let info = node.kubelet().await.get_info(InfoRequest {}).await.expect("an answer").into_inner();
    assert_eq!(info.name, DRIVER_NAME);
    // What somebody else puts into its place is not ours to remove.
    let beside = node.folder.path().join("beside");
    fs::write(&beside, "another's").expect("written");
    fs::rename(&beside, node.socket()).expect("renamed");
    let socket = node.socket();
    let ended = node.running.await.expect("no panic").expect_err("its place is taken");
    assert!(matches!(ended, RegistrationFault::Listen { .. }), "{ended}");
    assert_eq!(fs::read(&socket).expect("still there"), b"another's");
}

#[tokio::test]
async fn the_socket_of_a_driver_that_was_killed_is_replaced() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join("coffer.csi-reg@kubelet.sock");
    drop(listen_unix(&socket, Reach::Owner).expect("a socket"));
    let kind = fs::symlink_metadata(&socket).expect("it stays").file_type();
    assert!(kind.is_socket(), "nothing was left behind");
    let node = Node::begin_in(folder);
    node.serve_csi();
    node.kubelet().await.get_info(InfoRequest {}).await.expect("an answer");
}
