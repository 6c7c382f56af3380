//! Our imitation of STS, by TLS. It knows one role and one token of an identity provider, refuses what STS refuses, and
//! gives keys that end when a test wants them to. Whoever signed a request is in its forecast; what was asked, it
//! remembers.
//!
//! ```text
//! POST /   Action=AssumeRole&RoleArn=…&RoleSessionName=…&ExternalId=…                          (signed)
//! POST /   Action=AssumeRoleWithWebIdentity&RoleArn=…&RoleSessionName=…&WebIdentityToken=…     (not signed)
//!   200 AssumeRoleResponse, AssumeRoleWithWebIdentityResponse
//!   403 AccessDenied (role, external id), 400 InvalidIdentityToken (token)
//! ```

use std::{
    collections::BTreeMap,
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use anyhow::Result;
use axum::{
    Router,
    body::Bytes,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use url::form_urlencoded;

use crate::cloud::weather::{self, Authority, Forecast, Served};

const ROLE: &str = "arn:aws:iam::123456789012:role/coffer";
const EXTERNAL_ID: &str = "what-the-owner-asks-for";

/// An STS that listens by itself.
pub struct Sts {
    folder: PathBuf,
    forecast: Forecast,
    given: Arc<Mutex<Given>>,
    address: SocketAddr,
    served: Mutex<Option<Served>>,
    ca_file: PathBuf,
}

impl fmt::Debug for Sts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sts").field("address", &self.address).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Given {
    lifetime: Duration,
    tokens: usize,
    keys: Vec<String>,
    asked: Vec<BTreeMap<String, String>>,
}

impl Sts {
    /// The role that it knows.
    pub const ROLE: &str = ROLE;
    /// What the role's owner asks for.
    pub const EXTERNAL_ID: &str = EXTERNAL_ID;

    /// Starts one. Its keys last for an hour.
    ///
    /// # Errors
    /// No port can be had, or the folder cannot be written to.
    pub async fn start(folder: &Path) -> Result<Self> {
        let (forecast, folder) = (Forecast::new(), folder.join("sts"));
        let given = Given { lifetime: Duration::from_secs(3600), ..Given::default() };
        let given = Arc::new(Mutex::new(given));
        let authority = authority(&folder.join("first"))?;
        let served = weather::serve(router(&given, &forecast), Some(authority.server(&["127.0.0.1"])?)).await?;
        let address = served.address();
        Ok(Self { folder, forecast, given, address, served: Mutex::new(Some(served)), ca_file: authority.ca_file() })
    }

    /// Where it listens, as a configuration names it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The authority of the certificate that it began with.
    #[must_use]
    pub fn ca_file(&self) -> &Path {
        &self.ca_file
    }

    /// What happens to the next requests, and who signed those that there were.
    #[must_use]
    pub fn forecast(&self) -> &Forecast {
        &self.forecast
    }

    /// The identity provider's token that is taken now.
    #[must_use]
    pub fn token(&self) -> String {
        token(self.given().tokens)
    }

    /// Takes another token from now on, and the one before no more.
    pub fn renew_token(&self) {
        self.given().tokens += 1;
    }

    /// How long keys last that are given from now on. What ends within ten seconds, the SDK asks for at each call.
    pub fn set_lifetime(&self, lifetime: Duration) {
        self.given().lifetime = lifetime;
    }

    /// The ids of the keys that were given.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.given().keys.clone()
    }

    /// What was asked, field by field.
    #[must_use]
    pub fn asked(&self) -> Vec<BTreeMap<String, String>> {
        self.given().asked.clone()
    }

    /// Goes on at the same address with a certificate of another authority, whose file is the answer.
    ///
    /// # Errors
    /// The folder cannot be written to, or the address is not given back.
    pub async fn move_to_another_authority(&self) -> Result<PathBuf> {
        let authority = authority(&self.folder.join("second"))?;
        self.set_served(None);
        let (router, tls) = (router(&self.given, &self.forecast), authority.server(&["127.0.0.1"])?);
        self.set_served(Some(weather::serve_at(router, Some(tls), self.address).await?));
        Ok(authority.ca_file())
    }

    fn set_served(&self, served: Option<Served>) {
        *self.served.lock().expect("nothing panics while it is held") = served;
    }

    fn given(&self) -> MutexGuard<'_, Given> {
        lock(&self.given)
    }
}

fn lock(given: &Mutex<Given>) -> MutexGuard<'_, Given> {
    given.lock().expect("nothing panics while it is held")
}

fn authority(folder: &Path) -> Result<Authority> {
    fs::create_dir_all(folder)?;
    Authority::new(folder)
}

fn token(number: usize) -> String {
    format!("token-{number}-of-an-identity-provider")
}

fn router(given: &Arc<Mutex<Given>>, forecast: &Forecast) -> Router {
    let given = given.clone();
    let router = Router::new().fallback(move |body: Bytes| {
        let given = given.clone();
        async move { lock(&given).answer(form_urlencoded::parse(&body).into_owned().collect()) }
    });
    weather::under(router, forecast.clone())
}

impl Given {
    fn answer(&mut self, asked: BTreeMap<String, String>) -> Response {
        let field = |name: &str| asked.get(name).cloned().unwrap_or_default();
        let (action, role) = (field("Action"), field("RoleArn"));
        let (external_id, shown) = (field("ExternalId"), field("WebIdentityToken"));
        self.asked.push(asked);
        let denied = format!("User is not authorized to perform: sts:{action} on resource: {role}");
        match action.as_str() {
            "AssumeRole" | "AssumeRoleWithWebIdentity" if role != ROLE => refusal(403, "AccessDenied", &denied),
            "AssumeRole" if external_id != EXTERNAL_ID => refusal(403, "AccessDenied", &denied),
            "AssumeRoleWithWebIdentity" if shown != token(self.tokens) => {
                refusal(400, "InvalidIdentityToken", "Couldn't retrieve verification key from your identity provider")
            }
            "AssumeRole" | "AssumeRoleWithWebIdentity" => self.give(&action),
            _ => refusal(400, "InvalidAction", "Could not find operation"),
        }
    }

    fn give(&mut self, action: &str) -> Response {
        let id = format!("ASIATESTBED{:09}", self.keys.len());
        let ends = prost_types::Timestamp::from(SystemTime::now() + self.lifetime);
        let keys = format!(
            "<Credentials><AccessKeyId>{id}</AccessKeyId><SecretAccessKey>secret-of-{id}</SecretAccessKey>\
             <SessionToken>token-of-{id}</SessionToken><Expiration>{ends}</Expiration></Credentials>"
        );
        self.keys.push(id);
        let space = "https://sts.amazonaws.com/doc/2011-06-15/";
        let result = format!("<{action}Result>{keys}</{action}Result>");
        let answer = format!("<{action}Response xmlns=\"{space}\">{result}</{action}Response>");
        ([(header::CONTENT_TYPE, "text/xml")], answer).into_response()
    }
}

fn refusal(status: u16, code: &str, message: &str) -> Response {
    let error = format!("<Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>");
    let status = StatusCode::from_u16(status).expect("it is a status");
    let answer = format!("<ErrorResponse>{error}<RequestId>testbed</RequestId></ErrorResponse>");
    (status, [(header::CONTENT_TYPE, "text/xml")], answer).into_response()
}
