//! `coffer keys status`: what each provider wraps with now, and how many records are under another KEK.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use futures::future::join_all;
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    admin::{
        Place,
        answer::{self, Print, plain},
        keys::{
            current::{Currents, Standing, Wraps},
            rotation,
        },
        progress::Progress,
        records::all,
    },
    key::{
        kms::{Rotation, settings::KeyScope},
        providers::Provider,
        record::Record,
        store::StoreFailure,
    },
    server::rpc,
};

/// Why no status is shown.
#[derive(Debug, thiserror::Error)]
pub enum StatusFailure {
    /// The store failed.
    #[error("read the key records")]
    Store(#[from] StoreFailure),
    /// Standard output failed.
    #[error("write to standard output")]
    Output(#[from] io::Error),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    providers: Vec<Row<'a>>,
    /// Records by the provider that they name and that is not there.
    not_configured: BTreeMap<&'a str, usize>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    type_name: &'static str,
    is_default: bool,
    /// None where the KMS could not be asked, or where each scope has its own.
    kek_id: Option<&'a str>,
    key_scope: &'static str,
    mechanism: Option<&'static str>,
    /// `on`, `off`, `by-hand` where there is no timer, or `unknown`.
    rotation: &'static str,
    /// The same for people.
    #[serde(skip)]
    rotation_told: String,
    /// How often the KMS rotates the KEK, where it says so.
    rotation_period_seconds: Option<u64>,
    /// When next, where it is known.
    next_rotation: Option<Timestamp>,
    failure: Option<String>,
    /// Records by state, without tombstones.
    records: BTreeMap<String, usize>,
    /// None where it is not known with which KEK the provider wraps now.
    rewrap_needed: Option<usize>,
}

/// Prints, for each provider, its KEK and what its records need. That a KMS cannot be asked is part of the answer.
///
/// # Errors
/// The store fails.
pub async fn status(
    place: &Place,
    print: Print,
    progress: &mut Progress,
    out: &mut impl Write,
) -> Result<(), StatusFailure> {
    let records = all(place.store.as_ref(), progress).await?.records;
    let currents = Currents::ask(place, |_| true).await;
    // Only of a KEK that can be used: anything else is told by its own failure.
    let asked = place.providers.by_name.iter().filter(|(name, _)| matches!(currents.of(name), Some(Wraps::With(_))));
    let asked = asked.map(|(name, provider)| async move { (name.as_str(), rotation::Standing::of(provider).await) });
    let rotations: BTreeMap<_, _> = join_all(asked).await.into_iter().collect();
    let status = of(place, &currents, &rotations, &records);
    match print {
        Print::Json => answer::json(&status, out)?,
        Print::Table => tell(&status, out)?,
    }
    Ok(())
}

fn of<'a>(
    place: &'a Place,
    currents: &'a Currents,
    rotations: &BTreeMap<&str, rotation::Standing>,
    records: &'a [Record],
) -> Status<'a> {
    let mut by_provider: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in records.iter().filter(|record| record.key.is_some()) {
        by_provider.entry(&record.provider).or_default().push(record);
    }
    let providers = place.providers.by_name.iter().map(|(name, provider)| {
        let records = by_provider.remove(name.as_str()).unwrap_or_default();
        let row = row(name, provider, *name == place.providers.default, currents, &records);
        match rotations.get(name.as_str()) {
            Some(standing) => row.rotated(standing),
            None => row,
        }
    });
    Status {
        providers: providers.collect(),
        not_configured: by_provider.into_iter().map(|(name, records)| (name, records.len())).collect(),
    }
}

fn row<'a>(
    name: &'a str,
    provider: &Provider,
    is_default: bool,
    currents: &'a Currents,
    records: &[&Record],
) -> Row<'a> {
    let mut row = Row {
        name,
        type_name: provider.type_name(),
        is_default,
        kek_id: None,
        key_scope: scope(KeyScope::Key),
        mechanism: None,
        rotation: "unknown",
        rotation_told: "unknown".to_owned(),
        rotation_period_seconds: None,
        next_rotation: None,
        failure: None,
        records: BTreeMap::new(),
        rewrap_needed: None,
    };
    match currents.of(name) {
        Some(Wraps::With(kek)) => {
            let older = records.iter().filter(|record| currents.standing(record) == Standing::Older);
            row.rewrap_needed = Some(older.count());
            row.kek_id = Some(kek.id.as_str());
            row.mechanism = Some(match provider {
                Provider::Cluster(_) => "derived",
                Provider::Kms(_) => kek.mechanism.as_str(),
            });
        }
        Some(Wraps::ByScope(by)) => row.key_scope = scope(*by),
        Some(Wraps::Failed(failure)) => row.failure = Some(rpc::message(failure)),
        None => {}
    }
    for record in records {
        *row.records.entry(record.state.to_string()).or_default() += 1;
    }
    row
}

impl Row<'_> {
    /// The same with how its KEK is rotated.
    fn rotated(self, standing: &rotation::Standing) -> Self {
        let (period, next) = match standing {
            rotation::Standing::Is(Rotation::On { period, next }) => (*period, *next),
            _ => (None, None),
        };
        Self {
            rotation: standing.word(),
            rotation_told: standing.told(),
            rotation_period_seconds: period.map(|period| period.as_secs()),
            next_rotation: next,
            ..self
        }
    }
}

fn tell(status: &Status<'_>, out: &mut impl Write) -> io::Result<()> {
    for row in &status.providers {
        writeln!(out, "{}{}", plain(row.name), if row.is_default { " (default)" } else { "" })?;
        writeln!(out, "  type           {}", row.type_name)?;
        match (row.kek_id, &row.failure) {
            (Some(kek_id), _) => writeln!(out, "  KEK            {}", plain(kek_id))?,
            (None, Some(failure)) => writeln!(out, "  not available  {}", plain(failure))?,
            (None, None) => writeln!(out, "  KEK            one for each {}", row.key_scope)?,
        }
        writeln!(out, "  mechanism      {}", row.mechanism.unwrap_or("unknown"))?;
        writeln!(out, "  rotation       {}", plain(&row.rotation_told))?;
        let records: Vec<_> = row.records.iter().map(|(state, count)| format!("{count} {state}")).collect();
        writeln!(out, "  records        {}", if records.is_empty() { "none".to_owned() } else { records.join(", ") })?;
        let needed = row.rewrap_needed.map_or("unknown".to_owned(), |count| count.to_string());
        writeln!(out, "  rewrap needed  {needed}")?;
    }
    for (name, count) in &status.not_configured {
        let name = plain(name);
        writeln!(out, "{count} records need provider {name}, which is not configured: their volumes do not open")?;
    }
    Ok(())
}

fn scope(scope: KeyScope) -> &'static str {
    match scope {
        KeyScope::Key => "key",
        KeyScope::Class => "class",
        KeyScope::Namespace => "namespace",
    }
}
