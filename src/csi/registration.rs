//! How a node's driver makes itself known to the kubelet: the plugin registration API, version 1.
//!
//! The kubelet watches a folder for sockets, asks each what it is, and calls the driver at the path that it is told. So
//! the socket there must not be seen before the driver serves, and must be gone when it no longer does. Whatever takes the
//! socket away, a kubelet that is set up anew or an operator that cleans up, takes the driver off the node: it is put there
//! again.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    net::UnixListener,
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, async_trait, transport::Server};

use crate::{
    csi::{DRIVER_NAME, answers::answers},
    proto::registration::{
        InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
        registration_server::{self, RegistrationServer},
    },
    server::{Reach, listen_unix, measured::Measured, rpc},
};

/// How the name of the registration socket ends. The kubelet calls a plugin by its socket's path as the authority of the
/// request, with `%2F` for each slash, which no host may have (RFC 3986, section 3.2) and our HTTP/2 refuses. Before an
/// `@` it may stand.
const SOCKET_SUFFIX: &str = "reg@kubelet.sock";
/// What a CSI driver is called among the kubelet's plugins.
const PLUGIN_TYPE: &str = "CSIPlugin";
/// The version of CSI that the kubelet looks for; it compares the first number.
const CSI_VERSION: &str = "1.0.0";
/// How often the CSI socket is asked before it answers, and the socket's place tried that somebody else has.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long that may go on before it is told.
const TELL_AFTER: Duration = Duration::from_secs(10);
/// How often it is looked whether the socket is still there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How soon a driver that the kubelet did not take is shown to it again.
const SHOW_AGAIN: Duration = Duration::from_secs(2);
/// How long a kubelet that keeps its connection open keeps the driver from ending.
const END_TIME: Duration = Duration::from_secs(1);

/// A driver's registration on its node.
#[derive(Debug)]
pub struct Registration {
    socket: PathBuf,
    csi_socket: PathBuf,
    endpoint: String,
    registered: watch::Sender<bool>,
}

/// Why a driver is not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationFault {
    /// The socket cannot be made.
    #[error("listen on {}", socket.display())]
    Listen {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The socket can no longer be served.
    #[error("serve {}", socket.display())]
    Serve {
        /// The socket.
        socket: PathBuf,
        /// What went wrong.
        #[source]
        source: tonic::transport::Error,
    },
}

/// How the time of one socket ended.
enum Ended {
    /// As it was asked for.
    Told,
    /// Somebody has taken the socket away.
    Gone,
    /// The kubelet has looked at the driver and does not take it.
    Refused,
}

impl Registration {
    /// A registration in the kubelet's folder, of the driver that serves on `csi_socket`, which the kubelet sees as
    /// `endpoint`.
    #[must_use]
    pub fn new(folder: &Path, csi_socket: &Path, endpoint: &Path) -> Self {
        Self {
            socket: folder.join(format!("{DRIVER_NAME}-{SOCKET_SUFFIX}")),
            csi_socket: csi_socket.to_owned(),
            endpoint: endpoint.display().to_string(),
            registered: watch::Sender::new(false),
        }
    }

    /// Whether the kubelet has taken the driver, as it says so.
    #[must_use]
    pub fn registered(&self) -> watch::Receiver<bool> {
        self.registered.subscribe()
    }

    /// Keeps the driver registered until the end; then its socket is gone.
    ///
    /// # Errors
    /// The socket cannot be made or served.
    pub async fn run(&self, end: CancellationToken) -> Result<(), RegistrationFault> {
        loop {
            let listener = tokio::select! {
                () = end.cancelled() => return Ok(()),
                listener = self.listen() => listener?,
            };
            match self.serve(listener, &end).await? {
                Ended::Told => return Ok(()),
                Ended::Gone => {
                    tracing::warn!(socket = %self.socket.display(), "the registration socket was taken away");
                }
                // It may be a fault that passes, and volumes that are in use need the driver meanwhile.
                Ended::Refused => {
                    tokio::select! {
                        () = end.cancelled() => return Ok(()),
                        () = sleep(SHOW_AGAIN) => {}
                    }
                }
            }
        }
    }

