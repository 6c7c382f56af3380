//! Our imitation of Key Vault's and managed HSM's keys (REST API 7.x and 2025-07-01).
//!
//! Pairs that it follows:
//! ```text
//! any request without a token
//!   401 WWW-Authenticate: Bearer authorization="https://login.microsoftonline.com/TENANT",
//!       resource="https://vault.azure.net" (https://managedhsm.azure.net for a managed HSM)
//!       {"error":{"code":"Unauthorized","message":"AKV10000: …"}}
//!   401 the same with AKV10022 for a token of another resource, AKV10046 for one that is unknown or has expired
//! GET  /keys/NAME[/VERSION]            200 {"key":{kid,kty,key_ops,n,e},"attributes":{enabled,nbf,exp,created,…}}
//! POST /keys/NAME[/VERSION]/wrapkey    {"alg","value"}: 200 {"kid","value"}
//! POST /keys/NAME/VERSION/unwrapkey    {"alg","value"}: 200 {"kid","value"}
//!   400 BadParameter                   another algorithm than the key's; bytes that this key did not wrap
//!   403 Forbidden, innererror          ForbiddenByRbac (caller), KeyDisabled, KeyOperationForbidden (key_ops),
//!                                      KeyExpired, KeyNotYetValid (wrapkey only: unwrapping goes on)
//!   404 KeyNotFound                    no such key, or no such version
//! GET  /keys/NAME/rotationpolicy       200 {"id","lifetimeActions":[{"trigger","action":{"type"}}],"attributes":{…}};
//!                                      without one a notice 30 days before expiry (a managed HSM: nothing)
//! PUT  /keys/NAME/rotationpolicy       the same: 200; 403 ForbiddenByRbac, 404 KeyNotFound
//!   400 BadParameter                   timeAfterCreate under 7 days (a managed HSM: 28); not within expiryTime
//! ```
//! Of lengths of time (ISO 8601) only days are imitated.
//!
//! Where the documentation says that a disabled key is refused, live vaults were reported to go on wrapping with the
//! public half; this one refuses. Messages have the line breaks that the service's have.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use anyhow::{Context, Result};
use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header::WWW_AUTHENTICATE},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use url::form_urlencoded;

use super::{
    entra::{CLIENT, Entra, KEEPER, TENANT, now},
    keys::{Material, decode, encode, random_id},
    policy,
};

/// What kind of vault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Vault,
    ManagedHsm,
}

impl Kind {
    /// The host's name behind the vault's own.
    pub(super) fn domain(self) -> &'static str {
        match self {
            Self::Vault => "vault.azure.net",
            Self::ManagedHsm => "managedhsm.azure.net",
        }
    }

    /// What the configuration calls it.
    pub(super) fn vault_type(self) -> &'static str {
        match self {
            Self::Vault => "vault",
            Self::ManagedHsm => "managed-hsm",
        }
    }

    fn kty(self, material: &Material) -> &'static str {
        match (self, material) {
            (Self::Vault, Material::Rsa(_)) => "RSA",
            (Self::ManagedHsm, Material::Rsa(_)) => "RSA-HSM",
            (_, Material::Aes(_)) => "oct-HSM",
        }
    }
}

/// One version of a key.
#[derive(Debug)]
struct Version {
    id: String,
    material: Material,
    operations: &'static [&'static str],
    enabled: bool,
    not_before: Option<u64>,
    expires: Option<u64>,
    created: u64,
}

/// A vault and its keys.
#[derive(Debug)]
pub(super) struct Vault {
    kind: Kind,
    entra: Arc<Entra>,
    base: OnceLock<String>,
    keys: Mutex<BTreeMap<String, Vec<Version>>>,
    /// By the names of keys.
    policies: Mutex<BTreeMap<String, Value>>,
}

/// Operations of a key that wraps.
pub(super) const WRAPPING: &[&str] = &["wrapKey", "unwrapKey"];
/// Operations of a key that signs.
pub(super) const SIGNING: &[&str] = &["sign", "verify"];

impl Vault {
    pub(super) fn new(kind: Kind, entra: Arc<Entra>) -> Arc<Self> {
        Arc::new(Self { kind, entra, base: OnceLock::new(), keys: Mutex::default(), policies: Mutex::default() })
    }

    pub(super) fn router(self: &Arc<Self>) -> Router {
        Router::new().fallback(answer).with_state(self.clone())
    }

    /// Says under which URL it is served.
    pub(super) fn set_base(&self, base: &str) {
        self.base.set(base.to_owned()).expect("it is said once");
    }

