//! `coffer inventory`: volumes beside records beside headers. It tells what is missing, what is left over, and which keys
//! are under an old KEK or an old provider, each with what to do next; it changes nothing.
//!
//! Volumes are PersistentVolumes and LocalVolumes, where a cluster is asked, and the files of a pool on this machine. They
//! are read before the records are, and a record is there before anything of its volume is: so what is made meanwhile
//! lacks nothing. What could not be read is told, and then it does not end well.

#[cfg(feature = "kubernetes")]
pub mod cluster;
pub mod lists;

mod compare;
mod finding;
mod held;
#[cfg(feature = "node")]
mod pool;
#[cfg(not(feature = "node"))]
#[path = "absent.rs"]
mod pool;
mod told;

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::PathBuf,
};

use jiff::Timestamp;

use crate::{
    admin::{Place, answer::Print, keys::current::Currents, progress::Progress, records::all},
    key::store::{Listed, StoreFailure},
};

use lists::{Cluster, Lists};

/// Where volumes are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sought {
    /// What was read of a cluster, just before.
    pub cluster: Cluster,
    /// The folder of a pool of this machine.
    pub pool: Option<PathBuf>,
}

/// Why not all is well.
#[derive(Debug, thiserror::Error)]
pub enum InventoryFailure {
    /// The store failed.
    #[error("read the key records")]
    Store(#[from] StoreFailure),
    /// Something does not fit, or could not be looked at.
    #[error(
        "{findings} findings, and {unseen} things that could not be looked at: each is told with what to do or why"
    )]
    Found {
        /// How many findings there are, notes aside.
        findings: usize,
        /// How much could not be looked at and should have been.
        unseen: usize,
    },
    /// Standard output failed.
    #[error("write to standard output")]
    Output(#[from] io::Error),
}

/// Prints what does not fit, a line each, and how much there is of everything.
///
/// # Errors
/// The store fails, something was found that is more than a note, or something could not be read.
pub async fn inventory(
    place: &Place,
    sought: Sought,
    print: Print,
    progress: &mut Progress,
    out: &mut impl Write,
) -> Result<(), InventoryFailure> {
    let Sought { cluster, pool } = sought;
    let names = pool::list(pool.as_deref()).await;
    let Listed { records, refused } = all(place.store.as_ref(), progress).await?;
    let files = pool::look(place, names, &records, progress).await;
    let live = records.iter().filter(|record| record.key.is_some());
    let used: BTreeSet<&str> = live.map(|record| record.provider.as_str()).collect();
    let currents = Currents::ask(place, |name| used.contains(name)).await;
    let lists = Lists { cluster_id: place.cluster_id, records, refused, cluster, files };
    let mut found = compare::compare(&lists, Timestamp::now());
    held::held(place, &currents, &lists.records, &mut found);
    found.findings.sort_by(|a, b| (a.kind, &a.volume_id).cmp(&(b.kind, &b.volume_id)));
    told::tell(&lists, &found, print, out)?;
    let findings = found.findings.iter().filter(|finding| !finding.kind.is_note()).count();
    let unseen = found.unseen.iter().filter(|unseen| unseen.is_failure).count();
    if findings + unseen == 0 { Ok(()) } else { Err(InventoryFailure::Found { findings, unseen }) }
}
