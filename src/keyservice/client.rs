//! A key service at the other end of a wire: one of several that are alike, any of which may end at any moment.
//!
//! The connection is made when it is needed and made again when it broke, to whoever answers at the address then. A
//! request that got no answer is made again, for a while: each one is such that it can be (`key::service`). What the
//! service itself says is an answer, also when it says that its KMS is away, and is handed on as it is.
//!
//! Over TLS both sides show certificates, or the caller shows a token; ours are read again when their files change.

use std::{error::Error, fmt, future::Future, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBuilder};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::{
    Code, Request, Response, Status, TimeoutExpired,
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
        token::{self, Token},
        wire::Malformed,
    },
    proto::keyservice::{
        BeginFormatRequest, CreateKeyRequest, DescribeKeyRequest, DestroyKeyRequest, GetKeyRequest, ListKeysRequest,
        MarkReadyRequest, key_service_client::KeyServiceClient,
    },
    server::{rpc, tls::ClientTls},
    volume::VolumeId,
};

/// How long a connection may take to be made.
const CONNECT_TIME: Duration = Duration::from_secs(3);
/// How often a connection must show that there is still somebody at its other end.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// The first pause before a request is made again; the next ones double, with jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// So long after the first time that nobody answered a request is still made again. With the time that a connection may
/// take before and after it, a caller knows within about 10 seconds that there is nobody.
const ALONE_TIME: Duration = Duration::from_secs(6);

/// The header by which a service says when to ask again, in milliseconds.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

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
        /// Our certificate, where we show one, and its authority.
        tls: Arc<ClientTls>,
        /// What proves who we are, where no certificate does.
        token: Option<Token>,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tls { authority, .. } => write!(f, "https://{authority}"),
        }
    }
}

