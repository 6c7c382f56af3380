//! Each RPC, counted with its code and its time.

use std::sync::Arc;

use coffer::{
    proto::csi::{
        GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
        ProbeRequest, ProbeResponse,
        identity_client::IdentityClient,
        identity_server::{Identity, IdentityServer},
    },
    server::measured::Measured,
    telemetry::metrics,
};
use tokio::sync::Notify;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Response, Status, async_trait,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint, Server},
};

use crate::{listener, until, value};

/// A CSI driver that answers, refuses, or never comes to an end.
#[derive(Default)]
struct Driver {
    asked: Arc<Notify>,
}

#[async_trait]
impl Identity for Driver {
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }

    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Err(Status::failed_precondition("refused"))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        self.asked.notify_one();
        std::future::pending().await
    }
}

#[tokio::test]
async fn each_rpc_is_counted_with_its_code_and_its_time() {
    metrics::start();
    let (driver, (listener, address), end) = (Driver::default(), listener().await, CancellationToken::new());
    let asked = driver.asked.clone();
    let served = tokio::spawn(
        Server::builder()
            .layer(Measured)
            .add_service(IdentityServer::new(driver))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), end.clone().cancelled_owned()),
    );
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let channel: Channel = endpoint.connect().await.expect("a connection");
    let mut client = IdentityClient::new(channel.clone());
    let of = |method: &'static str, code: &'static str| {
        value("coffer_rpc_total", &[("service", "csi.v1.Identity"), ("method", method), ("code", code)])
    };

    // Its code is in trailers.
    assert_eq!(client.probe(ProbeRequest {}).await.expect("ready").into_inner().ready, Some(true));
    client.probe(ProbeRequest {}).await.expect("ready");
    // Its code is in headers, and there is no body.
    let refused = client.get_plugin_info(GetPluginInfoRequest {}).await.expect_err("refused");
    assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, "refused"), "it passes by unchanged");
    until("the answers", || of("Probe", "OK") == Some(2.0) && of("GetPluginInfo", "FAILED_PRECONDITION") == Some(1.0))
        .await;
    let timed = value("coffer_rpc_seconds_count", &[("service", "csi.v1.Identity"), ("method", "Probe")]);
    assert_eq!(timed, Some(2.0));
    assert!(metrics::rendered().contains("coffer_rpc_seconds_bucket"), "a histogram has buckets");

    // Its caller hangs up.
    let running = || value("coffer_rpc_running", &[("service", "csi.v1.Identity")]);
    let call = tokio::spawn(async move { client.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await });
    asked.notified().await;
    assert_eq!(running(), Some(1.0));
    call.abort();
    until("the end of the call", || of("GetPluginCapabilities", "CANCELLED") == Some(1.0)).await;
    assert_eq!(running(), Some(0.0));

    // What there is not has no name of its own.
    for path in ["/csi.v1.Identity/MadeUp", "/made.up.Service/Probe"] {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.expect("the connection is there");
        let codec = tonic_prost::ProstCodec::<ProbeRequest, ProbeResponse>::default();
        let path = PathAndQuery::from_static(path);
        let answer: Result<Response<ProbeResponse>, Status> =
            grpc.unary(Request::new(ProbeRequest {}), path, codec).await;
        assert_eq!(answer.expect_err("there is no such RPC").code(), Code::Unimplemented);
    }
    let other = [("service", "other"), ("method", "other"), ("code", "UNIMPLEMENTED")];
    until("the others", || value("coffer_rpc_total", &other) == Some(2.0)).await;
    let text = metrics::rendered();
    assert!(!text.contains("MadeUp") && !text.contains("made.up"), "{text}");
    end.cancel();
    drop(channel);
    served.await.expect("no panic").expect("it ends");
}
