//! `coffer node`: the driver of a node.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use coffer::{
    config::{
        Faults,
        args::{KeyServiceAddress, Node as NodeArgs, unix_path},
    },
    csi::{
        Gate,
        answers::answers,
        identity::{Identity, Services, is_there},
        node::Node as NodeService,
        registration::Registration,
    },
    exec::{System, Udev},
    key::service::KeyService,
    keyservice::{
        client::{Address, Remote},
        token::Token,
    },
    node::{
        Node,
        block::{self, LinuxBlocks},
        mount::LinuxMounts,
        source::{files::Folder, local::Local},
        target::LinuxTargets,
        turns::Turns,
    },
    proto::csi::{identity_server::IdentityServer, node_server::NodeServer},
    server::{
        Reach,
        http::{self, Health},
        rpc::message,
        tls::{ClientTls, Files},
        told_to_end,
    },
    telemetry::metrics,
};
#[cfg(feature = "controller")]
use coffer::{csi::controller::Controller, proto::csi::controller_server::ControllerServer};
use rustls::pki_types::ServerName;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
    task::{JoinError, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::role::{
    listen,
    socket::{self, END_TIME},
};

/// How often our own CSI socket is asked whether it answers: a kubelet asks for it about as often.
const ASK_ALIVE: Duration = Duration::from_secs(10);
/// How often the key service is asked whether it is there, while it is and while it is not.
const ASK_READY: Duration = Duration::from_secs(60);
const ASK_UNREADY: Duration = Duration::from_secs(5);

/// Volumes that are worked on at once: each takes a few MiB, and an unlock has nothing to wait for but a processor.
const AT_ONCE: usize = 8;

/// What has to be alive, and ready.
const CSI_SOCKET: &str = "csi-socket";
pub(super) const KEY_SERVICE: &str = "key-service";
const REGISTRATION: &str = "registration";

/// `coffer node`: the driver, with keys from a key service.
pub(crate) async fn node(args: NodeArgs) -> Result<()> {
    if args.http.is_some() {
        // Before anything that counts: certificates are read next, and say when they end.
        metrics::start();
    }
    let (node_id, address) = match (node_id(args.node_id.clone()), address(&args.keys)) {
        (Ok(node_id), Ok(address)) => (node_id, address),
        (node_id, address) => {
            let mut faults = Faults::default();
            for found in [node_id.err(), address.err()].into_iter().flatten() {
                faults.extend(found);
            }
            return Err(faults.into());
        }
    };
    #[cfg(feature = "controller")]
    let services = if args.provision_local { Services::NodeAndController } else { Services::Node };
    #[cfg(not(feature = "controller"))]
    let services = Services::Node;
    let driver = Driver::on(node_id, &args.pool_dir, Arc::new(Remote::at(address)), services).await?;
    // Bound before anybody asks whether it answers.
    let listener = listen(&args.listen, Reach::Owner)?;
    let beside = Beside::of(&args, &driver).await?;
    driver.serve(&args.listen, listener, beside).await
}

/// Serves CSI, and nothing else, until told to end.
#[cfg(all(feature = "controller", feature = "keyservice"))]
pub(super) async fn driver(
    socket: &Path,
    node_id: String,
    pool: &Path,
    keys: Arc<dyn KeyService>,
    services: Services,
) -> Result<()> {
    let driver = Driver::on(node_id, pool, keys, services).await?;
    driver.serve(socket, listen(socket, Reach::Owner)?, Beside::default()).await
}

/// A node's driver, before it serves.
struct Driver {
    node: Arc<Node>,
    node_id: String,
    services: Services,
}

impl Driver {
    /// The driver of a node. What an earlier one left behind is cleared away; what is mounted and open is taken over.
    async fn on(node_id: String, pool: &Path, keys: Arc<dyn KeyService>, services: Services) -> Result<Self> {
        let blocks = Arc::new(LinuxBlocks);
        let node = Arc::new(Node {
            exec: Arc::new(System::new(Udev::detect())),
            mounts: Arc::new(LinuxMounts),
            targets: Arc::new(LinuxTargets),
            blocks: blocks.clone(),
            keys,
            pool: Local::of(Arc::new(Folder::open(pool)?), blocks),
            turns: Turns::at_once(AT_ONCE),
        });
        match block::mappings().await {
            Ok(mappings) => node.clear_leftovers(&mappings).await,
            Err(error) => tracing::warn!(%error, "mappings cannot be listed"),
        }
        Ok(Self { node, node_id, services })
    }

    /// Serves CSI until told to end, or until something beside it has ended. Nothing is unmounted or closed then: the
    /// next driver finds it as it is.
    async fn serve(self, socket: &Path, listener: UnixListener, mut beside: Beside) -> Result<()> {
        let Self { node, node_id, services } = self;
        let gate = Gate::default();
        let routes = Routes::new(IdentityServer::new(Identity::new(services, node.keys.clone())))
            .add_service(NodeServer::new(NodeService::new(node.clone(), node_id.clone(), gate.clone())));
        #[cfg(feature = "controller")]
        let routes = match services {
            Services::Node => routes,
            Services::NodeAndController | Services::Controller => {
                routes.add_service(ControllerServer::new(Controller::new(node, node_id.clone(), gate.clone())))
            }
        };
        tracing::info!(socket = %socket.display(), node_id, "serving CSI");
        let ending = async {
            let why = tokio::select! {
                told = told_to_end() => told.context("wait for a signal"),
                Some(ended) = beside.tasks.join_next() => too_early(ended),
            };
            tracing::info!("ending: what runs is finished, and new calls are refused");
            beside.end.cancel();
            gate.close().await;
            // Who is silent before his work has ended is taken for dead by the kubelet, and killed.
            beside.last.cancel();
            why
        };
        let served = socket::serve(socket, listener, routes, ending).await;
        // Where the listener has ended by itself, nobody has told them yet.
        beside.end.cancel();
        beside.last.cancel();
        let _ = timeout(END_TIME, async { while beside.tasks.join_next().await.is_some() {} }).await;
        served
    }
}

/// Why something ended beside the driver before it was told to.
fn too_early(ended: Result<Result<()>, JoinError>) -> Result<()> {
    ended.context("work beside the driver broke off")??;
    anyhow::bail!("work beside the driver ended by itself")
}

/// What is at work beside the driver until it is told to end.
#[derive(Default)]
struct Beside {
    tasks: JoinSet<Result<()>>,
    end: CancellationToken,
    /// The end of what tells of health.
    last: CancellationToken,
}

impl Beside {
    /// What a node in a cluster has: its registration, health and metrics, the cluster's local volumes.
    async fn of(args: &NodeArgs, driver: &Driver) -> Result<Self> {
        let mut beside = Self::default();
        let registered = args.registration_dir.as_deref().map(|folder| beside.register(folder, args));
        if let Some(address) = args.http {
            beside.tell(address, registered, args, driver).await?;
        }
        #[cfg(feature = "kubernetes")]
        if args.local_volumes {
            let client = coffer::kubernetes::client().await?;
            let Node { pool, keys, .. } = driver.node.as_ref();
            let (node, end) = (driver.node_id.clone(), beside.end.clone());
            let kept = coffer::kubernetes::keeper::keep(client, node, pool.clone(), keys.clone(), end);
            beside.tasks.spawn(async {
                kept.await;
                Ok(())
            });
        }
        Ok(beside)
    }

    /// Registers the driver with its kubelet, and returns whether it is.
    fn register(&mut self, folder: &Path, args: &NodeArgs) -> watch::Receiver<bool> {
        let endpoint = args.registration_socket.as_ref().unwrap_or(&args.listen);
        let registration = Registration::new(folder, &args.listen, endpoint);
        let (registered, end) = (registration.registered(), self.end.clone());
        self.tasks.spawn(async move { registration.run(end).await.context("register with the kubelet") });
        registered
    }

    /// Tells of health and metrics.
    async fn tell(
        &mut self,
        address: SocketAddr,
        registered: Option<watch::Receiver<bool>>,
        args: &NodeArgs,
        driver: &Driver,
    ) -> Result<()> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
        let health = Health::new();
        let pages = http::serve_on(listener, health.clone(), self.last.clone());
        self.tasks.spawn(async { pages.await.context("serve health and metrics") });
        self.until_the_end(look_alive(args.listen.clone(), health.clone()));
        health.set_ready(KEY_SERVICE, false);
        self.until_the_end(look_ready(driver.node.keys.clone(), health.clone()));
        if let Some(registered) = registered {
            health.set_ready(REGISTRATION, false);
            self.until_the_end(look_registered(registered, health));
        }
        Ok(())
    }

    /// Does what never ends, until the end.
    fn until_the_end(&mut self, work: impl Future<Output = Infallible> + Send + 'static) {
        let end = self.last.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = end.cancelled() => Ok(()),
                never = work => match never {},
            }
        });
    }
}

