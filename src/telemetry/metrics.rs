//! Metrics: the one registry of the process, the buckets of its histograms, and what each name means.
//!
//! A label is a word of a closed list, or a name out of the configuration. It is never a volume, a claim, a node's name
//! or a KEK: what grows with the cluster does not belong into a node's memory. No metric holds anything of a key.
//!
//! Until [`start`] is called nothing is kept, so a program that serves no metrics has none to carry.

use std::sync::OnceLock;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// It counts lengths of time, in seconds, by buckets.
    Histogram,
}

/// A metric that the program may have.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// Its labels, in the order of their names.
    pub labels: &'static [&'static str],
    /// What it says.
    pub meaning: &'static str,
}

/// Every metric. `docs/metrics.md` has the same list, and a test compares both with the code.
pub const METRICS: &[Metric] = &[
    counter("coffer_rpc_total", &["code", "method", "service"], "RPCs that were answered, or given up by their caller"),
    histogram("coffer_rpc_seconds", &["method", "service"], "how long an RPC took, to the last byte of its answer"),
    gauge("coffer_rpc_running", &["service"], "RPCs that are being answered"),
    counter("coffer_kms_calls_total", &["operation", "provider", "result"], "calls to a KMS, each attempt by itself"),
    histogram("coffer_kms_seconds", &["operation", "provider"], "how long an attempt at a KMS took"),
    gauge("coffer_kek_rotation", &["provider"], "1 where its KMS rotates the KEK by itself, 0 where it does not"),
    gauge("coffer_kek_rotates_seconds", &["provider"], "when its KMS rotates the KEK next, as Unix time"),
    counter("coffer_cache_requests_total", &["provider", "result"], "unwrapped keys that were asked of the cache"),
    counter("coffer_store_calls_total", &["operation", "result"], "calls to the store of key records, retries inside"),
    histogram("coffer_store_seconds", &["operation"], "how long a call to the store took, retries inside"),
    counter("coffer_throttled_total", &["endpoint"], "attempts at a KMS or a store that were asked to come later"),
    counter("coffer_retries_total", &["endpoint"], "attempts at a KMS or a store after the first of their call"),
    gauge("coffer_breaker_open", &["endpoint"], "1 while a KMS or a store that never answered is not asked"),
    gauge("coffer_records", &["key_version", "provider", "state"], "key records, when they were last counted"),
    gauge("coffer_records_without_provider", &["provider"], "key records whose provider is not configured, likewise"),
    gauge("coffer_records_counted_seconds", &[], "when the key records were last counted, as Unix time"),
    counter("coffer_format_refusals_total", &["reason"], "devices that a node refused to format or to open"),
    gauge("coffer_certificate_expires_seconds", &["certificate"], "when a certificate ends, as Unix time"),
    gauge("coffer_token_age_seconds", &[], "how long ago the token in use was written by the kubelet"),
    counter("coffer_audit_lines_total", &["operation", "result"], "lines of the audit log"),
    gauge("coffer_build_info", &["version"], "1, with the version of the program"),
];

/// Upper bounds, in seconds: from a key out of memory to the default deadline of an RPC.
const SECONDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

static REGISTRY: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Begins to keep metrics; once for a process, however often it is called. Whoever calls it has [`upkeep`] run.
///
/// Call it before anything that counts: what was counted earlier is lost.
pub fn start() {
    REGISTRY.get_or_init(|| {
        let builder = PrometheusBuilder::new().set_buckets(&SECONDS).expect("there are buckets");
        match builder.install_recorder() {
            Ok(handle) => {
                describe();
                metrics::gauge!("coffer_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
                Some(handle)
            }
            Err(error) => {
                tracing::warn!(%error, "there are no metrics");
                None
            }
        }
    });
}

/// All metrics, as Prometheus reads them (text format 0.0.4); empty where nothing is kept.
#[must_use]
pub fn rendered() -> String {
    registry().map(PrometheusHandle::render).unwrap_or_default()
}

/// Sorts what was measured into its buckets. Between two calls every measurement is kept by itself, so it is to be
/// called every few seconds, asked for metrics or not.
pub fn upkeep() {
    if let Some(handle) = registry() {
        handle.run_upkeep();
    }
}

fn registry() -> Option<&'static PrometheusHandle> {
    REGISTRY.get().and_then(Option::as_ref)
}

fn describe() {
    for Metric { name, kind, meaning, .. } in METRICS {
        match kind {
            Kind::Counter => metrics::describe_counter!(*name, *meaning),
            Kind::Gauge => metrics::describe_gauge!(*name, *meaning),
            Kind::Histogram => metrics::describe_histogram!(*name, metrics::Unit::Seconds, *meaning),
        }
    }
}

const fn counter(name: &'static str, labels: &'static [&'static str], meaning: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, labels, meaning }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], meaning: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, meaning }
}

const fn histogram(name: &'static str, labels: &'static [&'static str], meaning: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, labels, meaning }
}
