//! `coffer keyservice`: keys, for nodes and controllers.

use std::sync::Arc;

use anyhow::{Context, Result};
use coffer::{
    config::{Faults, args::Keyservice, file::FileConfig},
    key::{embedded::Embedded, store::filesystem::Filesystem},
    keyservice::server::Server,
    proto::keyservice::key_service_server::KeyServiceServer,
    server::{
        tls::{ServerTls, incoming},
        told_to_end,
    },
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server as Transport;

use crate::role::{
    listen,
    providers::{audit, providers},
};

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
        let listener =
            TcpListener::bind(socket_address).await.with_context(|| format!("listen on {socket_address}"))?;
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

/// Serves one listener until the end.
async fn serve<S, I, C>(service: S, connections: I, end: CancellationToken) -> Result<()>
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
    let served = Transport::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(connections, async move { end.cancelled().await });
    served.await.context("serve the key service")
}
