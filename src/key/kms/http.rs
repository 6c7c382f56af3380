//! What the providers that speak plain HTTP share: a client without retries, redirects and weak TLS, one JSON request
//! and its answer, and what a request that got no answer is. A body is never logged and never quoted in an error.

use std::{error::Error, fmt::Write as _, io, path::Path, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::{Certificate, Client, Identity, RequestBuilder, StatusCode, header::RETRY_AFTER, redirect, retry, tls};
use rustls::AlertDescription;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use url::Url;
use zeroize::Zeroizing;

use crate::{
    key::{access::SettingsFault, kms::KmsFailure, reread},
    secret::InnerKey,
};

const CONNECT: Duration = Duration::from_secs(5);
/// No answer of these APIs is longer.
const LONGEST_ANSWER: usize = 1 << 20;
/// So much of what a server said goes into an error.
const LONGEST_TEXT: usize = 300;

/// A client that trusts the authorities of a file in place of the system's, and is somebody where it is given an
/// identity. It keeps one connection a request that is under way, so that one that hangs holds up no other.
pub(super) fn client(ca_file: Option<&Path>, identity: Option<Identity>) -> Result<Client, SettingsFault> {
    let mut builder = Client::builder()
        .user_agent(concat!("coffer/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .http1_only()
        .redirect(redirect::Policy::none())
        .referer(false)
        .retry(retry::never())
        .tls_version_min(tls::Version::TLS_1_2);
    if let Some(path) = ca_file {
        let fault = |what: &str| SettingsFault(format!("{}: {what}", path.display()));
        let bundle = Certificate::from_pem_bundle(&reread::bytes(path)?);
        let authorities = bundle.map_err(|error| fault(&causes(&error)))?;
        if authorities.is_empty() {
            return Err(fault("it holds no certificate (PEM)"));
        }
        builder = builder.tls_certs_only(authorities);
    }
    if let Some(identity) = identity {
        builder = builder.identity(identity);
    }
    builder.build().map_err(|error| SettingsFault(format!("no HTTPS client can be made: {}", causes(&error))))
}

/// A server as failures name it.
pub(super) fn endpoint(server: &Url) -> String {
    server.origin().ascii_serialization()
}

/// A server's URL with these parts behind its own path, each escaped.
pub(super) fn url(server: &Url, path: &[&str]) -> Url {
    let mut url = server.clone();
    // An http or https URL always has a path; any other is refused when it is asked.
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(path);
    }
    url
}

/// What a server answered.
pub(super) struct Answer {
    /// Its status.
    pub(super) status: StatusCode,
    retry_after: Option<Duration>,
    body: Zeroizing<Vec<u8>>,
}

/// Makes one request.
pub(super) async fn ask(request: RequestBuilder, endpoint: &str) -> Result<Answer, KmsFailure> {
    let mut response = request.send().await.map_err(|error| unanswered(endpoint, error))?;
    let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let mut answer = Answer {
        status: response.status(),
        retry_after: seconds.map(Duration::from_secs),
        body: Zeroizing::new(Vec::new()),
    };
    while let Some(chunk) = response.chunk().await.map_err(|error| unanswered(endpoint, error))? {
        if answer.body.len() + chunk.len() > LONGEST_ANSWER {
            return Err(KmsFailure::garbled(endpoint, "more than a KMS has to say"));
        }
        answer.body.extend_from_slice(&chunk);
    }
    Ok(answer)
}

impl Answer {
    /// The body, where it is JSON of this shape.
    pub(super) fn parsed<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }

    /// The body of a success. What is wrong with it is not told, because a JSON error quotes what it found.
    pub(super) fn json<T: DeserializeOwned>(&self, endpoint: &str) -> Result<T, KmsFailure> {
        self.parsed().ok_or_else(|| {
            KmsFailure::garbled(endpoint, format!("{} with what is not the JSON of its API", self.status.as_u16()))
        })
    }

    /// The failure where the server, or something before it, cannot answer now. `said` is what it gave as its reason.
    pub(super) fn trouble(&self, endpoint: &str, said: &str) -> Option<KmsFailure> {
        let number = self.status.as_u16();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            let retry_after = self.retry_after;
            return Some(KmsFailure::Throttled { endpoint: endpoint.to_owned(), retry_after });
        }
        let why = if self.status.is_redirection() {
            format!("status {number}: it sends its callers elsewhere; name the active server or a load balancer")
        } else if self.status.is_server_error() || matches!(number, 472 | 473) {
            if said.is_empty() { format!("status {number}") } else { format!("status {number}: {said}") }
        } else {
            return None;
        };
        Some(KmsFailure::unreachable(endpoint, why))
    }
}

