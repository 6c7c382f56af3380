//! The roles that serve: each is put together here, from its configuration to its listeners, and runs until told to
//! end.

use std::{
    fs::{File, OpenOptions},
    future::Future,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use coffer::{
    admin::{StateDir, keys},
    config::{
        Faults,
        args::{Dev, Keyservice, Node as NodeArgs},
        file::{FileConfig, ProviderConfig},
    },
    csi::{
        Gate,
        controller::Controller,
        identity::{Identity, Services},
        node::Node as NodeService,
    },
    exec::{System, Udev},
    key::{
        cluster::ClusterKeys,
        embedded::{Embedded, Provider, Providers},
        kms::local::Local as LocalKms,
        service::KeyService,
        store::filesystem::Filesystem,
    },
    keyservice::{
        audit::Audit,
        auth::{Caller, Guarded},
        client::{Address, Remote},
        server::Server,
    },
    node::{Node, block::LinuxBlocks, mount::LinuxMounts, source::local::Local},
    proto::{
        csi::{
            controller_server::ControllerServer, identity_server::IdentityServer, node_server::NodeServer,
        },
        keyservice::key_service_server::KeyServiceServer,
    },
    server::{
        listen_private, told_to_end,
        tls::{ClientTls, Files, ServerTls, incoming},
    },
};
use rustix::fs::{FlockOperation, flock};
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server as Transport};
use uuid::Uuid;

/// The name of the provider of a state folder's own cluster key.
const CLUSTER_PROVIDER: &str = "cluster";

/// `coffer dev`: driver and key service in one process.
pub(crate) async fn dev(args: Dev) -> Result<()> {
    let state_dir = StateDir::at(&args.state_dir);
    let config = args.config.as_deref().map(FileConfig::load).transpose()?;
    let (cluster_id, providers) = match &config {
        Some(config) => providers(config)?,
        None => own_cluster_key(&state_dir)?,
    };
    let node_id = node_id(args.node_id)?;
    let _lock = lock(&state_dir)?;
    let store = Filesystem::open(&state_dir.records())?;
    let audit = audit(config.as_ref().and_then(|config| config.audit_log.as_deref()))?;
    let embedded: Arc<dyn KeyService> = Arc::new(Embedded::new(cluster_id, providers, Arc::new(store)));
    let keys = Arc::new(Guarded::new(embedded, Arc::new(audit), Caller::Process));
    let socket = args.listen.unwrap_or_else(|| state_dir.socket());
    driver(&socket, node_id, &state_dir.volumes(), keys, Services::NodeAndController).await
}

/// `coffer node`: the driver, with keys from a key service.
pub(crate) async fn node(args: NodeArgs) -> Result<()> {
    let node_id = node_id(args.node_id.clone())?;
    let keys = Arc::new(Remote::at(address(&args)?));
    let services = if args.provision_local { Services::NodeAndController } else { Services::Node };
    driver(&args.listen, node_id, &args.pool_dir, keys, services).await
}

/// `coffer keyservice`: keys, for nodes and controllers.
pub(crate) async fn keyservice(args: Keyservice) -> Result<()> {
    let config = FileConfig::load(&args.config)?;
    let mut faults = Faults::default();
    let at = args.config.display();
    if config.unix.is_none() && config.tls.is_none() {
        faults.add(format!("{at}: listen: is missing; expected unix, tls or both"));
    }
    if config.store.is_none() {
        faults.add(format!("{at}: store: is missing"));
    }
    let providers = providers(&config).map_err(|found| faults.extend(found)).ok();
    let tls = config.tls.as_ref().map(|tls| (tls.address, ServerTls::server(tls.files.clone())));
    if let Some((_, Err(fault))) = &tls {
        faults.add(format!("{at}: listen.tls: {fault}"));
    }
    let (Some(folder), Some((cluster_id, providers))) = (&config.store, providers) else { return Err(faults.into()) };
    faults.or(())?;

    let audit = Arc::new(audit(config.audit_log.as_deref())?);
    let inner = Arc::new(Embedded::new(cluster_id, providers, Arc::new(Filesystem::open(folder)?)));
    let (end, mut listeners) = (CancellationToken::new(), tokio::task::JoinSet::new());
    if let Some(unix) = config.unix {
        let listener = listen(&unix.path)?;
        let server = Server::new(inner.clone(), audit.clone(), unix.allowed_uids);
        listeners.spawn(serve(KeyServiceServer::new(server), UnixListenerStream::new(listener), end.clone()));
    }
    if let Some((socket_address, tls)) = tls {
        let listener = TcpListener::bind(socket_address).await.with_context(|| format!("listen on {socket_address}"))?;
        tracing::info!(address = %listener.local_addr()?, "serving the key service over TLS");
        let server = Server::new(inner, audit, Vec::new());
        listeners.spawn(serve(KeyServiceServer::new(server), incoming(listener, Arc::new(tls?)), end.clone()));
    }
    tokio::select! {
        told = told_to_end() => told?,
        // A listener that ends by itself is a failure.
        Some(ended) = listeners.join_next() => ended??,
    }
    tracing::info!("ending: what runs is finished");
    end.cancel();
    while let Some(ended) = listeners.join_next().await {
        ended??;
    }
    Ok(())
}

