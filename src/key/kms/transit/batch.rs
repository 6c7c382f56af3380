//! Keys that travel together. While several requests to decrypt with one key are under way, those that come wait for one
//! of them to come back, and then go along in one request (`batch_input`): where many nodes start at once, the server is
//! asked a few times in place of thousands.
//!
//! Nothing depends on it. Who is alone goes at once; who waited too long, and whose shared request brought no key back, goes
//! alone and is told what is wrong with his own. Only that the server is asked too often is told to all: to ask again, each by
//! himself, is what it does not want.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reqwest::Method;
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, sync::oneshot, time::timeout};

use crate::{
    exec::Deadline,
    key::kms::{
        KmsFailure,
        http::SecretText,
        transit::{
            api::{Api, Operation},
            login::Login,
        },
    },
    secret::InnerKey,
};

/// So many requests for one key are under way before those that come wait.
const UNDER_WAY: usize = 4;
/// The most ciphertexts in one request.
const MOST: usize = 100;
/// Who has waited so long for one to come back goes alone, so that requests that hang hold up no others.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How long one request may take, as one that goes alone by default.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// A ciphertext as the engine takes it, alone or in a list.
#[derive(Clone, Serialize)]
pub(super) struct Decrypt {
    ciphertext: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    associated_data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<String>,
}

impl Decrypt {
    /// What was encrypted bound to this, in base64.
    pub(super) fn new(ciphertext: &str, bound: Option<String>) -> Self {
        Self { ciphertext: ciphertext.to_owned(), associated_data: bound.clone(), context: bound }
    }

    /// Whether it may go with others. The engine wants a context in all of a list or in none, and decrypts one after the
    /// other: with RSA, which has none, that takes longer than requests of their own.
    fn is_sociable(&self) -> bool {
        self.context.is_some()
    }
}

/// The requests to decrypt with the keys of one engine.
pub(super) struct Batches {
    api: Arc<Api>,
    login: Arc<Login>,
    mount: String,
    /// By the key's name. One that is not there has nothing under way.
    lanes: Mutex<BTreeMap<String, Lane>>,
}

#[derive(Default)]
struct Lane {
    under_way: usize,
    waiting: Vec<Waiting>,
}

struct Waiting {
    body: Decrypt,
    /// Gets the place from which the answer will come, when it is under way.
    seat: oneshot::Sender<oneshot::Receiver<Brought>>,
}

type Brought = Result<InnerKey, KmsFailure>;

/// What becomes of one who comes.
pub(super) enum Turn {
    /// It went along, and this came back.
    Along(Brought),
    /// It goes by itself. While it does it keeps this, if there was room.
    Alone(Option<Place>),
}

/// A request under way. When it ends, those that wait go.
pub(super) struct Place {
    batches: Arc<Batches>,
    key: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let runtime = Handle::try_current().ok();
        let mut lanes = self.batches.lanes();
        let Some(lane) = lanes.get_mut(&self.key) else { return };
        let going: Vec<_> = lane.waiting.drain(..lane.waiting.len().min(MOST)).collect();
        let next = runtime.filter(|_| !going.is_empty());
        if next.is_none() {
            lane.under_way -= 1;
            if lane.under_way == 0 {
                lanes.remove(&self.key);
            }
        }
        drop(lanes);
        if let Some(runtime) = next {
            let place = Self { batches: self.batches.clone(), key: self.key.clone() };
            runtime.spawn(self.batches.clone().go(place, going));
        }
    }
}

impl Batches {
    pub(super) fn new(api: Arc<Api>, login: Arc<Login>, mount: String) -> Arc<Self> {
        Arc::new(Self { api, login, mount, lanes: Mutex::default() })
    }

    /// Waits until a ciphertext has gone along with others, or can go alone: for half of the time that there is at most.
    pub(super) async fn turn(self: &Arc<Self>, key: &str, body: &Decrypt, deadline: Deadline) -> Turn {
        if !body.is_sociable() {
            return Turn::Alone(None);
        }
        let seated = {
            let mut lanes = self.lanes();
            let lane = lanes.entry(key.to_owned()).or_default();
            if lane.under_way < UNDER_WAY {
                lane.under_way += 1;
                return Turn::Alone(Some(Place { batches: self.clone(), key: key.to_owned() }));
            }
            // Those who went alone meanwhile.
            lane.waiting.retain(|waiting| !waiting.seat.is_closed());
            let (seat, seated) = oneshot::channel();
            lane.waiting.push(Waiting { body: body.clone(), seat });
            seated
        };
        let patience = deadline.left() / 4;
        let Ok(Ok(brought)) = timeout(patience.min(LONGEST_WAIT), seated).await else { return Turn::Alone(None) };
        match timeout(patience, brought).await {
            Ok(Ok(brought)) => Turn::Along(brought),
            Ok(Err(_)) | Err(_) => Turn::Alone(None),
        }
    }

    /// Takes along those that still wait, and gives each its key. Who gets none goes alone.
    async fn go(self: Arc<Self>, place: Place, waiting: Vec<Waiting>) {
        let (mut bodies, mut answers) = (Vec::new(), Vec::new());
        for Waiting { body, seat } in waiting {
            let (answer, brought) = oneshot::channel();
            if seat.send(brought).is_ok() {
                bodies.push(body);
                answers.push(answer);
            }
        }
        if bodies.is_empty() {
            return;
        }
        let brought: Vec<Option<Brought>> = match timeout(ANSWER_TIME, self.decrypt(&place.key, &bodies)).await {
            Ok(Ok(keys)) => keys.into_iter().map(|key| key.map(Ok)).collect(),
            Ok(Err(failure @ KmsFailure::Throttled { .. })) => {
                answers.iter().map(|_| Some(Err(failure.clone()))).collect()
            }
            Ok(Err(failure)) => {
                tracing::debug!(key = place.key, %failure, "keys that went together go alone");
                Vec::new()
            }
            Err(_) => {
                tracing::debug!(key = place.key, "keys that went together got no answer, and go alone");
                Vec::new()
            }
        };
        for (answer, brought) in answers.into_iter().zip(brought) {
            // Who has hung up meanwhile needs it no more.
            brought.map(|brought| answer.send(brought));
        }
    }

    /// The keys in the order of what is asked, but for those that the engine refuses.
    async fn decrypt(&self, key: &str, bodies: &[Decrypt]) -> Result<Vec<Option<InnerKey>>, KmsFailure> {
        let token = self.login.token().await?;
        let path = [self.mount.as_str(), Operation::Decrypt.path(), key];
        let request = self.api.request(Method::POST, &path, Some(&token)).json(&Batch { batch_input: bodies });
        // Where it refuses some of them it answers 400, and gives the others all the same.
        let Batched { batch_results } = self.api.data(&self.api.ask(request).await?)?;
        if batch_results.len() != bodies.len() {
            return Err(KmsFailure::garbled(&self.api.endpoint, "another number of plaintexts than it was asked for"));
        }
        let endpoint = &self.api.endpoint;
        Ok(batch_results.into_iter().map(|Decrypted { plaintext }| plaintext?.key(endpoint).ok()).collect())
    }

    fn lanes(&self) -> MutexGuard<'_, BTreeMap<String, Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Serialize)]
struct Batch<'a> {
    batch_input: &'a [Decrypt],
}

#[derive(Deserialize)]
struct Batched {
    batch_results: Vec<Decrypted>,
}

#[derive(Deserialize)]
struct Decrypted {
    /// Empty, or not there, where there is an error.
    #[serde(default)]
    plaintext: Option<SecretText>,
}
