//! A key service at the other end of a wire.
//!
//! The connection is made when it is needed and made again when it broke. Over TLS both sides show certificates; ours
//! are read again when their files change.

use std::{fmt, future::Future, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

use crate::{
    exec::Deadline,
    key::{
        derive::Tag,
        service::{Attempt, KeyFailure, KeyInfo, KeyService, NewKey, Page, Refusal, VolumeKey},
    },
    keyservice::{
        hpke::{HpkeFault, ReplyKey, SealedDek},
        wire::Malformed,
    },
    proto::keyservice::{
        BeginFormatRequest, CreateKeyRequest, DescribeKeyRequest, DestroyKeyRequest, GetKeyRequest, ListKeysRequest,
        MarkReadyRequest, key_service_client::KeyServiceClient,
    },
    server::tls::ClientTls,
    volume::VolumeId,
};

/// How long a connection may take to be made.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// How often a connection must show that there is still somebody at its other end.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Where a key service listens.
#[derive(Debug)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// TLS over TCP.
    Tls {
        /// `host:port`.
        authority: String,
        /// The name that its certificate must have.
        name: ServerName<'static>,
        /// Our certificate and its authority.
        tls: Arc<ClientTls>,
    },
}

/// A key service over gRPC.
#[derive(Clone)]
pub struct Remote(KeyServiceClient<Channel>);

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remote")
    }
}

impl Remote {
    /// A key service at an address. No connection is made yet.
    #[must_use]
    pub fn at(address: Address) -> Self {
        // The URI names nobody: the connector knows where to go, and TLS checks the name that was configured.
        let endpoint = Endpoint::from_static("http://keyservice")
            .connect_timeout(CONNECT_TIME)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let address = Arc::new(address);
        let channel = endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| connect(address.clone())));
        Self(KeyServiceClient::new(channel))
    }
}

/// Either kind of stream, as one type for the transport.
trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(address: Arc<Address>) -> std::io::Result<TokioIo<Box<dyn Stream>>> {
    let stream: Box<dyn Stream> = match address.as_ref() {
        Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
        Address::Tls { authority, name, tls } => {
            let tcp = TcpStream::connect(authority).await?;
            tcp.set_nodelay(true)?;
            Box::new(TlsConnector::from(tls.current()).connect(name.clone(), tcp).await?)
        }
    };
    Ok(TokioIo::new(stream))
}

fn within<T>(message: T, deadline: Deadline) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline.left());
    request
}

/// The reply to a call, connection and all, before the deadline.
async fn reply<T>(
    call: impl Future<Output = Result<Response<T>, Status>> + Send,
    deadline: Deadline,
) -> Result<T, KeyFailure> {
    let answered = tokio::time::timeout(deadline.left(), call).await.map_err(|_| KeyFailure::Deadline)?;
    Ok(answered?.into_inner())
}

fn info(info: Option<crate::proto::keyservice::KeyInfo>) -> Result<KeyInfo, KeyFailure> {
    let missing = || KeyFailure::Remote { refusal: Refusal::Fault, message: "a reply lacks its info".to_owned() };
    Ok(info.ok_or_else(missing)?.try_into()?)
}

fn broken(fault: HpkeFault) -> KeyFailure {
    KeyFailure::Remote { refusal: Refusal::Fault, message: fault.to_string() }
}

#[async_trait]
impl KeyService for Remote {
    async fn create(&self, new: NewKey, deadline: Deadline) -> Result<KeyInfo, KeyFailure> {
        let request = CreateKeyRequest {
            volume_id: new.volume_id.to_string(),
            name: new.name,
            parameters_json: serde_json::to_string(&new.parameters).expect("parameters have string keys only"),
            node: new.node.unwrap_or_default(),
            tenant: new.tenant.unwrap_or_default(),
            storage_class: new.storage_class.unwrap_or_default(),
            claim: new.claim.unwrap_or_default(),
            key_id: new.key_id.unwrap_or_default(),
            provider: new.provider.unwrap_or_default(),
            context: new.context.into_iter().collect(),
        };
        info(reply(self.0.clone().create_key(within(request, deadline)), deadline).await?.info)
    }

    async fn get(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<VolumeKey, KeyFailure> {
        let key = ReplyKey::new().map_err(broken)?;
        let request = GetKeyRequest { volume_id: volume_id.to_string(), public_key: key.public_key().to_vec() };
        let reply = reply(self.0.clone().get_key(within(request, deadline)), deadline).await?;
        let sealed = SealedDek { encapsulated_key: reply.encapsulated_key, ciphertext: reply.sealed_dek };
        Ok(VolumeKey { info: info(reply.info)?, dek: key.open(volume_id, sealed).map_err(broken)? })
    }

    async fn describe(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<Option<KeyInfo>, KeyFailure> {
        let request = DescribeKeyRequest { volume_id: volume_id.to_string() };
        let reply = reply(self.0.clone().describe_key(within(request, deadline)), deadline).await?;
        Ok(reply.info.map(KeyInfo::try_from).transpose()?)
    }

    async fn begin_format(
        &self,
        volume_id: &VolumeId,
        generation: u32,
        deadline: Deadline,
    ) -> Result<KeyInfo, KeyFailure> {
        let request = BeginFormatRequest { volume_id: volume_id.to_string(), generation };
        info(reply(self.0.clone().begin_format(within(request, deadline)), deadline).await?.info)
    }

    async fn mark_ready(
        &self,
        volume_id: &VolumeId,
        attempt: Attempt,
        header: Tag,
        deadline: Deadline,
    ) -> Result<KeyInfo, KeyFailure> {
        let request = MarkReadyRequest {
            volume_id: volume_id.to_string(),
            generation: attempt.generation,
            format_attempt: attempt.number,
            header_mac: header.as_bytes().to_vec(),
        };
        info(reply(self.0.clone().mark_ready(within(request, deadline)), deadline).await?.info)
    }

    async fn destroy(&self, volume_id: &VolumeId, generation: u32, deadline: Deadline) -> Result<(), KeyFailure> {
        let request = DestroyKeyRequest { volume_id: volume_id.to_string(), generation };
        reply(self.0.clone().destroy_key(within(request, deadline)), deadline).await?;
        Ok(())
    }

    async fn list(&self, after: Option<&VolumeId>, limit: usize, deadline: Deadline) -> Result<Page, KeyFailure> {
        let request = ListKeysRequest {
            after: after.map(VolumeId::to_string).unwrap_or_default(),
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
        };
        let reply = reply(self.0.clone().list_keys(within(request, deadline)), deadline).await?;
        let infos = reply.infos.into_iter().map(KeyInfo::try_from).collect::<Result<_, Malformed>>()?;
        let next = Some(reply.next).filter(|next| !next.is_empty()).map(|next| next.parse()).transpose();
        let malformed =
            |_| KeyFailure::Remote { refusal: Refusal::Fault, message: "a reply's next id is none".to_owned() };
        Ok(Page { infos, next: next.map_err(malformed)? })
    }
}