async fn driver(
    socket: &Path,
    node_id: String,
    pool: &Path,
    keys: Arc<dyn KeyService>,
    services: Services,
) -> Result<()> {
    let blocks = Arc::new(LinuxBlocks);
    let node = Arc::new(Node {
        exec: Arc::new(System::new(Udev::detect())),
        mounts: Arc::new(LinuxMounts),
        blocks: blocks.clone(),
        keys: keys.clone(),
        pool: Local::open(pool, blocks)?,
    });
    let gate = Gate::default();
    let mut routes = Routes::new(IdentityServer::new(Identity::new(services, keys)))
        .add_service(NodeServer::new(NodeService::new(node.clone(), node_id.clone(), gate.clone())));
    if services == Services::NodeAndController {
        routes = routes.add_service(ControllerServer::new(Controller::new(node, node_id.clone(), gate.clone())));
    }
    let listener = listen(socket)?;
    tracing::info!(socket = %socket.display(), node_id, "serving CSI");
    let end = CancellationToken::new();
    let stop = end.clone();
    let server = Transport::builder()
        .add_routes(routes)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move { stop.cancelled().await });
    let told = async {
        told_to_end().await?;
        tracing::info!("ending: what runs is finished, and new calls are refused");
        gate.close().await;
        end.cancel();
        anyhow::Ok(())
    };
    let (served, told) = tokio::join!(server, told);
    // The socket of a driver that has ended leads nowhere.
    let _ = std::fs::remove_file(socket);
    told?;
    served.context("serve CSI")
}

fn serve<S, I, C>(service: S, connections: I, end: CancellationToken) -> impl Future<Output = Result<()>>
where
    S: tower::Service<
            tonic::codegen::http::Request<tonic::body::Body>,
            Response = tonic::codegen::http::Response<tonic::body::Body>,
            Error = std::convert::Infallible,
            Future: Send,
        > + tonic::server::NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    I: tokio_stream::Stream<Item = std::io::Result<C>> + Send + 'static,
    C: tokio::io::AsyncRead
        + tokio::io::AsyncWrite
        + tonic::transport::server::Connected<ConnectInfo: Clone + Send + Sync + 'static>
        + Unpin
        + Send
        + 'static,
{
    async move {
        let served = Transport::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(connections, async move { end.cancelled().await });
        served.await.context("serve the key service")
    }
}

fn listen(path: &Path) -> Result<UnixListener> {
    listen_private(path).with_context(|| format!("listen on {}", path.display()))
}

/// A state folder's own cluster key, which is there or must be restored: it is never made here.
fn own_cluster_key(state_dir: &StateDir) -> Result<(Uuid, Providers)> {
    let path = state_dir.cluster_key();
    if !path.exists() {
        if Filesystem::holds_records(&state_dir.records())? {
            return Err(keys::lost(state_dir).into());
        }
        let how = format!(
            "{}: there is no cluster key. Make one, once: coffer keys init --state-dir {}",
            path.display(),
            state_dir.path().display()
        );
        return Err(Faults::one(how).into());
    }
    let keys = ClusterKeys::load(&path).map_err(|fault| Faults::one(format!("{}: {fault}", path.display())))?;
    let cluster_id = keys.cluster_id();
    let by_name = [(CLUSTER_PROVIDER.to_owned(), Provider::Cluster(keys))].into();
    Ok((cluster_id, Providers { by_name, default: CLUSTER_PROVIDER.to_owned() }))
}

