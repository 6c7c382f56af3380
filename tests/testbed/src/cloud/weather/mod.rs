//! What goes wrong between Coffer and a server: requests that are throttled, reset, left hanging or answered with
//! garbage, as a forecast says; and how our own servers are served, so that a reset is one that a client sees.

mod serve;
#[cfg(test)]
mod tests;
mod tls;

use std::{
    collections::VecDeque,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use anyhow::Result;
use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, Version, header},
    middleware::{Next, from_fn_with_state},
    response::Response,
};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

use serve::broken;
pub use serve::{Served, serve, serve_at};
pub use tls::{Authority, ClientCertificate, Tls};

/// How long a hanging request hangs.
const HANG: Duration = Duration::from_secs(60);
/// How long a slow request waits before it is done.
const SLOW: Duration = Duration::from_millis(100);
/// What concerns one connection only (RFC 9110, 7.6.1) and is not passed on.
const HOP_BY_HOP: [&str; 6] = ["connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];

/// What happens to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Weather {
    /// It is as ever: for requests before one that is not.
    Fair,
    /// It is done a tenth of a second later.
    Slow,
    /// It is done, and its connection breaks without an answer.
    Lost,
    /// It is answered with the forecast's throttle answer.
    Throttled {
        /// The seconds of a Retry-After header.
        retry_after: Option<u32>,
    },
    /// It is answered with this status and an empty body.
    Status(u16),
    /// Its connection breaks without an answer.
    Reset,
    /// It is not answered for a minute.
    Hang,
    /// It is answered 200 with bytes that make no sense.
    Garbage,
}

/// What happens to the next requests, and which there were: one handle, shared by its clones.
#[derive(Clone, Debug)]
pub struct Forecast {
    throttle: Throttle,
    sky: Arc<Mutex<Sky>>,
}

#[derive(Clone, Copy, Debug)]
struct Throttle {
    status: u16,
    content_type: &'static str,
    body: &'static str,
}

#[derive(Debug, Default)]
struct Sky {
    next: VecDeque<Weather>,
    always: Option<Weather>,
    requests: Vec<String>,
    signers: Vec<Signer>,
}

/// Who signed a request in the way of AWS (Signature Version 4), and for what.
#[derive(Clone, PartialEq, Eq)]
pub struct Signer {
    /// Whose key signed.
    pub access_key_id: String,
    /// For which region.
    pub region: String,
    /// For which service, such as `kms`.
    pub service: String,
    /// The token that came with it, where the key is a temporary one.
    pub session_token: Option<String>,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {} in {}", self.access_key_id, self.service, self.region)
    }
}

impl Signer {
    /// `AWS4-HMAC-SHA256 Credential=ID/DATE/REGION/SERVICE/aws4_request, …`
    fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let (_, credential) = text("authorization")?.split_once("Credential=")?;
        let mut parts = credential.split(',').next()?.split('/').map(str::to_owned);
        let (access_key_id, _date) = (parts.next()?, parts.next()?);
        let (region, service) = (parts.next()?, parts.next()?);
        let session_token = text("x-amz-security-token").map(str::to_owned);
        Some(Self { access_key_id, region, service, session_token })
    }
}

impl Forecast {
    /// Fair weather.
    #[must_use]
    pub fn new() -> Self {
        let throttle = Throttle { status: 429, content_type: "text/plain", body: "too many requests" };
        Self { throttle, sky: Arc::default() }
    }

    /// The same with the answer by which a service says that it throttles.
    #[must_use]
    pub fn throttled_by(self, status: u16, content_type: &'static str, body: &'static str) -> Self {
        Self { throttle: Throttle { status, content_type, body }, ..self }
    }

    /// The next requests' weather, one entry a request. After them it is fair again, or what [`Self::always`] says.
    pub fn set(&self, next: Vec<Weather>) {
        self.sky().next = next.into();
    }

    /// The weather of all requests until this is called again.
    pub fn always(&self, weather: Option<Weather>) {
        self.sky().always = weather;
    }

