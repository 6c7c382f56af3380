//! When our own certificates end, as a metric, so that one that nobody renews is noticed before its last day.

use rustls::pki_types::CertificateDer;
use x509_parser::parse_x509_certificate;

/// Tells when the first certificate of a chain, our own, ends (RFC 5280, 4.1.2.5). One that cannot be read is TLS's to
/// refuse.
pub(super) fn tell(whose: &'static str, chain: &[CertificateDer<'_>]) {
    let Some((_, certificate)) = chain.first().and_then(|first| parse_x509_certificate(first).ok()) else { return };
    let ends = certificate.validity().not_after.timestamp();
    metrics::gauge!("coffer_certificate_expires_seconds", "certificate" => whose).set(ends as f64);
}
