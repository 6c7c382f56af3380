//! Our imitation of Entra ID's token endpoint, and of the endpoint for managed identities that App Service has.
//!
//! Pairs that it follows (Microsoft identity platform, client credentials flow; App Service, REST endpoint reference):
//! ```text
//! POST /TENANT/oauth2/v2.0/token   client_id, scope=RESOURCE/.default, grant_type=client_credentials,
//!                                  client_secret or client_assertion with client_assertion_type
//!   200 {"token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"access_token":…}
//!   400 invalid_request AADSTS90002 (tenant), unsupported_grant_type AADSTS70003, unauthorized_client AADSTS700016
//!   401 invalid_client AADSTS7000215 (secret), AADSTS700024 (assertion)
//! GET /msi/token?api-version=2019-08-01&resource=…   X-IDENTITY-HEADER
//!   200 {"access_token":…,"expires_on":"SECONDS","resource":…,"token_type":"Bearer"}
//!   400 invalid_request
//! ```
//! Tokens are remembered with who got them and for what, so that a vault can check them. Instance discovery is not
//! served: the SDK makes none.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::json;
use url::form_urlencoded;

use super::keys::random_id;

/// The directory.
pub(super) const TENANT: &str = "5e1b4a0c-3f6d-4a7e-9a55-2f8d1c7b9e01";
/// The application that may use keys.
pub(super) const CLIENT: &str = "0f2a8c14-6f0e-4b52-8f5b-7d1f0a9c3b02";
/// The application that may set rotation policies as well.
pub(super) const KEEPER: &str = "4b9e6d70-58c1-4f3a-8e2d-1a7c60f5d904";
/// An application that may do nothing.
pub(super) const STRANGER: &str = "c7d93b5e-1a24-4e0d-b7a6-90e4d2f81c03";
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Whoever a token was given to, and for what.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) client_id: &'static str,
    pub(super) resource: String,
    expires: u64,
}

/// The directory's applications and the tokens that it gave.
#[derive(Debug)]
pub(super) struct Entra {
    secrets: HashMap<&'static str, String>,
    identity_header: String,
    state: Mutex<Given>,
}

#[derive(Debug)]
struct Given {
    tokens: HashMap<String, Token>,
    assertion: String,
    lifetime: u64,
}

impl Entra {
    pub(super) fn new() -> Arc<Self> {
        let secrets = HashMap::from([CLIENT, KEEPER, STRANGER].map(|client| (client, random_id())));
        let given = Given { tokens: HashMap::new(), assertion: random_id(), lifetime: 3599 };
        Arc::new(Self { secrets, identity_header: random_id(), state: Mutex::new(given) })
    }

    pub(super) fn router(self: &Arc<Self>) -> Router {
        Router::new().fallback(answer).with_state(self.clone())
    }

    /// An application's secret.
    pub(super) fn secret(&self, client_id: &str) -> String {
        self.secrets.get(client_id).cloned().expect("the application is one of ours")
    }

    /// What proves to the endpoint for managed identities that its caller is on this machine.
    pub(super) fn identity_header(&self) -> String {
        self.identity_header.clone()
    }

    /// The ServiceAccount token that is taken now.
    pub(super) fn assertion(&self) -> String {
        self.state().assertion.clone()
    }

    /// Another ServiceAccount token takes the place of the one before.
    pub(super) fn renew_assertion(&self) -> String {
        let new = random_id();
        self.state().assertion.clone_from(&new);
        new
    }

    /// How long tokens last that are given from now on. The SDK asks again five minutes before.
    pub(super) fn set_lifetime(&self, seconds: u64) {
        self.state().lifetime = seconds;
    }

    /// Forgets all tokens, as if they had been revoked.
    pub(super) fn revoke(&self) {
        self.state().tokens.clear();
    }

