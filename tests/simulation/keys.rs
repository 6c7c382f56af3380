//! The key service of the world: real services over one store, and the wire to them, each with what goes wrong there.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use async_trait::async_trait;
use coffer::{
    exec::Deadline,
    key::{
        cluster::ClusterKeys,
        derive::Tag,
        embedded::Embedded,
        providers::{Provider, Providers},
        record::{Record, RecordFault},
        service::{Attempt, KeyFailure, KeyInfo, KeyService, NewKey, Page, Refusal, VolumeKey},
        store::{DekStore, Listed, StoreFailure, Stored, Version},
    },
    keyservice::{
        audit::Audit,
        auth::{Caller, Guarded},
    },
    volume::VolumeId,
};

use crate::{
    fault::Fault,
    host::Host,
    invariant::{CLUSTER_KEY, node_id},
    world::{Shared, World},
};

/// Replicas of the key service.
const REPLICAS: u64 = 2;

/// A store that several replicas share; what it has answered, it has.
struct Store(Host);

impl Store {
    async fn effect<T: Send>(
        &self,
        what: &str,
        act: impl FnOnce(&mut World) -> Result<T, StoreFailure> + Send,
    ) -> Result<T, StoreFailure> {
        // It is another machine: a driver that dies meanwhile leaves what it has asked for to be done.
        let fault = self.0.world.lock().next_fault(what, false);
        let away = |words: &'static str| {
            Err(StoreFailure::Io { step: "ask the store", path: "/records".into(), source: io::Error::other(words) })
        };
        match fault {
            Some(Fault::FailBefore) => away("it is away"),
            Some(Fault::FailAfter) => act(&mut self.0.world.lock()).and_then(|_| away("its answer was lost")),
            Some(Fault::Hang) => {
                tokio::time::sleep(Duration::from_secs(100)).await;
                act(&mut self.0.world.lock())
            }
            Some(Fault::Garbage) => {
                let source = Record::from_bytes(b"{\"torn").expect_err("no record");
                Err(StoreFailure::Fault { volume_id: None, place: "the store".to_owned(), source })
            }
            Some(Fault::Die | Fault::Orphan) => {
                let done = act(&mut self.0.world.lock());
                self.0.world.lock().kill(self.0.machine);
                done
            }
            Some(Fault::Power) => {
                let done = act(&mut self.0.world.lock());
                self.0.world.lock().cut_power(self.0.machine);
                done
            }
            None => act(&mut self.0.world.lock()),
        }
    }
}

fn read(bytes: &[u8]) -> Result<Record, StoreFailure> {
    let fault = |source: RecordFault| StoreFailure::Fault { volume_id: None, place: "the store".to_owned(), source };
    Record::from_bytes(bytes).map_err(fault)
}

#[async_trait]
impl DekStore for Store {
    async fn get(&self, volume_id: &VolumeId, _: Deadline) -> Result<Option<Stored>, StoreFailure> {
        let act = |world: &mut World| {
            let bytes = world.records.get(volume_id);
            bytes.map(|bytes| Ok(Stored { record: read(bytes)?, version: Version::of(bytes) })).transpose()
        };
        self.effect("store: get", act).await
    }

    async fn create(&self, record: &Record, _: Deadline) -> Result<(), StoreFailure> {
        let act = |world: &mut World| {
            if world.records.contains_key(&record.volume_id) {
                return Err(StoreFailure::Exists(record.volume_id.clone()));
            }
            world.records.insert(record.volume_id.clone(), record.to_bytes());
            world.stored(None, record);
            Ok(())
        };
        self.effect("store: create", act).await
    }

    async fn replace(&self, record: &Record, version: Version, _: Deadline) -> Result<(), StoreFailure> {
        let act = |world: &mut World| {
            let old = world.records.get(&record.volume_id).cloned().unwrap_or_default();
            if Version::of(&old) != version {
                return Err(StoreFailure::Stale(record.volume_id.clone()));
            }
            world.records.insert(record.volume_id.clone(), record.to_bytes());
            world.stored(Some(&read(&old)?), record);
            Ok(())
        };
        self.effect(&format!("store: replace by {}", record.state), act).await
    }

    async fn list(&self, after: Option<&VolumeId>, limit: usize, _: Deadline) -> Result<Listed, StoreFailure> {
        let act = |world: &mut World| {
            let later = world.records.iter().filter(|(id, _)| after.is_none_or(|after| *id > after));
            let read: Result<Vec<_>, _> = later.take(limit).map(|(_, bytes)| read(bytes)).collect();
            read.map(Listed::from)
        };
        self.effect("store: list", act).await
    }
}

/// The way from a node to one of the replicas.
#[derive(Clone)]
pub(crate) struct Wire {
    host: Host,
    replicas: Arc<Vec<Arc<dyn KeyService>>>,
}

impl Wire {
    pub(crate) fn of(world: &Shared, machine: usize) -> Self {
        let host = Host::of(world, machine);
        let replica = |_| {
            let keys = ClusterKeys::load(&CLUSTER_KEY.0.path().join("cluster-key.json")).expect("the cluster key");
            let id = keys.cluster_id();
            let by_name = BTreeMap::from([("main".to_owned(), Provider::Cluster(keys))]);
            let providers = Providers { by_name, default: "main".to_owned() };
            let embedded: Arc<dyn KeyService> = Arc::new(Embedded::new(id, providers, Arc::new(Store(host.clone()))));
            let guarded = Guarded::new(embedded, Arc::new(Audit::to(io::sink())), Caller::Node(node_id(machine)));
            Arc::new(guarded) as Arc<dyn KeyService>
        };
        let replicas = Arc::new((0..REPLICAS).map(replica).collect());
        Self { host, replicas }
    }

