//! Each way to log in to OpenBao: AppRole, a signed token, and a ServiceAccount token that an API server reviews.

use std::{
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use axum::{
    Json, Router,
    body::to_bytes,
    extract::Request,
    http::{StatusCode, header},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use rcgen::KeyPair;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Root, text, written};
use crate::cloud::weather::{self, Authority, Served};

/// What OpenBao shows the API server when it has a token reviewed.
const REVIEWER: &str = "token-of-the-reviewer";
const SUBJECT: &str = "system:serviceaccount:coffer-system:coffer-keyservice";

impl Root {
    pub(super) async fn approle(&self, folder: &Path) -> Result<Vec<(&'static str, Value)>> {
        self.post("sys/auth/approle", json!({ "type": "approle" })).await?;
        let mut logins = Vec::new();
        for (what, name, lease, longest) in
            [("AppRole", "coffer", "1h", "24h"), ("AppRole, leases of 4 s, 10 s at most", "coffer-short", "4s", "10s")]
        {
            let role = format!("auth/approle/role/{name}");
            let settings = json!({ "token_policies": ["coffer"], "token_ttl": lease, "token_max_ttl": longest });
            self.post(&role, settings).await?;
            let role_id = self.ask(Method::GET, &format!("{role}/role-id"), None).await?;
            let secret_id = self.post(&format!("{role}/secret-id"), json!({})).await?;
            let secret_id = text(&secret_id["data"]["secret_id"])?;
            let secret_id_file = written(folder, &format!("{name}-secret-id"), &secret_id)?;
            let role_id = text(&role_id["data"]["role_id"])?;
            let auth = json!({
                "type": "approle",
                "mount": "approle",
                "roleId": role_id,
                "secretIdFile": secret_id_file,
            });
            logins.push((what, auth));
        }
        Ok(logins)
    }

    /// Both take the same token: a ServiceAccount token of an API server of our own, which reviews it, too.
    pub(super) async fn jwt_and_kubernetes(&self, folder: &Path) -> Result<(Vec<(&'static str, Value)>, Served)> {
        let key = KeyPair::generate()?;
        let jwt = jwt(&key);
        let token_file = written(folder, "service-account-token", &jwt)?;

        self.post("sys/auth/jwt", json!({ "type": "jwt" })).await?;
        self.post("auth/jwt/config", json!({ "jwt_validation_pubkeys": [key.public_key_pem()] })).await?;
        let role = json!({
            "role_type": "jwt",
            "user_claim": "sub",
            "bound_audiences": ["openbao"],
            "bound_subject": SUBJECT,
            "token_policies": ["coffer"],
            "token_ttl": "1h",
        });
        self.post("auth/jwt/role/coffer", role).await?;

        let reviewer = weather::serve(reviewer(jwt), None).await?;
        // It has to name an authority, although the reviewer speaks plain HTTP.
        let authority = folder.join("kubernetes");
        fs::create_dir_all(&authority)?;
        let ca = fs::read_to_string(Authority::new(&authority)?.ca_file())?;
        self.post("sys/auth/kubernetes", json!({ "type": "kubernetes" })).await?;
        let config = json!({
            "kubernetes_host": format!("http://{}", reviewer.address()),
            "kubernetes_ca_cert": ca,
            "token_reviewer_jwt": REVIEWER,
            "disable_local_ca_jwt": true,
        });
        self.post("auth/kubernetes/config", config).await?;
        let role = json!({
            "bound_service_account_names": ["coffer-keyservice"],
            "bound_service_account_namespaces": ["coffer-system"],
            "token_policies": ["coffer"],
            "token_ttl": "1h",
        });
        self.post("auth/kubernetes/role/coffer", role).await?;

        let auth = |kind: &str| json!({ "type": kind, "mount": kind, "role": "coffer", "tokenFile": token_file });
        Ok((vec![("JWT", auth("jwt")), ("Kubernetes", auth("kubernetes"))], reviewer))
    }
}

/// A ServiceAccount token as an API server signs it (RFC 7519, ES256).
fn jwt(key: &KeyPair) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs();
    let claims = json!({
        "iss": "https://kubernetes.default.svc",
        "aud": ["openbao"],
        "sub": SUBJECT,
        "iat": now,
        "nbf": now,
        "exp": now + 3600,
        "kubernetes.io": {
            "namespace": "coffer-system",
            "serviceaccount": { "name": "coffer-keyservice", "uid": "5f2b7ac4-1c1d-4c5c-9a52-3f0f3f6f7a10" },
        },
    });
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({ "alg": "ES256", "typ": "JWT" })), part(&claims));
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.serialize_der()).expect("a P-256 key");
    let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("it signs");
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

/// What an API server does with a TokenReview, for one token that is good.
fn reviewer(good: String) -> Router {
    Router::new().fallback(move |request: Request| {
        let good = good.clone();
        async move {
            let (head, body) = request.into_parts();
            let caller = head.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
            let is_reviewer = caller.and_then(|caller| caller.strip_prefix("Bearer ")) == Some(REVIEWER);
            if !is_reviewer || head.uri.path() != "/apis/authentication.k8s.io/v1/tokenreviews" {
                return (StatusCode::FORBIDDEN, Json(json!({ "kind": "Status", "status": "Failure", "code": 403 })));
            }
            let body = to_bytes(body, 1 << 20).await.unwrap_or_default();
            let mut review: Value = serde_json::from_slice(&body).unwrap_or_default();
            review["status"] = if review["spec"]["token"] == good {
                json!({
                    "authenticated": true,
                    "user": { "username": SUBJECT, "uid": "5f2b7ac4-1c1d-4c5c-9a52-3f0f3f6f7a10" },
                    "audiences": review["spec"]["audiences"].clone(),
                })
            } else {
                json!({ "authenticated": false, "error": "the token is not one of this cluster" })
            };
            (StatusCode::CREATED, Json(review))
        }
    })
}
