//! The bearer of a token: what the token says of itself, which accounts are let in, and why he is not believed.
//!
//! A projected ServiceAccount token is a JWT (RFC 7519) whose claims name its audience, its end, its account, and the pod
//! and the node that it was made for. What a token says proves nothing: only the API server can tell whether it is
//! true. But a token that does not even say the right thing is refused without asking anybody, so that a stranger's
//! requests cost the API server nothing, and with the reason, which the API server keeps to itself.

use std::{error::Error, fmt, num::NonZeroU32, str::FromStr, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;

/// Longer ones are no ServiceAccount's.
const TOKEN_BYTES: usize = 16 * 1024;
/// The user name of a ServiceAccount is this, its namespace, `:` and its name (Kubernetes, Service Accounts).
const USER_PREFIX: &str = "system:serviceaccount:";

/// How callers of a Kubernetes cluster are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The audience that tokens must be made for.
    pub audience: String,
    /// The accounts of nodes; at least one.
    pub node_accounts: Vec<Account>,
    /// The accounts of controllers; none of them is a node's.
    pub controller_accounts: Vec<Account>,
    /// The CSI drivers whose volumes have keys here; at least one.
    pub drivers: Vec<String>,
    /// How long a token is believed that the API server has confirmed.
    pub review_expiry: Duration,
    /// How long what a watch knew of who holds a volume counts at most, where the API server has fallen silent.
    pub watch_expiry: Duration,
    /// How often each node may ask; twice that at once.
    pub requests_per_second: NonZeroU32,
}

impl Settings {
    /// How long a watch lasts: a third of the time for which a silent one counts. Then it is begun again where it was.
    #[must_use]
    pub fn watch_time(&self) -> Duration {
        self.watch_expiry / 3
    }

    /// How long a connection to the API server may be silent while something is asked on it: half of that time, so that
    /// a watch and the silence after it are over before it is.
    #[must_use]
    pub fn silence_time(&self) -> Duration {
        self.watch_expiry / 2
    }
}

/// A ServiceAccount: `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    namespace: String,
    name: String,
}

/// What is no account.
#[derive(Debug, thiserror::Error)]
#[error("it is not NAMESPACE/NAME, each of a-z, 0-9 and -")]
pub struct NoAccount;

impl Account {
    /// The account of a user name, where it is one's.
    #[must_use]
    pub fn of_user(name: &str) -> Option<Self> {
        let (namespace, name) = name.strip_prefix(USER_PREFIX)?.split_once(':')?;
        Self::of(namespace, name)
    }