/// What a server said, as one short line.
pub(super) fn line(said: &str) -> String {
    let mut line = String::new();
    for word in said.split_whitespace() {
        if line.len() + word.len() > LONGEST_TEXT {
            line.push_str(" …");
            break;
        }
        let space = if line.is_empty() { "" } else { " " };
        let _ = write!(line, "{space}{}", word.escape_debug());
    }
    // The quotes of JSON read better as they are.
    line.replace("\\\"", "\"").replace("\\'", "'")
}

/// A text in an answer that is wiped: a token, or a key in base64.
pub(super) struct SecretText(Zeroizing<String>);

impl SecretText {
    /// The text.
    #[cfg(feature = "transit")]
    pub(super) fn into_inner(self) -> Zeroizing<String> {
        self.0
    }

    /// The inner key that it holds in base64.
    pub(super) fn key(&self, endpoint: &str) -> Result<InnerKey, KmsFailure> {
        let decoded = BASE64_STANDARD.decode(self.0.as_bytes()).map(Zeroizing::new);
        let bytes = decoded.map_err(|_| KmsFailure::garbled(endpoint, "a plaintext that is not base64"))?;
        // It was wrapped by somebody else: this program wraps keys of one size only.
        InnerKey::take(bytes).map_err(|_| KmsFailure::Mismatch)
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

/// A key in base64, for the body of a request.
pub(super) fn secret_base64(key: &InnerKey) -> Zeroizing<String> {
    Zeroizing::new(BASE64_STANDARD.encode(key.expose_secret()))
}

/// An error and what caused it, in one line.
pub(super) fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let _ = write!(text, ": {cause}");
        next = cause.source();
    }
    text
}

#[derive(Debug, thiserror::Error)]
#[error("its certificate is not trusted: name its authority in caFile, and check the host's name")]
struct Untrusted(#[source] reqwest::Error);

/// A request that got no answer. The URL is left out: the endpoint names the server.
fn unanswered(endpoint: &str, error: reqwest::Error) -> KmsFailure {
    let error = error.without_url();
    match tls_error(&error) {
        Some(rustls::Error::AlertReceived(
            AlertDescription::AccessDenied
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate,
        )) => KmsFailure::unauthenticated(endpoint, "it asks for a client certificate that it trusts", error),
        Some(rustls::Error::InvalidCertificate(_)) => KmsFailure::unreachable(endpoint, Untrusted(error)),
        _ => KmsFailure::unreachable(endpoint, error),
    }
}

fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An I/O error names as its source what causes the error it carries, and not that error.
        let carried = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(found) = carried.and_then(|carried| tls_error(carried)) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_path_are_escaped_behind_the_servers_own_path() {
        let server = |text| Url::parse(text).expect("a URL");
        let path = ["v1", "team a", "k?y"];
        assert_eq!(url(&server("https://bao:8200"), &path).as_str(), "https://bao:8200/v1/team%20a/k%3Fy");
        assert_eq!(url(&server("https://bao/vault/"), &["v1"]).as_str(), "https://bao/vault/v1");
        assert_eq!(endpoint(&server("https://bao:8200/vault/")), "https://bao:8200");
    }

    #[test]
    fn what_a_server_says_becomes_one_short_line() {
        assert_eq!(line("1 error occurred:\n\t* permission denied\n\n"), "1 error occurred: * permission denied");
        assert_eq!(line("route \"a\x1b[31m\""), "route \"a\\u{1b}[31m\"");
        assert!(line(&"word ".repeat(1000)).len() <= LONGEST_TEXT + " …".len());
    }

    #[test]
    fn a_file_without_a_certificate_is_no_authority() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let fault = client(Some(file.path()), None).expect_err("it is empty");
        assert_eq!(fault.0, format!("{}: it holds no certificate (PEM)", file.path().display()));
    }

    #[test]
    fn an_alert_inside_an_io_error_is_found() {
        let alert = rustls::Error::AlertReceived(AlertDescription::UnknownCA);
        let error = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, alert.clone()));
        assert_eq!(tls_error(&error), Some(&alert));
    }
}
