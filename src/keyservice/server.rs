//! The key service's gRPC server: it finds out who calls, and hands the call to a guarded service.

use std::{fmt, sync::Arc};

use tokio::net::unix::UCred;
use tokio_util::task::TaskTracker;
use tonic::{
    Request, Response, Status, async_trait,
    transport::server::{TcpConnectInfo, TlsConnectInfo, UdsConnectInfo},
};

use crate::{
    exec::Deadline,
    key::service::{Attempt, KeyFailure, KeyService, NewKey},
    keyservice::{
        audit::{Audit, Operation},
        auth::{Caller, Guarded},
        hpke::{self, SealedDek},
        wire,
    },
    proto::keyservice::{
        BeginFormatRequest, BeginFormatResponse, CreateKeyRequest, CreateKeyResponse, DescribeKeyRequest,
        DescribeKeyResponse, DestroyKeyRequest, DestroyKeyResponse, GetKeyRequest, GetKeyResponse, ListKeysRequest,
        ListKeysResponse, MarkReadyRequest, MarkReadyResponse, key_service_server,
    },
    server::rpc,
    volume::VolumeId,
};

const PAGE: usize = 500;

/// The server.
pub struct Server {
    inner: Arc<dyn KeyService>,
    audit: Arc<Audit>,
    allowed_uids: Vec<u32>,
    tasks: TaskTracker,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("allowed_uids", &self.allowed_uids).finish_non_exhaustive()
    }
}

impl Server {
    /// A server in front of a key service; on a unix socket it serves these uids.
    #[must_use]
    pub fn new(inner: Arc<dyn KeyService>, audit: Arc<Audit>, allowed_uids: Vec<u32>) -> Self {
        Self { inner, audit, allowed_uids, tasks: TaskTracker::new() }
    }

    /// What is still at work when the listener has ended: wait for it before the program ends.
    #[must_use]
    pub fn tasks(&self) -> TaskTracker {
        self.tasks.clone()
    }

    /// Runs work to its end, also when the caller hangs up: what was done is written down in any case.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, KeyFailure>> + Send + 'static,
    ) -> Result<T, Status> {
        let done = self.tasks.spawn(work).await;
        done.unwrap_or_else(|_| Err(KeyFailure::Broken)).map_err(rpc::status)
    }

    /// What the caller of a request may have.
    fn guarded<T>(&self, request: &Request<T>) -> Result<(Guarded, Deadline), Status> {
        let extensions = request.extensions();
        let caller = if let Some(connection) = extensions.get::<TlsConnectInfo<TcpConnectInfo>>() {
            let certificates = connection.peer_certs();
            let certificate = certificates.as_ref().and_then(|chain| chain.first());
            certificate
                .and_then(|certificate| Caller::from_certificate(certificate))
                .ok_or("a client whose certificate names no node and no controller".to_owned())
        } else if let Some(connection) = extensions.get::<UdsConnectInfo>() {
            match connection.peer_cred.as_ref().map(UCred::uid) {
                Some(uid) if self.allowed_uids.contains(&uid) => Ok(Caller::Uid(uid)),
                Some(uid) => Err(format!("uid:{uid}")),
                None => Err("a process without credentials".to_owned()),
            }
        } else {
            Err("a connection of an unknown kind".to_owned())
        };
        match caller {
            Ok(caller) => {
                let guarded = Guarded::new(self.inner.clone(), self.audit.clone(), caller);
                Ok((guarded, rpc::deadline(request.metadata())))
            }
            Err(who) => {
                let denied = KeyFailure::Denied { who: who.clone(), what: "any key".to_owned() };
                if let Err(error) = self.audit.not_done(&who, Operation::Connect, None, &denied) {
                    tracing::error!(%error, "the audit log cannot be written");
                }
                Err(rpc::status(denied))
            }
        }
    }
}

#[async_trait]
impl key_service_server::KeyService for Server {
    async fn create_key(&self, request: Request<CreateKeyRequest>) -> Result<Response<CreateKeyResponse>, Status> {
        let (guarded, deadline) = self.guarded(&request)?;
        let request = request.into_inner();
        let malformed = |_| Status::invalid_argument("parameters_json is not known");
        let new = NewKey {
            volume_id: volume_id(&request.volume_id)?,
            name: request.name,
            parameters: serde_json::from_str(&request.parameters_json).map_err(malformed)?,
            node: wire::some(request.node),
            tenant: wire::some(request.tenant),
            storage_class: wire::some(request.storage_class),
            claim: wire::some(request.claim),
            key_id: wire::some(request.key_id),
            provider: wire::some(request.provider),
            context: request.context.into_iter().collect(),
        };
        let info = self.run(async move { guarded.create(new, deadline).await }).await?;
        Ok(Response::new(CreateKeyResponse { info: Some(info.into()) }))
    }