    /// Gives a key a new version, or makes the key.
    pub(super) fn add(&self, name: &str, material: Material, operations: &'static [&'static str]) {
        let version = Version {
            id: random_id(),
            material,
            operations,
            enabled: true,
            not_before: None,
            expires: None,
            created: now(),
        };
        self.keys().entry(name.to_owned()).or_default().push(version);
    }

    /// Gives a key a new version of the same kind, as `az keyvault key rotate` does.
    pub(super) fn rotate(&self, name: &str) -> Result<()> {
        let (material, operations) = {
            let keys = self.keys();
            let newest = keys.get(name).and_then(|versions| versions.last()).context("there is no such key")?;
            (matches!(newest.material, Material::Rsa(_)), newest.operations)
        };
        let material = if material { Material::rsa()? } else { Material::aes()? };
        self.add(name, material, operations);
        Ok(())
    }

    /// Switches all versions of a key off or on.
    pub(super) fn enable(&self, name: &str, enabled: bool) {
        self.keys().get_mut(name).into_iter().flatten().for_each(|version| version.enabled = enabled);
    }

    /// Gives a key a rotation policy.
    pub(super) fn set_policy(&self, name: &str, policy: Value) {
        self.policies.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), policy);
    }

    /// The rotation policy of a key, which has one even if nobody gave it any.
    pub(super) fn policy_of(&self, name: &str) -> Value {
        let given = self.policies.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        let mut policy = given.unwrap_or_else(|| policy::first(self.kind));
        policy["id"] = format!("{}/keys/{name}/rotationpolicy", self.base.get().expect("it is served")).into();
        policy
    }

    /// Limits the time in which all versions of a key wrap.
    pub(super) fn limit(&self, name: &str, not_before: Option<u64>, expires: Option<u64>) {
        for version in self.keys().get_mut(name).into_iter().flatten() {
            (version.not_before, version.expires) = (not_before, expires);
        }
    }

    fn keys(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Vec<Version>>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kid(&self, name: &str, version: &Version) -> String {
        format!("{}/keys/{name}/{}", self.base.get().expect("it is served"), version.id)
    }

    /// Who asks; else the refusal.
    fn caller(&self, headers: &HeaderMap) -> Result<&'static str, Box<Response>> {
        let shown = headers.get("authorization").and_then(|header| header.to_str().ok());
        let Some(token) = shown.and_then(|header| header.strip_prefix("Bearer ")) else {
            return Err(self.challenge("AKV10000: Request is missing a Bearer or PoP token.").into());
        };
        match self.entra.token(token) {
            None => Err(self.challenge("AKV10046: Unable to resolve the key used for signature validation.").into()),
            Some(token) if token.resource != format!("https://{}", self.kind.domain()) => {
                Err(self.challenge(&format!("AKV10022: Invalid audience. Found: {}.", token.resource)).into())
            }
            Some(token) => Ok(token.client_id),
        }
    }

    fn challenge(&self, message: &str) -> Response {
        let challenge = format!(
            "Bearer authorization=\"https://login.microsoftonline.com/{TENANT}\", resource=\"https://{}\"",
            self.kind.domain()
        );
        ([(WWW_AUTHENTICATE, challenge)], refuse(401, "Unauthorized", None, message)).into_response()
    }

    /// Two roles are given: to one application, to read keys, to wrap and to unwrap with them; to another, all of it.
    fn may(&self, caller: &str, operation: Operation) -> Result<(), Box<Response>> {
        let is_policy = matches!(operation, Operation::GetPolicy | Operation::SetPolicy);
        if caller == KEEPER || caller == CLIENT && !is_policy {
            return Ok(());
        }
        let (action, plane) =
            (operation.action(self.kind), if self.kind == Kind::Vault { "vaults" } else { "managedHsm" });
        let message = format!(
            "Caller is not authorized to perform action on resource.\r\nIf role assignments, deny assignments or role \
             definitions were changed recently, please observe propagation time.\r\nCaller: appid={caller}\r\nAction: \
             'Microsoft.KeyVault/{plane}/{action}'\r\nAssignment: (not found)"
        );
        Err(refuse(403, "Forbidden", Some("ForbiddenByRbac"), &message).into())
    }

    fn act(&self, operation: Operation, name: &str, wanted: &str, body: &Value) -> Response {
        let keys = self.keys();
        let versions = keys.get(name).map(Vec::as_slice).unwrap_or_default();
        let found =
            if wanted.is_empty() { versions.last() } else { versions.iter().find(|version| version.id == wanted) };
        let Some(version) = found else {
            let what = format!(
                "A key with (name/id) {name}/{wanted} was not found in this key vault. If you recently deleted this \
                 key you may be able to recover it using the correct recovery command."
            );
            return refuse(404, "KeyNotFound", None, &what);
        };
        match operation {
            Operation::Get => match self.bundle(name, version) {
                Ok(bundle) => Json(bundle).into_response(),
                Err(error) => refuse(500, "InternalServerError", None, &error.to_string()),
            },
            Operation::GetPolicy => Json(self.policy_of(name)).into_response(),
            Operation::SetPolicy => match policy::good(body, self.kind) {
                Ok(policy) => {
                    self.set_policy(name, policy);
                    Json(self.policy_of(name)).into_response()
                }
                Err(why) => refuse(400, "BadParameter", None, why),
            },
            Operation::Wrap | Operation::Unwrap => {
                if let Err(refusal) = version.may(operation) {
                    return *refusal;
                }
                if body["alg"] != version.material.algorithm() {
                    return refuse(400, "BadParameter", None, "Key and algorithm are incompatible.");
                }
                let Some(value) = body["value"].as_str().and_then(decode) else {
                    return refuse(400, "BadParameter", None, "Property value has an invalid value.");
                };
                let done = match operation {
                    Operation::Wrap => version.material.wrap(&value),
                    _ => version.material.unwrap(&value),
                };
                let kid = self.kid(name, version);
                match done {
                    Ok(bytes) => Json(json!({ "kid": kid, "value": encode(&bytes) })).into_response(),
                    Err(_) => refuse(400, "BadParameter", None, "The parameter is incorrect.\r\n"),
                }
            }
        }
    }

    fn bundle(&self, name: &str, version: &Version) -> Result<Value> {
        let mut key = version.material.public()?;
        key["kid"] = self.kid(name, version).into();
        key["kty"] = self.kind.kty(&version.material).into();
        key["key_ops"] = json!(version.operations);
        let mut attributes = json!({
            "enabled": version.enabled, "created": version.created, "updated": version.created,
            "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90, "exportable": false,
        });
        for (attribute, moment) in [("nbf", version.not_before), ("exp", version.expires)] {
            if let Some(moment) = moment {
                attributes[attribute] = moment.into();
            }
        }
        Ok(json!({ "key": key, "attributes": attributes }))
    }
}

