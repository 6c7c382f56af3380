//! `coffer keys init`

use std::{fs, io::Write, os::unix::fs::DirBuilderExt};

use crate::{
    admin::StateDir,
    config::Faults,
    key::{cluster::ClusterKeys, store::filesystem::Filesystem},
};

/// Makes a cluster key where there is none and no record needs one.
///
/// # Errors
/// There is a key, there are records whose key is gone, or the folder cannot be written.
pub fn init(state_dir: &StateDir, out: &mut impl Write) -> Result<(), Faults> {
    let key = state_dir.cluster_key();
    let fault = |what: String| Faults::one(what);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir.path())
        .and_then(|()| state_dir.path().parent().map_or(Ok(()), |parent| fs::File::open(parent)?.sync_all()))
        .map_err(|error| fault(format!("{}: {error}", state_dir.path().display())))?;
    let records = Filesystem::holds_records(&state_dir.records()).map_err(|error| fault(error.to_string()))?;
    if records && !key.exists() {
        return Err(lost(state_dir));
    }
    let keys = ClusterKeys::generate();
    keys.save_new(&key).map_err(|error| fault(format!("{}: {error}", key.display())))?;
    let told = writeln!(
        out,
        "cluster key made: {}\ncluster id: {}\nBack this file up where volumes' disks are not: without it no volume \
         can be opened.",
        key.display(),
        keys.cluster_id()
    );
    told.map_err(|error| fault(format!("standard output: {error}")))
}

/// What there is to say when there are records and no key to open them with.
#[must_use]
pub fn lost(state_dir: &StateDir) -> Faults {
    Faults::one(format!(
        "{}: the cluster key is gone, and {} holds records that need it. Restore the file from its backup; a new key \
         would open none of the volumes, so none is made",
        state_dir.cluster_key().display(),
        state_dir.records().display()
    ))
}
