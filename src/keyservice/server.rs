//! The key service's gRPC server: it finds out who calls, and hands the call to a guarded service. Who cannot be found
//! out, or calls too often, is turned away here, and written down.

use std::{fmt, num::NonZeroU32, sync::Arc};

use tokio::net::unix::UCred;
use tokio_util::task::TaskTracker;
use tonic::{
    Request, Response, Status, async_trait,
    metadata::{MetadataMap, MetadataValue},
    transport::server::{TcpConnectInfo, TlsConnectInfo, UdsConnectInfo},
};

use crate::{
    exec::Deadline,
    key::service::{Attempt, KeyFailure, KeyService, NewKey},
    keyservice::{
        audit::{Audit, Ending, Who},
        auth::{Caller, Guarded},
        bearer::Unproven,
        hpke::{self, HpkeFault, SealedDek, Sealer},
        kubernetes::Authority,
        limit::{Limit, Strangers, TooOften},
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
/// When to come again, in milliseconds (gRPC A6, client retry design: pushback).
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Requests with an unknown token from one address each second: the API server has to be asked for each, which costs all
/// the others' time.
const PEER_REQUESTS: NonZeroU32 = NonZeroU32::new(200).expect("it is not zero");

/// The server.
pub struct Server {
    inner: Arc<dyn KeyService>,
    audit: Arc<Audit>,
    allowed_uids: Vec<u32>,
    authority: Option<Arc<Authority>>,
    limit: Option<Limit>,
    peers: Limit,
    strangers: Strangers,
    tasks: TaskTracker,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("allowed_uids", &self.allowed_uids).finish_non_exhaustive()
    }
}

/// A caller of whom nothing is known.
enum Stranger {
    /// He has shown nothing that proves who he is.
    Unproven(Unproven),
    /// Too many come from his address.
    TooOften(TooOften),
    /// He is somebody, told in words, and we let him in nowhere.
    Nobody(String),
}

impl Server {
    /// A server in front of a key service; on a unix socket it serves these uids.
    #[must_use]
    pub fn new(inner: Arc<dyn KeyService>, audit: Arc<Audit>, allowed_uids: Vec<u32>) -> Self {
        let (authority, limit, strangers) = (None, None, Strangers::default());
        let peers = Limit::per_second(PEER_REQUESTS);
        Self { inner, audit, allowed_uids, authority, limit, peers, strangers, tasks: TaskTracker::new() }
    }

    /// The same, over TLS also for callers who show a token, each of whose nodes may ask so often.
    #[must_use]
    pub fn with_authority(self, authority: Arc<Authority>, limit: Limit) -> Self {
        Self { authority: Some(authority), limit: Some(limit), ..self }
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
    async fn guarded<T: Sync>(&self, request: &Request<T>) -> Result<(Guarded, Deadline), Status> {
        let deadline = rpc::deadline(request.metadata());
        let caller = self.caller(request, deadline).await.map_err(|stranger| self.turn_away(stranger))?;
        self.expect_seldom(&caller)?;
        let guarded = Guarded::new(self.inner.clone(), self.audit.clone(), caller);
        Ok((guarded.with_authority(self.authority.clone()), deadline))
    }

    /// Who calls: by a token where there is one and somebody who knows whose it is, else by what the connection shows.
    async fn caller<T: Sync>(&self, request: &Request<T>, deadline: Deadline) -> Result<Caller, Stranger> {
        let extensions = request.extensions();
        if let Some(connection) = extensions.get::<TlsConnectInfo<TcpConnectInfo>>() {
            if let (Some(authority), Some(token)) = (&self.authority, bearer(request.metadata())) {
                if let Some(caller) = authority.known(token).await {
                    return Ok(caller);
                }
                if let Some(peer) = connection.get_ref().remote_addr() {
                    self.peers.admit(&peer.ip().to_string()).map_err(Stranger::TooOften)?;
                }
                return authority.caller(token, deadline).await.map_err(Stranger::Unproven);
            }
            let certificates = connection.peer_certs();
            let certificate = certificates.as_ref().and_then(|chain| chain.first());
            if self.authority.is_some() && certificate.is_none() {
                return Err(Stranger::Unproven(Unproven::Missing));
            }
            let nobody = || Stranger::Nobody("a client whose certificate names no node and no controller".to_owned());
            return certificate.and_then(|certificate| Caller::from_certificate(certificate)).ok_or_else(nobody);
        }
        let Some(connection) = extensions.get::<UdsConnectInfo>() else {
            return Err(Stranger::Nobody("a connection of an unknown kind".to_owned()));
        };
        match connection.peer_cred.as_ref().map(UCred::uid) {
            Some(uid) if self.allowed_uids.contains(&uid) => Ok(Caller::Uid(uid)),
            Some(uid) => Err(Stranger::Nobody(format!("uid:{uid}"))),
            None => Err(Stranger::Nobody("a process without credentials".to_owned())),
        }
    }

    /// What a stranger is told, once it is written down.
    fn turn_away(&self, stranger: Stranger) -> Status {
        let (who, ending, reason, status) = match stranger {
            Stranger::Nobody(who) => {
                let denied = KeyFailure::Denied { who: who.clone(), what: "any key".to_owned() };
                (who, Ending::Refused, denied.to_string(), rpc::status(denied))
            }
            Stranger::Unproven(unproven) => {
                // What the API server said is for us; what we say is for him.
                let (told, reason) = (unproven.to_string(), rpc::message(&unproven));
                let (ending, status) = match unproven {
                    Unproven::Away(_) => (Ending::Failed, Status::unavailable(told)),
                    Unproven::Missing
                    | Unproven::Malformed
                    | Unproven::Expired
                    | Unproven::Audience(_)
                    | Unproven::Account(_)
                    | Unproven::NoPod
                    | Unproven::NoNode
                    | Unproven::Refused(_) => (Ending::Refused, Status::unauthenticated(told)),
                };
                ("unproven".to_owned(), ending, reason, status)
            }
            Stranger::TooOften(too_often) => {
                ("unproven".to_owned(), Ending::Refused, too_often.to_string(), later(&too_often))
            }
        };
        if let Some(untold) = self.strangers.tell() {
            self.write_down(&Who::named(who), ending, &reason, untold);
        }
        status
    }

    /// Refuses a node that asks too often.
    fn expect_seldom(&self, caller: &Caller) -> Result<(), Status> {
        let (Some(limit), Some(node)) = (&self.limit, caller.node()) else { return Ok(()) };
        let Err(too_often) = limit.admit(node) else { return Ok(()) };
        if let Some(untold) = too_often.told {
            self.write_down(&caller.who(), Ending::Refused, &too_often.to_string(), untold);
        }
        Err(later(&too_often))
    }

    /// What cannot be written down is refused all the same.
    fn write_down(&self, who: &Who, ending: Ending, reason: &str, untold: u64) {
        if let Err(error) = self.audit.turned_away(who, ending, reason, untold) {
            tracing::error!(%error, "the audit log cannot be written");
        }
    }
}

/// The token of a request (RFC 6750, 2.1), where it has one.
fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let (scheme, token) = metadata.get("authorization")?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

#[async_trait]
impl key_service_server::KeyService for Server {
    async fn create_key(&self, request: Request<CreateKeyRequest>) -> Result<Response<CreateKeyResponse>, Status> {
        let (guarded, deadline) = self.guarded(&request).await?;
        let request = request.into_inner();
        let malformed = |_| Status::invalid_argument(wire::PARAMETERS);
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
        let (guarded, deadline) = self.guarded(&request).await?;
        let GetKeyRequest { volume_id: text, public_key } = request.into_inner();
        let volume_id = volume_id(&text)?;
        // Looked at before the release is written down.
        if public_key.len() != hpke::PUBLIC_KEY_BYTES {
            return Err(Status::invalid_argument("public_key is not a public key of X25519 (32 bytes)"));
        }
        let asked = volume_id.clone();
        let got = async move {
            // The key is asked for first; while the store or the KMS thinks, this side of the encryption is made.
            let (key, sealer) = tokio::join!(guarded.get(&asked, deadline), async { Sealer::new(public_key) });
            key.map(|key| (key, sealer))
        };
        let (key, sealer) = self.run(got).await?;
        let sealed = sealer.and_then(|sealer| sealer.seal(&key.dek, &volume_id));
        let SealedDek { encapsulated_key, ciphertext } = sealed.map_err(|fault| match fault {
            HpkeFault::PublicKey(_) => Status::invalid_argument(fault.to_string()),
            HpkeFault::KeyPair(_) | HpkeFault::Seal(_) | HpkeFault::Reply => Status::internal(fault.to_string()),
        })?;
        Ok(Response::new(GetKeyResponse { info: Some(key.info.into()), encapsulated_key, sealed_dek: ciphertext }))
    }

    async fn describe_key(
        &self,
        request: Request<DescribeKeyRequest>,
    ) -> Result<Response<DescribeKeyResponse>, Status> {
        let (guarded, deadline) = self.guarded(&request).await?;
        let volume_id = volume_id(&request.into_inner().volume_id)?;
        let info = self.run(async move { guarded.describe(&volume_id, deadline).await }).await?;
        Ok(Response::new(DescribeKeyResponse { info: info.map(Into::into) }))
    }

    async fn begin_format(
        &self,
        request: Request<BeginFormatRequest>,
    ) -> Result<Response<BeginFormatResponse>, Status> {
        let (guarded, deadline) = self.guarded(&request).await?;
        let request = request.into_inner();
        let volume_id = volume_id(&request.volume_id)?;
        let info =
            self.run(async move { guarded.begin_format(&volume_id, request.generation, deadline).await }).await?;
        Ok(Response::new(BeginFormatResponse { info: Some(info.into()) }))
    }

    async fn mark_ready(&self, request: Request<MarkReadyRequest>) -> Result<Response<MarkReadyResponse>, Status> {
        let (guarded, deadline) = self.guarded(&request).await?;
        let request = request.into_inner();
        let volume_id = volume_id(&request.volume_id)?;
        let tag = wire::tag(&request.header_mac).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let attempt = Attempt { generation: request.generation, number: request.format_attempt };
        let info = self.run(async move { guarded.mark_ready(&volume_id, attempt, tag, deadline).await }).await?;
        Ok(Response::new(MarkReadyResponse { info: Some(info.into()) }))
    }

    async fn destroy_key(&self, request: Request<DestroyKeyRequest>) -> Result<Response<DestroyKeyResponse>, Status> {
        let (guarded, deadline) = self.guarded(&request).await?;
        let request = request.into_inner();
        let (volume_id, generation) = (volume_id(&request.volume_id)?, request.generation);
        if generation == 0 {
            return Err(Status::invalid_argument("generation is missing"));
        }
        self.run(async move { guarded.destroy(&volume_id, generation, deadline).await }).await?;
        Ok(Response::new(DestroyKeyResponse {}))
    }

    async fn list_keys(&self, request: Request<ListKeysRequest>) -> Result<Response<ListKeysResponse>, Status> {
        let (guarded, deadline) = self.guarded(&request).await?;
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

/// The status of a request that came too soon, with the pause after which it is looked at.
fn later(too_often: &TooOften) -> Status {
    let mut status = Status::resource_exhausted(too_often.to_string());
    let pause = u64::try_from(too_often.retry_after.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
    status.metadata_mut().insert(PUSHBACK, MetadataValue::from(pause));
    status
}

fn volume_id(text: &str) -> Result<VolumeId, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("volume_id: {error}")))
}
