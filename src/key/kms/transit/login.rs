//! Tokens of OpenBao and Vault: from a file, or by a login; renewed at half their lease, in the background, and
//! replaced before they end or when they are taken no more.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

use crate::key::{
    access::SettingsFault,
    kms::{
        KmsFailure,
        http::{self, Answer, SecretText},
        settings::TransitAuth,
        transit::api::{self, Api, Token},
    },
    reread::{self, Reread},
};

/// How often is looked whether a token is to be renewed.
const LOOK: Duration = Duration::from_secs(1);
/// When a token out of a file is renewed first, which tells its lease. Not at once: many a program ends before.
const FIRST: Duration = Duration::from_secs(30);
/// How long one renewal may take.
const RENEWAL: Duration = Duration::from_secs(10);
/// How long after a renewal that failed there is another.
const AGAIN: Duration = Duration::from_secs(30);
/// No lease is taken to be longer.
const LONGEST_LEASE: Duration = Duration::from_secs(365 * 24 * 3600);
/// A token that ends sooner is not used.
const TOO_SHORT: Duration = Duration::from_millis(500);
/// A token that is not older is as good as one of a new login.
const NEW: Duration = Duration::from_secs(30);

/// Where tokens come from, and the one that is in use.
pub(super) struct Login {
    api: Arc<Api>,
    source: Source,
    session: Mutex<Option<Session>>,
    /// Held across a login or a renewal: others wait for it, and find its token.
    turn: tokio::sync::Mutex<()>,
}

enum Source {
    File(Reread<Token>),
    Method { mount: String, credentials: Credentials },
}

enum Credentials {
    AppRole {
        role_id: String,
        secret_id_file: PathBuf,
    },
    /// Also for Kubernetes, whose login takes the same.
    Jwt {
        role: String,
        token_file: PathBuf,
    },
}

/// A token with its lease.
struct Session {
    token: Arc<Token>,
    since: Instant,
    /// Its lease when it was new.
    full: Duration,
    ends: Option<Instant>,
    /// When it is to be renewed or replaced; none where it need not be, or cannot.
    due: Option<Instant>,
    renewable: bool,
}

impl Session {
    fn new(token: Arc<Token>, lease: Duration, renewable: bool) -> Self {
        let full = lease.min(LONGEST_LEASE);
        let mut session = Self { token, since: Instant::now(), full, ends: None, due: None, renewable };
        session.leased(lease, renewable);
        session
    }

    /// A token out of a file, of which nothing is known yet: the first renewal tells its lease.
    fn unknown(token: Arc<Token>) -> Self {
        Self { due: Some(Instant::now() + FIRST), ..Self::new(token, Duration::ZERO, true) }
    }

    /// A lease of zero never ends.
    fn leased(&mut self, lease: Duration, renewable: bool) {
        let (now, lease) = (Instant::now(), lease.min(LONGEST_LEASE));
        // A lease that is much shorter than the first has come near its longest time: the next step is a login.
        self.renewable = renewable && lease >= self.full / 3 * 2;
        self.ends = (!lease.is_zero()).then(|| now + lease);
        self.due = (!lease.is_zero()).then(|| now + lease / 2);
    }

    fn is_usable(&self) -> bool {
        self.ends.is_none_or(|ends| ends > Instant::now() + TOO_SHORT)
    }
}

impl Login {
    /// The files are read once, so that one that is missing is told at the start.
    pub(super) fn new(api: Arc<Api>, auth: TransitAuth) -> Result<Self, SettingsFault> {
        let method = |mount: String, credentials| Source::Method { mount, credentials };
        let source = match auth {
            TransitAuth::Token { token_file } => {
                let files = vec![token_file.clone()];
                Source::File(Reread::new(files, move || {
                    let token = Token::new(reread::secret_text(&token_file)?);
                    token.ok_or_else(|| SettingsFault(format!("{}: it holds no token", token_file.display())))
                })?)
            }
            TransitAuth::AppRole { mount, role_id, secret_id_file } => {
                reread::secret_text(&secret_id_file)?;
                method(mount, Credentials::AppRole { role_id, secret_id_file })
            }
            TransitAuth::Jwt { mount, role, token_file } | TransitAuth::Kubernetes { mount, role, token_file } => {
                reread::secret_text(&token_file)?;
                method(mount, Credentials::Jwt { role, token_file })
            }
        };
        Ok(Self { api, source, session: Mutex::default(), turn: tokio::sync::Mutex::default() })
    }