impl Version {
    fn may(&self, operation: Operation) -> Result<(), Box<Response>> {
        let name = operation.name();
        let refuse = |inner, what: &str| {
            Err(refuse(403, "Forbidden", Some(inner), &format!("Operation {name} is {what} key.")).into())
        };
        if !self.operations.contains(&name) {
            return refuse("KeyOperationForbidden", "not permitted on this");
        }
        if !self.enabled {
            return refuse("KeyDisabled", "not allowed on a disabled");
        }
        if operation == Operation::Wrap && self.expires.is_some_and(|moment| moment <= now()) {
            return refuse("KeyExpired", "not allowed on an expired");
        }
        if operation == Operation::Wrap && self.not_before.is_some_and(|moment| moment > now()) {
            return refuse("KeyNotYetValid", "not allowed on a not yet valid");
        }
        Ok(())
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Get,
    Wrap,
    Unwrap,
    GetPolicy,
    SetPolicy,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Wrap => "wrapKey",
            Self::Unwrap => "unwrapKey",
            Self::GetPolicy => "getrotationpolicy",
            Self::SetPolicy => "setrotationpolicy",
        }
    }

    fn action(self, kind: Kind) -> &'static str {
        match (self, kind) {
            (Self::Get, _) => "keys/read",
            (Self::Wrap, _) => "keys/wrap/action",
            (Self::Unwrap, _) => "keys/unwrap/action",
            (Self::GetPolicy, Kind::Vault) => "keyrotationpolicies/read",
            (Self::SetPolicy, Kind::Vault) => "keyrotationpolicies/write",
            (Self::GetPolicy, Kind::ManagedHsm) => "keys/read/action",
            (Self::SetPolicy, Kind::ManagedHsm) => "keys/write/action",
        }
    }
}

async fn answer(
    State(vault): State<Arc<Vault>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let caller = match vault.caller(&headers) {
        Ok(caller) => caller,
        Err(refusal) => return *refusal,
    };
    let query: HashMap<_, _> = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).collect();
    if !query.contains_key("api-version") {
        return refuse(400, "BadParameter", None, "api-version must be specified");
    }
    let path: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    let (operation, name, version) = match (method, path.as_slice()) {
        (Method::POST, ["keys", name, "wrapkey"]) => (Operation::Wrap, *name, ""),
        (Method::POST, ["keys", name, version, "wrapkey"]) => (Operation::Wrap, *name, *version),
        (Method::POST, ["keys", name, "unwrapkey"]) => (Operation::Unwrap, *name, ""),
        (Method::POST, ["keys", name, version, "unwrapkey"]) => (Operation::Unwrap, *name, *version),
        (Method::GET, ["keys", name]) => (Operation::Get, *name, ""),
        (Method::GET, ["keys", name, "rotationpolicy"]) => (Operation::GetPolicy, *name, ""),
        (Method::PUT, ["keys", name, "rotationpolicy"]) => (Operation::SetPolicy, *name, ""),
        (Method::GET, ["keys", name, version]) => (Operation::Get, *name, *version),
        _ => return refuse(404, "NotFound", None, "there is nothing of this name"),
    };
    if let Err(refusal) = vault.may(caller, operation) {
        return *refusal;
    }
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    vault.act(operation, name, version, &body)
}

fn refuse(status: u16, code: &str, inner: Option<&str>, message: &str) -> Response {
    let mut error = json!({ "code": code, "message": message });
    if let Some(inner) = inner {
        error["innererror"] = json!({ "code": inner });
    }
    (StatusCode::from_u16(status).expect("it is a status"), Json(json!({ "error": error }))).into_response()
}
