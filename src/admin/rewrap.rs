//! `coffer rewrap`: the same DEKs under other KEKs, whether the volumes are in use or not. No disk is touched.
//!
//! A record is replaced only after its new wrapping was opened again and compared, and only while it is the one that
//! was read: what a key service does at the same time is safe. A sweep that breaks off is finished by another one,
//! which skips what is done.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use futures::{StreamExt, stream};

use crate::{
    admin::{
        Place, Trail,
        answer::plain,
        keys::current::{Currents, Standing, Wraps},
        progress::Progress,
        records::{AT_ONCE, Effect, RECORD_TIME, all},
    },
    config::{Faults, did_you_mean},
    exec::Deadline,
    key::{
        policy::{self, Claim, Given},
        providers::Provider,
        record::{Record, RecordFault, StoredKey},
        service::{KeyFailure, KeyInfo},
        store::StoreFailure,
    },
    server::rpc,
    volume::VolumeId,
};

/// What is to be rewrapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Records of this provider; none for every record.
    pub from: Option<String>,
    /// The provider that is to hold the KEK; none for the one that holds it.
    pub to: Option<String>,
    /// One volume; none for every one.
    pub volume: Option<VolumeId>,
    /// Whether it is done.
    pub effect: Effect,
}

/// Why not everything is rewrapped.
#[derive(Debug, thiserror::Error)]
pub enum RewrapFailure {
    /// The store failed before anything was rewrapped.
    #[error("read the key records")]
    Store(#[from] StoreFailure),
    /// No such volume.
    #[error("no volume has the id {0}; `coffer records list` shows what there is")]
    Missing(VolumeId),
    /// The volume has no key, or another provider's.
    #[error("volume {0} has no key of the provider that is asked for; `coffer records show {0}` shows its record")]
    NotSelected(VolumeId),
    /// Some records are as they were; or one is rewrapped, and the audit log does not say so.
    #[error("{failed} of {of} records failed, as is told for each; run it again when the cause is gone")]
    Incomplete {
        /// How many failed.
        failed: usize,
        /// Of how many.
        of: usize,
    },
    /// Standard output failed.
    #[error("write to standard output")]
    Output(#[from] io::Error),
}

/// Rewrapping, of which it is known that it can be.
#[derive(Debug)]
pub struct Sweep<'a> {
    place: &'a Place,
    asked: Asked,
}

/// How often a swap that another writer forestalled is tried again.
const SWAPS: usize = 8;

/// What is to become of a record.
#[derive(PartialEq, Eq)]
enum Decision {
    /// Nothing: it is destroyed, current, another provider's, or derived.
    Skip,
    /// It is to be rewrapped.
    Rewrap,
    /// Only wrapping shows whether it is under that KEK already.
    Compare,
}

enum Outcome {
    Skipped,
    Rewrapped,
    /// A dry run, and what would become of the record.
    Would(String),
}

#[derive(Default)]
struct Tally {
    rewrapped: usize,
    skipped: usize,
    failed: Vec<(VolumeId, String)>,
    planned: Vec<(VolumeId, String)>,
}

impl<'a> Sweep<'a> {
    /// Checks what is asked for against what is configured.
    ///
    /// # Errors
    /// A provider that is not configured, or cannot take over a key.
    pub fn plan(place: &'a Place, asked: Asked) -> Result<Self, Faults> {
        let (mut faults, by_name) = (Faults::default(), &place.providers.by_name);
        for (flag, name) in [("--from", &asked.from), ("--to", &asked.to)] {
            if let Some(name) = name
                && !by_name.contains_key(name)
            {
                let hint = did_you_mean(name, by_name.keys().map(String::as_str));
                faults.add(format!("{flag} {name}: no provider of this name is configured{hint}"));
            }
        }
        let is_cluster = |name: &Option<String>| {
            name.as_ref().is_some_and(|name| matches!(by_name.get(name), Some(Provider::Cluster(_))))
        };
        if is_cluster(&asked.to) {
            let to = asked.to.as_deref().unwrap_or_default();
            faults.add(format!(
                "--to {to}: it is a cluster key, which derives DEKs and cannot take over one that exists; name a \
                 provider that wraps"
            ));
        }
        if asked.to.is_none() && is_cluster(&asked.from) {
            let from = asked.from.as_deref().unwrap_or_default();
            faults.add(format!(
                "--from {from}: it is a cluster key, whose DEKs are derived and have no wrapping to renew; name with \
                 --to a provider that is to wrap them"
            ));
        }
        faults.or(Self { place, asked })
    }

