//! TLS for both ends: rustls with aws-lc-rs, TLS 1.2 and 1.3, and a certificate on each side.
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
    server::WebPkiClientVerifier,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;

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
    files: Files,
    build: fn(&Files) -> Result<T, TlsFault>,
    current: Mutex<(Vec<Stamp>, Arc<T>)>,
}

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
    fn load(files: Files, build: fn(&Files) -> Result<T, TlsFault>) -> Result<Self, TlsFault> {
        let (stamps, first) = (stamps(&files), Arc::new(build(&files)?));
        Ok(Self { files, build, current: Mutex::new((stamps, first)) })
    }

    /// What the files hold now, or held when they were last whole.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.files);
        if current.0 != stamps {
            match (self.build)(&self.files) {
                Ok(new) => {
                    tracing::info!(certificate = %self.files.certificate.display(), "certificates read again");
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
        Self::load(files, |files| {
            let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
            let builder = builder.map_err(parts)?.with_root_certificates(authority(&files.authority)?);
            let (chain, key) = (certificates(&files.certificate)?, private_key(&files.private_key)?);
            let mut config = builder.with_client_auth_cert(chain, key).map_err(parts)?;
            config.alpn_protocols = vec![ALPN.to_vec()];
            Ok(config)
        })
    }
}

impl ServerTls {
    /// Reads a server's files. Every client has to show a certificate.
    ///
    /// # Errors
    /// A file cannot be read, or the files do not fit together.
    pub fn server(files: Files) -> Result<Self, TlsFault> {
        Self::load(files, |files| {
            let authority = Arc::new(authority(&files.authority)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(authority, provider()).build();
            let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
            let builder = builder.map_err(parts)?.with_client_cert_verifier(verifier.map_err(parts)?);
            let (chain, key) = (certificates(&files.certificate)?, private_key(&files.private_key)?);
            let mut config = builder.with_single_cert(chain, key).map_err(parts)?;
            config.alpn_protocols = vec![ALPN.to_vec()];
            Ok(config)
        })
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
fn stamps(files: &Files) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size()))
    };
    [&files.certificate, &files.private_key, &files.authority].map(stamp).to_vec()
}