    /// Makes the socket once the driver answers and the place is free. A driver that is about to end still has its own
    /// there for a moment.
    async fn listen(&self) -> Result<UnixListener, RegistrationFault> {
        let mut wait = Wait::begin();
        while let Err(unanswered) = answers(&self.csi_socket).await {
            wait.on(|| tracing::warn!(error = rpc::message(&unanswered), "not registered yet")).await;
        }
        loop {
            match listen_unix(&self.socket, Reach::Owner) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    wait.on(|| tracing::warn!(socket = %self.socket.display(), "another driver is registered")).await;
                }
                listener => {
                    return listener
                        .map_err(|source| RegistrationFault::Listen { socket: self.socket.clone(), source });
                }
            }
        }
    }

    async fn serve(&self, listener: UnixListener, end: &CancellationToken) -> Result<Ended, RegistrationFault> {
        let own = Own::of(&self.socket);
        let (refuse, mut refused) = mpsc::channel(1);
        let info = PluginInfo {
            r#type: PLUGIN_TYPE.to_owned(),
            name: DRIVER_NAME.to_owned(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec![CSI_VERSION.to_owned()],
        };
        let service = RegistrationServer::new(Service { info, refuse, registered: self.registered.clone() });
        let stop = CancellationToken::new();
        let server = Server::builder()
            .layer(Measured)
            .add_service(service)
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.clone().cancelled_owned());
        tracing::info!(socket = %self.socket.display(), endpoint = self.endpoint, "waiting for the kubelet");
        tokio::pin!(server);
        let ended = tokio::select! {
            served = &mut server => {
                self.registered.send_replace(false);
                let failed = |source| RegistrationFault::Serve { socket: self.socket.clone(), source };
                return served.map(|()| Ended::Gone).map_err(failed);
            }
            () = end.cancelled() => Ok(Ended::Told),
            () = own.gone() => Ok(Ended::Gone),
            Some(()) = refused.recv() => Ok(Ended::Refused),
        };
        // It goes first, so that the kubelet does not look for a driver that is about to end.
        drop(own);
        self.registered.send_replace(false);
        stop.cancel();
        // What the kubelet is being told it is still told.
        let _ = timeout(END_TIME, server).await;
        ended
    }
}

/// What the kubelet asks, and what it says.
struct Service {
    info: PluginInfo,
    refuse: mpsc::Sender<()>,
    registered: watch::Sender<bool>,
}

#[async_trait]
impl registration_server::Registration for Service {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(self.info.clone()))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered, error } = request.into_inner();
        self.registered.send_replace(plugin_registered);
        if plugin_registered {
            tracing::info!("the kubelet has registered the driver");
        } else {
            tracing::error!(error, "the kubelet does not take the driver; it is shown again");
            // One refusal is enough.
            let _ = self.refuse.try_send(());
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// A socket that is ours as long as it is the file that we made. It is removed when this is dropped.
struct Own {
    path: PathBuf,
    file: Option<(u64, u64)>,
}

impl Own {
    fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), file: file(path) }
    }

    fn is_there(&self) -> bool {
        self.file.is_some() && file(&self.path) == self.file
    }

    async fn gone(&self) {
        while self.is_there() {
            sleep(LOOK_AGAIN).await;
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if self.is_there() {
            // A socket that stays is one that nobody serves, and the next driver replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What tells one file from another at the same path.
fn file(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Waiting for something that should have come by now is told, and told again.
struct Wait(Instant);

impl Wait {
    fn begin() -> Self {
        Self(Instant::now() + TELL_AFTER)
    }

    async fn on(&mut self, tell: impl FnOnce()) {
        if Instant::now() >= self.0 {
            tell();
            *self = Self::begin();
        }
        sleep(ASK_AGAIN).await;
    }
}
