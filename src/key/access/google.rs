//! Google's clients: where their credentials come from, when a client is made, and what an error of one means.
//!
//! A client is made when it is first needed, so that nothing is asked of any network before. It is made anew when the
//! credentials file has changed, and after credentials that were refused or could not be had, because the SDK never asks
//! for a token again after an error that it holds to be final. A service account's key signs its own tokens (AIP-4111);
//! the other kinds of credentials ask a server for theirs.
//!
//! The SDK's retries are off ([`NeverRetry`]): [`crate::key::calls`] has its own. A service account's private key is also
//! in memory of the JSON parser and of the SDK, which the allocator overwrites when it is freed.

use std::{
    error::Error as StdError,
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use google_cloud_auth::{
    build_errors,
    credentials::{self, Credentials, anonymous, external_account, impersonated, service_account},
};
use google_cloud_gax::{
    client_builder,
    error::{
        CredentialsError, Error,
        rpc::{Code, StatusDetails},
    },
};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::key::{
    access::{GoogleAuth, SettingsFault},
    reread::{Reread, secret_text},
};

pub(crate) use google_cloud_gax::retry_policy::NeverRetry;

/// The longest text of an answer that is told to people.
const LONGEST_TEXT: usize = 300;
/// What a service account's file must say.
const ACCOUNT_FIELDS: [&str; 4] = ["client_email", "private_key", "private_key_id", "project_id"];

/// Why a call came to nothing.
pub(crate) enum Cause {
    /// Nobody answered, or somebody said that he cannot.
    NoAnswer(Arc<dyn StdError + Send + Sync>),
    /// There were too many requests; how long to wait, where that was said.
    Throttled(Option<Duration>),
    /// There are no credentials, or they are not taken.
    Unauthenticated(Arc<dyn StdError + Send + Sync>),
    /// Whoever asks may not; what was said.
    Denied(String),
    /// It is not there; what was said.
    NotFound(String),
    /// It is there already; what was said.
    Exists(String),
    /// The condition that came with the request does not hold; what was said.
    Condition(String),
    /// A condition of the service's own does not hold, such as a constraint of the organisation; what was said.
    Precondition(String),
    /// The service finds fault with the request; what was said.
    Invalid(String),
    /// The answer makes no sense.
    Garbled,
    /// Something else; what was said.
    Other(String),
}

impl Cause {
    fn of(error: Error) -> Self {
        if let Some(credentials) = credentials_error(&error) {
            let source = Arc::new(credentials.clone());
            return if credentials.is_transient() { Self::NoAnswer(source) } else { Self::Unauthenticated(source) };
        }
        if error.is_deserialization() {
            return Self::Garbled;
        }
        let (http, code) = (error.http_status_code(), error.status().map(|status| status.code));
        let (wait, text) = (asked_wait(&error), text_of(&error));
        match (http, code) {
            (Some(429), _) | (_, Some(Code::ResourceExhausted)) => Self::Throttled(wait),
            (Some(401), _) | (_, Some(Code::Unauthenticated)) => Self::Unauthenticated(said(text)),
            (Some(403), _) | (_, Some(Code::PermissionDenied)) => Self::Denied(text),
            (Some(404), _) | (_, Some(Code::NotFound)) => Self::NotFound(text),
            (Some(409), _) | (_, Some(Code::AlreadyExists)) => Self::Exists(text),
            (Some(412), _) if is_ours(&error) => Self::Condition(text),
            (Some(412), _) | (_, Some(Code::FailedPrecondition)) => Self::Precondition(text),
            (_, Some(Code::InvalidArgument)) => Self::Invalid(text),
            (Some(408 | 500..), _) => Self::NoAnswer(said(text)),
            (Some(_), _) => Self::Other(text),
            // What is not HTTP's own status comes by gRPC, where an overloaded front answers without a gRPC status.
            (None, _) if wait.is_some() => Self::Throttled(wait),
            (
                None,
                Some(
                    Code::Unavailable
                    | Code::DeadlineExceeded
                    | Code::Internal
                    | Code::Unknown
                    | Code::Aborted
                    | Code::Cancelled
                    | Code::DataLoss,
                ),
            ) => Self::NoAnswer(said(text)),
            (None, Some(_)) => Self::Other(text),
            (None, None) if error.is_serialization() => Self::Other(error.to_string()),
            (None, None) => Self::NoAnswer(Arc::new(error)),
        }
    }
}

/// Whether a 412 of Cloud Storage is about the condition that came with the request: its documented reasons are
/// `conditionNotMet`, and others for what an organisation or a bucket does not let be. An organisation's constraint was
/// seen to come with the first one, too; its sentence says what it is.
fn is_ours(error: &Error) -> bool {
    let reason = |detail: &StatusDetails| match detail {
        StatusDetails::ErrorInfo(info) => Some(info.reason == "conditionNotMet"),
        _ => None,
    };
    error.status().is_some_and(|status| {
        status.details.iter().find_map(reason) == Some(true) && !status.message.contains("constraint")
    })
}

fn credentials_error(error: &Error) -> Option<&CredentialsError> {
    error.source()?.downcast_ref()
}

fn said(text: String) -> Arc<dyn StdError + Send + Sync> {
    Arc::from(Box::<dyn StdError + Send + Sync>::from(text))
}

/// What the service says in words, for people. A body that is no short text of its own is not shown.
fn text_of(error: &Error) -> String {
    let http = || error.http_status_code().map_or_else(|| "no status".to_owned(), |code| format!("HTTP {code}"));
    if let Some(status) = error.status() {
        // Cloud Storage's REST errors have no code but HTTP's.
        let code = if status.code == Code::Unknown { http() } else { status.code.name().to_owned() };
        return format!("{code}: {}", status.message);
    }
    let body = error.http_payload().and_then(|body| std::str::from_utf8(body).ok()).map_or("", str::trim);
    let is_text = !body.is_empty() && body.len() <= LONGEST_TEXT && !body.contains(['<', '{']);
    if is_text { format!("{}: {body}", http()) } else { http() }
}

/// How long the service asked to wait: Retry-After in seconds (RFC 9110), or google.rpc.RetryInfo.
fn asked_wait(error: &Error) -> Option<Duration> {
    let header =
        error.http_headers().and_then(|headers| headers.get("retry-after")?.to_str().ok()?.trim().parse().ok());
    let info = || {
        error.status()?.details.iter().find_map(|detail| match detail {
            StatusDetails::RetryInfo(info) => u64::try_from(info.retry_delay.as_ref()?.seconds()).ok(),
            _ => None,
        })
    };
    header.or_else(info).map(Duration::from_secs)
}

/// What credentials are made of.
enum Source {
    Default,
    Anonymous,
    ServiceAccount(Value),
    ExternalAccount(Value),
    Impersonated(Value),
}

impl Source {
    fn read(path: &Path) -> Result<Self, SettingsFault> {
        let text = secret_text(path)?;
        let fault = |what: &str| SettingsFault(format!("{}: {what}", path.display()));
        // The parser's own words would show parts of the file.
        let json: Value =
            serde_json::from_str(&text).map_err(|error| fault(&format!("line {}: no JSON", error.line())))?;
        let kind = json["type"].as_str().unwrap_or_default().to_owned();
        match kind.as_str() {
            "service_account" => {
                if let Some(missing) = ACCOUNT_FIELDS.iter().find(|field| !json[**field].is_string()) {
                    return Err(fault(&format!("a service account's key has a text {missing}")));
                }
                let pem = json["private_key"].as_str().unwrap_or_default();
                PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
                    .map_err(|_| fault("private_key is no PEM of a private key (PKCS #8)"))?;
                Ok(Self::ServiceAccount(json))
            }
            "external_account" if json["credential_source"]["executable"].is_null() => Ok(Self::ExternalAccount(json)),
            "external_account" => Err(fault("credential_source starts a program, which Coffer does not")),
            "impersonated_service_account" => Ok(Self::Impersonated(json)),
            _ => Err(fault("type is service_account, external_account or impersonated_service_account")),
        }
    }

    fn credentials(&self) -> Result<Credentials, build_errors::Error> {
        match self {
            Self::Default => credentials::Builder::default().build(),
            Self::Anonymous => Ok(anonymous::Builder::new().build()),
            Self::ServiceAccount(json) => service_account::Builder::new(json.clone()).build(),
            Self::ExternalAccount(json) => external_account::Builder::new(json.clone()).build(),
            Self::Impersonated(json) => impersonated::Builder::new(json.clone()).build(),
        }
    }
}

/// The client of a service, as whoever the configuration says.
pub(crate) struct Clients<C> {
    source: Reread<Source>,
    made: Mutex<Option<Made<C>>>,
}

/// A client, which is made once, and what it is made of.
struct Made<C> {
    of: Arc<Source>,
    client: Arc<OnceCell<C>>,
}

impl<C> fmt::Debug for Clients<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}

