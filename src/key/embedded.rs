//! The key service itself: providers, a store, and the state machine of a record.
//!
//! A new key is made, opened again and compared, and stored by create-only, before anything uses it. Whoever loses a
//! race takes the winner's record. A change reads the record, checks its MAC, and swaps it for the next state.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use jiff::{Timestamp, Unit};
use uuid::Uuid;

use crate::{
    exec::Deadline,
    key::{
        binding::Binding,
        derive::Tag,
        envelope::Kept,
        policy::{self, Asked, Claim, Decision, RESERVED_CONTEXT, Rule},
        providers::Providers,
        record::{AwsRole, Base64, FORMAT_VERSION, Record, RecordFault, State},
        service::{Attempt, KeyFailure, KeyInfo, KeyService, NewKey, Page, VolumeKey},
        store::{DekStore, StoreFailure, Stored},
    },
    secret::Dek,
    volume::VolumeId,
};

/// A key service in this process.
pub struct Embedded {
    cluster_id: Uuid,
    providers: Providers,
    store: Arc<dyn DekStore>,
    policies: Vec<Rule>,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded")
            .field("cluster_id", &self.cluster_id)
            .field("providers", &self.providers)
            .finish_non_exhaustive()
    }
}

/// How often a swap that another writer forestalled is tried again.
const SWAPS: usize = 8;
/// The most bytes of each text of a new record.
const TEXT_BYTES: usize = 4096;
const STEP_CREATE: &str = "creating it";

impl Embedded {
    /// A key service of one installation.
    #[must_use]
    pub fn new(cluster_id: Uuid, providers: Providers, store: Arc<dyn DekStore>) -> Self {
        Self { cluster_id, providers, store, policies: Vec::new() }
    }

    /// The same under policies: they choose where a class does not, and refuse what they forbid.
    #[must_use]
    pub fn with_policies(self, policies: Vec<Rule>) -> Self {
        Self { policies, ..self }
    }

