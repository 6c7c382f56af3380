//! `coffer keyservice`: keys, for nodes and controllers.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use coffer::{
    admin::Place,
    config::{
        Faults,
        args::Keyservice,
        file::{Environment, FileConfig, TlsConfig},
    },
    key::{
        embedded::Embedded,
        kms::rotation,
        store::{DekStore, census, measured::Measured as MeasuredStore},
    },
    keyservice::{bearer::Settings, kubernetes::Authority, limit::Limit, server::Server},
    proto::keyservice::key_service_server::KeyServiceServer,
    server::{
        Reach,
        http::{self, Health},
        measured::Measured,
        tls::{ServerTls, incoming},
        told_to_end,
    },
    telemetry::metrics,
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
/// The most bytes of a request, which is read before it is known who asks: its texts have some KiB at most.
const REQUEST_BYTES: usize = 128 * 1024;
/// Requests at once on one connection.
const STREAMS: u32 = 64;
/// What a replica has to come to before requests are sent to it: its KEKs and its store were tried and it listens; and,
/// in a cluster, it knows once who holds what. A watch that breaks later makes requests slower and nobody unready.
const SERVING: &str = "key-service";
#[cfg(feature = "kubernetes")]
const WATCHES: &str = "kubernetes-watches";

/// `coffer keyservice`: keys, for nodes and controllers.
pub(crate) async fn keyservice(args: Keyservice, environment: &Environment) -> Result<()> {
    let config = FileConfig::load(&args.config, environment)?;
    warn(&config);
    if config.http.is_some() {
        // Before anything that counts: certificates are read next, and say when they end.
        metrics::start();
    }
    let (mut place, tls) = open(&args, &config).await?;
    let (health, end, mut tasks) = (Health::new(), CancellationToken::new(), JoinSet::new());
    health.set_ready(SERVING, false);
    if let Some(address) = config.http {
        // A start that waits for a KMS is to be seen as one.
        let pages = http::serve_on(bind(address).await?, health.clone(), end.clone());
        tasks.spawn(async { pages.await.context("serve health and metrics") });
    }
    tokio::select! {
        ready = place.expect_ready() => ready?,
        // The first process of a container has no default for its signals.
        told = told_to_end() => return Ok(told?),
    }
    let Place { cluster_id, providers, store, policies, trials } = place;

    let audit = Arc::new(audit(config.audit_log.as_deref())?);
    let mut background = try_in_background(trials);
    let store: Arc<dyn DekStore> = Arc::new(MeasuredStore::new(store));
    let configured = providers.by_name.keys().cloned().collect();
    if config.http.is_some() {
        let counted = census::keep(store.clone(), configured, end.clone());
        tasks.spawn(async {
            counted.await;
            Ok(())
        });
        background.spawn(rotation::keep(providers.rotating(), end.clone()));
    } else {
        background.spawn(census::once(store.clone(), configured));
    }
    #[cfg(feature = "kubernetes")]
    if config.store == Some(coffer::key::store::Settings::Kubernetes) {
        let client = coffer::kubernetes::client().await?;
        let stop = end.clone();
        tasks.spawn(async move {
            stop.run_until_cancelled(coffer::kubernetes::release::watch(client)).await;
            Ok(())
        });
    }
    let inner = Arc::new(Embedded::new(cluster_id, providers, store).with_policies(policies));
    let mut work = Vec::new();
    if let Some(unix) = config.unix {
        let listener = listen(&unix.path, Reach::Everybody)?;
        let server = Server::new(inner.clone(), audit.clone(), unix.allowed_uids);
        work.push(server.tasks());
        tasks.spawn(serve(bounded(server), UnixListenerStream::new(listener), end.clone()));
    }
    if let Some((address, tls)) = tls {
        let mut server = Server::new(inner, audit, Vec::new());
        if let Some(settings) = config.kubernetes {
            let limit = Limit::per_second(settings.requests_per_second);
            let authority = authority(settings, &health, &mut tasks, end.clone()).await?;
            server = server.with_authority(authority, limit);
        }
        let listener = bind(address).await?;
        tracing::info!(address = %listener.local_addr()?, "serving the key service over TLS");
        work.push(server.tasks());
        tasks.spawn(serve(bounded(server), incoming(listener, Arc::new(tls)), end.clone()));
    }
    health.set_ready(SERVING, true);
    let ended = tokio::select! {
        told = told_to_end() => told.map_err(anyhow::Error::from),
        Some(ended) = tasks.join_next() => match ended? {
            Ok(()) => Err(anyhow::anyhow!("a listener ended by itself")),
            failed => failed,
        },
    };
    tracing::info!("ending: what runs is finished");
    health.set_ready(SERVING, false);
    end.cancel();
    let finished = async {
        let mut outcome = Ok(());
        while let Some(ended) = tasks.join_next().await {
            outcome = outcome.and(ended?);
        }
        // Whatever else went wrong, what is done is written down.
        for tasks in work {
            tasks.close();
            tasks.wait().await;
        }
        outcome
    };
    // A client that keeps its connection open keeps nobody from ending.
    ended.and(tokio::time::timeout(END_TIME, finished).await.unwrap_or(Ok(())))
}

