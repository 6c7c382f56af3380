//! The pages of health and metrics, for whoever asks, however he asks.

use std::net::SocketAddr;

use coffer::server::http::{Health, serve, serve_on};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::listener;

/// Health and metrics at work: where, what they tell of, and their end.
async fn pages() -> (SocketAddr, Health, CancellationToken, JoinHandle<std::io::Result<()>>) {
    let ((listener, address), health, end) = (listener().await, Health::new(), CancellationToken::new());
    let served = tokio::spawn(serve_on(listener, health.clone(), end.clone()));
    (address, health, end, served)
}

/// Everything that is answered to a request.
async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("somebody listens");
    stream.write_all(request.as_bytes()).await.expect("the request is taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer in text");
    answer
}

async fn get(address: SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: coffer\r\n\r\n")).await
}

#[tokio::test]
async fn the_pages_say_how_the_program_is() {
    let (address, health, end, served) = pages().await;
    assert!(get(address, "/healthz").await.ends_with("\r\n\r\nalive\n"));
    assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200 OK\r\n"));
    health.set_ready("key service", false);
    health.set_ready("registration", false);
    let told = get(address, "/readyz").await;
    assert!(told.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{told}");
    assert!(told.ends_with("\r\n\r\nkey service is not ready\nregistration is not ready\n"), "{told}");
    assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200 OK\r\n"), "not ready is not dead");
    health.set_alive("watch", false);
    assert!(get(address, "/healthz").await.ends_with("\r\n\r\nwatch is not alive\n"));

    let text = get(address, "/metrics").await;
    assert!(text.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{text}");
    assert!(text.contains(&format!("coffer_build_info{{version=\"{}\"}} 1\n", env!("CARGO_PKG_VERSION"))), "{text}");
    assert!(text.contains("# TYPE coffer_build_info gauge\n"), "{text}");

    let head = ask(address, "HEAD /readyz HTTP/1.1\r\nHost: coffer\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 503 ") && head.ends_with("\r\n\r\n"), "{head}");
    for path in ["/", "/metrics/", "/debug", "/healthz/../etc/passwd"] {
        assert!(get(address, path).await.starts_with("HTTP/1.1 404 "), "{path}");
    }
    assert!(ask(address, "POST /readyz HTTP/1.1\r\nHost: coffer\r\n\r\n").await.starts_with("HTTP/1.1 405 "));
    let long = format!("GET /{} HTTP/1.1\r\nHost: coffer\r\n\r\n", "a".repeat(100_000));
    let mut stream = TcpStream::connect(address).await.expect("somebody listens");
    // It may be hung up on before all of it is written.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 2"), "a request without bounds is not answered");
    assert!(get(address, "/metrics").await.starts_with("HTTP/1.1 200 OK\r\n"), "and others are");

    end.cancel();
    served.await.expect("no panic").expect("it ends");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn an_address_that_is_taken_is_an_error() {
    let (_taken, address) = listener().await;
    let error = serve(address, Health::new(), CancellationToken::new()).await.expect_err("it is taken");
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
}

/// The clock runs ahead while all wait.
#[tokio::test(start_paused = true)]
async fn clients_that_say_nothing_hold_up_nobody_for_long() {
    let (address, _, end, served) = pages().await;
    let mut silent = Vec::new();
    for number in 0..40 {
        let mut stream = TcpStream::connect(address).await.expect("somebody listens");
        if number % 2 == 0 {
            stream.write_all(b"GET /healthz HTTP/1.1\r\n").await.expect("half a request");
        }
        silent.push(stream);
    }
    assert!(get(address, "/healthz").await.ends_with("alive\n"));
    for mut stream in silent {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("it is hung up on");
        assert!(!answer.starts_with(b"HTTP/1.1 2"));
    }
    let _last = TcpStream::connect(address).await.expect("somebody listens");
    end.cancel();
    served.await.expect("no panic").expect("it ends, whoever is there");
}
