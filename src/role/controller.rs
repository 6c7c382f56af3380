//! `coffer controller`: CSI's Controller for the local volumes of a cluster. It holds no file and no key: nodes do the
//! work that it asks for through the API server, and the key service makes and destroys keys.

use std::sync::Arc;

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
        told_to_end,
    },
    telemetry::metrics,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::role::{
    listen,
    node::{KEY_SERVICE, address, look_alive, look_ready},
    socket,
};

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
    let ending = async {
        let told = told_to_end().await.context("wait for a signal");
        tracing::info!("ending: what runs is finished, and new calls are refused");
        gate.close().await;
        told
    };
    tracing::info!(socket = %args.listen.display(), "serving CSI's Controller");
    tokio::select! {
        served = socket::serve(&args.listen, listener, routes, ending) => served,
        // It ends only by failing, and without it nobody would know how the program is.
        failed = telling => failed,
    }
}