/// What the configuration opens. All that is wrong with it is told at once, and nothing is listened on before.
async fn open(args: &Keyservice, config: &FileConfig) -> Result<(Place, Option<(SocketAddr, ServerTls)>)> {
    let (mut faults, at) = (Faults::default(), args.config.display());
    if config.unix.is_none() && config.tls.is_none() {
        faults.add(format!("{at}: listen: is missing; expected unix, tls or both"));
    }
    let place = Place::of_config(config, None).await.map_err(|found| faults.extend(found)).ok();
    let load = |tls: &TlsConfig| ServerTls::server(tls.files.clone()).map(|server| (tls.address, server));
    let tls = config.tls.as_ref().map(load).transpose();
    let tls = tls.map_err(|fault| faults.add(format!("{at}: listen.tls: {fault}"))).ok();
    match (place, tls) {
        (Some(place), Some(tls)) => Ok(faults.or((place, tls))?),
        _ => Err(faults.into()),
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))
}

/// The API server as the authority over who calls; its watches are one of the tasks.
#[cfg(feature = "kubernetes")]
async fn authority(
    settings: Settings,
    health: &Health,
    tasks: &mut JoinSet<Result<()>>,
    end: CancellationToken,
) -> Result<Arc<Authority>> {
    let client = coffer::kubernetes::client_that_waits(settings.silence_time()).await?;
    let (authority, watches) = Authority::watch(client, settings);
    health.set_ready(WATCHES, false);
    let (synced, health) = (authority.clone(), health.clone());
    let telling = async move {
        synced.synced().await;
        health.set_ready(WATCHES, true);
        std::future::pending().await
    };
    tasks.spawn(async move {
        tokio::select! {
            () = end.cancelled() => {}
            () = watches => {}
            () = telling => {}
        }
        Ok(())
    });
    Ok(authority)
}

#[cfg(not(feature = "kubernetes"))]
async fn authority(
    _: Settings,
    _: &Health,
    _: &mut JoinSet<Result<()>>,
    _: CancellationToken,
) -> Result<Arc<Authority>> {
    Err(Faults::one("kubernetes: this program was built without Kubernetes").into())
}

fn bounded(server: Server) -> KeyServiceServer<Server> {
    KeyServiceServer::new(server).max_decoding_message_size(REQUEST_BYTES)
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
        .layer(Measured)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .max_concurrent_streams(STREAMS)
        .max_connection_age(CONNECTION_AGE)
        .add_service(service)
        .serve_with_incoming_shutdown(connections, async move { end.cancelled().await });
    served.await.context("serve the key service")
}
