//! TLS for both ends: rustls with aws-lc-rs, TLS 1.2 and 1.3. A server always shows a certificate; whether a client has
//! to show one as well is the server's to say.
//!
//! Certificates change while the program runs, so each connection uses what the files hold at its start. Files that
//! cannot be read or do not fit together leave the last good ones in use, with a warning.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;

#[cfg(feature = "keyservice")]
use crate::server::expiry;

/// How long a client may take to shake hands.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Handshakes at once.
const HANDSHAKES: usize = 256;
/// Connections that wait to be served.
const BACKLOG: usize = 128;
/// The protocol inside (RFC 7301): gRPC is HTTP/2.
const ALPN: &[u8] = b"h2";

/// The files of one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Our certificate and those between it and its authority, PEM.
    pub certificate: PathBuf,
    /// Our private key, PEM.
    pub private_key: PathBuf,
    /// The authorities that the other end's certificate must come from, PEM.
    pub authority: PathBuf,
}

/// The files of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// Our certificate and those between it and its authority, PEM.
    pub certificate: PathBuf,
    /// Our private key, PEM.
    pub private_key: PathBuf,
    /// Whom we let in.
    pub clients: Clients,
}

/// Whom a server shakes hands with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Whoever shows a certificate of these authorities, PEM.
    Certified(PathBuf),
    /// As [`Clients::Certified`], and whoever shows none: he has to prove himself inside.
    CertifiedOrNot(PathBuf),
    /// Everybody: who they are is found out inside.
    Anybody,
}

impl Clients {
    fn authority(&self) -> Option<&PathBuf> {
        match self {
            Self::Certified(authority) | Self::CertifiedOrNot(authority) => Some(authority),
            Self::Anybody => None,
        }
    }
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsFault {
    /// A file cannot be read, or does not hold what it should.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The files do not fit together.
    #[error("certificate, private key and authority do not fit together: {0}")]
    Parts(String),
}

/// What one end's files hold, read again when they change.
pub struct Reloading<T> {
    /// Our certificate is the first of them.
    files: Vec<PathBuf>,
    build: Build<T>,
    current: Mutex<(Vec<Stamp>, Arc<T>)>,
}

type Build<T> = Box<dyn Fn() -> Result<T, TlsFault> + Send + Sync>;

/// What a client shows and expects.
pub type ClientTls = Reloading<ClientConfig>;
/// What a server shows and expects.
pub type ServerTls = Reloading<ServerConfig>;

type Stamp = Option<(u64, i64, i64, u64)>;

impl<T> fmt::Debug for Reloading<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloading").field("files", &self.files).finish_non_exhaustive()
    }
}

impl<T> Reloading<T> {
    fn load(files: Vec<PathBuf>, build: Build<T>) -> Result<Self, TlsFault> {
        let (stamps, first) = (stamps(&files), Arc::new(build()?));
        Ok(Self { files, build, current: Mutex::new((stamps, first)) })
    }

    /// What the files hold now, or held when they were last whole.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.files);
        if current.0 != stamps {
            match (self.build)() {
                Ok(new) => {
                    tracing::info!(files = ?self.files, "certificates read again");
                    *current = (stamps, Arc::new(new));
                }
                Err(error) => tracing::warn!(%error, "new certificates are refused; the old ones stay in use"),
            }
        }
        current.1.clone()
    }
}

impl ClientTls {
    /// Reads a client's files.
    ///
    /// # Errors
    /// A file cannot be read, or the files do not fit together.
    pub fn client(files: Files) -> Result<Self, TlsFault> {
        let watched = vec![files.certificate.clone(), files.private_key.clone(), files.authority.clone()];
        let build = move || {
            let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
            let builder = builder.map_err(parts)?.with_root_certificates(authority(&files.authority)?);
            let (chain, key) = (certificates(&files.certificate)?, private_key(&files.private_key)?);
            #[cfg(feature = "keyservice")]
            expiry::tell("client", &chain);
            let mut config = builder.with_client_auth_cert(chain, key).map_err(parts)?;
            config.alpn_protocols = vec![ALPN.to_vec()];
            Ok(config)
        };
        Self::load(watched, Box::new(build))
    }

