//! What an answer of AWS means, or of whoever stands in for it, whichever service it is of.

use std::{error::Error, iter, time::Duration};

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::{
    orchestrator::HttpResponse,
    result::{ConnectorError, SdkError},
};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use super::credentials::StsAway;

/// The longest part of a service's message that is told.
const MESSAGE_CHARS: usize = 512;

/// What became of a call that was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nobody answered, or somebody who cannot: what happened.
    Away(String),
    /// Too many requests, and how long to wait.
    Throttled(Option<Duration>),
    /// There are no credentials, or they are not taken: what was said.
    Unauthenticated(String),
    /// Whoever the credentials name may not: what was said, which often names who.
    Denied(String),
    /// It makes no sense.
    Garbled,
    /// Another refusal.
    Other {
        /// HTTP's.
        status: u16,
        /// AWS's name for it, or `HTTP` and the status.
        code: String,
        /// What was said.
        message: String,
    },
}

const THROTTLED: [&str; 8] = [
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "SlowDown",
];
const AWAY: [&str; 8] = [
    "InternalError",
    "InternalFailure",
    "KMSInternalException",
    "KeyUnavailableException",
    "DependencyTimeoutException",
    "ServiceUnavailable",
    "RequestTimeout",
    "OperationAborted",
];
const UNAUTHENTICATED: [&str; 15] = [
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidAccessKeyId",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "IncompleteSignature",
    "IncompleteSignatureException",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "TokenRefreshRequired",
    "RequestExpired",
    "RequestTimeTooSkewed",
];
const DENIED: [&str; 4] = ["AccessDenied", "AccessDeniedException", "AllAccessDisabled", "UnauthorizedOperation"];

