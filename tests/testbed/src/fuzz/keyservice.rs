//! What may arrive at either end of the key service's wire, and the certificate that a client shows.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use coffer::{
    key::{
        cluster::ClusterKeys,
        embedded::Embedded,
        kms::local::Local,
        providers::{KmsProvider, Provider, Providers},
        record::State,
        service::KeyInfo,
        store::memory::Memory,
    },
    keyservice::{audit::Audit, auth::Caller, hpke::ReplyKey, server::Server},
    proto::keyservice::{
        self as message, BeginFormatRequest, CreateKeyRequest, DescribeKeyRequest, DestroyKeyRequest, GetKeyRequest,
        ListKeysRequest, MarkReadyRequest, key_service_server::KeyService as _,
    },
    secret::LocalKek,
    server::rpc,
};
use prost::Message;
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Status,
    metadata::AsciiMetadataValue,
    transport::server::{Connected, UdsConnectInfo},
};
use uuid::Uuid;

use crate::{
    fuzz::{RUNTIME, wait},
    keyservice::log::AuditLog,
};

/// Requests of one input that are looked at.
const REQUESTS: usize = 16;
/// The most keys in a page of a list.
const PAGE: usize = 500;
/// The longest time that gRPC can name: eight digits of hours.
const LONGEST: Duration = Duration::from_secs(99_999_999 * 3600);

/// A connection of this process to itself.
static CONNECTION: LazyLock<UdsConnectInfo> = LazyLock::new(|| {
    let _inside = RUNTIME.enter();
    let (here, _there) = UnixStream::pair().expect("a pair of sockets can be made");
    here.connect_info()
});

/// Requests, one after the other, to a key service that is new: each a byte that names the RPC, the length of the
/// message in two bytes, and the message. What can go wrong with them is the caller's fault, and is said so; what is
/// answered holds what was asked for; the audit log stays one object a line.
pub fn keyservice(bytes: &[u8]) -> bool {
    let log = AuditLog::default();
    let uid = CONNECTION.peer_cred.expect("the kernel says who calls").uid();
    let server = Server::new(Arc::new(embedded()), Arc::new(Audit::to(log.clone())), vec![uid]);
    let mut client = Client { server, timeout: None };
    let requests = requests(bytes);
    let answers = wait(async {
        let mut answers = Vec::new();
        for (rpc, message) in &requests {
            answers.push(client.ask(*rpc, message).await);
        }
        answers
    });
    for refused in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        let of_the_caller = matches!(
            refused.code(),
            Code::InvalidArgument | Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted
        );
        assert!(of_the_caller && !refused.message().is_empty(), "{refused:?}");
    }
    for line in log.lines() {
        assert!(line["operation"].is_string() && line["who"] == format!("uid:{uid}"), "{line:?}");
    }
    !answers.is_empty() && answers.iter().all(Result::is_ok)
}

fn requests(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut requests = Vec::new();
    while let Some((&[rpc, high, low], rest)) = bytes.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        let (message, behind) = rest.split_at(length);
        requests.push((rpc, message));
        if requests.len() == REQUESTS {
            break;
        }
        bytes = behind;
    }
    requests
}

/// A key service with a KMS and a cluster key, and nothing in its store.
pub(super) fn embedded() -> Embedded {
    let by_name = [
        ("main".to_owned(), Provider::Kms(KmsProvider::new(Arc::new(Local::new(LocalKek::born(|kek| kek.fill(7))))))),
        ("cluster".to_owned(), Provider::Cluster(ClusterKeys::generate())),
    ];
    let providers = Providers { by_name: by_name.into(), default: "main".to_owned() };
    Embedded::new(Uuid::from_u128(1), providers, Arc::new(Memory::default()))
}

struct Client {
    server: Server,
    timeout: Option<AsciiMetadataValue>,
}

