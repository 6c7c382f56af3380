//! What a failure of an Azure SDK comes to. It carries what the service said, never a body as a whole, and never a URL,
//! which may hold a shared access signature.

use std::{error::Error, fmt, time::Duration};

use azure_core::{
    error::ErrorKind,
    http::{
        RawResponse,
        headers::{ERROR_CODE, HeaderName, Headers, RETRY_AFTER, RETRY_AFTER_MS, X_MS_RETRY_AFTER_MS},
    },
    time::{OffsetDateTime, parse_rfc7231},
};
use serde_json::Value;

/// So much of a service's sentence is passed on.
const LONGEST_MESSAGE: usize = 500;

/// What a failure of an Azure SDK comes to.
#[derive(Debug)]
pub enum AzureFailure {
    /// Nobody answered, or somebody that it cannot be done now.
    NoAnswer(Box<dyn Error + Send + Sync>),
    /// Too many requests, with the time that was asked for.
    Throttled(Option<Duration>),
    /// There is no token, or it is not taken.
    Unauthenticated(Box<dyn Error + Send + Sync>),
    /// Status 403.
    Denied(Said),
    /// Status 404.
    NotFound(Said),
    /// An answer that makes no sense; says what is wrong with it.
    Garbled(&'static str),
    /// Any other refusal.
    Refused(Said),
}

/// What a service said when it refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The HTTP status; 0 where the SDK itself refused.
    pub status: u16,
    /// The service's code, the innermost where one is in another; may be empty.
    pub code: String,
    /// Its sentence; may be empty.
    pub message: String,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code.as_str(), self.message.as_str()) {
            ("", "") => write!(f, "status {}", self.status),
            (code, "") => write!(f, "{code}, status {}", self.status),
            ("", message) => f.write_str(message),
            (code, message) => write!(f, "{code}: {message}"),
        }
    }
}

impl Said {
    /// Reads an answer of Key Vault or Entra ID (JSON), or of Blob Storage (XML).
    pub(super) fn of(response: &RawResponse) -> Self {
        let body: &[u8] = response.body().as_ref();
        let (mut code, message) = match serde_json::from_slice::<Value>(body) {
            Ok(json) => Self::in_json(&json),
            Err(_) => {
                let text = String::from_utf8_lossy(body);
                (element(&text, "Code"), element(&text, "Message"))
            }
        };
        if code.is_empty() {
            code = response.headers().get_optional_str(&ERROR_CODE).unwrap_or_default().to_owned();
        }
        Self { status: response.status().into(), code: tidy(&code), message: tidy(&message) }
    }

    fn in_json(json: &Value) -> (String, String) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let error = &json["error"];
        if error.is_string() {
            return (text(error), text(&json["error_description"]));
        }
        let mut innermost = error;
        while innermost["innererror"]["code"].is_string() {
            innermost = &innermost["innererror"];
        }
        (text(&innermost["code"]), text(&error["message"]))
    }
}

fn element(xml: &str, name: &str) -> String {
    let inside = xml.split_once(&format!("<{name}>")).and_then(|(_, rest)| rest.split_once(&format!("</{name}>")));
    inside.map(|(inside, _)| inside.to_owned()).unwrap_or_default()
}

/// One line, without what Blob Storage and Entra ID say about the request, and not too long.
fn tidy(message: &str) -> String {
    let tells = |line: &&str| {
        !line.is_empty() && !["RequestId:", "Time:", "Trace ID:"].iter().any(|noise| line.starts_with(*noise))
    };
    let lines: Vec<_> = message.lines().map(str::trim).filter(tells).collect();
    lines.join(" ").chars().filter(|c| !c.is_control()).take(LONGEST_MESSAGE).collect()
}

/// Tells what a failure of an SDK comes to.
#[must_use]
pub fn classify(error: azure_core::Error) -> AzureFailure {
    match error.kind() {
        ErrorKind::HttpResponse { status, raw_response, .. } => match raw_response {
            Some(response) => answered(response),
            None => AzureFailure::NoAnswer(format!("status {status}").into()),
        },
        ErrorKind::Connection | ErrorKind::Io => AzureFailure::NoAnswer(cause(error)),
        ErrorKind::DataConversion => AzureFailure::Garbled("what cannot be read"),
        ErrorKind::Credential => match error.into_downcast::<azure_core::Error>() {
            Ok(inner) => match classify(inner) {
                AzureFailure::Denied(said) | AzureFailure::NotFound(said) | AzureFailure::Refused(said) => {
                    AzureFailure::Unauthenticated(said.to_string().into())
                }
                AzureFailure::NoAnswer(source) => AzureFailure::NoAnswer(Box::new(NoToken(source))),
                other => other,
            },
            Err(error) => AzureFailure::Unauthenticated(error.to_string().into()),
        },
        ErrorKind::Other => {
            let text = error.to_string();
            match text.split_once(". Set verify_challenge_resource") {
                Some((mismatch, _)) => AzureFailure::Unauthenticated(mismatch.to_owned().into()),
                None => AzureFailure::Refused(Said { status: 0, code: String::new(), message: tidy(&text) }),
            }
        }
    }
}