/// The driver is alive while its CSI socket answers. One that does not is helped by nothing but a new start.
pub(super) async fn look_alive(socket: PathBuf, health: Health) -> Infallible {
    loop {
        let answered = answers(&socket).await;
        if let Err(unanswered) = &answered {
            tracing::error!(error = message(unanswered), "the CSI socket does not answer");
        }
        health.set_alive(CSI_SOCKET, answered.is_ok());
        sleep(ASK_ALIVE).await;
    }
}

/// The driver can serve what is open without its key service, and open nothing new.
pub(super) async fn look_ready(keys: Arc<dyn KeyService>, health: Health) -> Infallible {
    loop {
        let is_there = is_there(keys.as_ref()).await;
        health.set_ready(KEY_SERVICE, is_there);
        sleep(if is_there { ASK_READY } else { ASK_UNREADY }).await;
    }
}

async fn look_registered(mut registered: watch::Receiver<bool>, health: Health) -> Infallible {
    loop {
        let is_registered = *registered.borrow_and_update();
        health.set_ready(REGISTRATION, is_registered);
        if registered.changed().await.is_err() {
            // The registration has ended, and with it the driver does.
            return std::future::pending().await;
        }
    }
}

/// The name of this node: the one given, or the host's.
pub(super) fn node_id(given: Option<String>) -> Result<String, Faults> {
    let id = given.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
    // CSI specification, NodeGetInfo: at most 256 bytes; as a topology value, what Kubernetes allows in a label.
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if id.is_empty() || id.len() > 63 || !id.chars().all(allowed) {
        return Err(Faults::one(format!("--node-id: {id:?} is not 1 to 63 letters, digits, '-', '_' or '.'")));
    }
    Ok(id)
}