    /// Rewraps, writes down what becomes of each record, and prints what came of it all. Once a line cannot be written,
    /// no further record is touched.
    ///
    /// # Errors
    /// The records cannot be read; or some are not rewrapped, and the others are.
    pub async fn run(&self, trail: &Trail, progress: &mut Progress, out: &mut impl Write) -> Result<(), RewrapFailure> {
        let records = self.selected(progress).await?;
        let wanted: BTreeSet<&str> = records.iter().map(|record| self.to(record)).collect();
        let currents = Currents::ask(self.place, |name| wanted.contains(name)).await;
        let verb = if self.asked.effect == Effect::DryRun { "would be rewrapped" } else { "rewrapped" };
        let (of, mut tally) = (records.len(), Tally::default());
        progress.begin(Some(of));
        let work = stream::iter(&records).map(|record| self.one(record, &currents, trail));
        let mut work = work.buffer_unordered(AT_ONCE);
        while let Some((volume_id, outcome)) = work.next().await {
            tally.note(volume_id, outcome);
            progress.at(tally.done(), || tally.told(of, verb));
        }
        progress.done();
        tally.planned.sort_unstable();
        tally.failed.sort_unstable();
        for (volume_id, what) in tally.planned.iter().chain(&tally.failed) {
            writeln!(out, "{volume_id}: {}", plain(what))?;
        }
        writeln!(out, "{}", tally.told(of, verb))?;
        let failed = tally.failed.len();
        if failed == 0 { Ok(()) } else { Err(RewrapFailure::Incomplete { failed, of }) }
    }

    async fn selected(&self, progress: &mut Progress) -> Result<Vec<Record>, RewrapFailure> {
        let store = self.place.store.as_ref();
        let Some(volume) = &self.asked.volume else {
            let mut records = all(store, progress).await?.records;
            records.retain(|record| self.selects(record));
            return Ok(records);
        };
        let stored = store.get(volume, Deadline::within(RECORD_TIME)).await?;
        let record = stored.ok_or_else(|| RewrapFailure::Missing(volume.clone()))?.record;
        if self.selects(&record) { Ok(vec![record]) } else { Err(RewrapFailure::NotSelected(record.volume_id)) }
    }

    fn selects(&self, record: &Record) -> bool {
        record.key.is_some() && self.asked.from.as_ref().is_none_or(|from| *from == record.provider)
    }

    fn to<'r>(&'r self, record: &'r Record) -> &'r str {
        self.asked.to.as_deref().unwrap_or(&record.provider)
    }

    async fn one<'r>(
        &self,
        listed: &'r Record,
        currents: &Currents,
        trail: &Trail,
    ) -> (&'r VolumeId, Result<Outcome, KeyFailure>) {
        let volume_id = &listed.volume_id;
        let outcome = match (self.decide(listed, currents), self.asked.effect) {
            (Ok(Decision::Skip), _) => Ok(Outcome::Skipped),
            (Ok(decision), Effect::DryRun) => Ok(Outcome::Would(self.foretell(listed, &decision, currents))),
            (Err(failure), Effect::DryRun) => Err(failure),
            (Err(failure), Effect::Real) => noted(trail, volume_id, failure),
            (Ok(_), Effect::Real) => match self.swap(volume_id, currents, trail).await {
                Err(failure) => noted(trail, volume_id, failure),
                outcome => outcome,
            },
        };
        (volume_id, outcome)
    }

    fn decide(&self, record: &Record, currents: &Currents) -> Result<Decision, KeyFailure> {
        if record.cluster_id != self.place.cluster_id {
            let source = RecordFault::OtherCluster(record.cluster_id);
            return Err(KeyFailure::Record { volume_id: record.volume_id.clone(), source });
        }
        if !self.selects(record) {
            return Ok(Decision::Skip);
        }
        if let Some((_, rule)) = policy::applying(&self.place.policies, &Claim::of(record))
            && let Some(wanted) = rule.provider.as_deref().filter(|wanted| rule.mandatory && *wanted != self.to(record))
        {
            return Err(KeyFailure::Forbidden(format!("a mandatory policy wants provider {wanted}")));
        }
        let Some(provider) = self.place.providers.by_name.get(&record.provider) else {
            let provider = &record.provider;
            return Err(KeyFailure::Invalid(format!("provider {provider}, which holds its KEK, is not configured")));
        };
        if self.to(record) != record.provider {
            return Ok(Decision::Rewrap);
        }
        if matches!((provider, &record.key), (Provider::Cluster(_), Some(StoredKey::Derived { .. }))) {
            return Ok(Decision::Skip);
        }
        Ok(match currents.standing(record) {
            Standing::Current => Decision::Skip,
            Standing::Older => Decision::Rewrap,
            Standing::NotKnown => Decision::Compare,
        })
    }

