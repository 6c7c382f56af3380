//! Both ends of the wire without a word of the protocol: bytes of one message go in, and bytes of one come out.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use prost::bytes::{Buf, BufMut};
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Response, Status,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{BoxFuture, Service, http},
    server::NamedService,
    transport::{Endpoint, Server, Uri},
};
use tower::service_fn;

const SERVICE: &str = "keyservice.v1.KeyService";

/// A message as its bytes.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}

/// From an RPC's name and its request's bytes to its answer's.
type Answer = dyn Fn(&str, &[u8]) -> Vec<u8> + Send + Sync;

/// A server that says what it is told to say.
#[derive(Clone)]
struct RawServer(Arc<Answer>);

impl NamedService for RawServer {
    const NAME: &'static str = SERVICE;
}

impl Service<http::Request<Body>> for RawServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.0.clone();
        let rpc = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let say = service_fn(move |request: Request<Vec<u8>>| {
            let said = answer(&rpc, request.get_ref());
            std::future::ready(Ok::<_, Status>(Response::new(said)))
        });
        Box::pin(async move { Ok(tonic::server::Grpc::new(Raw).unary(say, request).await) })
    }
}

/// A socket in a folder of its own.
pub(super) fn socket() -> (TempDir, PathBuf, UnixListenerStream) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("key.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    (folder, path, UnixListenerStream::new(listener))
}

/// Answers every request on a socket of its own.
pub(super) fn serve(answer: impl Fn(&str, &[u8]) -> Vec<u8> + Send + Sync + 'static) -> (TempDir, PathBuf) {
    let (folder, path, listener) = socket();
    let server = Server::builder().add_service(RawServer(Arc::new(answer)));
    tokio::spawn(server.serve_with_incoming(listener));
    (folder, path)
}

/// Sends a request to a socket, and returns the answer.
pub(super) async fn ask(path: &Path, rpc: &str, request: Vec<u8>) -> Result<Vec<u8>, Status> {
    let path = path.to_owned();
    let connect = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://wire").connect_with_connector(connect).await.expect("connected");
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.expect("ready");
    let method = format!("/{SERVICE}/{rpc}").parse().expect("the path of an RPC");
    Ok(client.unary(Request::new(request), method, Raw).await?.into_inner())
}