impl<C: Clone> Clients<C> {
    /// Reads the credentials file, where there is one.
    ///
    /// # Errors
    /// It cannot be read, or does not hold credentials of a kind that Coffer takes.
    pub(crate) fn new(auth: GoogleAuth) -> Result<Self, SettingsFault> {
        let source = match auth {
            GoogleAuth::Default => Reread::new(Vec::new(), || Ok(Source::Default)),
            GoogleAuth::Anonymous => Reread::new(Vec::new(), || Ok(Source::Anonymous)),
            GoogleAuth::CredentialsFile(path) => Reread::new(vec![path.clone()], move || Source::read(&path)),
        };
        Ok(Self { source: source?, made: Mutex::default() })
    }

    /// The client; `build` makes it where it is missing, with the credentials that it is given.
    ///
    /// # Errors
    /// There are no credentials, or the client cannot be made.
    pub(crate) async fn client<F>(&self, build: impl FnOnce(Credentials) -> F) -> Result<C, Cause>
    where
        F: Future<Output = client_builder::Result<C>>,
    {
        let source = self.source.current();
        let client = self.made_of(&source);
        let making = async {
            let credentials = source.credentials().map_err(|error| Cause::Unauthenticated(Arc::new(error)))?;
            build(credentials).await.map_err(|error| {
                if error.is_transport() {
                    Cause::NoAnswer(Arc::new(error))
                } else {
                    Cause::Unauthenticated(Arc::new(error))
                }
            })
        };
        client.get_or_try_init(|| making).await.cloned()
    }