    /// Reads the authorities, PEM, that a server's certificate must come from. Such a client shows no certificate: it
    /// proves itself inside.
    ///
    /// # Errors
    /// The file cannot be read, or holds no certificate.
    pub fn trusting(authorities: PathBuf) -> Result<Self, TlsFault> {
        let watched = vec![authorities.clone()];
        let build = move || {
            let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
            let builder = builder.map_err(parts)?.with_root_certificates(authority(&authorities)?);
            let mut config = builder.with_no_client_auth();
            config.alpn_protocols = vec![ALPN.to_vec()];
            Ok(config)
        };
        Self::load(watched, Box::new(build))
    }
}

impl ServerTls {
    /// Reads a server's files.
    ///
    /// # Errors
    /// A file cannot be read, or the files do not fit together.
    pub fn server(files: ServerFiles) -> Result<Self, TlsFault> {
        let mut watched = vec![files.certificate.clone(), files.private_key.clone()];
        watched.extend(files.clients.authority().cloned());
        let build = move || {
            let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
            let builder = builder.map_err(parts)?.with_client_cert_verifier(verifier(&files.clients)?);
            let (chain, key) = (certificates(&files.certificate)?, private_key(&files.private_key)?);
            #[cfg(feature = "keyservice")]
            expiry::tell("server", &chain);
            let mut config = builder.with_single_cert(chain, key).map_err(parts)?;
            config.alpn_protocols = vec![ALPN.to_vec()];
            Ok(config)
        };
        Self::load(watched, Box::new(build))
    }
}

/// Accepts connections and shakes hands, each by itself, so that a slow client holds up no other. It ends when the
/// stream is dropped.
#[must_use]
pub fn incoming(listener: TcpListener, tls: Arc<ServerTls>) -> ReceiverStream<io::Result<TlsStream<TcpStream>>> {
    let (ready, connections) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        let room = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            // Before a handshake nobody knows who it is: strangers get a bounded part of what there is.
            let Ok(place) = room.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = ready.closed() => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => {
                    // A reply is several small writes: without this each waits for the peer's delayed ACK, 40 ms
                    // (tcp(7), TCP_NODELAY). A socket that is gone already fails at its handshake.
                    let _ = stream.set_nodelay(true);
                    stream
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    // Out of file descriptors, most likely: others have to end first.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (acceptor, ready) = (TlsAcceptor::from(tls.current()), ready.clone());
            tokio::spawn(async move {
                let _place = place;
                match tokio::time::timeout(HANDSHAKE_TIME, acceptor.accept(stream)).await {
                    // Nobody to serve it: the server has ended.
                    Ok(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                    Ok(Err(error)) => tracing::warn!(%error, "a client failed to shake hands"),
                    Err(_) => tracing::warn!("a client took too long to shake hands"),
                }
            });
        }
    });
    ReceiverStream::new(connections)
}

/// Who looks at a client's certificate.
fn verifier(clients: &Clients) -> Result<Arc<dyn ClientCertVerifier>, TlsFault> {
    let Some(path) = clients.authority() else { return Ok(WebPkiClientVerifier::no_client_auth()) };
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(authority(path)?), provider());
    let builder = match clients {
        Clients::CertifiedOrNot(_) => builder.allow_unauthenticated(),
        Clients::Certified(_) | Clients::Anybody => builder,
    };
    builder.build().map_err(parts)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFault> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| file(path, &error))?;
    if certificates.is_empty() { Err(file(path, &"it holds no certificate")) } else { Ok(certificates) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFault> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| file(path, &error))
}

fn authority(path: &Path) -> Result<RootCertStore, TlsFault> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store.add(certificate).map_err(|error| file(path, &error))?;
    }
    Ok(store)
}

fn file(path: &Path, reason: &dyn fmt::Display) -> TlsFault {
    TlsFault::File { path: path.to_owned(), reason: reason.to_string() }
}

fn parts(error: impl fmt::Display) -> TlsFault {
    TlsFault::Parts(error.to_string())
}

/// Kubernetes swaps a Secret's files by a link, so the file behind each name is looked at.
fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size()))
    };
    files.iter().map(stamp).collect()
}
