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
        answer::plain,
        progress::Progress,
        records::{all, file},
    },
    key::{
        record::Record,
        store::{Listed, StoreFailure},
    },
    server::rpc,
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
    /// Some objects that lie among the records are none. The export is there, without them.
    #[error("{count} objects that lie where records should are none, and are not in the export")]
    Refused {
        /// How many.
        count: usize,
    },
    /// Standard output failed.
    #[error("write to standard output")]
    Output(#[from] io::Error),
}

/// Writes every record of the cluster, tombstones among them, to a new file (mode 0600), or to `out` where `to` is `-`.
/// Records that change meanwhile are there as they were before or after. What lies among them and is none is told: on
/// `out`, unless that is the file, and in the log.
///
/// # Errors
/// The store fails, the file exists, or it cannot be written: then there is none. Or something among the records is none:
/// then the export is there with all others.
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
    let Listed { records, refused } = all(place.store.as_ref(), progress).await?;
    let (records, foreign): (Vec<Record>, Vec<Record>) =
        records.into_iter().partition(|record| record.cluster_id == place.cluster_id);
    for record in foreign {
        let (volume_id, cluster_id) = (record.volume_id, record.cluster_id);
        tracing::warn!(%volume_id, %cluster_id, "left out: the record belongs to another cluster");
    }
    let bytes = file::to_bytes(place.cluster_id, &records);
    if to_output {
        out.write_all(&bytes)?;
        out.flush()?;
    } else {
        write_new(to, &bytes)?;
        for refused in &refused {
            writeln!(out, "{}", plain(&rpc::message(refused)))?;
        }
        writeln!(
            out,
            "{} records of cluster {} exported to {}. They are still wrapped: keep the KEKs as well",
            records.len(),
            place.cluster_id,
            to.display()
        )?;
    }
    if refused.is_empty() { Ok(()) } else { Err(ExportFailure::Refused { count: refused.len() }) }
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
