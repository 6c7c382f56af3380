//! That a forecast comes true: on our own servers, on servers behind the proxy, and over TLS.

use std::{error::Error, io, time::Duration};

use anyhow::{Context, Result};
use axum::{
    Router,
    body::Bytes,
    extract::Request,
    http::{Uri, Version, header},
    routing::post,
};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy, rt::TokioExecutor};
use reqwest::{Certificate, Client, Identity, Response, StatusCode};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{Authority, ClientCertificate, Forecast, Served, Weather, proxy, serve, serve_at, under};

/// A server that says `fine`, under this forecast.
async fn fine(forecast: &Forecast) -> Result<Served> {
    let router = Router::new().route("/key", post(|| async { "fine" }));
    serve(under(router, forecast.clone()), None).await
}

async fn ask(client: &Client, server: &Served) -> reqwest::Result<Response> {
    client.post(format!("http://{}/key?version=1", server.address())).body("a body").send().await
}

fn is_reset(error: &reqwest::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::ConnectionReset;
        }
        source = error.source();
    }
    false
}

#[tokio::test]
async fn a_forecast_comes_true_request_by_request_and_then_it_is_fair() -> Result<()> {
    let forecast = Forecast::new();
    let server = fine(&forecast).await?;
    let client = Client::new();
    let throttled = |retry_after| Weather::Throttled { retry_after };
    forecast.set(vec![throttled(Some(7)), Weather::Reset, Weather::Garbage, Weather::Status(503), throttled(None)]);

    let response = ask(&client, &server).await?;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()[header::RETRY_AFTER], "7");
    let error = ask(&client, &server).await.expect_err("its connection breaks");
    assert!(is_reset(&error), "{error:?}");
    let response = ask(&client, &server).await?;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.json::<serde_json::Value>().await.is_err());
    assert_eq!(ask(&client, &server).await?.status(), StatusCode::SERVICE_UNAVAILABLE);
    let response = ask(&client, &server).await?;
    assert!(!response.headers().contains_key(header::RETRY_AFTER));
    assert_eq!(ask(&client, &server).await?.text().await?, "fine");

    assert_eq!(forecast.requests(), ["POST /key"; 6]);
    forecast.forget();
    assert!(forecast.requests().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_service_throttles_in_its_own_words() -> Result<()> {
    let forecast = Forecast::new().throttled_by(400, "application/x-amz-json-1.1", "{\"__type\":\"Throttling\"}");
    let server = fine(&forecast).await?;
    forecast.set(vec![Weather::Throttled { retry_after: None }]);
    let response = ask(&Client::new(), &server).await?;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/x-amz-json-1.1");
    assert_eq!(response.text().await?, "{\"__type\":\"Throttling\"}");
    Ok(())
}

#[tokio::test]
async fn weather_that_is_always_so_ends_when_it_is_said() -> Result<()> {
    let forecast = Forecast::new();
    let server = fine(&forecast).await?;
    forecast.always(Some(Weather::Hang));
    let hasty = Client::builder().timeout(Duration::from_millis(200)).build()?;
    for _ in 0..2 {
        assert!(ask(&hasty, &server).await.expect_err("it hangs").is_timeout());
    }
    forecast.always(None);
    assert_eq!(ask(&Client::new(), &server).await?.text().await?, "fine");
    Ok(())
}

#[tokio::test]
async fn http_2_breaks_too() -> Result<()> {
    let forecast = Forecast::new();
    let server = fine(&forecast).await?;
    let client: legacy::Client<_, Full<Bytes>> =
        legacy::Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let address: Uri = format!("http://{}/key", server.address()).parse()?;
    let request = || {
        let request = hyper::Request::post(address.clone()).body(Full::from("a body"));
        request.expect("it has all that a request has")
    };
    let response = client.request(request()).await?;
    assert_eq!(response.version(), Version::HTTP_2);
    forecast.set(vec![Weather::Reset, Weather::Status(500)]);
    assert!(client.request(request()).await.is_err());
    assert_eq!(client.request(request()).await?.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(client.request(request()).await?.into_body().collect().await?.to_bytes(), "fine");
    Ok(())
}

#[tokio::test]
async fn a_proxy_keeps_the_host_and_everything_else() -> Result<()> {
    let heard = Router::new().fallback(|request: Request| async move {
        let (head, body) = request.into_parts();
        let said = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
        let (host, signature, length) = (said("host"), said("authorization"), said("content-length"));
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let body = String::from_utf8_lossy(&body).into_owned();
        ([("x-kept", "yes")], format!("{} {} {host} {signature} {length} {body}", head.method, head.uri))
    });
    let upstream = serve(heard, None).await?;
    let forecast = Forecast::new();
    let proxy = proxy(upstream.address(), forecast.clone()).await?;
    let client = Client::new();
    let request = || {
        let request = client.put(format!("http://{}/bucket/a%20name?x=1%2F2", proxy.address()));
        request.header(header::HOST, "bucket.example").header(header::AUTHORIZATION, "signed").body("bytes").send()
    };
    let response = request().await?;
    assert_eq!(response.headers()["x-kept"], "yes");
    assert_eq!(response.text().await?, "PUT /bucket/a%20name?x=1%2F2 bucket.example signed 5 bytes");
    let response = client.head(format!("http://{}/bucket", proxy.address())).send().await?;
    assert_eq!(response.status(), StatusCode::OK);
    forecast.set(vec![Weather::Status(500)]);
    assert_eq!(request().await?.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(forecast.requests(), ["PUT /bucket/a%20name", "HEAD /bucket", "PUT /bucket/a%20name"]);

    drop(upstream);
    let error = request().await.expect_err("the server behind is down");
    assert!(is_reset(&error), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn a_client_is_known_by_its_certificate() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::new(folder.path())?;
    let who = Router::new().fallback(|request: Request| async move {
        let shown = request.extensions().get::<ClientCertificate>();
        Bytes::from(shown.map(|certificate| certificate.0.clone()).unwrap_or_default())
    });
    let server = serve(who, Some(authority.server_asking(&["kes.example", "127.0.0.1"])?)).await?;
    let trusting = |authority: &Authority| -> Result<reqwest::ClientBuilder> {
        let trusted = Certificate::from_pem(&std::fs::read(authority.ca_file())?)?;
        Ok(Client::builder().tls_certs_only([trusted]).resolve("kes.example", server.address()))
    };
    let address = |host: &str| format!("https://{host}:{}/", server.address().port());

    let nobody = trusting(&authority)?.build()?;
    assert!(nobody.get(address("kes.example")).send().await?.bytes().await?.is_empty());
    let (certificate, key) = authority.client("somebody")?;
    let pem = [std::fs::read(&certificate)?, std::fs::read(&key)?].concat();
    let somebody = trusting(&authority)?.identity(Identity::from_pem(&pem)?).build()?;
    let shown = somebody.get(address("127.0.0.1")).send().await?.bytes().await?;
    let expected = CertificateDer::from_pem_file(&certificate).context("it is PEM")?;
    assert_eq!(shown.as_ref(), expected.as_ref());

    let other = tempfile::tempdir()?;
    let distrustful = trusting(&Authority::new(other.path())?)?.build()?;
    assert!(distrustful.get(address("127.0.0.1")).send().await.is_err());
    let plain = authority.server(&["127.0.0.1"])?;
    let plain = serve(Router::new().fallback(|| async { "fine" }), Some(plain)).await?;
    assert_eq!(nobody.get(format!("https://{}/", plain.address())).send().await?.text().await?, "fine");
    Ok(())
}

#[tokio::test]
async fn after_an_outage_a_server_is_back_at_its_address() -> Result<()> {
    let client = Client::new();
    let before = serve(Router::new().fallback(|| async { "before" }), None).await?;
    let address = before.address();
    let ask = || client.get(format!("http://{address}/")).send();
    assert_eq!(ask().await?.text().await?, "before");
    drop(before);
    let after = serve_at(Router::new().fallback(|| async { "after" }), None, address).await?;
    assert_eq!(after.address(), address);
    assert_eq!(ask().await?.text().await?, "after");
    Ok(())
}
