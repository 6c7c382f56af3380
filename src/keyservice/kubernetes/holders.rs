//! Which node holds a volume: by the VolumeAttachments that the attach/detach controller makes, and, for volumes that
//! are one node's own, by the node affinity of their PersistentVolume.
//!
//! Watches know it without asking. They may be behind, so nobody is refused before the objects themselves were read:
//! a volume that was attached a moment ago is had at once. A watch that is broken is not believed until it has read
//! everything anew; one that fell silent is found out within the configured time. Until then, what it knew counts.

use std::{
    fmt,
    pin::pin,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use k8s_openapi::api::{core::v1::PersistentVolume, storage::v1::VolumeAttachment};
use kube::{
    Api, Client,
    runtime::watcher::{self, DefaultBackoff, Event, watcher},
};
use sha2::{Digest, Sha256};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_stream::StreamExt;

use crate::{
    exec::Deadline,
    key::service::KeyInfo,
    keyservice::{
        auth::Unheld,
        bearer::is_object_name,
        kubernetes::index::{Attachments, Drivers, Index, Volumes, csi, required_nodes},
    },
    volume::hex,
};

/// How long the API server may take for the direct reads of one request.
const READ_TIME: Duration = Duration::from_secs(10);
/// Direct reads at once: whoever asks for what it does not hold gets a bounded part of the API server.
const READS: usize = 64;
/// PersistentVolumes of one volume that are read: there is one, and there may be another while it is moved.
const NAMES: usize = 8;
/// The pause after a watch that broke, where the growing pauses have no end of their own.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Who holds what.
pub struct Holders {
    volumes: Arc<Watched<Volumes>>,
    attachments: Arc<Watched<Attachments>>,
    persistent_volumes: Api<PersistentVolume>,
    volume_attachments: Api<VolumeAttachment>,
    drivers: Drivers,
    room: Semaphore,
}

impl fmt::Debug for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holders").field("drivers", &self.drivers).finish_non_exhaustive()
    }
}

impl Holders {
    /// Those of the volumes of these drivers, and the watches that know of them: they go on for as long as the future
    /// is polled. Each lasts for a time, and is begun again where it was: that bounds how long one may be dead without our
    /// noticing.
    pub fn watch(
        client: Client,
        drivers: &[String],
        lasts: Duration,
    ) -> (Self, impl Future<Output = ()> + Send + 'static + use<>) {
        let holders = Self {
            volumes: Watched::of(Drivers::named(drivers)),
            attachments: Watched::of(Drivers::named(drivers)),
            persistent_volumes: Api::all(client.clone()),
            volume_attachments: Api::all(client),
            drivers: Drivers::named(drivers),
            room: Semaphore::new(READS),
        };
        let volumes =
            follow(holders.persistent_volumes.clone(), holders.volumes.clone(), holders.drivers.clone(), lasts);
        let attachments =
            follow(holders.volume_attachments.clone(), holders.attachments.clone(), holders.drivers.clone(), lasts);
        (holders, async move {
            tokio::join!(volumes, attachments);
        })
    }

    /// Waits until the watches know of everything that there is.
    pub async fn synced(&self) {
        self.volumes.synced().await;
        self.attachments.synced().await;
    }

    /// Refuses a node that does not hold a volume.
    ///
    /// # Errors
    /// It does not, or the API server cannot be asked.
    pub async fn expect_held(&self, node: &str, info: &KeyInfo, deadline: Deadline) -> Result<(), Unheld> {
        if self.know(node, info.volume_id.as_str()) {
            return Ok(());
        }
        let read = async {
            let _place = self.room.acquire().await;
            self.read(node, info).await
        };
        timeout(deadline.left().min(READ_TIME), read).await.map_err(|late| Unheld::Unknown(Arc::new(late)))?
    }

    /// Whether the watches know that a node holds a volume.
    fn know(&self, node: &str, volume_id: &str) -> bool {
        if !(self.volumes.is_in_sync() && self.attachments.is_in_sync()) {
            return false;
        }
        self.volumes.look(|volumes| self.attachments.look(|attachments| volumes.are_held(volume_id, node, attachments)))
    }

    /// Asks the API server itself.
    async fn read(&self, node: &str, info: &KeyInfo) -> Result<(), Unheld> {
        let mut why = Unheld::NoVolume;
        for name in self.names(info) {
            match self.read_volume(node, &name, info.volume_id.as_str()).await {
                Ok(()) => return Ok(()),
                Err(away @ Unheld::Unknown(_)) => return Err(away),
                Err(Unheld::NoVolume) => {}
                Err(unheld) => why = unheld,
            }
        }
        Err(why)
    }

