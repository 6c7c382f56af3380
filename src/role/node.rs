//! `coffer node`: the driver of a node.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use coffer::{
    config::{
        Faults,
        args::{Node as NodeArgs, unix_path},
    },
    csi::{
        Gate,
        identity::{Identity, Services},
        node::Node as NodeService,
    },
    exec::{System, Udev},
    key::service::KeyService,
    keyservice::client::{Address, Remote},
    node::{
        Node,
        block::LinuxBlocks,
        mount::LinuxMounts,
        source::{files::Folder, local::Local},
        target::LinuxTargets,
        turns::Turns,
    },
    proto::csi::{identity_server::IdentityServer, node_server::NodeServer},
    server::{
        Reach,
        tls::{ClientTls, Files},
        told_to_end,
    },
};
#[cfg(feature = "controller")]
use coffer::{csi::controller::Controller, proto::csi::controller_server::ControllerServer};
use rustls::pki_types::ServerName;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};

use crate::role::listen;

/// How long connections may stay open when all work has ended.
const END_TIME: Duration = Duration::from_secs(5);

/// Volumes that are worked on at once: each takes a few MiB, and an unlock has nothing to wait for but a processor.
const AT_ONCE: usize = 8;

/// `coffer node`: the driver, with keys from a key service.
pub(crate) async fn node(args: NodeArgs) -> Result<()> {
    let (node_id, address) = match (node_id(args.node_id.clone()), address(&args)) {
        (Ok(node_id), Ok(address)) => (node_id, address),
        (node_id, address) => {
            let mut faults = Faults::default();
            for found in [node_id.err(), address.err()].into_iter().flatten() {
                faults.extend(found);
            }
            return Err(faults.into());
        }
    };
    let keys = Arc::new(Remote::at(address));
    #[cfg(feature = "controller")]
    let services = if args.provision_local { Services::NodeAndController } else { Services::Node };
    #[cfg(not(feature = "controller"))]
    let services = Services::Node;
    driver(&args.listen, node_id, &args.pool_dir, keys, services).await
}

/// Serves CSI until told to end.
pub(super) async fn driver(
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
        targets: Arc::new(LinuxTargets),
        blocks: blocks.clone(),
        keys: keys.clone(),
        pool: Local::of(Arc::new(Folder::open(pool)?), blocks),
        turns: Turns::at_once(AT_ONCE),
    });
    let gate = Gate::default();
    let routes = Routes::new(IdentityServer::new(Identity::new(services, keys)))
        .add_service(NodeServer::new(NodeService::new(node.clone(), node_id.clone(), gate.clone())));
    #[cfg(feature = "controller")]
    let routes = match services {
        Services::Node => routes,
        Services::NodeAndController => {
            routes.add_service(ControllerServer::new(Controller::new(node, node_id.clone(), gate.clone())))
        }
    };
    let listener = listen(socket, Reach::Owner)?;
    tracing::info!(socket = %socket.display(), node_id, "serving CSI");
    let end = CancellationToken::new();
    let stop = end.clone();
    let server = Server::builder()
        .add_routes(routes)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move { stop.cancelled().await });
    let told = async {
        told_to_end().await?;
        tracing::info!("ending: what runs is finished, and new calls are refused");
        gate.close().await;
        end.cancel();
        anyhow::Ok(())
    };
    tokio::pin!(server);
    tokio::select! {
        served = &mut server => {
            served.context("serve CSI")?;
            anyhow::bail!("the listener ended by itself");
        }
        told = told => told?,
    }
    // The socket of a driver that has ended leads nowhere. It goes first, so that it cannot be a later driver's.
    let _ = std::fs::remove_file(socket);
    // A client that keeps its connection open keeps nobody from ending.
    tokio::time::timeout(END_TIME, server).await.unwrap_or(Ok(())).context("serve CSI")
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

fn address(args: &NodeArgs) -> Result<Address, Faults> {
    let fault = |what: String| Err(Faults::one(format!("--key-service: {what}")));
    let tls = [&args.tls_certificate, &args.tls_private_key, &args.tls_authority];
    if let Ok(path) = unix_path(&args.key_service) {
        if tls.iter().any(|file| file.is_some()) {
            return fault("a unix socket has no TLS; take the --tls flags out".to_owned());
        }
        return Ok(Address::Unix(path));
    }
    let Some(authority) = args.key_service.strip_prefix("https://") else {
        return fault(format!("{:?} is not unix://PATH or https://HOST:PORT", args.key_service));
    };
    let parts = authority.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
    let host = parts.map(|(host, _)| host.trim_matches(['[', ']'].as_slice()).to_owned());
    let Some(Ok(name)) = host.map(ServerName::try_from) else {
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
