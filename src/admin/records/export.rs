//! `coffer records export`: every record, still wrapped, in one file (`file.rs`). Whoever has it and not the KEKs can
//! open nothing.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::{
    admin::{
        Place,
        progress::Progress,
        records::{all, file},
    },
    key::{record::Record, store::StoreFailure},
};

/// Why there is no export.
#[derive(Debug, thiserror::Error)]
pub enum ExportFailure {
    /// The store failed.
    #[error("read the key records")]
    Store(#[from] StoreFailure),
    /// There is a file, and it is never overwritten.
    #[error("{0} exists and is never overwritten; name another file")]
    Exists(PathBuf),
    /// The file cannot be written.
    #[error("{step} {path}")]
    File {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Standard output failed.
    #[error("write to standard output")]
    Output(#[from] io::Error),
}

/// Writes every record of the cluster, tombstones among them, to a new file (mode 0600), or to `out` where `to` is `-`.
/// Records that change meanwhile are there as they were before or after.
///
/// # Errors
/// The store fails, the file exists, or it cannot be written: then there is none.
pub async fn export(
    place: &Place,
    to: &Path,
    progress: &mut Progress,
    out: &mut impl Write,
) -> Result<(), ExportFailure> {
    let to_output = to == Path::new("-");
    if !to_output && fs::symlink_metadata(to).is_ok() {
        return Err(ExportFailure::Exists(to.to_owned()));
    }
    let read = all(place.store.as_ref(), progress).await?.into_iter();
    let (records, foreign): (Vec<Record>, Vec<Record>) = read.partition(|record| record.cluster_id == place.cluster_id);
    for record in foreign {
        let (volume_id, cluster_id) = (record.volume_id, record.cluster_id);
        tracing::warn!(%volume_id, %cluster_id, "left out: the record belongs to another cluster");
    }
    let bytes = file::to_bytes(place.cluster_id, &records);
    if to_output {
        out.write_all(&bytes)?;
        return Ok(out.flush()?);
    }
    write_new(to, &bytes)?;
    Ok(writeln!(
        out,
        "{} records of cluster {} exported to {}. They are still wrapped: keep the KEKs as well",
        records.len(),
        place.cluster_id,
        to.display()
    )?)
}

/// When it returns, the file survives a power cut. One that is torn by a cut before is known by its missing checksum.
fn write_new(path: &Path, bytes: &[u8]) -> Result<(), ExportFailure> {
    let failed = |step: &'static str, source| ExportFailure::File { step, path: path.to_owned(), source };
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = opened.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => ExportFailure::Exists(path.to_owned()),
        _ => failed("create", error),
    })?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|error| {
        // Half an export is of no use; should it stay, it is refused.
        let _ = fs::remove_file(path);
        failed("write", error)
    })?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| failed("flush the folder of", error))
}
