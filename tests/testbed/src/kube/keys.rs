//! A key service in this process whose authority is an API server, over TLS on loopback, and those who ask it.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use coffer::{
    key::embedded::Embedded,
    keyservice::{
        audit::Audit, bearer::Settings, client::Remote, kubernetes::Authority, limit::Limit, server::Server,
        token::Token,
    },
    proto::keyservice::{key_service_client::KeyServiceClient, key_service_server::KeyServiceServer},
    server::tls::{ClientTls, Clients, Files},
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName, pem::PemObject};
use serde_json::Value;
use tokio::{net::TcpStream, task::JoinSet};
use tokio_rustls::TlsConnector;
use tonic::{
    Request,
    transport::{Channel, Endpoint, Server as Transport, Uri},
};
use tower::service_fn;
use uuid::Uuid;

use super::ApiServer;
use crate::keyservice::{
    authority::Authority as Certifier,
    log::AuditLog,
    served::{self, embedded, over_tls},
};

/// How long the watches may take to know of everything.
const SYNC_TIME: Duration = Duration::from_secs(30);
/// How long a request may take.
const CALL_TIME: Duration = Duration::from_secs(20);

/// Whom a key service believes.
pub enum Callers {
    /// Those who show a certificate of ours.
    Certified,
    /// Those who show a token that the API server of a client confirms.
    Bearers(Box<(kube::Client, Settings)>),
}

/// How long a watch that fell silent counts.
pub const WATCH_EXPIRY: Duration = Duration::from_secs(30);

/// The settings that let in the accounts `coffer-node` and `coffer-controller` of a namespace, believe a token for a
/// time, and let each node ask so often.
///
/// # Panics
/// The namespace has no name that one can have.
#[must_use]
pub fn settings(namespace: &str, review_expiry: Duration, requests_per_second: u32) -> Settings {
    let account = |name: &str| format!("{namespace}/{name}").parse().expect("NAMESPACE/NAME");
    Settings {
        audience: "coffer".to_owned(),
        node_accounts: vec![account("coffer-node")],
        controller_accounts: vec![account("coffer-controller")],
        drivers: vec!["coffer.csi".to_owned(), "attached.csi".to_owned()],
        review_expiry,
        watch_expiry: WATCH_EXPIRY,
        requests_per_second: requests_per_second.try_into().expect("more than none"),
    }
}

/// A key service. It ends when this is dropped.
pub struct KeyServer {
    keys: Arc<Embedded>,
    log: AuditLog,
    address: SocketAddr,
    /// The certificate of a node, and the authority that it comes from.
    node: Files,
    folder: PathBuf,
    authority: Option<Arc<Authority>>,
    _tasks: JoinSet<()>,
}

impl std::fmt::Debug for KeyServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyServer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl KeyServer {
    /// Starts one with certificates in a folder. Its watches may not know of anything yet.
    ///
    /// # Errors
    /// A certificate cannot be written, or there is no port.
    pub fn start(folder: &Path, callers: Callers) -> Result<Self> {
        let certifier = Certifier::new(folder)?;
        let node = certifier.client("coffer://node/n1")?;
        let (keys, log, mut tasks) = (embedded(), AuditLog::default(), JoinSet::new());
        let server = Server::new(keys.clone(), Arc::new(Audit::to(log.clone())), Vec::new());
        let (server, clients, authority) = match callers {
            Callers::Certified => (server, Clients::Certified(certifier.certificate()), None),
            Callers::Bearers(asked) => {
                let (client, settings) = *asked;
                let limit = Limit::per_second(settings.requests_per_second);
                let (authority, watches) = Authority::watch(client, settings);
                tasks.spawn(watches);
                (server.with_authority(authority.clone(), limit), Clients::Anybody, Some(authority))
            }
        };
        let service = Transport::builder().add_service(KeyServiceServer::new(server));
        let (address, served) = over_tls(service, certifier.server(clients)?, std::future::pending())?;
        tasks.spawn(async move {
            // It ends by being dropped.
            let _ = served.await;
        });
        Ok(Self { keys, log, address, node, folder: folder.to_owned(), authority, _tasks: tasks })
    }