    /// The token to ask with: the one in use, or one of a login.
    pub(super) async fn token(&self) -> Result<Arc<Token>, KmsFailure> {
        if let Some(token) = self.current() {
            return Ok(token);
        }
        let _turn = self.turn.lock().await;
        match self.current() {
            Some(token) => Ok(token),
            None => self.log_in().await,
        }
    }

    /// A token that may be taken where this one was refused: one that another caller has got since, or one of a new
    /// login, which has whatever the role has now. None where there is no hope of that.
    pub(super) async fn better(&self, refused: &Arc<Token>) -> Result<Option<Arc<Token>>, KmsFailure> {
        let _turn = self.turn.lock().await;
        if let Some(current) = self.current() {
            if !Arc::ptr_eq(&current, refused) {
                return Ok(Some(current));
            }
            let is_best = match self.source {
                Source::File(_) => true,
                Source::Method { .. } => self.is_new(refused) && self.looks_up(refused).await?,
            };
            if is_best {
                return Ok(None);
            }
        }
        self.log_in().await.map(Some)
    }

    /// Whether the server takes a token at all.
    pub(super) async fn is_taken(&self, token: &Arc<Token>) -> Result<bool, KmsFailure> {
        // A token of a login a moment ago is taken; it may lack the permission to look itself up.
        let logged_in = matches!(self.source, Source::Method { .. }) && self.is_new(token);
        Ok(logged_in || self.looks_up(token).await?)
    }

    /// The failure where the server takes no token of this source.
    pub(super) fn refused(&self, said: &str) -> KmsFailure {
        let hint = match &self.source {
            Source::File(_) => {
                "the token in tokenFile has ended, is of another server, or may not look itself up".to_owned()
            }
            Source::Method { mount, credentials: Credentials::AppRole { .. } } => {
                format!("look at roleId, at the secret id in secretIdFile, and whether approle is mounted at {mount}")
            }
            Source::Method { mount, credentials: Credentials::Jwt { .. } } => {
                format!("look at role, at the token in tokenFile, and whether the login method is mounted at {mount}")
            }
        };
        KmsFailure::unauthenticated(&self.api.endpoint, hint, said.to_owned())
    }

    /// Renews and replaces tokens when they are due, for ever. A failure is a warning: the token is good until it ends.
    pub(super) async fn renew(self: Arc<Self>) {
        loop {
            sleep(LOOK).await;
            let Some((token, renewable)) = self.due() else { continue };
            let Ok(_turn) = self.turn.try_lock() else { continue };
            let step = async {
                match &self.source {
                    Source::Method { .. } if !renewable => self.log_in().await.map(|_| ()),
                    _ => self.renew_once(&token).await,
                }
            };
            let failed = match timeout(RENEWAL, step).await {
                Ok(Ok(())) => continue,
                Ok(Err(failure)) => http::causes(&failure),
                Err(_) => format!("no answer within {RENEWAL:?}"),
            };
            tracing::warn!(endpoint = self.api.endpoint, error = failed, "the token could not be renewed");
            if let Some(session) = self.session().as_mut() {
                session.due = Some(Instant::now() + AGAIN);
                // What cannot be renewed may be replaced.
                session.renewable = matches!(self.source, Source::File(_));
            }
        }
    }

    fn due(&self) -> Option<(Arc<Token>, bool)> {
        if matches!(self.source, Source::File(_)) {
            // A token out of a file is kept alive before anybody has used it.
            self.current();
        }
        let session = self.session();
        let session = session.as_ref().filter(|session| session.due.is_some_and(|due| due <= Instant::now()))?;
        Some((session.token.clone(), session.renewable))
    }

    async fn renew_once(&self, token: &Arc<Token>) -> Result<(), KmsFailure> {
        let path = ["auth", "token", "renew-self"];
        let request = self.api.request(Method::POST, &path, Some(token)).json(&serde_json::json!({}));
        let answer = self.api.ask(request).await?;
        let lease = if answer.status.is_success() {
            let Auth { lease_duration, renewable, .. } = answer.json::<Authenticated>(&self.api.endpoint)?.auth;
            tracing::debug!(endpoint = self.api.endpoint, seconds = lease_duration, "the token is renewed");
            Some((Duration::from_secs(lease_duration), renewable))
        } else if matches!(answer.status, StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN) {
            // A login replaces it; a token out of a file is somebody else's to replace.
            tracing::info!(endpoint = self.api.endpoint, said = said(&answer), "the token is not renewable");
            None
        } else {
            return Err(self.refused(&said(&answer)));
        };
        if let Some(session) = self.session().as_mut().filter(|session| Arc::ptr_eq(&session.token, token)) {
            match lease {
                Some((lease, renewable)) => session.leased(lease, renewable),
                None if matches!(self.source, Source::File(_)) => session.due = None,
                None => session.renewable = false,
            }
        }
        Ok(())
    }