/// A key service over gRPC.
#[derive(Clone)]
pub struct Remote {
    client: KeyServiceClient<Channel>,
    address: Arc<Address>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("address", &self.address).finish_non_exhaustive()
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
        let to = address.clone();
        let channel = endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| connect(to.clone())));
        Self { client: KeyServiceClient::new(channel), address }
    }

    /// Makes a request, connection and all, and makes it again while nobody answers, until the deadline or until it is
    /// clear that there is nobody.
    async fn ask<M: Clone, T, F: Future<Output = Result<Response<T>, Status>> + Send>(
        &self,
        message: M,
        deadline: Deadline,
        call: impl Fn(KeyServiceClient<Channel>, Request<M>) -> F,
    ) -> Result<T, KeyFailure> {
        let pauses = ExponentialBuilder::new().with_min_delay(FIRST_PAUSE).with_max_delay(LONGEST_PAUSE);
        let mut pauses = pauses.without_max_times().with_jitter().build();
        let (mut alone_until, mut silent) = (None, None);
        loop {
            let request = self.request(message.clone(), deadline)?;
            let answered = tokio::time::timeout(deadline.left(), call(self.client.clone(), request)).await;
            // That nobody has answered until now says more than that the time is over.
            let late = || silent.clone().map_or(KeyFailure::Deadline, unavailable);
            let status = match answered.map_err(|_| late())? {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if is_late(&status) => return Err(late()),
                Err(status) => status,
            };
            let pause = pauses.next().map_or(LONGEST_PAUSE, |pause| pause.min(LONGEST_PAUSE));
            // A pause that outlasts the caller would only hide what really happened.
            let pause = match (Silence::of(&status), pushback(&status)) {
                (None, Some(asked)) if asked.max(pause) < deadline.left() => asked.max(pause),
                (None, _) => return Err(status.into()),
                (Some(silence), _) => {
                    let until = *alone_until.get_or_insert_with(|| Deadline::within(ALONE_TIME));
                    let told = format!("no answer from {}: {}", self.address, silence.why);
                    if silence.is_for_good || pause >= deadline.left().min(until.left()) {
                        return Err(unavailable(told));
                    }
                    tracing::debug!(address = %self.address, why = silence.why, "no answer; asking again");
                    silent = Some(told);
                    pause
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn request<M>(&self, message: M, deadline: Deadline) -> Result<Request<M>, KeyFailure> {
        let mut request = Request::new(message);
        request.set_timeout(deadline.left());
        if let Address::Tls { token: Some(token), .. } = self.address.as_ref() {
            let header = token.header().map_err(|fault| KeyFailure::Remote {
                refusal: Refusal::Unavailable,
                message: format!("it is not asked, because there is no token: {}", rpc::message(&fault)),
            })?;
            request.metadata_mut().insert(token::HEADER, header);
        }
        Ok(request)
    }
}

fn unavailable(message: String) -> KeyFailure {
    KeyFailure::Remote { refusal: Refusal::Unavailable, message }
}

/// Whether the transport saw first that the caller's time is over.
fn is_late(status: &Status) -> bool {
    causes(status).any(|cause| cause.is::<TimeoutExpired>())
}

/// What was made on this side of the wire has causes; what came over it has none.
fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |cause| (**cause).source())
}

/// When a service that was asked too often wants to be asked again (gRPC A6, client retry design: pushback).
fn pushback(status: &Status) -> Option<Duration> {
    let asked = status.metadata().get(PUSHBACK).filter(|_| status.code() == Code::ResourceExhausted)?;
    asked.to_str().ok()?.parse().ok().map(Duration::from_millis)
}

/// A request to which nobody said anything.
struct Silence {
    why: String,
    /// Whether the next moment would be like this one.
    is_for_good: bool,
}

impl Silence {
    /// What came over the wire was said by the service, but for UNKNOWN, which it never says: that stands for an answer
    /// without an end, whose stream was reset.
    fn of(status: &Status) -> Option<Self> {
        let Some(source) = status.source() else {
            let why = status.message().to_owned();
            return (status.code() == Code::Unknown).then_some(Self { why, is_for_good: false });
        };
        Some(Self { why: rpc::message(source), is_for_good: causes(status).any(is_mistrust) })
    }
}

/// Whether it is that the other end's certificate is not one that we trust.
fn is_mistrust(cause: &(dyn Error + 'static)) -> bool {
    let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let fault = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(fault, Some(rustls::Error::InvalidCertificate(_)))
}

/// Either kind of stream, as one type for the transport.
trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(address: Arc<Address>) -> std::io::Result<TokioIo<Box<dyn Stream>>> {
    let stream: Box<dyn Stream> = match address.as_ref() {
        Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
        Address::Tls { authority, name, tls, .. } => {
            let tcp = TcpStream::connect(authority).await?;
            tcp.set_nodelay(true)?;
            Box::new(TlsConnector::from(tls.current()).connect(name.clone(), tcp).await?)
        }
    };
    Ok(TokioIo::new(stream))
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
        info(self.ask(request, deadline, |mut to, it| async move { to.create_key(it).await }).await?.info)
    }

    async fn get(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<VolumeKey, KeyFailure> {
        let key = ReplyKey::new().map_err(broken)?;
        let request = GetKeyRequest { volume_id: volume_id.to_string(), public_key: key.public_key().to_vec() };
        let reply = self.ask(request, deadline, |mut to, it| async move { to.get_key(it).await }).await?;
        let sealed = SealedDek { encapsulated_key: reply.encapsulated_key, ciphertext: reply.sealed_dek };
        Ok(VolumeKey { info: info(reply.info)?, dek: key.open(volume_id, sealed).map_err(broken)? })
    }

    async fn describe(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<Option<KeyInfo>, KeyFailure> {
        let request = DescribeKeyRequest { volume_id: volume_id.to_string() };
        let reply = self.ask(request, deadline, |mut to, it| async move { to.describe_key(it).await }).await?;
        Ok(reply.info.map(KeyInfo::try_from).transpose()?)
    }

    async fn begin_format(
        &self,
        volume_id: &VolumeId,
        generation: u32,
        deadline: Deadline,
    ) -> Result<KeyInfo, KeyFailure> {
        let request = BeginFormatRequest { volume_id: volume_id.to_string(), generation };
        info(self.ask(request, deadline, |mut to, it| async move { to.begin_format(it).await }).await?.info)
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
        info(self.ask(request, deadline, |mut to, it| async move { to.mark_ready(it).await }).await?.info)
    }

    async fn destroy(&self, volume_id: &VolumeId, generation: u32, deadline: Deadline) -> Result<(), KeyFailure> {
        let request = DestroyKeyRequest { volume_id: volume_id.to_string(), generation };
        self.ask(request, deadline, |mut to, it| async move { to.destroy_key(it).await }).await?;
        Ok(())
    }

    async fn list(&self, after: Option<&VolumeId>, limit: usize, deadline: Deadline) -> Result<Page, KeyFailure> {
        let request = ListKeysRequest {
            after: after.map(VolumeId::to_string).unwrap_or_default(),
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
        };
        let reply = self.ask(request, deadline, |mut to, it| async move { to.list_keys(it).await }).await?;
        let infos = reply.infos.into_iter().map(KeyInfo::try_from).collect::<Result<_, Malformed>>()?;
        let next = Some(reply.next).filter(|next| !next.is_empty()).map(|next| next.parse()).transpose();
        let malformed =
            |_| KeyFailure::Remote { refusal: Refusal::Fault, message: "a reply's next id is none".to_owned() };
        Ok(Page { infos, next: next.map_err(malformed)? })
    }
}