    fn of(namespace: &str, name: &str) -> Option<Self> {
        let is_good = is_label(namespace) && is_object_name(name);
        is_good.then(|| Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl FromStr for Account {
    type Err = NoAccount;

    fn from_str(text: &str) -> Result<Self, NoAccount> {
        text.split_once('/').and_then(|(namespace, name)| Self::of(namespace, name)).ok_or(NoAccount)
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Whether a text is a DNS label (RFC 1123), as namespaces are.
fn is_label(text: &str) -> bool {
    text.len() <= 63 && !text.contains('.') && is_object_name(text)
}

/// Whether a text is a DNS subdomain (RFC 1123), as the names of most objects are: only such a name may become a part
/// of a request's path.
#[must_use]
pub fn is_object_name(text: &str) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_part = |part: &str| {
        let ends = [part.as_bytes().first(), part.as_bytes().last()];
        ends.iter().all(|end| end.is_some_and(is_plain)) && part.bytes().all(|byte| is_plain(&byte) || byte == b'-')
    };
    text.len() <= 253 && text.split('.').all(is_part)
}

/// Who a token may be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A node.
    Node,
    /// A controller.
    Controller,
}

impl Settings {
    /// What an account may be, where it may be anything.
    #[must_use]
    pub fn kind(&self, account: &Account) -> Option<Kind> {
        if self.node_accounts.contains(account) {
            Some(Kind::Node)
        } else {
            self.controller_accounts.contains(account).then_some(Kind::Controller)
        }
    }

    /// What a user may be.
    ///
    /// # Errors
    /// Nothing.
    pub fn kind_of_user(&self, user: &str) -> Result<Kind, Unproven> {
        // A stranger may have chosen this text.
        let told = || Unproven::Account(user.chars().filter(|c| !c.is_control()).take(300).collect());
        Account::of_user(user).and_then(|account| self.kind(&account)).ok_or_else(told)
    }
}

/// Why a caller is not believed to be anybody.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unproven {
    /// No token, and no certificate either.
    #[error("the request has no bearer token")]
    Missing,
    /// It is no ServiceAccount's token.
    #[error("the token is no token of a ServiceAccount")]
    Malformed,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// It was made for somebody else.
    #[error("the token is not for audience {0}")]
    Audience(String),
    /// Its account is none of those that are let in.
    #[error("the token is of account {0}, which is let in nowhere here")]
    Account(String),
    /// It is bound to no pod.
    #[error("the token names no pod: it is not a projected one")]
    NoPod,
    /// It names no node.
    #[error("the token names no node")]
    NoNode,
    /// The API server does not confirm it: it is forged, expired, or its pod or its account are gone.
    #[error("the API server does not confirm the token")]
    Refused(#[source] Said),
    /// The API server cannot be asked.
    #[error("the API server cannot be asked for a review of the token")]
    Away(#[source] Arc<dyn Error + Send + Sync>),
}

/// What the API server said. It is for our own log and for nobody else.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Said(String);

impl Said {
    /// Its words; of long ones the beginning.
    #[must_use]
    pub fn of(words: Option<String>) -> Self {
        Self(words.unwrap_or_default().chars().take(300).collect())
    }
}

/// What a token says of itself. Nothing of it is proven.
#[derive(Debug, Deserialize)]
pub struct Claims {
    /// When it ends, in seconds since 1970 (RFC 7519, 4.1.4).
    pub exp: i64,
    aud: Audiences,
    sub: String,
    #[serde(rename = "kubernetes.io")]
    bound: Option<Bound>,
}

/// One or several (RFC 7519, 4.1.3).
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct Bound {
    pod: Option<Object>,
    node: Option<Object>,
}

#[derive(Debug, Deserialize)]
struct Object {
    name: String,
}

impl Claims {
    /// Reads a token.
    ///
    /// # Errors
    /// It is no JWT with the claims of a ServiceAccount's.
    pub fn read(token: &str) -> Result<Self, Unproven> {
        let mut parts = token.split('.');
        let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(Unproven::Malformed);
        };
        if token.len() > TOKEN_BYTES {
            return Err(Unproven::Malformed);
        }
        let json = BASE64_URL_SAFE_NO_PAD.decode(payload).map_err(|_| Unproven::Malformed)?;
        serde_json::from_slice(&json).map_err(|_| Unproven::Malformed)
    }

    /// Refuses a token that does not even say the right thing, at a time in seconds since 1970.
    ///
    /// # Errors
    /// What it says is wrong.
    pub fn expect(&self, settings: &Settings, now: i64) -> Result<(), Unproven> {
        let audience = &settings.audience;
        let is_ours = match &self.aud {
            Audiences::One(one) => one == audience,
            Audiences::Several(several) => several.contains(audience),
        };
        if !is_ours {
            return Err(Unproven::Audience(audience.clone()));
        }
        if self.exp <= now {
            return Err(Unproven::Expired);
        }
        let kind = settings.kind_of_user(&self.sub)?;
        let is_named = |object: &Option<Object>| object.as_ref().is_some_and(|object| !object.name.is_empty());
        let bound = self.bound.as_ref().ok_or(Unproven::NoPod)?;
        if !is_named(&bound.pod) {
            return Err(Unproven::NoPod);
        }
        match kind {
            Kind::Node if !is_named(&bound.node) => Err(Unproven::NoNode),
            Kind::Node | Kind::Controller => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: i64 = 1_700_000_000;

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

    fn claims() -> Value {
        json!({
            "aud": ["coffer"], "exp": NOW + 600, "iss": "https://kubernetes.default.svc",
            "sub": "system:serviceaccount:coffer-system:coffer-node",
            "kubernetes.io": {
                "namespace": "coffer-system",
                "node": { "name": "n1", "uid": "1" },
                "pod": { "name": "coffer-node-x", "uid": "2" },
                "serviceaccount": { "name": "coffer-node", "uid": "3" },
            },
        })
    }

    fn token(claims: &Value) -> String {
        format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    fn outcome(change: impl Fn(&mut Value)) -> Result<(), Unproven> {
        let mut claims = claims();
        change(&mut claims);
        Claims::read(&token(&claims))?.expect(&settings(), NOW)
    }

    #[test]
    fn a_token_that_says_the_right_thing_is_worth_a_question() {
        outcome(|_| {}).expect("right");
        outcome(|claims| claims["aud"] = json!("coffer")).expect("one audience");
        outcome(|claims| {
            claims["sub"] = json!("system:serviceaccount:coffer-system:coffer-controller");
            claims["kubernetes.io"]["node"] = Value::Null;
        })
        .expect("a controller needs no node");
    }

    #[test]
    fn each_thing_that_a_token_says_wrong_has_its_own_reason() {
        let reason = |change: fn(&mut Value)| outcome(change).expect_err("it is refused").to_string();
        assert_eq!(reason(|claims| claims["exp"] = json!(NOW)), "the token has expired");
        assert_eq!(reason(|claims| claims["aud"] = json!(["vault"])), "the token is not for audience coffer");
        let other = "the token is of account system:serviceaccount:default:coffer-node, which is let in nowhere here";
        assert_eq!(reason(|claims| claims["sub"] = json!("system:serviceaccount:default:coffer-node")), other);
        assert_eq!(reason(|claims| claims["kubernetes.io"]["node"] = Value::Null), "the token names no node");
        assert_eq!(reason(|claims| claims["kubernetes.io"]["node"]["name"] = json!("")), "the token names no node");
        let no_pod = "the token names no pod: it is not a projected one";
        assert_eq!(reason(|claims| claims["kubernetes.io"]["pod"] = Value::Null), no_pod);
        assert_eq!(reason(|claims| claims["kubernetes.io"] = Value::Null), no_pod);
    }

    #[test]
    fn what_is_no_token_is_refused_as_such() {
        let no_claims = token(&json!({ "exp": NOW + 600 }));
        let long = format!("{}{}", token(&claims()), "a".repeat(TOKEN_BYTES));
        for text in ["", "abc", "a.b.c", "..", "a.b.c.d", no_claims.as_str(), long.as_str()] {
            assert!(matches!(Claims::read(text), Err(Unproven::Malformed)), "{text}");
        }
    }

    #[test]
    fn an_account_is_a_namespace_and_a_name() {
        let account: Account = "coffer-system/coffer-node".parse().expect("an account");
        assert_eq!(Account::of_user("system:serviceaccount:coffer-system:coffer-node"), Some(account));
        for text in ["", "a", "a/", "/b", "A/b", "a/b/c", "a/b:c", "a.b/c", "-a/b", "a/..", "a/b-"] {
            assert!(text.parse::<Account>().is_err(), "{text}");
        }
        assert_eq!(Account::of_user("system:node:n1"), None);
        assert_eq!(Account::of_user("system:serviceaccount:a:b:c"), None);
    }
}
