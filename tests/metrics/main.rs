//! Health and metrics: what the pages say, how an RPC, a KMS and the records are counted, and that `docs/metrics.md`, the
//! program's own list and the code name the same metrics.

mod keys;
mod names;
mod pages;
mod rpc;

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use coffer::telemetry::metrics;
use tokio::net::TcpListener;

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("its address");
    (listener, address)
}

/// The value of a metric with these labels; none where there is no such line.
fn value(name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let text = metrics::rendered();
    let line = text.lines().find(|line| {
        let named = line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        named && labels.iter().all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
    });
    line.map(|line| line.rsplit(' ').next().unwrap_or_default().parse().expect("a number"))
}

/// Waits until a condition holds.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what} did not come; there is:\n{}", metrics::rendered());
}
