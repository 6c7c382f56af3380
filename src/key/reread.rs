//! What is made of files, and made again when they change: credentials, certificates, tokens.
//!
//! Kubernetes swaps a Secret's files by a link, so what lies behind each name is looked at (a stat(2) a file a use).
//! Files that cannot be read or make no sense leave in use what was there before, with a warning.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use zeroize::Zeroizing;

use crate::key::access::SettingsFault;

type Build<T> = Box<dyn Fn() -> Result<T, SettingsFault> + Send + Sync>;
type Stamp = Option<(u64, u64, i64, i64, u64)>;

/// A value that is made of files.
pub struct Reread<T> {
    files: Vec<PathBuf>,
    build: Build<T>,
    current: Mutex<(Vec<Stamp>, Arc<T>)>,
}

impl<T> fmt::Debug for Reread<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reread").field("files", &self.files).finish_non_exhaustive()
    }
}

impl<T> Reread<T> {
    /// A value made by `build`, which reads these files.
    ///
    /// # Errors
    /// `build` fails.
    pub fn new(
        files: Vec<PathBuf>,
        build: impl Fn() -> Result<T, SettingsFault> + Send + Sync + 'static,
    ) -> Result<Self, SettingsFault> {
        let stamps = stamps(&files);
        let current = Mutex::new((stamps, Arc::new(build()?)));
        Ok(Self { files, build: Box::new(build), current })
    }

    /// The value, made again if a file has changed.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.files);
        if current.0 != stamps {
            match (self.build)() {
                Ok(new) => {
                    tracing::info!(files = ?self.files, "read again");
                    current.1 = Arc::new(new);
                }
                Err(error) => tracing::warn!(%error, "what the files hold now is refused; the old stays in use"),
            }
            // What was refused is looked at again when it has changed again.
            current.0 = stamps;
        }
        current.1.clone()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size()))
    };
    files.iter().map(stamp).collect()
}

/// A secret text in a file, without the white space around it, in memory that is wiped.
///
/// # Errors
/// The file cannot be read, is empty, or is no UTF-8.
pub fn secret_text(path: &Path) -> Result<Zeroizing<String>, SettingsFault> {
    let fault = |what: &dyn fmt::Display| SettingsFault(format!("{}: {what}", path.display()));
    let bytes = Zeroizing::new(fs::read(path).map_err(|error| fault(&error))?);
    let text = std::str::from_utf8(&bytes).map_err(|_| fault(&"it is no text (UTF-8)"))?.trim();
    if text.is_empty() { Err(fault(&"it is empty")) } else { Ok(Zeroizing::new(text.to_owned())) }
}

/// The bytes of a file.
///
/// # Errors
/// It cannot be read.
pub fn bytes(path: &Path) -> Result<Vec<u8>, SettingsFault> {
    fs::read(path).map_err(|error: io::Error| SettingsFault(format!("{}: {error}", path.display())))
}
