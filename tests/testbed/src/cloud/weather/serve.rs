//! Our own servers on loopback. A response that says so breaks its connection in its place, by a reset, which no HTTP
//! server does by itself.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use axum::{Router, response::Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::{JoinHandle, JoinSet},
};
use tower::ServiceExt;

use super::tls::{ClientCertificate, Tls};

/// How long a server waits until an address is free that it had before.
const ADDRESS: Duration = Duration::from_secs(10);

/// A server on loopback. It stops, and its connections end, when this is dropped.
#[derive(Debug)]
pub struct Served {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Served {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Serves HTTP/1.1 and HTTP/2 on 127.0.0.1, on a port that is free. Without TLS, HTTP/2 is by prior knowledge.
///
/// # Errors
/// No port can be had.
pub async fn serve(router: Router, tls: Option<Tls>) -> Result<Served> {
    serve_at(router, tls, SocketAddr::from(([127, 0, 0, 1], 0))).await
}

/// The same at a given address, as after an outage.
///
/// # Errors
/// The address is taken, and not given back in time.
pub async fn serve_at(router: Router, tls: Option<Tls>, address: SocketAddr) -> Result<Served> {
    let bound = async {
        loop {
            match TcpListener::bind(address).await {
                // The server before may be just ending.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                result => break result,
            }
        }
    };
    let bound = tokio::time::timeout(ADDRESS, bound).await;
    let listener = bound.unwrap_or_else(|late| Err(late.into())).with_context(|| format!("listen on {address}"))?;
    let address = listener.local_addr()?;
    Ok(Served { address, accepting: tokio::spawn(accept(listener, router, tls)) })
}

/// Owns the connections' tasks: they are ended with this one.
async fn accept(listener: TcpListener, router: Router, tls: Option<Tls>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                connections.spawn(connection(stream, router.clone(), tls.clone()));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// It fails where the client has gone or shows no good certificate, which is for the client to notice.
async fn connection(stream: TcpStream, router: Router, tls: Option<Tls>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let stream = stream.into_std()?;
    // By which the socket is reset when HTTP and TLS have let go of it.
    let socket = TcpStream::from_std(stream.try_clone()?)?;
    let stream = TcpStream::from_std(stream)?;
    let breaks = match tls {
        None => exchange(stream, router, None).await,
        Some(tls) => {
            let (stream, client) = tls.accept(stream).await?;
            exchange(stream, router, client).await
        }
    };
    if breaks { socket.set_zero_linger() } else { Ok(()) }
}

/// Answers a connection's requests until it ends, and says whether it is to break.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    client: Option<ClientCertificate>,
) -> bool {
    let breaks = Arc::new(Notify::new());
    let told = breaks.clone();
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        let (router, breaks) = (router.clone(), breaks.clone());
        if let Some(client) = &client {
            request.extensions_mut().insert(client.clone());
        }
        async move {
            let Ok(response) = router.oneshot(request).await;
            if response.extensions().get::<Broken>().is_some() {
                breaks.notify_one();
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(response)
        }
    });
    let protocols = auto::Builder::new(TokioExecutor::new());
    tokio::select! {
        _ = protocols.serve_connection(TokioIo::new(stream), service) => false,
        () = told.notified() => true,
    }
}

/// Stands in the extensions of a response that is not to be sent: the connection breaks in its place.
#[derive(Clone, Copy, Debug)]
struct Broken;

/// In a handler: no answer, the connection breaks.
pub(super) fn broken() -> Response {
    let mut response = Response::default();
    response.extensions_mut().insert(Broken);
    response
}