    async fn load(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<Option<Stored>, KeyFailure> {
        let Some(stored) = self.store.get(volume_id, deadline).await.map_err(store_failure)? else { return Ok(None) };
        if stored.record.cluster_id != self.cluster_id {
            let source = RecordFault::OtherCluster(stored.record.cluster_id);
            return Err(KeyFailure::Record { volume_id: volume_id.clone(), source });
        }
        Ok(Some(stored))
    }

    /// The record of a volume that has a key, authenticated, with that key.
    async fn open(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<(Stored, Dek), KeyFailure> {
        let stored = self.load(volume_id, deadline).await?.ok_or_else(|| KeyFailure::Missing(volume_id.clone()))?;
        let dek = self.providers.open(&stored.record, Kept::Stored, deadline).await?;
        let refused = |source| KeyFailure::Record { volume_id: volume_id.clone(), source };
        stored.record.verify(&dek).map_err(refused)?;
        Ok((stored, dek))
    }

    /// A record in state prepared with a key that was seen to open.
    async fn prepare(&self, new: &NewKey, generation: u32, deadline: Deadline) -> Result<Record, KeyFailure> {
        let asked_key_id = new.key_id.clone();
        let (new, role) = &self.decided(new)?;
        let name = new.provider.as_ref().unwrap_or(&self.providers.default);
        let (luks_uuid, context) = (Uuid::new_v4(), self.providers.context(name, &new.context)?);
        let binding = Binding {
            cluster_id: self.cluster_id,
            volume_id: &new.volume_id,
            generation,
            luks_uuid,
            context: &context,
        };
        let (key, dek) = self.providers.make(name, new, role.as_ref(), &binding, deadline).await?;
        let mut record = Record {
            format_version: FORMAT_VERSION,
            cluster_id: self.cluster_id,
            volume_id: new.volume_id.clone(),
            name: new.name.clone(),
            tenant: new.tenant.clone(),
            storage_class: new.storage_class.clone(),
            claim: new.claim.clone(),
            key_id: asked_key_id,
            node: new.node.clone(),
            generation,
            state: State::Prepared,
            luks_uuid,
            parameters: new.parameters.clone(),
            format_attempt: 0,
            header_mac: None,
            lineage: None,
            context: context.clone(),
            created_at: Timestamp::now().round(Unit::Second).expect("now is far from the end of time"),
            provider: name.clone(),
            key: Some(key),
            mac: None,
        };
        self.providers.expect_same(&record, &dek, deadline).await?;
        record.authenticate(&dek);
        Ok(record)
    }

    /// What is asked for, as the policies complete it, and the role that they give.
    fn decided(&self, new: &NewKey) -> Result<(NewKey, Option<AwsRole>), KeyFailure> {
        let claim = Claim {
            storage_class: new.storage_class.as_deref(),
            namespace: new.tenant.as_deref(),
            claim: new.claim.as_deref(),
        };
        let asked = Asked { provider: new.provider.as_deref(), key_id: new.key_id.as_deref(), context: &new.context };
        let Decision { provider, key_id, role, context } = policy::decide(&self.policies, &claim, &asked)?;
        Ok((NewKey { provider, key_id, context, ..new.clone() }, role))
    }

    /// Refuses a key that a mandatory policy wants from another provider.
    fn expect_allowed(&self, record: &Record) -> Result<(), KeyFailure> {
        let Some((_, rule)) = policy::applying(&self.policies, &Claim::of(record)) else { return Ok(()) };
        let wanted = rule.provider.as_deref().filter(|wanted| rule.mandatory && *wanted != record.provider);
        wanted.map_or(Ok(()), |wanted| {
            Err(KeyFailure::OtherProvider {
                volume_id: record.volume_id.clone(),
                provider: record.provider.clone(),
                wanted: wanted.to_owned(),
            })
        })
    }

    /// Swaps a record for what `change` makes of it, until the swap holds or `change` finds nothing to do.
    async fn update(
        &self,
        volume_id: &VolumeId,
        deadline: Deadline,
        change: impl Fn(&mut Record) -> Result<Change, KeyFailure> + Send + Sync,
    ) -> Result<KeyInfo, KeyFailure> {
        for _ in 0..SWAPS {
            let (stored, dek) = self.open(volume_id, deadline).await?;
            let mut record = stored.record;
            if change(&mut record)? == Change::None {
                return Ok(KeyInfo::from(&record));
            }
            record.authenticate(&dek);
            match self.store.replace(&record, stored.version, deadline).await {
                Ok(()) => return Ok(KeyInfo::from(&record)),
                Err(StoreFailure::Stale(_)) => {}
                Err(failure) => return Err(store_failure(failure)),
            }
        }
        Err(KeyFailure::Contended(volume_id.clone()))
    }
}

#[derive(PartialEq, Eq)]
enum Change {
    None,
    Made,
}

#[async_trait]
impl KeyService for Embedded {
    async fn create(&self, new: NewKey, deadline: Deadline) -> Result<KeyInfo, KeyFailure> {
        expect_sized(&new)?;
        if let Some(key) = new.context.keys().find(|key| RESERVED_CONTEXT.contains(&key.as_str())) {
            return Err(KeyFailure::Invalid(format!("context key {key:?} is reserved")));
        }
        for _ in 0..SWAPS {
            let stored = self.load(&new.volume_id, deadline).await?;
            let outcome = match &stored {
                None => {
                    let record = self.prepare(&new, 1, deadline).await?;
                    (self.store.create(&record, deadline).await, record)
                }
                Some(Stored { record, version }) if record.state == State::Destroyed => {
                    let generation = record.generation.checked_add(1).ok_or_else(|| KeyFailure::State {
                        volume_id: new.volume_id.clone(),
                        state: record.state,
                        step: STEP_CREATE,
                    })?;
                    let record = self.prepare(&new, generation, deadline).await?;
                    (self.store.replace(&record, *version, deadline).await, record)
                }
                Some(Stored { record, .. }) => return same(&new, record),
            };
            match outcome {
                (Ok(()), record) => return Ok(KeyInfo::from(&record)),
                (Err(StoreFailure::Exists(_) | StoreFailure::Stale(_)), _) => {}
                (Err(failure), _) => return Err(store_failure(failure)),
            }
        }
        Err(KeyFailure::Contended(new.volume_id))
    }

    async fn get(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<VolumeKey, KeyFailure> {
        let (stored, dek) = self.open(volume_id, deadline).await?;
        self.expect_allowed(&stored.record)?;
        Ok(VolumeKey { info: KeyInfo::from(&stored.record), dek })
    }

    async fn describe(&self, volume_id: &VolumeId, deadline: Deadline) -> Result<Option<KeyInfo>, KeyFailure> {
        let stored = self.load(volume_id, deadline).await?;
        Ok(stored.filter(|stored| stored.record.state != State::Destroyed).map(|stored| KeyInfo::from(&stored.record)))
    }

    async fn begin_format(
        &self,
        volume_id: &VolumeId,
        generation: u32,
        deadline: Deadline,
    ) -> Result<KeyInfo, KeyFailure> {
        self.update(volume_id, deadline, |record| {
            if record.generation != generation {
                return Err(KeyFailure::Superseded(volume_id.clone()));
            }
            match record.state {
                State::Prepared | State::Formatting => {
                    record.state = State::Formatting;
                    record.format_attempt = record.format_attempt.wrapping_add(1);
                    Ok(Change::Made)
                }
                state @ (State::Ready | State::Destroyed) => {
                    Err(KeyFailure::State { volume_id: volume_id.clone(), state, step: "formatting it" })
                }
            }
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
        self.update(volume_id, deadline, |record| {
            if (record.generation, record.format_attempt) != (attempt.generation, attempt.number) {
                return Err(KeyFailure::Superseded(volume_id.clone()));
            }
            match record.state {
                State::Formatting => {
                    record.state = State::Ready;
                    record.header_mac = Some(Base64::new(*header.as_bytes()));
                    Ok(Change::Made)
                }
                State::Ready if record.header_tag() == Some(header) => Ok(Change::None),
                state @ (State::Prepared | State::Ready | State::Destroyed) => Err(KeyFailure::State {
                    volume_id: volume_id.clone(),
                    state,
                    step: "marking it ready with this header",
                }),
            }
        })
        .await
    }

    async fn destroy(&self, volume_id: &VolumeId, generation: u32, deadline: Deadline) -> Result<(), KeyFailure> {
        for _ in 0..SWAPS {
            // The key is not opened: what is to be destroyed may be destroyed when the KEK is gone, too.
            let Some(stored) = self.load(volume_id, deadline).await? else { return Ok(()) };
            // A request that was long on its way must not destroy the key of a volume that was made again meanwhile.
            if stored.record.state == State::Destroyed || stored.record.generation > generation {
                return Ok(());
            }
            if stored.record.generation < generation {
                return Err(KeyFailure::Invalid(format!("volume {volume_id} has no generation {generation} yet")));
            }
            match self.store.replace(&stored.record.tombstone(), stored.version, deadline).await {
                Ok(()) => return Ok(()),
                Err(StoreFailure::Stale(_)) => {}
                Err(failure) => return Err(store_failure(failure)),
            }
        }
        Err(KeyFailure::Contended(volume_id.clone()))
    }

    async fn list(&self, after: Option<&VolumeId>, limit: usize, deadline: Deadline) -> Result<Page, KeyFailure> {
        let mut page = Page { infos: Vec::new(), next: after.cloned() };
        // Tombstones take no place in a page, so a page may need more than one reading.
        while page.infos.len() < limit {
            let listed = self.store.list(page.next.as_ref(), limit, deadline).await.map_err(store_failure)?;
            let last = listed.records.len() < limit;
            for refused in &listed.refused {
                // One bad record does not hide all others; whoever asks for its volume is refused.
                tracing::error!(place = refused.place, error = %refused.source, "not listed; restore it from a backup");
            }
            for record in listed.records {
                if page.infos.len() == limit {
                    return Ok(page);
                }
                page.next = Some(record.volume_id.clone());
                if record.state != State::Destroyed {
                    page.infos.push(KeyInfo::from(&record));
                }
            }
            if last {
                page.next = None;
                return Ok(page);
            }
        }
        Ok(page)
    }
}

/// Refuses what no caller of ours asks for: a record is read often and stays small.
fn expect_sized(new: &NewKey) -> Result<(), KeyFailure> {
    let context = new.context.iter().map(|(key, value)| key.len() + value.len()).sum();
    let texts = [
        ("name", new.name.len()),
        ("node", new.node.as_ref().map_or(0, String::len)),
        ("tenant", new.tenant.as_ref().map_or(0, String::len)),
        ("StorageClass", new.storage_class.as_ref().map_or(0, String::len)),
        ("claim", new.claim.as_ref().map_or(0, String::len)),
        ("keyId", new.key_id.as_ref().map_or(0, String::len)),
        ("context", context),
    ];
    match texts.into_iter().find(|(_, bytes)| *bytes > TEXT_BYTES) {
        Some((what, bytes)) => Err(KeyFailure::Invalid(format!("{what} has {bytes} bytes; at most {TEXT_BYTES}"))),
        None => Ok(()),
    }
}

/// The existing record, where it is what is asked for.
fn same(new: &NewKey, record: &Record) -> Result<KeyInfo, KeyFailure> {
    let differs = |what| Err(KeyFailure::Differs { volume_id: new.volume_id.clone(), what });
    if record.name != new.name {
        return differs("name");
    }
    if record.parameters != new.parameters {
        return differs("content or encryption");
    }
    if record.node != new.node {
        return differs("node");
    }
    if record.tenant != new.tenant {
        return differs("tenant");
    }
    if record.key_id != new.key_id {
        return differs("keyId");
    }
    if record.storage_class != new.storage_class || record.claim != new.claim {
        return differs("claim or StorageClass");
    }
    // The provider's and the policy's own pairs are in the record as well.
    if new.context.iter().any(|(key, value)| record.context.get(key) != Some(value)) {
        return differs("context");
    }
    // No provider asked for means the default, which may have been another one when the volume was made.
    if new.provider.as_ref().is_some_and(|asked| *asked != record.provider) {
        return differs("provider");
    }
    Ok(KeyInfo::from(record))
}

fn store_failure(failure: StoreFailure) -> KeyFailure {
    match failure {
        StoreFailure::Fault { volume_id: Some(volume_id), source, .. } => KeyFailure::Record { volume_id, source },
        failure => KeyFailure::Store { refusal: failure.refusal(), source: failure.into() },
    }
}
