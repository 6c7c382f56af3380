//! Whose a token is: the API server says it (TokenReview, authentication.k8s.io/v1), and is believed for a while.
//!
//! A token's claims are looked at first, because what refuses itself need not be asked for; but nothing is let in on
//! what a token says. Who it is comes from the review alone. What the API server confirms is kept under the token's
//! SHA-256, for as long as is configured and never past the token's own end; what it refuses, or does not answer, is
//! asked again. So a token that was revoked works on for that time, and for the ten seconds for which the API server
//! itself remembers a good token.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::{Client, Resource, api::PostParams, core::Request};
use moka::{Expiry, future::Cache};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    exec::Deadline,
    keyservice::{
        audit::Pod,
        auth::Caller,
        bearer::{Claims, Kind, Said, Settings, Unproven},
    },
};

/// How long the API server may take.
const REVIEW_TIME: Duration = Duration::from_secs(10);
/// Reviews at once: callers of whom nothing is known yet get a bounded part of the API server.
const REVIEWS: usize = 32;
/// Tokens that are remembered: each node has one, or two while it changes.
const TOKENS: u64 = 10_000;

/// What a review says of a token beside the user's name (Kubernetes, Managing Service Accounts).
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Whose tokens are.
pub struct Accounts {
    client: Client,
    settings: Settings,
    known: Cache<[u8; 32], Known>,
    room: Semaphore,
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accounts").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// A token that the API server has confirmed.
#[derive(Clone)]
struct Known {
    caller: Caller,
    lifetime: Duration,
}

/// Lets each token go at its own time.
struct Lifetime;

impl Expiry<[u8; 32], Known> for Lifetime {
    fn expire_after_create(&self, _: &[u8; 32], known: &Known, _: Instant) -> Option<Duration> {
        Some(known.lifetime)
    }

    /// An entry whose time is over may still lie there when the token is confirmed again.
    fn expire_after_update(&self, _: &[u8; 32], known: &Known, _: Instant, _: Option<Duration>) -> Option<Duration> {
        Some(known.lifetime)
    }
}

impl Accounts {
    /// Those that the API server of a client knows, and the settings let in.
    #[must_use]
    pub fn new(client: Client, settings: Settings) -> Self {
        let known = Cache::builder().max_capacity(TOKENS).expire_after(Lifetime).build();
        Self { client, settings, known, room: Semaphore::new(REVIEWS) }
    }

    /// Who a token's bearer is, if the API server has confirmed it and is still believed: it is not asked.
    pub async fn known(&self, token: &str) -> Option<Caller> {
        Claims::read(token).ok()?.expect(&self.settings, now()).ok()?;
        self.known.get(&id(token)).await.map(|known| known.caller)
    }

    /// Who a token's bearer is. The API server is asked once for a token, however many come with it at the same time.
    ///
    /// # Errors
    /// He is nobody whom we let in, or the API server cannot be asked.
    pub async fn caller(&self, token: &str, deadline: Deadline) -> Result<Caller, Unproven> {
        let claims = Claims::read(token)?;
        claims.expect(&self.settings, now())?;
        let known = self.known.try_get_with(id(token), self.review(token, claims.exp));
        match timeout(deadline.left(), known).await {
            Ok(Ok(known)) => Ok(known.caller),
            Ok(Err(unproven)) => Err(Arc::unwrap_or_clone(unproven)),
            Err(late) => Err(away(late)),
        }
    }

    async fn review(&self, token: &str, end: i64) -> Result<Known, Unproven> {
        let asked = async {
            let _place = self.room.acquire().await;
            self.ask(token).await
        };
        let status = timeout(REVIEW_TIME, asked).await.map_err(away)??;
        let caller = confirmed(status, &self.settings)?;
        let left = Duration::from_secs(u64::try_from(end - now()).unwrap_or(0));
        Ok(Known { caller, lifetime: left.min(self.settings.review_expiry) })
    }