impl Client {
    async fn ask(&mut self, rpc: u8, message: &[u8]) -> Result<(), Status> {
        match rpc % 8 {
            0 => self.create(decode(message)?).await,
            1 => self.get(decode(message)?).await,
            2 => self.describe(decode(message)?).await,
            3 => self.begin_format(decode(message)?).await,
            4 => self.mark_ready(decode(message)?).await,
            5 => self.destroy(decode(message)?).await,
            6 => self.list(decode(message)?).await,
            _ => self.deadline(message),
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.extensions_mut().insert(CONNECTION.clone());
        if let Some(timeout) = &self.timeout {
            request.metadata_mut().insert("grpc-timeout", timeout.clone());
        }
        request
    }

    /// What the requests that follow say of their time.
    fn deadline(&mut self, text: &[u8]) -> Result<(), Status> {
        let timeout = AsciiMetadataValue::try_from(text);
        self.timeout = Some(timeout.map_err(|_| Status::invalid_argument("it is no value of a header"))?);
        assert!(rpc::deadline(self.request(()).metadata()).left() <= LONGEST, "no deadline is further than gRPC's");
        Ok(())
    }

    async fn create(&self, request: CreateKeyRequest) -> Result<(), Status> {
        let made = self.server.create_key(self.request(request.clone())).await?.into_inner();
        assert_eq!(read(made.info.as_ref()).volume_id.as_str(), request.volume_id);
        let get = GetKeyRequest { volume_id: request.volume_id.clone(), public_key: Vec::new() };
        let again = self.server.create_key(self.request(request)).await.expect("the same request is answered again");
        assert_eq!(*again.get_ref(), made, "it finds the same record");
        self.get(get).await.expect("a key that was made opens");
        Ok(())
    }

    async fn get(&self, mut request: GetKeyRequest) -> Result<(), Status> {
        let own = ReplyKey::new().expect("there is randomness");
        if request.public_key.is_empty() {
            request.public_key = own.public_key().to_vec();
        }
        let key = self.server.get_key(self.request(request.clone())).await?;
        let key = key.get_ref();
        assert_eq!(read(key.info.as_ref()).volume_id.as_str(), request.volume_id);
        assert_eq!((key.encapsulated_key.len(), key.sealed_dek.len()), (32, 48));
        Ok(())
    }

    async fn describe(&self, request: DescribeKeyRequest) -> Result<(), Status> {
        let told = self.server.describe_key(self.request(request.clone())).await?.into_inner();
        assert!(told.info.is_none_or(|info| read(Some(&info)).volume_id.as_str() == request.volume_id));
        Ok(())
    }

    async fn begin_format(&self, request: BeginFormatRequest) -> Result<(), Status> {
        let begun = self.server.begin_format(self.request(request.clone())).await?.into_inner();
        let info = read(begun.info.as_ref());
        assert_eq!((info.state, info.generation), (State::Formatting, request.generation));
        Ok(())
    }

    async fn mark_ready(&self, request: MarkReadyRequest) -> Result<(), Status> {
        let ready = self.server.mark_ready(self.request(request.clone())).await?.into_inner();
        let info = read(ready.info.as_ref());
        assert_eq!((info.state, info.format_attempt), (State::Ready, request.format_attempt));
        assert_eq!(info.header_tag.map(|tag| tag.as_bytes().to_vec()), Some(request.header_mac));
        Ok(())
    }

    async fn destroy(&self, request: DestroyKeyRequest) -> Result<(), Status> {
        let generation = request.generation;
        self.server.destroy_key(self.request(request.clone())).await?;
        let public_key = ReplyKey::new().expect("there is randomness").public_key().to_vec();
        let request = self.request(GetKeyRequest { volume_id: request.volume_id, public_key });
        let left = self.server.get_key(request).await.ok().and_then(|reply| reply.into_inner().info.take());
        assert!(left.is_none_or(|info| info.generation > generation), "a key that was destroyed does not open");
        Ok(())
    }

    async fn list(&self, request: ListKeysRequest) -> Result<(), Status> {
        let page = self.server.list_keys(self.request(request.clone())).await?.into_inner();
        let infos: Vec<_> = page.infos.iter().map(|info| read(Some(info))).collect();
        let most = usize::try_from(request.limit).ok().filter(|limit| (1..PAGE).contains(limit)).unwrap_or(PAGE);
        assert!(infos.len() <= most, "a page is no longer than was asked for");
        assert!(infos.iter().all(|info| info.volume_id.as_str() > request.after.as_str()), "it begins where asked");
        assert!(infos.windows(2).all(|two| two[0].volume_id < two[1].volume_id), "it is in order");
        Ok(())
    }
}

fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, Status> {
    M::decode(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// What a key service sent, as its client reads it.
fn read(info: Option<&message::KeyInfo>) -> KeyInfo {
    let info = info.expect("an answer has its info").clone();
    KeyInfo::try_from(info).expect("what is sent is well formed")
}

/// What a key service may answer. What is accepted arrives the same when it is sent on.
pub fn reply(bytes: &[u8]) -> bool {
    let Ok(sent) = message::KeyInfo::decode(bytes) else { return false };
    let Ok(info) = KeyInfo::try_from(sent) else { return false };
    assert_eq!(KeyInfo::try_from(message::KeyInfo::from(info.clone())).ok(), Some(info));
    true
}

/// The certificate of a client. Who it is stands in it, behind one of two prefixes, and has a name.
pub fn certificate(der: &[u8]) -> bool {
    let (kind, name) = match Caller::from_certificate(der) {
        None => return false,
        Some(Caller::Node(name)) => ("node", name),
        Some(Caller::Controller(name)) => ("controller", name),
        Some(caller) => panic!("a certificate makes nobody {caller}"),
    };
    assert!(!name.is_empty(), "a caller has a name");
    let uri = format!("coffer://{kind}/{name}");
    assert!(der.windows(uri.len()).any(|bytes| bytes == uri.as_bytes()), "{uri} is not in the certificate");
    true
}
