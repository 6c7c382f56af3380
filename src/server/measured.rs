//! A layer around a gRPC server that counts each RPC: how many, with which code, and how long.
//!
//! The code of an RPC is in the trailers that end its answer, or in the headers of an answer that has no body (gRPC over
//! HTTP/2, Responses, Trailers-Only). The answer passes by as it is; nothing of it is kept. An RPC whose caller hangs up
//! counts as CANCELLED, although its work may go on.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use http_body::{Frame, SizeHint};
use tonic::{
    Code,
    codegen::{
        Body,
        http::{HeaderMap, Request, Response},
    },
};
use tower::{Layer, Service};

/// What the program serves. A path that is none of these is counted as `other`, so that nobody can make metrics grow by
/// asking for what there is not.
const RPCS: &[(&str, &[&str])] = &[
    ("csi.v1.Identity", &["GetPluginCapabilities", "GetPluginInfo", "Probe"]),
    (
        "csi.v1.Controller",
        &[
            "ControllerExpandVolume",
            "ControllerGetCapabilities",
            "ControllerGetVolume",
            "ControllerModifyVolume",
            "ControllerPublishVolume",
            "ControllerUnpublishVolume",
            "CreateSnapshot",
            "CreateVolume",
            "DeleteSnapshot",
            "DeleteVolume",
            "GetCapacity",
            "GetSnapshot",
            "ListSnapshots",
            "ListVolumes",
            "ValidateVolumeCapabilities",
        ],
    ),
    (
        "csi.v1.Node",
        &[
            "NodeExpandVolume",
            "NodeGetCapabilities",
            "NodeGetInfo",
            "NodeGetVolumeStats",
            "NodePublishVolume",
            "NodeStageVolume",
            "NodeUnpublishVolume",
            "NodeUnstageVolume",
        ],
    ),
    (
        "keyservice.v1.KeyService",
        &["BeginFormat", "CreateKey", "DescribeKey", "DestroyKey", "GetKey", "ListKeys", "MarkReady"],
    ),
    ("pluginregistration.Registration", &["GetInfo", "NotifyRegistrationStatus"]),
];

const OTHER: (&str, &str) = ("other", "other");

/// The layer: `tonic::transport::Server::builder().layer(Measured)`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured;

impl<S> Layer<S> for Measured {
    type Service = MeasuredService<S>;

    fn layer(&self, inner: S) -> MeasuredService<S> {
        MeasuredService { inner }
    }
}

/// A server whose RPCs are counted.
#[derive(Clone, Debug)]
pub struct MeasuredService<S> {
    inner: S,
}

impl<S, In, Out> Service<Request<In>> for MeasuredService<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Send + 'static,
{
    type Response = Response<MeasuredBody<Out>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let rpc = Rpc::begin(request.uri().path());
        let answer = self.inner.call(request);
        Box::pin(async move {
            match answer.await {
                Ok(response) => {
                    let said = code(response.headers());
                    let rpc = match said {
                        Some(code) => {
                            rpc.end(code);
                            None
                        }
                        None => Some(rpc),
                    };
                    Ok(response.map(|body| MeasuredBody { body, rpc }))
                }
                Err(error) => {
                    rpc.end(Code::Unknown);
                    Err(error)
                }
            }
        })
    }
}

/// An answer's body, whose trailers say how the RPC ended.
#[derive(Debug)]
pub struct MeasuredBody<B> {
    body: B,
    rpc: Option<Rpc>,
}

impl<B: Body + Unpin> Body for MeasuredBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let ended = match &frame {
            Some(Ok(frame)) => frame.trailers_ref().map(|trailers| code(trailers).unwrap_or(Code::Unknown)),
            // An answer that ends without trailers tells its client no code.
            Some(Err(_)) | None => Some(Code::Unknown),
        };
        if let Some(code) = ended
            && let Some(rpc) = self.rpc.take()
        {
            rpc.end(code);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An RPC that counts itself when it is dropped.
#[derive(Debug)]
struct Rpc {
    service: &'static str,
    method: &'static str,
    began: Instant,
    code: Code,
}

impl Rpc {
    fn begin(path: &str) -> Self {
        let (service, method) = known(path);
        metrics::gauge!("coffer_rpc_running", "service" => service).increment(1.0);
        Self { service, method, began: Instant::now(), code: Code::Cancelled }
    }

    fn end(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Rpc {
    fn drop(&mut self) {
        let Self { service, method, began, code } = *self;
        metrics::gauge!("coffer_rpc_running", "service" => service).decrement(1.0);
        metrics::histogram!("coffer_rpc_seconds", "service" => service, "method" => method).record(began.elapsed());
        metrics::counter!("coffer_rpc_total", "service" => service, "method" => method, "code" => name(code))
            .increment(1);
    }
}

/// The service and the method that a path names: `/SERVICE/METHOD` (gRPC over HTTP/2, Requests, Path).
fn known(path: &str) -> (&'static str, &'static str) {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else { return OTHER };
    let Some((service, methods)) = RPCS.iter().find(|(known, _)| *known == service) else { return OTHER };
    methods.iter().find(|known| **known == method).map_or(OTHER, |method| (*service, *method))
}

fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|status| Code::from_bytes(status.as_bytes()))
}

/// The code's name as gRPC writes it ("Status codes and their use in gRPC").
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path};

    use super::*;

    #[test]
    fn a_path_that_is_not_served_has_no_name_of_its_own() {
        assert_eq!(known("/csi.v1.Node/NodeStageVolume"), ("csi.v1.Node", "NodeStageVolume"));
        for path in ["", "/", "/csi.v1.Node", "/csi.v1.Node/", "/csi.v1.Node/Stage", "/csi.v2.Node/NodeStageVolume"] {
            assert_eq!(known(path), OTHER, "{path:?}");
        }
    }

    #[test]
    fn every_method_of_what_is_served_has_its_name() {
        let mut defined: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("proto")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder of protocols") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = fs::read_to_string(&path).expect("a protocol");
                let word = |line: &str, before: &str| {
                    let rest = line.trim_start().strip_prefix(before)?;
                    Some(rest.split([' ', ';', '(', '{']).next().unwrap_or_default().to_owned())
                };
                let package = text.lines().find_map(|line| word(line, "package ")).expect("a package");
                let mut service = String::new();
                for line in text.lines() {
                    if let Some(name) = word(line, "service ") {
                        service = format!("{package}.{name}");
                    } else if let Some(method) = word(line, "rpc ") {
                        defined.entry(service.clone()).or_default().push(method);
                    }
                }
            }
        }
        for (service, methods) in RPCS {
            let mut defined = defined.remove(*service).unwrap_or_else(|| panic!("no protocol has {service}"));
            defined.sort();
            assert_eq!(*methods, defined, "{service}");
        }
    }
}