    /// A token that was given and has not expired.
    pub(super) fn token(&self, token: &str) -> Option<Token> {
        self.state().tokens.get(token).filter(|token| token.expires > now()).cloned()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Given> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give(&self, client_id: &'static str, resource: &str) -> (String, u64) {
        let (token, mut state) = (format!("token-{}", random_id()), self.state());
        let lifetime = state.lifetime;
        let given = Token { client_id, resource: resource.to_owned(), expires: now() + lifetime };
        state.tokens.insert(token.clone(), given);
        (token, lifetime)
    }

    fn exchange(&self, tenant: &str, form: &HashMap<String, String>) -> Response {
        let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        if tenant != TENANT {
            return refuse(400, "invalid_request", 90002, &format!("Tenant '{tenant}' not found."));
        }
        if field("grant_type") != "client_credentials" {
            return refuse(400, "unsupported_grant_type", 70003, "The app requested an unsupported grant type.");
        }
        let Some(client_id) = [CLIENT, KEEPER, STRANGER].into_iter().find(|id| *id == field("client_id")) else {
            let what = "Application with that identifier was not found in the directory.";
            return refuse(400, "unauthorized_client", 700_016, what);
        };
        let Some(resource) = field("scope").strip_suffix("/.default") else {
            return refuse(400, "invalid_scope", 1_002_012, "The provided value for scope is not valid.");
        };
        match (form.get("client_secret"), form.get("client_assertion")) {
            (Some(secret), None) if *secret == self.secret(client_id) => {}
            (None, Some(assertion))
                if *assertion == self.assertion() && field("client_assertion_type") == ASSERTION_TYPE => {}
            (None, Some(_)) => {
                return refuse(401, "invalid_client", 700_024, "Client assertion is not within its valid time range.");
            }
            _ => return refuse(401, "invalid_client", 7_000_215, "Invalid client secret provided."),
        }
        let (token, lifetime) = self.give(client_id, resource);
        let answer = json!({
            "token_type": "Bearer", "expires_in": lifetime, "ext_expires_in": lifetime, "access_token": token,
        });
        Json(answer).into_response()
    }

    fn managed(&self, headers: &HeaderMap, query: &HashMap<String, String>) -> Response {
        let shown = headers.get("x-identity-header").and_then(|header| header.to_str().ok());
        let (Some(resource), Some("2019-08-01")) =
            (query.get("resource"), query.get("api-version").map(String::as_str))
        else {
            return refuse(400, "invalid_request", 0, "resource or api-version is missing");
        };
        let known = query.get("client_id").is_none_or(|id| id == CLIENT);
        if shown != Some(self.identity_header.as_str()) || !known {
            return refuse(400, "invalid_request", 0, "Identity not found");
        }
        let (token, lifetime) = self.give(CLIENT, resource);
        let answer = json!({
            "access_token": token, "expires_on": (now() + lifetime).to_string(), "resource": resource,
            "token_type": "Bearer", "client_id": CLIENT,
        });
        Json(answer).into_response()
    }
}

async fn answer(
    State(entra): State<Arc<Entra>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let fields = |encoded: &[u8]| form_urlencoded::parse(encoded).into_owned().collect::<HashMap<_, _>>();
    let path: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    match (method, path.as_slice()) {
        (Method::POST, [tenant, "oauth2", "v2.0", "token"]) => entra.exchange(tenant, &fields(body.as_ref())),
        (Method::GET, ["msi", "token"]) => entra.managed(&headers, &fields(uri.query().unwrap_or_default().as_bytes())),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// A refusal as Entra ID words it, with its line breaks.
fn refuse(status: u16, error: &str, code: u32, what: &str) -> Response {
    let description = format!("AADSTS{code}: {what}\r\nTrace ID: {}\r\nCorrelation ID: {}", random_id(), random_id());
    let answer = json!({ "error": error, "error_description": description, "error_codes": [code] });
    (StatusCode::from_u16(status).expect("it is a status"), Json(answer)).into_response()
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970").as_secs()
}