    /// The PersistentVolumes that may be a volume: those of its id that the watch knows, and the one whose name
    /// external-provisioner gave to CreateVolume.
    fn names(&self, info: &KeyInfo) -> Vec<String> {
        let known = self.volumes.look(|volumes| volumes.named(info.volume_id.as_str()).to_vec());
        let mut names = vec![info.name.clone()];
        for name in known.into_iter().map(String::from) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        // The record's name is what some caller of CreateKey wrote.
        names.retain(|name| is_object_name(name));
        names.truncate(NAMES);
        names
    }

    async fn read_volume(&self, node: &str, name: &str, volume_id: &str) -> Result<(), Unheld> {
        let volume = self.persistent_volumes.get_opt(name).await.map_err(unknown)?.ok_or(Unheld::NoVolume)?;
        let csi = csi(&volume).ok_or(Unheld::NoVolume)?;
        let driver = self.drivers.find(&csi.driver).ok_or_else(|| Unheld::Driver(csi.driver.clone()))?;
        if csi.volume_handle != volume_id {
            return Err(Unheld::NoVolume);
        }
        if required_nodes(&volume).any(|one| one == node) {
            return Ok(());
        }
        let attachment = attachment_name(volume_id, &driver, node);
        let found = self.volume_attachments.get_opt(&attachment).await.map_err(unknown)?.ok_or(Unheld::Elsewhere)?;
        let spec = &found.spec;
        let is_this = spec.attacher == *driver
            && spec.node_name == node
            && spec.source.persistent_volume_name.as_deref() == Some(name);
        match (is_this, &found.metadata.deletion_timestamp) {
            (false, _) => Err(Unheld::Elsewhere),
            (true, Some(_)) => Err(Unheld::Detaching),
            (true, None) => Ok(()),
        }
    }
}

fn unknown(error: kube::Error) -> Unheld {
    Unheld::Unknown(Arc::new(error))
}

/// The name that the attach/detach controller gives to the attachment of a volume to a node: kubelets look for it by
/// the same one (`csi-` and the SHA-256 of volume, driver and node).
fn attachment_name(volume_id: &str, driver: &str, node: &str) -> String {
    format!("csi-{}", hex(&Sha256::digest(format!("{volume_id}{driver}{node}").as_bytes())))
}

/// What a watch has seen.
struct Watched<T> {
    index: RwLock<T>,
    in_sync: watch::Sender<bool>,
}

impl<T: Index> Watched<T> {
    fn of(drivers: Drivers) -> Arc<Self> {
        Arc::new(Self { index: RwLock::new(T::of_drivers(drivers)), in_sync: watch::Sender::new(false) })
    }

    fn is_in_sync(&self) -> bool {
        *self.in_sync.borrow()
    }

    async fn synced(&self) {
        // The sender is ours, so the wait ends with what it waits for.
        let _ = self.in_sync.subscribe().wait_for(|in_sync| *in_sync).await;
    }

    fn look<R>(&self, at: impl FnOnce(&T) -> R) -> R {
        at(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, how: impl FnOnce(&mut T)) {
        how(&mut self.index.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Watches for ever. After each fault everything is read anew.
async fn follow<T: Index>(api: Api<T::Object>, watched: Arc<Watched<T>>, drivers: Drivers, lasts: Duration) {
    let mut pauses = DefaultBackoff::default();
    loop {
        let fault = follow_until_fault(api.clone(), &watched, &drivers, lasts).await;
        watched.in_sync.send_replace(false);
        tracing::warn!(error = fault.map(tracing::field::display), watch = api.resource_url(), "the watch is broken");
        tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
    }
}

async fn follow_until_fault<T: Index>(
    api: Api<T::Object>,
    watched: &Watched<T>,
    drivers: &Drivers,
    lasts: Duration,
) -> Option<watcher::Error> {
    let seconds = u32::try_from(lasts.as_secs()).unwrap_or(u32::MAX);
    let mut events = pin!(watcher(api, watcher::Config::default().timeout(seconds)));
    let mut all = T::of_drivers(drivers.clone());
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => {
                watched.in_sync.send_replace(false);
                all = T::of_drivers(drivers.clone());
            }
            Ok(Event::InitApply(object)) => all.apply(&object),
            Ok(Event::InitDone) => {
                let read = std::mem::replace(&mut all, T::of_drivers(drivers.clone()));
                watched.change(|index| *index = read);
                watched.in_sync.send_replace(true);
            }
            Ok(Event::Apply(object)) => watched.change(|index| index.apply(&object)),
            Ok(Event::Delete(object)) => watched.change(|index| index.remove(&object)),
            Err(fault) => return Some(fault),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attachment_has_the_name_that_kubernetes_gives_it() {
        // printf %s%s%s vol-1 ebs.csi.aws.com node-1 | sha256sum
        let name = attachment_name("vol-1", "ebs.csi.aws.com", "node-1");
        assert_eq!(name, "csi-58932ddfc9a6504f794af09a26429db947138ba3d683dee3d975aa932cb39f48");
    }
}