    fn foretell(&self, record: &Record, decision: &Decision, currents: &Currents) -> String {
        let (kek_id, to) = (KeyInfo::from(record).kek_id, self.to(record));
        let target = match (self.given(record), currents.of(to)) {
            (Given { key_id: Some(key_id), role: None }, _) => key_id.to_owned(),
            (Given { key_id: Some(key_id), role: Some(role) }, _) => format!("{key_id} in role {}", role.arn),
            (Given { key_id: None, role: Some(role) }, _) => format!("the KEK that role {} reaches", role.arn),
            (_, Some(Wraps::With(kek))) => kek.id.clone(),
            (_, Some(Wraps::ByScope(_))) => "the KEK of its scope".to_owned(),
            (_, Some(Wraps::Failed(failure))) => format!("a KEK that is not known now ({})", rpc::message(failure)),
            (_, None) => "its KEK".to_owned(),
        };
        let unless = if *decision == Decision::Compare { ", if it is another" } else { "" };
        format!("from {kek_id} of {} to {target} of {to}{unless}", record.provider)
    }

    /// With what the provider that is to hold a record's KEK wraps it: with what the class asked for of its own provider,
    /// else with what the policies give.
    fn given<'r>(&'r self, record: &'r Record) -> Given<'r> {
        let to = self.to(record);
        let given = policy::given(&self.place.policies, record, to);
        // The class had its way with its own provider's KEKs only.
        let of_class = record.key_id.as_deref().filter(|_| *to == record.provider);
        Given { key_id: of_class.or(given.key_id), ..given }
    }

    /// Rewraps one record, and swaps it while it is the one that was read.
    async fn swap(&self, volume_id: &VolumeId, currents: &Currents, trail: &Trail) -> Result<Outcome, KeyFailure> {
        trail.expect_whole()?;
        let (store, deadline) = (&self.place.store, Deadline::within(RECORD_TIME));
        let failed = |failure: StoreFailure| KeyFailure::Store { refusal: failure.refusal(), source: failure.into() };
        for _ in 0..SWAPS {
            let Some(stored) = store.get(volume_id, deadline).await.map_err(failed)? else {
                return Ok(Outcome::Skipped);
            };
            let record = stored.record;
            if self.decide(&record, currents)? == Decision::Skip {
                return Ok(Outcome::Skipped);
            }
            let to = self.to(&record).to_owned();
            let (key, dek) = self.place.providers.rewrap(&record, &to, self.given(&record), deadline).await?;
            let mut rewrapped = Record { provider: to, key: Some(key), ..record.clone() };
            if is_same_kek(&rewrapped, &record) {
                return Ok(Outcome::Skipped);
            }
            rewrapped.authenticate(&dek);
            drop(dek);
            match store.replace(&rewrapped, stored.version, deadline).await {
                Ok(()) => {
                    trail.note(volume_id, Ok(&KeyInfo::from(&rewrapped)))?;
                    return Ok(Outcome::Rewrapped);
                }
                Err(StoreFailure::Stale(_)) => {}
                Err(failure) => return Err(failed(failure)),
            }
        }
        Err(KeyFailure::Contended(volume_id.clone()))
    }
}

/// The failure, written down; unless it is that nothing can be.
fn noted(trail: &Trail, volume_id: &VolumeId, failure: KeyFailure) -> Result<Outcome, KeyFailure> {
    if !matches!(failure, KeyFailure::Audit(_)) {
        trail.note(volume_id, Err(&failure))?;
    }
    Err(failure)
}

fn is_same_kek(one: &Record, other: &Record) -> bool {
    let kek = |record: &Record| {
        let (mechanism, role) = match &record.key {
            None => (None, None),
            Some(key) => (key.kek_mechanism(), key.role().cloned()),
        };
        (record.provider.clone(), KeyInfo::from(record).kek_id, mechanism, role)
    };
    kek(one) == kek(other)
}

impl Tally {
    fn note(&mut self, volume_id: &VolumeId, outcome: Result<Outcome, KeyFailure>) {
        match outcome {
            Ok(Outcome::Skipped) => self.skipped += 1,
            Ok(Outcome::Rewrapped) => self.rewrapped += 1,
            Ok(Outcome::Would(how)) => self.planned.push((volume_id.clone(), how)),
            Err(failure) => self.failed.push((volume_id.clone(), rpc::message(&failure))),
        }
    }

    fn done(&self) -> usize {
        self.rewrapped + self.planned.len() + self.skipped + self.failed.len()
    }

    fn told(&self, of: usize, verb: &str) -> String {
        let (rewrapped, skipped) = (self.rewrapped + self.planned.len(), self.skipped);
        match self.failed.len() {
            0 => format!("{rewrapped} of {of} {verb}, {skipped} skipped"),
            failed => format!("{rewrapped} of {of} {verb}, {skipped} skipped, {failed} failed"),
        }
    }
}