    /// Every request since the start or [`Self::forget`], as `POST /path`.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.sky().requests.clone()
    }

    /// Who signed them, of those that are signed as AWS has it.
    #[must_use]
    pub fn signers(&self) -> Vec<Signer> {
        self.sky().signers.clone()
    }

    /// Forgets the requests that there were.
    pub fn forget(&self) {
        let mut sky = self.sky();
        sky.requests.clear();
        sky.signers.clear();
    }

    fn over(&self, request: &Request) -> Option<Weather> {
        let mut sky = self.sky();
        sky.requests.push(format!("{} {}", request.method(), request.uri().path()));
        sky.signers.extend(Signer::of(request.headers()));
        sky.next.pop_front().or_else(|| sky.always.clone())
    }

    fn sky(&self) -> MutexGuard<'_, Sky> {
        self.sky.lock().expect("nothing panics while it is held")
    }
}

impl Default for Forecast {
    fn default() -> Self {
        Self::new()
    }
}

/// One of our own servers under a forecast. It is to be served by [`serve()`], which is what can break a connection.
pub fn under(router: Router, forecast: Forecast) -> Router {
    router.layer(from_fn_with_state(forecast, weathered))
}

/// A server that is not ours under a forecast: a reverse proxy without TLS, which keeps the Host header and everything
/// else as it is. Where the server behind is down, connections break.
///
/// # Errors
/// No port can be had.
pub async fn proxy(upstream: SocketAddr, forecast: Forecast) -> Result<Served> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let forward = move |request: Request| {
        let client = client.clone();
        async move { passed_on(upstream, &client, request).await.unwrap_or_else(|_| broken()) }
    };
    serve(under(Router::new().fallback(forward), forecast), None).await
}

async fn weathered(State(forecast): State<Forecast>, request: Request, next: Next) -> Response {
    let response = match forecast.over(&request).unwrap_or(Weather::Fair) {
        Weather::Fair => return next.run(request).await,
        Weather::Slow => {
            tokio::time::sleep(SLOW).await;
            return next.run(request).await;
        }
        Weather::Lost => {
            next.run(request).await;
            return broken();
        }
        Weather::Throttled { retry_after } => {
            let Throttle { status, content_type, body } = forecast.throttle;
            let mut response = answer(status, body.into());
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
            if let Some(seconds) = retry_after {
                headers.insert(header::RETRY_AFTER, seconds.into());
            }
            response
        }
        Weather::Status(status) => answer(status, Body::empty()),
        Weather::Reset => broken(),
        Weather::Hang => {
            tokio::time::sleep(HANG).await;
            broken()
        }
        Weather::Garbage => {
            let mut response = answer(200, Bytes::from_static(b"\x00\xff{\"<this makes no sense").into());
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
    };
    if request.version() < Version::HTTP_2 {
        // A connection that is closed with a body unread may be reset before the client has read the answer.
        let _ = to_bytes(request.into_body(), usize::MAX).await;
    }
    response
}

fn answer(status: u16, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).expect("a forecast names statuses that there are");
    response
}

async fn passed_on(
    upstream: SocketAddr,
    client: &Client<HttpConnector, Full<Bytes>>,
    request: Request,
) -> Result<Response> {
    let (head, body) = request.into_parts();
    let mut onward = Request::new(Full::new(body.collect().await?.to_bytes()));
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    *onward.uri_mut() = format!("http://{upstream}{path}").parse()?;
    *onward.method_mut() = head.method;
    *onward.headers_mut() = head.headers;
    let headers = onward.headers_mut();
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    // HTTP/2 says the host in the address only.
    if let (false, Some(host)) = (headers.contains_key(header::HOST), head.uri.authority()) {
        headers.insert(header::HOST, host.as_str().parse()?);
    }
    let (mut head, body) = client.request(onward).await?.into_parts();
    for name in HOP_BY_HOP {
        head.headers.remove(name);
    }
    head.version = Version::HTTP_11;
    Ok(Response::from_parts(head, body.collect().await?.to_bytes().into()))
}
