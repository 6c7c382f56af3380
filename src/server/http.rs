//! Health and metrics over plain HTTP/1.1: `/healthz`, `/readyz`, `/metrics`, and nothing else.
//!
//! Everybody whom the network lets through may ask, so nothing is told here that a stranger must not know: no volume, no
//! key, no name of a KEK. A connection answers one request and has a few seconds for it; there are so many at once.
//!
//! Kubernetes asks `/healthz` to know whether to start the program again, and `/readyz` to know whether to send requests
//! to it ("Liveness, Readiness, and Startup Probes"). Whoever is away whom a program only asks makes it dead in no case: a
//! new start would bring nobody back.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{self, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::telemetry::metrics;

/// How long a client may take for its request's head.
const HEAD_TIME: Duration = Duration::from_secs(1);
/// How long a connection may last, its answer included.
const CONNECTION_TIME: Duration = Duration::from_secs(3);
/// How long a request that is being answered keeps the program from ending.
const END_TIME: Duration = Duration::from_secs(1);
/// Bytes of a request's head: the least that hyper takes.
const HEAD_BYTES: usize = 8192;
/// Lines of a request's head.
const HEAD_LINES: usize = 64;
/// Connections at once: so many that those who say nothing cannot keep the kubelet's own question waiting.
const CONNECTIONS: usize = 512;
/// How often what was measured is sorted.
const UPKEEP: Duration = Duration::from_secs(5);
/// The content type of Prometheus' text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How the program is. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Findings>>);

/// What was found of each thing, by its name.
#[derive(Debug, Default)]
struct Findings {
    ready: BTreeMap<&'static str, bool>,
    alive: BTreeMap<&'static str, bool>,
}

impl Health {
    /// A program of which nothing is known yet: it is alive and, until something is said not to be, ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says whether a thing that requests need is ready. The program is ready while every thing is.
    pub fn set_ready(&self, what: &'static str, ready: bool) {
        let before = self.findings(|findings| findings.ready.insert(what, ready));
        if before != Some(ready) {
            tracing::info!(what, ready, "readiness changed");
        }
    }

    /// Says whether a thing without which only a new start helps is alive. The program is alive while every thing is.
    pub fn set_alive(&self, what: &'static str, alive: bool) {
        let before = self.findings(|findings| findings.alive.insert(what, alive));
        if before != Some(alive) && !alive {
            tracing::error!(what, "no longer alive");
        }
    }

    /// Whether every thing is ready.
    pub fn ready(&self) -> bool {
        self.findings(|findings| findings.ready.values().all(|ready| *ready))
    }

    /// Whether every thing is alive.
    pub fn alive(&self) -> bool {
        self.findings(|findings| findings.alive.values().all(|alive| *alive))
    }

    fn findings<T>(&self, look: impl FnOnce(&mut Findings) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Listens on an address and serves health and metrics until the end. Metrics are kept from here on, if
/// [`metrics::start`] was not called before.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(address: SocketAddr, health: Health, end: CancellationToken) -> io::Result<()> {
    serve_on(TcpListener::bind(address).await?, health, end).await
}

/// Serves health and metrics on a listener until the end.
///
/// # Errors
/// The listener has no address.
pub async fn serve_on(listener: TcpListener, health: Health, end: CancellationToken) -> io::Result<()> {
    metrics::start();
    tracing::info!(address = %listener.local_addr()?, "serving health and metrics");
    let (pages, room, mut connections) = (pages(health), Arc::new(Semaphore::new(CONNECTIONS)), JoinSet::new());
    let mut upkeep = time::interval(UPKEEP);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let place = room.clone();
        tokio::select! {
            () = end.cancelled() => break,
            _ = upkeep.tick() => metrics::upkeep(),
            Some(_) = connections.join_next() => {}
            (stream, place) = accept(&listener, place) => {
                let pages = pages.clone();
                connections.spawn(async move {
                    let _place = place;
                    answer(stream, pages).await;
                });
            }
        }
    }
    drop(listener);
    // Whoever takes longer is cut off when the set is dropped.
    let _ = time::timeout(END_TIME, async { while connections.join_next().await.is_some() {} }).await;
    Ok(())
}

/// The next connection, once there is room for it.
async fn accept(listener: &TcpListener, room: Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    let place = room.acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Out of file descriptors, most likely: others have to end first.
                time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Answers the one request of a connection.
async fn answer(stream: TcpStream, pages: Router) {
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEAD_LINES);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(pages));
    match time::timeout(CONNECTION_TIME, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error = %error, "a client of health and metrics had no answer"),
        Err(_) => tracing::debug!("a client of health and metrics took too long"),
    }
}

fn pages(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_page))
        .with_state(health)
}

async fn healthz(State(health): State<Health>) -> impl IntoResponse {
    health.findings(|findings| page(&findings.alive, "alive"))
}

async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    health.findings(|findings| page(&findings.ready, "ready"))
}

async fn metrics_page() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, TEXT)], metrics::rendered())
}

/// One line where all is well, else one for each thing that is not.
fn page(findings: &BTreeMap<&'static str, bool>, word: &str) -> (StatusCode, String) {
    let mut text = String::new();
    for (what, _) in findings.iter().filter(|(_, well)| !**well) {
        writeln!(text, "{what} is not {word}").expect("a string takes what is written to it");
    }
    if text.is_empty() { (StatusCode::OK, format!("{word}\n")) } else { (StatusCode::SERVICE_UNAVAILABLE, text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_ready_while_every_thing_is_and_says_which_is_not() {
        let health = Health::new();
        assert!(health.ready() && health.alive());
        health.set_ready("key service", false);
        health.set_ready("registration", true);
        health.set_ready("store", false);
        assert!(!health.ready() && health.alive());
        let told = health.findings(|findings| page(&findings.ready, "ready"));
        assert_eq!(
            told,
            (StatusCode::SERVICE_UNAVAILABLE, "key service is not ready\nstore is not ready\n".to_owned())
        );
        let other = health.clone();
        other.set_ready("key service", true);
        other.set_ready("store", true);
        assert!(health.ready(), "clones share one state");
        assert_eq!(health.findings(|findings| page(&findings.ready, "ready")), (StatusCode::OK, "ready\n".to_owned()));
        health.set_alive("API server watch", false);
        assert!(health.ready() && !health.alive());
    }
}
