//! `coffer keyservice`: keys, for nodes and controllers.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use coffer::{
    admin::Place,
    config::{
        Faults,
        args::Keyservice,
        file::{Environment, FileConfig},
    },
    key::embedded::Embedded,
    keyservice::server::Server,
    proto::keyservice::key_service_server::KeyServiceServer,
    server::{
        Reach,
        tls::{ServerTls, incoming},
        told_to_end,
    },
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server as Transport;

use crate::role::{audit, listen, try_in_background, warn};

/// How long requests may go on when the program is told to end.
const END_TIME: Duration = Duration::from_secs(30);
/// How often a connection must show that there is still somebody at its other end.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long a connection may last: then its certificate is looked at again.
const CONNECTION_AGE: Duration = Duration::from_secs(300);

/// `coffer keyservice`: keys, for nodes and controllers.
pub(crate) async fn keyservice(args: Keyservice, environment: &Environment) -> Result<()> {
    let config = FileConfig::load(&args.config, environment)?;
    warn(&config);
    let mut faults = Faults::default();
    let at = args.config.display();
    if config.unix.is_none() && config.tls.is_none() {
        faults.add(format!("{at}: listen: is missing; expected unix, tls or both"));
    }
    let place = Place::of_config(&config, None).await.map_err(|found| faults.extend(found)).ok();
    let tls = config.tls.as_ref().map(|tls| (tls.address, ServerTls::server(tls.files.clone())));
    if let Some((_, Err(fault))) = &tls {
        faults.add(format!("{at}: listen.tls: {fault}"));
    }
    let Some(mut place) = place else { return Err(faults.into()) };
    faults.or(())?;
    place.expect_ready().await?;
    let Place { cluster_id, providers, store, policies, trials } = place;

    let audit = Arc::new(audit(config.audit_log.as_deref())?);
    let _trials = try_in_background(trials);
    let inner = Arc::new(Embedded::new(cluster_id, providers, store).with_policies(policies));
    let (end, mut listeners, mut work) = (CancellationToken::new(), JoinSet::new(), Vec::new());
    if let Some(unix) = config.unix {
        let listener = listen(&unix.path, Reach::Everybody)?;
        let server = Server::new(inner.clone(), audit.clone(), unix.allowed_uids);
        work.push(server.tasks());
        listeners.spawn(serve(KeyServiceServer::new(server), UnixListenerStream::new(listener), end.clone()));
    }
    if let Some((socket_address, tls)) = tls {
        let listener =
            TcpListener::bind(socket_address).await.with_context(|| format!("listen on {socket_address}"))?;
        tracing::info!(address = %listener.local_addr()?, "serving the key service over TLS");
        let server = Server::new(inner, audit, Vec::new());
        work.push(server.tasks());
        listeners.spawn(serve(KeyServiceServer::new(server), incoming(listener, Arc::new(tls?)), end.clone()));
    }
    tokio::select! {
        told = told_to_end() => told?,
        Some(ended) = listeners.join_next() => {
            ended??;
            anyhow::bail!("a listener ended by itself");
        }
    }
    tracing::info!("ending: what runs is finished");
    end.cancel();
    let finished = async {
        while let Some(ended) = listeners.join_next().await {
            ended??;
        }
        for tasks in work {
            tasks.close();
            tasks.wait().await;
        }
        anyhow::Ok(())
    };
    // A client that keeps its connection open keeps nobody from ending.
    tokio::time::timeout(END_TIME, finished).await.unwrap_or(Ok(()))
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
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .max_connection_age(CONNECTION_AGE)
        .add_service(service)
        .serve_with_incoming_shutdown(connections, async move { end.cancelled().await });
    served.await.context("serve the key service")
}
