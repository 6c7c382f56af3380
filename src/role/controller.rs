//! `coffer controller`: CSI's Controller for the local volumes of a cluster. It holds no file and no key: nodes do the
//! work that it asks for through the API server, and the key service makes and destroys keys.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use coffer::{
    config::args::Controller as ControllerArgs,
    csi::{
        Gate,
        controller::Controller,
        identity::{Identity, Services},
    },
    key::service::KeyService,
    keyservice::client::Remote,
    kubernetes::{self, pools::ClusterPools},
    proto::csi::{controller_server::ControllerServer, identity_server::IdentityServer},
    server::{
        Reach,
        http::{self, Health},
        measured::Measured,
        told_to_end,
    },
    telemetry::metrics,
};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};

use crate::role::{
    listen,
    node::{KEY_SERVICE, address, look_alive, look_ready},
};

/// How long connections may stay open when all work has ended.
const END_TIME: Duration = Duration::from_secs(5);
/// `coffer controller`: CSI's Controller, beside the sidecars of a Deployment.
pub(crate) async fn controller(args: ControllerArgs) -> Result<()> {
    if args.http.is_some() {
        // Before anything that counts.
        metrics::start();
    }
    let keys: Arc<dyn KeyService> = Arc::new(Remote::at(address(&args.keys)?));
    let pools = Arc::new(ClusterPools::through(kubernetes::client().await?));
    let gate = Gate::default();
    let routes = Routes::new(IdentityServer::new(Identity::new(Services::Controller, keys.clone())))
        .add_service(ControllerServer::new(Controller::over(keys.clone(), pools, gate.clone())));
    // Bound before anybody asks whether it answers.
    let listener = listen(&args.listen, Reach::Owner)?;
    let pages = match args.http {
        Some(address) => Some(TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?),
        None => None,
    };
    let health = Health::new();
    let telling = async {
        let Some(pages) = pages else { return std::future::pending().await };
        health.set_ready(KEY_SERVICE, false);
        tokio::select! {
            told = http::serve_on(pages, health.clone(), CancellationToken::new()) => told.context("serve health and metrics"),
            never = look_alive(args.listen.clone(), health.clone()) => match never {},
            never = look_ready(keys, health.clone()) => match never {},
        }
    };
    tokio::select! {
        served = serve(&args.listen, listener, routes, gate) => served,
        // It ends only by failing, and without it nobody would know how the program is.
        failed = telling => failed,
    }
}

/// Serves CSI until told to end.
async fn serve(socket: &Path, listener: UnixListener, routes: Routes, gate: Gate) -> Result<()> {
    tracing::info!(socket = %socket.display(), "serving CSI's Controller");
    let end = CancellationToken::new();
    let stop = end.clone();
    let server = Server::builder()
        .layer(Measured)
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