    async fn ask(&self, token: &str) -> Result<TokenReviewStatus, Unproven> {
        let audiences = Some(vec![self.settings.audience.clone()]);
        let spec = TokenReviewSpec { audiences, token: Some(token.to_owned()) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let body = serde_json::to_vec(&review).map_err(away)?;
        let request = Request::new(TokenReview::url_path(&(), None)).create(&PostParams::default(), body);
        // The answer holds the token again, and the client would log what it cannot read: so it does not read this.
        let text = self.client.request_text(request.map_err(away)?).await.map_err(away)?;
        let Answer { status } = serde_json::from_str(&text).map_err(away)?;
        Ok(status.unwrap_or_default())
    }
}

/// The part of a review that is the API server's.
#[derive(Deserialize)]
struct Answer {
    status: Option<TokenReviewStatus>,
}

fn away(error: impl Error + Send + Sync + 'static) -> Unproven {
    Unproven::Away(Arc::new(error))
}

/// What a token is remembered by.
fn id(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

/// Who it is, by what the API server says and by nothing else.
fn confirmed(status: TokenReviewStatus, settings: &Settings) -> Result<Caller, Unproven> {
    if status.authenticated != Some(true) {
        return Err(Unproven::Refused(Said::of(status.error)));
    }
    // Without it the token was checked for the API server's own audience (TokenReviewStatus, audiences).
    if !status.audiences.unwrap_or_default().contains(&settings.audience) {
        return Err(Unproven::Audience(settings.audience.clone()));
    }
    let UserInfo { username, extra, .. } = status.user.unwrap_or_default();
    let kind = settings.kind_of_user(&username.unwrap_or_default())?;
    let extra = extra.unwrap_or_default();
    let (Some(name), Some(uid)) = (one(&extra, POD_NAME), one(&extra, POD_UID)) else { return Err(Unproven::NoPod) };
    let pod = Pod { name, uid };
    match kind {
        Kind::Node => Ok(Caller::NodePod { node: one(&extra, NODE_NAME).ok_or(Unproven::NoNode)?, pod }),
        Kind::Controller => Ok(Caller::ControllerPod(pod)),
    }
}

/// The only value of a key.
fn one(extra: &BTreeMap<String, Vec<String>>, key: &str) -> Option<String> {
    match extra.get(key)?.as_slice() {
        [value] if !value.is_empty() => Some(value.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use serde_json::{Value, json};

    use super::*;

    fn settings() -> Settings {
        Settings {
            audience: "coffer".to_owned(),
            node_accounts: vec!["coffer-system/coffer-node".parse().expect("an account")],
            controller_accounts: vec!["coffer-system/coffer-controller".parse().expect("an account")],
            drivers: vec!["coffer.csi".to_owned()],
            review_expiry: Duration::from_secs(10),
            watch_expiry: Duration::from_secs(180),
            requests_per_second: NonZeroU32::MIN,
        }
    }

    fn outcome(change: impl Fn(&mut Value)) -> Result<Caller, Unproven> {
        let mut status = json!({
            "authenticated": true,
            "audiences": ["coffer"],
            "user": {
                "username": "system:serviceaccount:coffer-system:coffer-node",
                "groups": ["system:serviceaccounts"],
                "extra": { POD_NAME: ["coffer-node-x"], POD_UID: ["2"], NODE_NAME: ["n1"] },
            },
        });
        change(&mut status);
        confirmed(serde_json::from_value(status).expect("a status"), &settings())
    }

    #[test]
    fn a_confirmed_token_is_its_node_or_its_controller() {
        let pod = Pod { name: "coffer-node-x".to_owned(), uid: "2".to_owned() };
        let node = Caller::NodePod { node: "n1".to_owned(), pod: pod.clone() };
        assert_eq!(outcome(|_| {}).expect("a node"), node);
        let controller = outcome(|status| {
            status["user"]["username"] = json!("system:serviceaccount:coffer-system:coffer-controller");
            status["user"]["extra"][NODE_NAME] = json!([]);
        });
        assert_eq!(controller.expect("a controller"), Caller::ControllerPod(pod));
    }

    #[test]
    fn what_the_api_server_does_not_say_is_not_so() {
        let refused = |change: fn(&mut Value)| outcome(change).expect_err("it is refused");
        assert!(matches!(refused(|status| status["authenticated"] = json!(false)), Unproven::Refused(_)));
        assert!(matches!(refused(|status| status["authenticated"] = Value::Null), Unproven::Refused(_)));
        assert!(matches!(refused(|status| status["audiences"] = Value::Null), Unproven::Audience(_)));
        assert!(matches!(refused(|status| status["audiences"] = json!(["vault"])), Unproven::Audience(_)));
        assert!(matches!(refused(|status| status["user"] = Value::Null), Unproven::Account(_)));
        assert!(matches!(refused(|status| status["user"]["username"] = json!("admin")), Unproven::Account(_)));
        for key in [POD_NAME, POD_UID] {
            let without = outcome(|status| status["user"]["extra"][key] = json!([]));
            assert!(matches!(without, Err(Unproven::NoPod)), "{key}");
        }
        for nodes in [json!([]), json!([""]), json!(["n1", "n2"])] {
            let other = outcome(|status| status["user"]["extra"][NODE_NAME] = nodes.clone());
            assert!(matches!(other, Err(Unproven::NoNode)), "{nodes}");
        }
    }
}
