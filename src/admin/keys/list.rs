//! `coffer keys list`: the KEKs that records name, whether a provider still has each, and the providers that nothing
//! needs.
//!
//! A KEK is had where it opens: one of its records is unwrapped, which asks for no permission that is not there anyway.
//! KEKs that no record names are not seen, because no KMS is asked for a list of its keys.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use futures::{StreamExt, stream};
use serde::Serialize;

use crate::{
    admin::{
        Place,
        answer::{self, Print, plain},
        progress::Progress,
        records::{AT_ONCE, RECORD_TIME, all, is_unknown},
    },
    exec::Deadline,
    key::{
        envelope::Kept, kms::settings::KeyScope, providers::Provider, record::Record, service::KeyInfo,
        store::StoreFailure,
    },
    server::rpc,
};

/// Which KEKs are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Every one that a record names.
    Named,
    /// Those that records name and no provider has.
    Orphans,
}

impl Which {
    /// What `--orphans`, or its absence, asks for.
    #[must_use]
    pub fn of(orphans: bool) -> Self {
        if orphans { Self::Orphans } else { Self::Named }
    }
}

/// Why KEKs are not listed.
#[derive(Debug, thiserror::Error)]
pub enum ListFailure {
    /// The store failed.
    #[error("read the key records")]
    Store(#[from] StoreFailure),
    /// Standard output failed.
    #[error("write to standard output")]
    Output(#[from] io::Error),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Finding {
    Opens,
    ProviderMissing,
    DoesNotOpen,
    NotChecked,
}

impl Finding {
    fn told(self) -> &'static str {
        match self {
            Self::Opens => "opens",
            Self::ProviderMissing => "provider missing",
            Self::DoesNotOpen => "does not open",
            Self::NotChecked => "not checked",
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    keks: Vec<Row>,
    /// Providers that no record needs.
    unused_providers: Vec<&'a str>,
    scopes_without_records: Vec<Scopes<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    provider: String,
    kek_id: String,
    records: usize,
    finding: Finding,
    why: Option<String>,
}

/// Of a provider with a KEK for each scope: the scopes all of whose volumes are destroyed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Scopes<'a> {
    provider: &'a str,
    alias_prefix: String,
    scopes: BTreeSet<&'a str>,
}

/// So many records of one KEK are tried before it counts as lost: a single one may be what is broken.
const SAMPLES: usize = 3;

/// Prints KEKs by the records that name them, and what of the configuration nothing needs.
///
/// # Errors
/// The store fails.
pub async fn list(
    place: &Place,
    which: Which,
    print: Print,
    progress: &mut Progress,
    out: &mut impl Write,
) -> Result<(), ListFailure> {
    let records = all(place.store.as_ref(), progress).await?.records;
    let mut by_kek: BTreeMap<(String, String), Vec<&Record>> = BTreeMap::new();
    for record in records.iter().filter(|record| record.key.is_some()) {
        by_kek.entry((record.provider.clone(), KeyInfo::from(record).kek_id)).or_default().push(record);
    }
    let of = by_kek.len();
    let mut keks = Vec::with_capacity(of);
    progress.begin(Some(of));
    let tried = by_kek.into_iter().map(|((provider, kek_id), records)| row(place, provider, kek_id, records));
    let mut tried = stream::iter(tried).buffered(AT_ONCE);
    while let Some(row) = tried.next().await {
        keks.push(row);
        progress.at(keks.len(), || format!("{} of {of} KEKs tried", keks.len()));
    }
    progress.done();
    let used: BTreeSet<&str> = keks.iter().map(|row| row.provider.as_str()).collect();
    let configured = place.providers.by_name.keys().map(String::as_str);
    let unused_providers = configured.filter(|name| !used.contains(name)).collect();
    keks.retain(|row| which == Which::Named || row.finding != Finding::Opens);
    let listed = Listed { keks, unused_providers, scopes_without_records: scopes(place, &records) };
    match print {
        Print::Json => answer::json(&listed, out)?,
        Print::Table => tell(place, &listed, out)?,
    }
    Ok(())
}

async fn row(place: &Place, provider: String, kek_id: String, records: Vec<&Record>) -> Row {
    let (finding, why) = if place.providers.by_name.contains_key(&provider) {
        try_to_open(place, &records).await
    } else {
        (Finding::ProviderMissing, Some(format!("provider {provider} is not configured")))
    };
    Row { provider, kek_id, records: records.len(), finding, why }
}

async fn try_to_open(place: &Place, records: &[&Record]) -> (Finding, Option<String>) {
    let mut found = (Finding::NotChecked, None);
    for record in records.iter().take(SAMPLES) {
        match place.providers.open(record, Kept::New, Deadline::within(RECORD_TIME)).await {
            Ok(_) => return (Finding::Opens, None),
            Err(failure) => {
                let finding = if is_unknown(&failure) { Finding::NotChecked } else { Finding::DoesNotOpen };
                found = (finding, Some(rpc::message(&failure)));
            }
        }
    }
    found
}

fn scopes<'a>(place: &'a Place, records: &'a [Record]) -> Vec<Scopes<'a>> {
    let scoped = place.providers.by_name.iter().filter_map(|(provider, holder)| match holder {
        Provider::Kms(kms) => Some((provider.as_str(), kms)),
        Provider::Cluster(_) => None,
    });
    let found = scoped.map(|(provider, kms)| {
        let scope = |record: &'a Record| match kms.scope {
            KeyScope::Key => None,
            KeyScope::Class => record.storage_class.as_deref(),
            KeyScope::Namespace => record.tenant.as_deref(),
        };
        let own = || records.iter().filter(move |record| record.provider == provider);
        let live: BTreeSet<&str> = own().filter(|record| record.key.is_some()).filter_map(scope).collect();
        let scopes = own().filter_map(scope).filter(|scope| !live.contains(scope)).collect();
        let alias_prefix = format!("alias/{}-{}-", kms.key_prefix, place.cluster_id);
        Scopes { provider, alias_prefix, scopes }
    });
    found.filter(|found| !found.scopes.is_empty()).collect()
}

fn tell(place: &Place, listed: &Listed<'_>, out: &mut impl Write) -> io::Result<()> {
    let cells = |row: &Row| {
        let (records, why) = (row.records.to_string(), row.why.clone().unwrap_or_default());
        [row.provider.clone(), row.kek_id.clone(), records, row.finding.told().to_owned(), why]
    };
    let rows: Vec<_> = listed.keks.iter().map(cells).collect();
    answer::table(["PROVIDER", "KEK", "RECORDS", "FINDING", "WHY"], &rows, out)?;
    for name in &listed.unused_providers {
        let default = if *name == place.providers.default { "; new volumes get it" } else { "" };
        writeln!(out, "provider {}: no record needs it{default}", plain(name))?;
    }
    for Scopes { provider, alias_prefix, scopes } in &listed.scopes_without_records {
        let scopes: Vec<_> = scopes.iter().map(|scope| plain(scope)).collect();
        writeln!(
            out,
            "provider {}: every volume of these is destroyed, and their KEKs ({}…) may be left: {}",
            plain(provider),
            plain(alias_prefix),
            scopes.join(", ")
        )?;
    }
    writeln!(
        out,
        "KEKs that no record names are not seen here: look for them in the KMS (AWS: by the tag coffer-alias)."
    )
}