    async fn get_key(&self, request: Request<GetKeyRequest>) -> Result<Response<GetKeyResponse>, Status> {
        let (guarded, deadline) = self.guarded(&request)?;
        let GetKeyRequest { volume_id: text, public_key } = request.into_inner();
        let volume_id = volume_id(&text)?;
        // Looked at before the release is written down.
        if public_key.len() != hpke::PUBLIC_KEY_BYTES {
            return Err(Status::invalid_argument("public_key is not a public key of X25519 (32 bytes)"));
        }
        let asked = volume_id.clone();
        let key = self.run(async move { guarded.get(&asked, deadline).await }).await?;
        let sealed = hpke::seal(&key.dek, &volume_id, public_key);
        let SealedDek { encapsulated_key, ciphertext } =
            sealed.map_err(|fault| Status::invalid_argument(fault.to_string()))?;
        Ok(Response::new(GetKeyResponse { info: Some(key.info.into()), encapsulated_key, sealed_dek: ciphertext }))
    }

    async fn describe_key(
        &self,
        request: Request<DescribeKeyRequest>,
    ) -> Result<Response<DescribeKeyResponse>, Status> {
        let (guarded, deadline) = self.guarded(&request)?;
        let volume_id = volume_id(&request.into_inner().volume_id)?;
        let info = self.run(async move { guarded.describe(&volume_id, deadline).await }).await?;
        Ok(Response::new(DescribeKeyResponse { info: info.map(Into::into) }))
    }

    async fn begin_format(
        &self,
        request: Request<BeginFormatRequest>,
    ) -> Result<Response<BeginFormatResponse>, Status> {
        let (guarded, deadline) = self.guarded(&request)?;
        let request = request.into_inner();
        let volume_id = volume_id(&request.volume_id)?;
        let info =
            self.run(async move { guarded.begin_format(&volume_id, request.generation, deadline).await }).await?;
        Ok(Response::new(BeginFormatResponse { info: Some(info.into()) }))
    }

    async fn mark_ready(&self, request: Request<MarkReadyRequest>) -> Result<Response<MarkReadyResponse>, Status> {
        let (guarded, deadline) = self.guarded(&request)?;
        let request = request.into_inner();
        let volume_id = volume_id(&request.volume_id)?;
        let tag = wire::tag(&request.header_mac).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let attempt = Attempt { generation: request.generation, number: request.format_attempt };
        let info = self.run(async move { guarded.mark_ready(&volume_id, attempt, tag, deadline).await }).await?;
        Ok(Response::new(MarkReadyResponse { info: Some(info.into()) }))
    }

    async fn destroy_key(&self, request: Request<DestroyKeyRequest>) -> Result<Response<DestroyKeyResponse>, Status> {
        let (guarded, deadline) = self.guarded(&request)?;
        let request = request.into_inner();
        let (volume_id, generation) = (volume_id(&request.volume_id)?, request.generation);
        if generation == 0 {
            return Err(Status::invalid_argument("generation is missing"));
        }
        self.run(async move { guarded.destroy(&volume_id, generation, deadline).await }).await?;
        Ok(Response::new(DestroyKeyResponse {}))
    }

    async fn list_keys(&self, request: Request<ListKeysRequest>) -> Result<Response<ListKeysResponse>, Status> {
        let (guarded, deadline) = self.guarded(&request)?;
        let request = request.into_inner();
        let after = wire::some(request.after).map(|after| volume_id(&after)).transpose()?;
        let limit = match usize::try_from(request.limit) {
            Ok(0) | Err(_) => PAGE,
            Ok(limit) => limit.min(PAGE),
        };
        let page = self.run(async move { guarded.list(after.as_ref(), limit, deadline).await }).await?;
        Ok(Response::new(ListKeysResponse {
            infos: page.infos.into_iter().map(Into::into).collect(),
            next: page.next.map(String::from).unwrap_or_default(),
        }))
    }
}

fn volume_id(text: &str) -> Result<VolumeId, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("volume_id: {error}")))
}