/// Where the key service is, and how it is proven who asks.
pub(super) fn address(args: &KeyServiceAddress) -> Result<Address, Faults> {
    let fault = |what: String| Err(Faults::one(format!("--key-service: {what}")));
    let KeyServiceAddress { key_service, tls_certificate, tls_private_key, tls_authority, token_file } = args;
    if let Ok(path) = unix_path(key_service) {
        if [tls_certificate, tls_private_key, tls_authority, token_file].iter().any(|file| file.is_some()) {
            return fault(
                "a unix socket has no TLS and knows who asks; take the --tls flags and --token-file out".to_owned(),
            );
        }
        return Ok(Address::Unix(path));
    }
    let Some(authority) = key_service.strip_prefix("https://") else {
        return fault(format!("{key_service:?} is not unix://PATH or https://HOST:PORT"));
    };
    let parts = authority.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
    let host = parts.map(|(host, _)| host.trim_matches(['[', ']'].as_slice()).to_owned());
    let Some(Ok(name)) = host.map(ServerName::try_from) else {
        return fault(format!("{authority:?} is not HOST:PORT"));
    };
    let files = (tls_authority.clone(), tls_certificate.clone(), tls_private_key.clone());
    let tls = match files {
        (Some(authority), Some(certificate), Some(private_key)) => {
            ClientTls::client(Files { certificate, private_key, authority })
        }
        (Some(authority), None, None) if token_file.is_some() => ClientTls::trusting(authority),
        _ => {
            let needed = "--tls-authority, and --token-file or both of --tls-certificate and --tls-private-key";
            return fault(format!("https needs {needed}"));
        }
    };
    let token = token_file.as_deref().map(Token::in_file);
    match tls {
        Ok(tls) => Ok(Address::Tls { authority: authority.to_owned(), name, tls: Arc::new(tls), token }),
        Err(error) => fault(error.to_string()),
    }
}
