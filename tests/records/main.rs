//! What an operator does with records and KEKs: list, export, import, verify, rewrap, inventory; through the library, and
//! through the program.

mod export;
mod inventory;
mod program;
mod rewrap;
mod roles;
mod verify;

use std::{
    collections::BTreeMap,
    fs, io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use coffer::{
    admin::{Place, Trail, progress::Progress},
    exec::Deadline,
    key::{
        binding::Binding,
        cluster::ClusterKeys,
        derive::Tag,
        embedded::Embedded,
        kms::{Kek, Kms, KmsFailure, Wrapped, local::Local},
        providers::{KmsProvider, Provider, Providers},
        record::{Record, State},
        service::{Attempt, KeyService, NewKey},
        store::{DekStore, memory::Memory},
    },
    secret::{InnerKey, LocalKek},
    volume::{Content, FsType, Parameters, VolumeId},
};
use uuid::Uuid;

const CLUSTER: Uuid = Uuid::from_u128(1);

fn soon() -> Deadline {
    Deadline::within(Duration::from_secs(30))
}

fn quiet() -> Progress {
    Progress::lines(io::sink())
}

/// Keeps what a verb writes down.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<String>>>);

impl Written {
    /// A trail that has room for so many lines.
    fn trail(&self, room: usize) -> Trail {
        let written = self.0.clone();
        Trail::to(move |volume_id, outcome| {
            let line = match outcome {
                Ok(info) => format!("{volume_id} is under {} of {}", info.kek_id, info.provider),
                Err(failure) => format!("{volume_id}: {failure}"),
            };
            let mut lines = written.lock().expect("nothing panics while it is held");
            if lines.len() == room {
                return Err(io::ErrorKind::StorageFull.into());
            }
            lines.push(line);
            Ok(())
        })
    }

    /// The lines, in the order of volume ids.
    fn lines(&self) -> Vec<String> {
        let mut lines = self.0.lock().expect("nothing panics while it is held").clone();
        lines.sort_unstable();
        lines
    }
}

/// A trail for those who do not look at it.
fn untold() -> Trail {
    Written::default().trail(usize::MAX)
}

fn id(text: &str) -> VolumeId {
    text.parse().expect("a volume id")
}

fn new(volume_id: &str, provider: &str) -> NewKey {
    NewKey {
        volume_id: id(volume_id),
        name: format!("name of {volume_id}"),
        parameters: Parameters::of(Content::Filesystem(FsType::Ext4)),
        node: None,
        tenant: Some("shop".to_owned()),
        storage_class: None,
        claim: Some("data".to_owned()),
        provider: Some(provider.to_owned()),
        key_id: None,
        context: BTreeMap::from([("team".to_owned(), "blue".to_owned())]),
    }
}

fn local(byte: u8) -> Local {
    Local::new(LocalKek::born(|kek| kek.fill(byte)))
}

fn cluster() -> Provider {
    use std::os::unix::fs::PermissionsExt;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/cluster-key.json");
    // A checkout makes files that the world can read, which a cluster key must not be.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("chmod");
    Provider::Cluster(ClusterKeys::load(&file).expect("the vector is a cluster key"))
}

fn wraps(kms: impl Kms + 'static) -> Provider {
    Provider::Kms(KmsProvider::new(Arc::new(kms)))
}

/// A cluster key, and two KMS.
fn providers() -> Providers {
    let by_name = [("cluster", cluster()), ("a", wraps(local(7))), ("b", wraps(local(8)))];
    of(by_name)
}

fn of<const N: usize>(by_name: [(&str, Provider); N]) -> Providers {
    let by_name = by_name.into_iter().map(|(name, provider)| (name.to_owned(), provider)).collect();
    Providers { by_name, default: "a".to_owned() }
}

fn place(providers: Providers, store: Arc<dyn DekStore>) -> Place {
    Place { cluster_id: CLUSTER, providers, store, policies: Vec::new(), trials: Vec::new() }
}

/// One volume a provider, in several states, and one that is destroyed.
const LIVE: [&str; 4] = ["vol-a", "vol-b", "vol-derived", "vol-ready"];

async fn seeded() -> Place {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    let service = Embedded::new(CLUSTER, providers(), store.clone());
    for (volume, provider) in
        [("vol-a", "a"), ("vol-b", "b"), ("vol-derived", "cluster"), ("vol-ready", "a"), ("vol-gone", "a")]
    {
        service.create(new(volume, provider), soon()).await.expect("a new key");
    }
    service.begin_format(&id("vol-ready"), 1, soon()).await.expect("begun");
    let (attempt, header) = (Attempt { generation: 1, number: 1 }, Tag::from_bytes([3; 32]));
    service.mark_ready(&id("vol-ready"), attempt, header, soon()).await.expect("ready");
    service.destroy(&id("vol-gone"), 1, soon()).await.expect("destroyed");
    place(providers(), store)
}

async fn records(store: &dyn DekStore) -> Vec<Record> {
    store.list(None, 100, soon()).await.expect("it answers").records
}

async fn one(store: &dyn DekStore, volume: &str) -> Record {
    store.get(&id(volume), soon()).await.expect("it answers").expect("it is there").record
}

/// The keys themselves, as a key service gives them out.
async fn deks(store: &Arc<dyn DekStore>) -> Vec<Vec<u8>> {
    let service = Embedded::new(CLUSTER, providers(), store.clone());
    let mut deks = Vec::new();
    for record in records(store.as_ref()).await.iter().filter(|record| record.state != State::Destroyed) {
        let key = service.get(&record.volume_id, soon()).await.expect("a key");
        deks.push(key.dek.expose_secret().to_vec());
    }
    deks
}

/// Changes a record as somebody would who has the store and no key.
async fn tamper(store: &dyn DekStore, volume: &str, change: impl FnOnce(&mut Record)) -> Record {
    let stored = store.get(&id(volume), soon()).await.expect("it answers").expect("it is there");
    let mut record = stored.record;
    change(&mut record);
    store.replace(&record, stored.version, soon()).await.expect("replaced");
    record
}

/// A KMS whose KEK has two versions, each with an id of its own, of which one wraps.
struct Rotating {
    versions: [Local; 2],
    newest: AtomicUsize,
}

impl Rotating {
    fn new() -> Arc<Self> {
        Arc::new(Self { versions: [local(20), local(21)], newest: AtomicUsize::new(0) })
    }

    fn rotate(&self) {
        self.newest.store(1, Ordering::SeqCst);
    }

    fn now(&self) -> &Local {
        &self.versions[self.newest.load(Ordering::SeqCst)]
    }
}

#[async_trait]
impl Kms for Rotating {
    async fn describe(&self, kek: Option<&str>, deadline: Deadline) -> Result<Kek, KmsFailure> {
        self.now().describe(kek, deadline).await
    }

    async fn wrap(
        &self,
        key: &InnerKey,
        kek: Option<&str>,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<Wrapped, KmsFailure> {
        self.now().wrap(key, kek, binding, deadline).await
    }

    async fn unwrap(
        &self,
        wrapped: &Wrapped,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<InnerKey, KmsFailure> {
        match self.versions[0].unwrap(wrapped, binding, deadline).await {
            Err(KmsFailure::NoSuchKek { .. }) => self.versions[1].unwrap(wrapped, binding, deadline).await,
            opened => opened,
        }
    }
}