/// It is not the service that does not answer, but who gives tokens for it.
#[derive(Debug, thiserror::Error)]
#[error("no token can be got")]
struct NoToken(#[source] Box<dyn Error + Send + Sync>);

fn answered(response: &RawResponse) -> AzureFailure {
    let (said, wait) = (Said::of(response), retry_after(response.headers()));
    match said.status {
        200..=299 => AzureFailure::Garbled("with a status that does not belong to the request"),
        401 => AzureFailure::Unauthenticated(said.to_string().into()),
        403 => AzureFailure::Denied(said),
        404 => AzureFailure::NotFound(said),
        429 => AzureFailure::Throttled(wait),
        503 if wait.is_some() || said.code == "ServerBusy" => AzureFailure::Throttled(wait),
        408 | 500..=599 => AzureFailure::NoAnswer(said.to_string().into()),
        _ => AzureFailure::Refused(said),
    }
}

fn retry_after(headers: &Headers) -> Option<Duration> {
    let milliseconds = |name: &HeaderName| headers.get_optional_str(name)?.parse().ok().map(Duration::from_millis);
    milliseconds(&X_MS_RETRY_AFTER_MS).or_else(|| milliseconds(&RETRY_AFTER_MS)).or_else(|| {
        let text = headers.get_optional_str(&RETRY_AFTER)?;
        if let Ok(seconds) = text.parse() {
            return Some(Duration::from_secs(seconds));
        }
        let moment = parse_rfc7231(text).ok()?;
        Some((moment - OffsetDateTime::now_utc()).try_into().unwrap_or(Duration::ZERO))
    })
}

/// What lies under an SDK's error, without the URL.
fn cause(error: azure_core::Error) -> Box<dyn Error + Send + Sync> {
    let error = match error.into_downcast::<reqwest::Error>() {
        Ok(error) => return error.without_url().into(),
        Err(error) => error,
    };
    match error.into_downcast::<azure_core::Error>() {
        Ok(inner) => cause(inner),
        Err(error) => error.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(status: u16, headers: &[(&'static str, &'static str)], body: &'static str) -> AzureFailure {
        let mut all = Headers::new();
        for (name, value) in headers {
            all.insert(*name, *value);
        }
        let response = RawResponse::from_bytes(status.into(), all, body.as_bytes());
        let raw_response = Some(Box::new(response));
        let kind = ErrorKind::HttpResponse { status: status.into(), error_code: None, raw_response };
        classify(azure_core::Error::with_message(kind, "refused"))
    }

    #[test]
    fn the_innermost_code_and_one_line_are_kept() {
        let body = r#"{"error":{"code":"Forbidden","message":"Caller is not authorized.\r\nAction: 'wrap'",
            "innererror":{"code":"ForbiddenByRbac"}}}"#;
        let AzureFailure::Denied(said) = failure(403, &[], body) else { panic!("not denied") };
        assert_eq!(said.to_string(), "ForbiddenByRbac: Caller is not authorized. Action: 'wrap'");
        let body = "\u{feff}<?xml version=\"1.0\"?><Error><Code>BlobNotFound</Code><Message>It is not there.\n\
            RequestId:1\nTime:2</Message></Error>";
        let AzureFailure::NotFound(said) = failure(404, &[], body) else { panic!("found") };
        assert_eq!(said.to_string(), "BlobNotFound: It is not there.");
    }

    #[test]
    fn a_wait_is_honoured_in_each_of_its_headers() {
        let wait = |name, value| match failure(429, &[(name, value)], "") {
            AzureFailure::Throttled(wait) => wait,
            other => panic!("{other:?}"),
        };
        assert_eq!(wait("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("retry-after-ms", "70"), Some(Duration::from_millis(70)));
        assert_eq!(wait("x-ms-retry-after-ms", "70"), Some(Duration::from_millis(70)));
        assert_eq!(wait("retry-after", "Fri, 01 Jan 2021 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("retry-after", "soon"), None);
        assert!(matches!(failure(503, &[("retry-after", "1")], ""), AzureFailure::Throttled(Some(_))));
        assert!(matches!(failure(503, &[], ""), AzureFailure::NoAnswer(_)));
    }

    #[test]
    fn a_refused_secret_is_no_outage_and_a_silent_authority_is_one() {
        let refused = azure_core::Error::with_message(ErrorKind::Other, "invalid_client");
        let refused = azure_core::Error::with_error(ErrorKind::Credential, refused, "no token");
        assert!(matches!(classify(refused), AzureFailure::Unauthenticated(_)));
        let silent = azure_core::Error::with_message(ErrorKind::Connection, "refused");
        let silent = azure_core::Error::with_error(ErrorKind::Credential, silent, "no token");
        assert!(matches!(classify(silent), AzureFailure::NoAnswer(_)));
    }
}