    /// The token in use, where it has time left. A file that has changed is read again.
    fn current(&self) -> Option<Arc<Token>> {
        let mut session = self.session();
        match &self.source {
            Source::File(file) => {
                let token = file.current();
                if session.as_ref().is_none_or(|session| !Arc::ptr_eq(&session.token, &token)) {
                    *session = Some(Session::unknown(token.clone()));
                }
                Some(token)
            }
            Source::Method { .. } => {
                session.as_ref().filter(|session| session.is_usable()).map(|session| session.token.clone())
            }
        }
    }

    /// Whether a token is the one in use, and was got a moment ago.
    fn is_new(&self, token: &Arc<Token>) -> bool {
        self.session()
            .as_ref()
            .is_some_and(|session| Arc::ptr_eq(&session.token, token) && session.since.elapsed() < NEW)
    }

    async fn looks_up(&self, token: &Token) -> Result<bool, KmsFailure> {
        let request = self.api.request(Method::GET, &["auth", "token", "lookup-self"], Some(token));
        self.api.ask(request).await.map(|answer| answer.status.is_success())
    }

    async fn log_in(&self) -> Result<Arc<Token>, KmsFailure> {
        let (mount, credentials) = match &self.source {
            Source::File(file) => return Ok(file.current()),
            Source::Method { mount, credentials } => (mount, credentials),
        };
        let read = |path: &PathBuf| {
            reread::secret_text(path).map_err(|fault| {
                KmsFailure::unauthenticated(&self.api.endpoint, "there is nothing to log in with", fault)
            })
        };
        let request = self.api.request(Method::POST, &["auth", mount.as_str(), "login"], None);
        let request = match credentials {
            Credentials::AppRole { role_id, secret_id_file } => {
                request.json(&AppRoleLogin { role_id, secret_id: &read(secret_id_file)? })
            }
            Credentials::Jwt { role, token_file } => request.json(&JwtLogin { role, jwt: &read(token_file)? }),
        };
        let answer = self.api.ask(request).await?;
        if !answer.status.is_success() {
            return Err(self.refused(&said(&answer)));
        }
        let Auth { client_token, lease_duration, renewable } = answer.json::<Authenticated>(&self.api.endpoint)?.auth;
        let token = client_token.map(SecretText::into_inner).and_then(Token::new).map(Arc::new);
        let token = token.ok_or_else(|| KmsFailure::garbled(&self.api.endpoint, "a login without a token"))?;
        tracing::debug!(endpoint = self.api.endpoint, mount, seconds = lease_duration, "logged in");
        *self.session() = Some(Session::new(token.clone(), Duration::from_secs(lease_duration), renewable));
        Ok(token)
    }

    fn session(&self) -> MutexGuard<'_, Option<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn said(answer: &Answer) -> String {
    let said = api::said(answer);
    if said.is_empty() { format!("status {}", answer.status.as_u16()) } else { said }
}

#[derive(Serialize)]
struct AppRoleLogin<'a> {
    role_id: &'a str,
    secret_id: &'a str,
}

#[derive(Serialize)]
struct JwtLogin<'a> {
    role: &'a str,
    jwt: &'a str,
}

#[derive(Deserialize)]
struct Authenticated {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    client_token: Option<SecretText>,
    /// Seconds.
    lease_duration: u64,
    renewable: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(lease: u64) -> Session {
        let token = Token::new("s.token".to_owned().into()).expect("a token");
        Session::new(Arc::new(token), Duration::from_secs(lease), true)
    }

    fn is_due(session: &Session) -> bool {
        session.due.is_some_and(|due| due <= Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_due_at_half_its_lease_and_not_used_at_its_end() {
        let session = session(60);
        tokio::time::advance(Duration::from_secs(29)).await;
        assert!(!is_due(&session) && session.is_usable());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(is_due(&session) && session.is_usable());
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(!session.is_usable());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_comes_near_its_longest_time_is_replaced_and_not_renewed() {
        let mut session = session(60);
        session.leased(Duration::from_secs(60), true);
        assert!(session.renewable);
        session.leased(Duration::from_secs(17), true);
        assert!(!session.renewable);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_without_a_lease_never_ends() {
        let session = session(0);
        tokio::time::advance(Duration::from_secs(1_000_000)).await;
        assert!(session.is_usable() && !is_due(&session));
    }

    #[test]
    fn what_cannot_stand_in_a_header_is_no_token() {
        for text in ["", "two words", "line\nline", "ümlaut"] {
            assert!(Token::new(text.to_owned().into()).is_none(), "{text}");
        }
    }
}