impl Answer {
    /// What an SDK's error says.
    #[must_use]
    pub fn of<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        match error {
            SdkError::ServiceError(answer) => {
                let said = answer.err().meta();
                let retry_after = answer.raw().headers().get("retry-after").and_then(|text| text.trim().parse().ok());
                Self::said(
                    answer.raw().status().as_u16(),
                    said.code(),
                    said.message(),
                    retry_after.map(Duration::from_secs),
                )
            }
            SdkError::ConstructionFailure(_) => {
                Self::Other { status: 0, code: "not sent".to_owned(), message: told(error) }
            }
            _ => Self::of_credentials(error).unwrap_or_else(|| Self::Away(told(error))),
        }
    }

    fn said(status: u16, code: Option<&str>, message: Option<&str>, retry_after: Option<Duration>) -> Self {
        let message: String = message.unwrap_or_default().chars().take(MESSAGE_CHARS).collect();
        let name = code.map_or_else(|| format!("HTTP {status}"), str::to_owned);
        let whole = if message.is_empty() { name.clone() } else { format!("{name}: {message}") };
        let is_one_of = |codes: &[&str]| code.is_some_and(|code| codes.contains(&code));
        match status {
            _ if is_one_of(&THROTTLED) => Self::Throttled(retry_after),
            _ if is_one_of(&UNAUTHENTICATED) => Self::Unauthenticated(whole),
            _ if is_one_of(&DENIED) => Self::Denied(whole),
            _ if is_one_of(&AWAY) => Self::Away(whole),
            429 => Self::Throttled(retry_after),
            501 => Self::Other { status, code: name, message },
            500..=599 => Self::Away(whole),
            401 | 403 => Self::Denied(whole),
            200..=299 if code.is_none() => Self::Garbled,
            _ => Self::Other { status, code: name, message },
        }
    }

    /// Where the request was not sent because there are no credentials: none, or nobody to give them.
    fn of_credentials(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut chain = iter::successors(Some(error), |error| (*error).source());
        let failure = chain.find_map(|error| error.downcast_ref::<CredentialsError>())?;
        let why = iter::successors(Some(failure as &(dyn Error + 'static)), |error| (*error).source());
        let why = why.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        let is_away = |error: &(dyn Error + 'static)| error.is::<StsAway>() || error.is::<ConnectorError>();
        Some(match failure {
            CredentialsError::ProviderTimedOut(_) => Self::Away(why),
            CredentialsError::ProviderError(_) if chain.any(is_away) => Self::Away(why),
            _ => Self::Unauthenticated(why),
        })
    }
}

/// An error's causes in one line. The SDK's outermost words only say that there was no answer.
#[must_use]
pub fn told(error: &(dyn Error + 'static)) -> String {
    let causes = iter::successors(error.source(), |error| (*error).source()).map(ToString::to_string);
    let causes = causes.collect::<Vec<_>>().join(": ");
    if causes.is_empty() { error.to_string() } else { causes }
}

#[cfg(test)]
mod tests {
    use aws_smithy_runtime_api::http::{Response, StatusCode};
    use aws_smithy_types::{body::SdkBody, error::ErrorMetadata};

    use super::*;

    fn answer(status: u16, code: Option<&str>, retry_after: Option<&'static str>) -> Answer {
        let mut said = ErrorMetadata::builder().message("for this reason");
        if let Some(code) = code {
            said = said.code(code);
        }
        let mut raw = Response::new(StatusCode::try_from(status).expect("a status"), SdkBody::empty());
        if let Some(time) = retry_after {
            raw.headers_mut().insert("retry-after", time);
        }
        Answer::of(&SdkError::service_error(said.build(), raw))
    }

    #[test]
    fn an_answer_is_what_its_code_says_and_then_its_status() {
        let slow = Answer::Throttled(None);
        for (status, code) in [(400, "ThrottlingException"), (503, "SlowDown"), (400, "TooManyRequestsException")] {
            assert_eq!(answer(status, Some(code), None), slow);
        }
        assert_eq!(answer(429, None, Some("7")), Answer::Throttled(Some(Duration::from_secs(7))));
        assert_eq!(answer(429, None, Some("tomorrow")), slow);
        let away = [(500, None), (503, None), (400, Some("KMSInternalException")), (200, Some("InternalError"))];
        for (status, code) in away {
            assert!(matches!(answer(status, code, None), Answer::Away(_)), "{status} {code:?}");
        }
        for code in ["InvalidSignatureException", "ExpiredTokenException", "SignatureDoesNotMatch"] {
            assert!(matches!(answer(403, Some(code), None), Answer::Unauthenticated(_)), "{code}");
        }
        let denied = Answer::Denied("AccessDeniedException: for this reason".to_owned());
        assert_eq!(answer(400, Some("AccessDeniedException"), None), denied);
        assert_eq!(answer(403, None, None), Answer::Denied("HTTP 403: for this reason".to_owned()));
        assert_eq!(answer(200, None, None), Answer::Garbled);
        let other = Answer::Other { status: 404, code: "NoSuchKey".to_owned(), message: "for this reason".to_owned() };
        assert_eq!(answer(404, Some("NoSuchKey"), None), other);
    }

    #[test]
    fn without_credentials_nobody_was_asked_unless_who_gives_them_is_away() {
        let failed = |failure: CredentialsError| {
            let failure = ConnectorError::other(failure.into(), None);
            Answer::of(&SdkError::<ErrorMetadata, HttpResponse>::dispatch_failure(failure))
        };
        let none = failed(CredentialsError::not_loaded("no providers in chain provided credentials"));
        assert!(matches!(&none, Answer::Unauthenticated(why) if why.contains("no providers in chain")), "{none:?}");
        let io = ConnectorError::io("connection refused".into());
        assert!(matches!(failed(CredentialsError::provider_error(io)), Answer::Away(why) if why.contains("refused")));
        assert!(matches!(failed(CredentialsError::provider_timed_out(Duration::from_secs(5))), Answer::Away(_)));
    }

    #[test]
    fn a_connection_that_breaks_is_no_answer() {
        let broken = ConnectorError::io("connection reset by peer".into());
        let answer = Answer::of(&SdkError::<ErrorMetadata, HttpResponse>::dispatch_failure(broken));
        assert_eq!(answer, Answer::Away("io error: connection reset by peer".to_owned()));
    }
}
