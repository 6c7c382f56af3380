//! Files that hold keys: read only where nobody else can read them, and made whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use uuid::Uuid;
use zeroize::Zeroizing;

/// Why a key file is not read.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileFault {
    /// It cannot be read or written.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// Others can read or change it.
    #[error(
        "its mode is {mode:o}: others can read it, or its group can change it; chmod 600 it (640 where a group reads it)"
    )]
    Open {
        /// The permission bits.
        mode: u32,
    },
}

/// Others may neither read nor write, and a group may not write: Kubernetes gives a pod's group its Secrets to read.
const FORBIDDEN: u32 = 0o027;

/// Reads a key file into memory that is wiped.
///
/// # Errors
/// It cannot be read, or others can.
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyFileFault> {
    let mode = fs::metadata(path).map_err(KeyFileFault::Io)?.permissions().mode() & 0o7777;
    if mode & FORBIDDEN != 0 {
        return Err(KeyFileFault::Open { mode });
    }
    Ok(Zeroizing::new(fs::read(path).map_err(KeyFileFault::Io)?))
}

/// Makes a key file (mode 0600) where there is none. When it returns, the file survives a power cut.
///
/// # Errors
/// There is a file ([`io::ErrorKind::AlreadyExists`]), or it cannot be written: then there is none.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let unfinished = folder.join(format!(".unfinished-{}", Uuid::new_v4()));
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        // A link never replaces what is there.
        fs::hard_link(&unfinished, path)
    };
    let written = write();
    // Gone, or never made: either way it is not there.
    let _ = fs::remove_file(&unfinished);
    written?;
    File::open(folder)?.sync_all()
}