    /// Waits until its watches know of everything that there is.
    ///
    /// # Errors
    /// They take too long.
    pub async fn synced(&self) -> Result<()> {
        let Some(authority) = &self.authority else { return Ok(()) };
        tokio::time::timeout(SYNC_TIME, authority.synced()).await.context("the watches are not in sync in time")
    }

    /// The keys themselves, past everything that guards them.
    #[must_use]
    pub fn keys(&self) -> &Arc<Embedded> {
        &self.keys
    }

    /// What was written to its audit log, as it is.
    #[must_use]
    pub fn audit(&self) -> String {
        self.log.text()
    }

    /// The last line of its audit log.
    #[must_use]
    pub fn last(&self) -> Value {
        self.log.last()
    }

    /// Somebody with this token, or with none.
    ///
    /// # Errors
    /// The certificates do not fit together.
    pub fn bearer(&self, token: Option<&str>) -> Result<Bearer> {
        let tls = Arc::new(ClientTls::trusting(self.node.authority.clone())?);
        let connect = {
            let address = self.address;
            move |_: Uri| {
                let tls = TlsConnector::from(tls.current());
                async move {
                    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
                    let tcp = TcpStream::connect(address).await?;
                    tcp.set_nodelay(true)?;
                    io::Result::Ok(TokioIo::new(tls.connect(name, tcp).await?))
                }
            }
        };
        let channel = Endpoint::from_static("http://keyservice").connect_with_connector_lazy(service_fn(connect));
        Ok(Bearer { client: KeyServiceClient::new(channel), token: token.map(str::to_owned) })
    }

    /// Coffer's own client with a token, as a node has it.
    ///
    /// # Errors
    /// The token cannot be written.
    pub fn remote(&self, token: &str) -> Result<Remote> {
        let path = self.folder.join(format!("{}.token", Uuid::new_v4()));
        fs::write(&path, token)?;
        let tls = ClientTls::trusting(self.node.authority.clone())?;
        Ok(served::client(self.address, tls, Some(Token::in_file(&path))))
    }

    /// Coffer's own client with the certificate of the node `n1`.
    ///
    /// # Errors
    /// The certificates do not fit together.
    pub fn certified(&self) -> Result<Remote> {
        Ok(served::client(self.address, ClientTls::client(self.node.clone())?, None))
    }
}

/// Somebody who asks with a token, and hears the codes of the answers.
#[derive(Clone, Debug)]
pub struct Bearer {
    client: KeyServiceClient<Channel>,
    token: Option<String>,
}

impl Bearer {
    /// The client.
    #[must_use]
    pub fn client(&self) -> KeyServiceClient<Channel> {
        self.client.clone()
    }

    /// A request with the token.
    ///
    /// # Panics
    /// The token fits into no header.
    #[must_use]
    pub fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request.set_timeout(CALL_TIME);
        if let Some(token) = &self.token {
            let header = format!("Bearer {token}").parse().expect("a token is ASCII");
            request.metadata_mut().insert("authorization", header);
        }
        request
    }
}

impl ApiServer {
    /// A token whose claims were changed, signed with the API server's own key: what is wrong with it is the change, and
    /// nothing else.
    ///
    /// # Errors
    /// It is no token.
    pub fn resigned(&self, token: &str, change: impl FnOnce(&mut Value)) -> Result<String> {
        let mut parts = token.split('.');
        let (head, claims) = (parts.next().context("a token has a head")?, parts.next().context("and claims")?);
        let mut claims: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims)?)?;
        change(&mut claims);
        let signed = format!("{head}.{}", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
        let key = PrivatePkcs8KeyDer::from_pem_file(self.signing_key())?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_pkcs8_der())?;
        let signature = key.sign(&SystemRandom::new(), signed.as_bytes())?;
        Ok(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
    }
}