    /// Sends a request. It can be lost, be late, come twice, or lose its answer; what a replica has begun it ends.
    async fn send<T, F>(
        &self,
        what: &str,
        deadline: Deadline,
        request: impl Fn(Arc<dyn KeyService>) -> F + Send + Sync,
    ) -> Result<T, KeyFailure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, KeyFailure>> + Send + 'static,
    {
        let fault = self.host.come_to(&format!("ask: {what}"), false).await;
        let (replica, again, late) = {
            let mut world = self.host.world.lock();
            let replica = usize::try_from(world.dice.below(REPLICAS)).expect("a small number");
            (replica, world.dice.below(2) == 0, world.dice.below(400_000))
        };
        let ask = |replica: usize| tokio::spawn(request(self.replicas[replica % self.replicas.len()].clone()));
        let away = |message: &str, refusal| Err(KeyFailure::Remote { refusal, message: message.to_owned() });
        match fault {
            // Lost on its way, or late: it comes when nobody waits for it any more.
            Some(Fault::FailBefore) => {
                if again {
                    let asked = request(self.replicas[replica].clone());
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(late)).await;
                        let _ = asked.await;
                    });
                }
                return away("cannot be reached", Refusal::Unavailable);
            }
            Some(Fault::FailAfter) => {
                let _ = ask(replica).await;
                return away("the connection broke", Refusal::Unavailable);
            }
            Some(Fault::Garbage) => {
                let _ = ask(replica).await;
                return away("a reply lacks its info", Refusal::Fault);
            }
            Some(Fault::Die | Fault::Orphan) => {
                ask(replica);
                self.host.world.lock().kill(self.host.machine);
                std::future::pending::<()>().await;
            }
            Some(Fault::Power) => {
                ask(replica);
                self.host.world.lock().cut_power(self.host.machine);
                std::future::pending::<()>().await;
            }
            Some(Fault::Hang) => {
                tokio::time::sleep(deadline.left()).await;
                self.host.stay_alive().await;
                return Err(KeyFailure::Deadline);
            }
            None => {}
        }
        if self.host.world.lock().takes_time && again && late % 8 == 0 {
            // A proxy that was unsure has sent it twice.
            let (first, second) = (ask(replica), ask(replica + 1));
            let _ = second.await;
            return self.answered(first.await.unwrap_or(Err(KeyFailure::Broken))).await;
        }
        let answer = tokio::time::timeout(deadline.left(), ask(replica)).await;
        self.answered(answer.map_or(Err(KeyFailure::Deadline), |done| done.unwrap_or(Err(KeyFailure::Broken)))).await
    }

    async fn answered<T>(&self, answer: Result<T, KeyFailure>) -> Result<T, KeyFailure> {
        self.host.stay_alive().await;
        answer
    }
}

#[async_trait]
impl KeyService for Wire {
    async fn create(&self, new: NewKey, deadline: Deadline) -> Result<KeyInfo, KeyFailure> {
        self.send("create", deadline, |keys| {
            let new = new.clone();
            async move { keys.create(new, deadline).await }
        })
        .await
    }

    async fn get(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<VolumeKey, KeyFailure> {
        self.send("get", deadline, |keys| {
            let id = volume_id.clone();
            async move { keys.get(&id, deadline).await }
        })
        .await
    }

    async fn describe(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<Option<KeyInfo>, KeyFailure> {
        self.send("describe", deadline, |keys| {
            let id = volume_id.clone();
            async move { keys.describe(&id, deadline).await }
        })
        .await
    }

    async fn begin_format(
        &self,
        volume_id: &VolumeId,
        generation: u32,
        deadline: Deadline,
    ) -> Result<KeyInfo, KeyFailure> {
        self.send("begin format", deadline, |keys| {
            let id = volume_id.clone();
            async move { keys.begin_format(&id, generation, deadline).await }
        })
        .await
    }

    async fn mark_ready(
        &self,
        volume_id: &VolumeId,
        attempt: Attempt,
        header: Tag,
        deadline: Deadline,
    ) -> Result<KeyInfo, KeyFailure> {
        self.send("mark ready", deadline, |keys| {
            let id = volume_id.clone();
            async move { keys.mark_ready(&id, attempt, header, deadline).await }
        })
        .await
    }

    async fn destroy(&self, volume_id: &VolumeId, generation: u32, deadline: Deadline) -> Result<(), KeyFailure> {
        self.send("destroy", deadline, |keys| {
            let id = volume_id.clone();
            async move { keys.destroy(&id, generation, deadline).await }
        })
        .await
    }

    async fn list(&self, after: Option<&VolumeId>, limit: usize, deadline: Deadline) -> Result<Page, KeyFailure> {
        self.send("list", deadline, |keys| {
            let after = after.cloned();
            async move { keys.list(after.as_ref(), limit, deadline).await }
        })
        .await
    }
}