    fn made_of(&self, source: &Arc<Source>) -> Arc<OnceCell<C>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let known = made.as_ref().filter(|made| Arc::ptr_eq(&made.of, source)).map(|made| made.client.clone());
        known.unwrap_or_else(|| {
            let client = Arc::new(OnceCell::new());
            *made = Some(Made { of: source.clone(), client: client.clone() });
            client
        })
    }

    /// Why a call of this client failed. Where it was for its credentials, the next call makes them anew.
    pub(crate) fn cause(&self, error: Error) -> Cause {
        let for_credentials = credentials_error(&error).is_some();
        let cause = Cause::of(error);
        if for_credentials || matches!(cause, Cause::Unauthenticated(_)) {
            *self.made.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        cause
    }
}

#[cfg(test)]
mod tests {
    use google_cloud_gax::error::rpc::Status;

    use super::*;

    fn check(json: &str) -> String {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), json).expect("it can be written");
        let fault = Clients::<()>::new(GoogleAuth::CredentialsFile(file.path().to_owned()));
        let text = fault.expect_err("it is refused").to_string();
        text.rsplit_once(": ").map_or(text.clone(), |(_, what)| what.to_owned())
    }

    #[test]
    fn what_is_no_credentials_file_is_refused_without_showing_it() {
        let kinds = "type is service_account, external_account or impersonated_service_account";
        assert_eq!(check("{\"private_key\": \"secret\",}"), "no JSON");
        assert_eq!(check("[]"), kinds);
        assert_eq!(check("{\"type\": \"authorized_user\"}"), kinds);
        assert_eq!(check("{\"type\": \"service_account\"}"), "a service account's key has a text client_email");
        let account = "{\"type\": \"service_account\", \"client_email\": \"a\", \"private_key_id\": \"b\", \
                       \"project_id\": \"c\", \"private_key\": \"secret\"}";
        assert_eq!(check(account), "private_key is no PEM of a private key (PKCS #8)");
        let program = "{\"type\": \"external_account\", \"credential_source\": {\"executable\": {\"command\": \"x\"}}}";
        assert_eq!(check(program), "credential_source starts a program, which Coffer does not");
    }

    #[test]
    fn only_a_condition_of_our_own_counts_as_one() {
        let of = |reason: &str, message: &str| {
            let errors = serde_json::json!([{"domain": "global", "reason": reason, "message": message}]);
            let body = serde_json::json!({"error": {"code": 412, "message": message, "errors": errors}});
            let status = Status::try_from(&bytes::Bytes::from(body.to_string())).expect("an error of the JSON API");
            Cause::of(Error::service_with_http_metadata(status, Some(412), None))
        };
        let not_met = "At least one of the pre-conditions you specified did not hold.";
        assert!(matches!(of("conditionNotMet", not_met), Cause::Condition(_)));
        let constraint = "Request violates constraint 'constraints/gcp.restrictNonCmekServices'";
        for reason in ["orgPolicyConstraintFailed", "conditionNotMet"] {
            let told = of(reason, constraint);
            assert!(matches!(&told, Cause::Precondition(text) if text.ends_with(constraint)), "{reason}");
        }
        for reason in ["softDeletePolicyNotSet", "objectNotSoftDeleted", ""] {
            assert!(matches!(of(reason, "no"), Cause::Precondition(_)), "{reason}");
        }
        let bare = Error::http(412, Default::default(), bytes::Bytes::from_static(b"Precondition Failed"));
        assert!(matches!(Cause::of(bare), Cause::Precondition(_)));
    }

    #[test]
    fn each_code_of_grpc_is_told_apart() {
        let of = |code: Code| Cause::of(Error::service(Status::default().set_code(code).set_message("why")));
        assert!(matches!(of(Code::Unavailable), Cause::NoAnswer(_)));
        assert!(matches!(of(Code::ResourceExhausted), Cause::Throttled(None)));
        assert!(matches!(of(Code::Unauthenticated), Cause::Unauthenticated(_)));
        assert!(matches!(of(Code::PermissionDenied), Cause::Denied(text) if text == "PERMISSION_DENIED: why"));
        assert!(matches!(of(Code::NotFound), Cause::NotFound(_)));
        assert!(matches!(of(Code::AlreadyExists), Cause::Exists(_)));
        assert!(matches!(of(Code::FailedPrecondition), Cause::Precondition(_)));
        assert!(matches!(of(Code::InvalidArgument), Cause::Invalid(_)));
        assert!(matches!(of(Code::Unimplemented), Cause::Other(_)));
        assert!(matches!(Cause::of(Error::timeout("late")), Cause::NoAnswer(_)));
    }
}