/// The providers of a file, each with its key read and checked.
fn providers(config: &FileConfig) -> Result<(Uuid, Providers), Faults> {
    let mut faults = Faults::default();
    let mut cluster_id = config.cluster_id;
    let mut by_name = std::collections::BTreeMap::new();
    for (name, provider) in &config.providers {
        let mut fault = |file: &PathBuf, what: &dyn std::fmt::Display| {
            faults.add(format!("provider {name}: {}: {what}", file.display()));
        };
        let provider = match provider {
            ProviderConfig::ClusterKey { file } => match ClusterKeys::load(file) {
                Ok(keys) => {
                    if cluster_id.is_some_and(|configured| configured != keys.cluster_id()) {
                        fault(file, &format!("it is of cluster {}, and clusterId is another", keys.cluster_id()));
                    }
                    cluster_id = Some(keys.cluster_id());
                    Provider::Cluster(keys)
                }
                Err(error) => {
                    fault(file, &error);
                    continue;
                }
            },
            ProviderConfig::Local { key_file, salt } => match LocalKms::load(key_file, salt.as_deref()) {
                Ok(local) => {
                    tracing::warn!(
                        provider = name,
                        "insecureLocalKey: whoever reads the key file reads every volume of this provider"
                    );
                    Provider::Kms(Arc::new(local))
                }
                Err(error) => {
                    fault(key_file, &error);
                    continue;
                }
            },
        };
        by_name.insert(name.clone(), provider);
    }
    let Some(cluster_id) = cluster_id else { return Err(faults) };
    faults.or((cluster_id, Providers { by_name, default: config.default_provider.clone() }))
}

/// Keeps a second driver off a state folder, as long as it is held.
fn lock(state_dir: &StateDir) -> Result<File> {
    let path = state_dir.lock();
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = opened.with_context(|| format!("open {}", path.display()))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("another coffer runs on {}", state_dir.path().display()))?;
    Ok(file)
}

fn audit(path: Option<&Path>) -> Result<Audit> {
    let Some(path) = path else { return Ok(Audit::to(std::io::stdout())) };
    let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    Ok(Audit::to(opened.with_context(|| format!("open audit log {}", path.display()))?))
}

fn node_id(given: Option<String>) -> Result<String, Faults> {
    let id = given.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
    // CSI specification, NodeGetInfo: at most 256 bytes; as a topology value, what Kubernetes allows in a label.
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if id.is_empty() || id.len() > 63 || !id.chars().all(allowed) {
        return Err(Faults::one(format!("--node-id: {id:?} is not 1 to 63 letters, digits, '-', '_' or '.'")));
    }
    Ok(id)
}

fn address(args: &NodeArgs) -> Result<Address, Faults> {
    let fault = |what: String| Err(Faults::one(format!("--key-service: {what}")));
    let tls = [&args.tls_certificate, &args.tls_private_key, &args.tls_authority];
    if let Some(path) = args.key_service.strip_prefix("unix://") {
        if tls.iter().any(|file| file.is_some()) {
            return fault("a unix socket has no TLS; take the --tls flags out".to_owned());
        }
        return Ok(Address::Unix(path.into()));
    }
    let Some(authority) = args.key_service.strip_prefix("https://") else {
        return fault(format!("{:?} is not unix://PATH or https://HOST:PORT", args.key_service));
    };
    let host = authority.rsplit_once(':').map(|(host, _)| host.trim_matches(['[', ']'].as_slice()));
    let Some(Ok(name)) = host.map(|host| ServerName::try_from(host.to_owned())) else {
        return fault(format!("{authority:?} is not HOST:PORT"));
    };
    let [Some(certificate), Some(private_key), Some(ca)] = tls.map(Clone::clone) else {
        return fault("https needs --tls-certificate, --tls-private-key and --tls-authority".to_owned());
    };
    match ClientTls::client(Files { certificate, private_key, authority: ca }) {
        Ok(tls) => Ok(Address::Tls { authority: authority.to_owned(), name, tls: Arc::new(tls) }),
        Err(error) => fault(error.to_string()),
    }
}
