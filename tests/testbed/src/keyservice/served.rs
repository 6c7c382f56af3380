//! A key service in this process, over TLS on loopback or on a unix socket, and Coffer's own client of it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use anyhow::Result;
use coffer::{
    key::{
        embedded::Embedded,
        kms::local::Local,
        providers::{KmsProvider, Provider, Providers},
        store::memory::Memory,
    },
    keyservice::{
        client::{Address, Remote},
        token::Token,
    },
    secret::LocalKek,
    server::{
        Reach, listen_unix,
        tls::{ClientTls, ServerFiles, ServerTls, incoming},
    },
};
use rustls::pki_types::ServerName;
use tokio::net::TcpListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::Router;
use uuid::Uuid;

/// Keys under a KEK in memory, and their records beside it.
#[must_use]
pub fn embedded() -> Arc<Embedded> {
    let provider = Provider::Kms(KmsProvider::new(Arc::new(Local::new(LocalKek::random()))));
    let providers = Providers { by_name: [("main".to_owned(), provider)].into(), default: "main".to_owned() };
    Arc::new(Embedded::new(Uuid::from_u128(1), providers, Arc::new(Memory::default())))
}

/// An address of loopback, and what serves there over TLS until `end`. Connections are taken from now on, and wait until
/// it is polled, in whatever runtime.
///
/// # Errors
/// The files do not fit together, or there is no port.
pub fn over_tls(
    service: Router,
    files: ServerFiles,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<(SocketAddr, impl Future<Output = Result<()>> + Send + 'static)> {
    let tls = Arc::new(ServerTls::server(files)?);
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let served = async move {
        let connections = incoming(TcpListener::from_std(listener)?, tls);
        service.serve_with_incoming_shutdown(connections, end).await?;
        anyhow::Ok(())
    };
    Ok((address, served))
}

/// What serves on a new unix socket.
///
/// # Errors
/// The socket cannot be made.
pub fn on_socket(service: Router, path: &Path) -> Result<impl Future<Output = Result<()>> + Send + use<>> {
    let connections = UnixListenerStream::new(listen_unix(path, Reach::Everybody)?);
    Ok(async move {
        service.serve_with_incoming(connections).await?;
        anyhow::Ok(())
    })
}

/// Coffer's own client of what serves over TLS there.
#[must_use]
pub fn client(address: SocketAddr, tls: ClientTls, token: Option<Token>) -> Remote {
    let name = ServerName::try_from("localhost").expect("localhost is a name");
    Remote::at(Address::Tls { authority: address.to_string(), name, tls: Arc::new(tls), token })
}
