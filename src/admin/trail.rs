//! What a verb writes down of each record that it changes, or may not change: who did what is to be seen later, as it is
//! of what the key service does. Where the lines go, the program decides; no verb knows an audit log.

use std::{
    fmt, io,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    key::{
        kms::KmsFailure,
        service::{KeyFailure, KeyInfo},
    },
    volume::VolumeId,
};

/// Writes one line: what a volume's record is now, or why it stays as it is.
type Write = dyn Fn(&VolumeId, Result<&KeyInfo, &KeyFailure>) -> io::Result<()> + Send + Sync;

/// Where the lines of one verb go.
pub struct Trail {
    write: Box<Write>,
    is_broken: AtomicBool,
}

impl fmt::Debug for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trail").field("is_broken", &self.is_broken).finish_non_exhaustive()
    }
}

impl Trail {
    /// Gives each line to a function.
    #[must_use]
    pub fn to(
        write: impl Fn(&VolumeId, Result<&KeyInfo, &KeyFailure>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { write: Box::new(write), is_broken: AtomicBool::new(false) }
    }

    /// Refuses to go on where an earlier line could not be written: nothing more is changed that nobody would hear of.
    pub(crate) fn expect_whole(&self) -> Result<(), KeyFailure> {
        if self.is_broken.load(Ordering::Relaxed) {
            return Err(KeyFailure::Audit(io::Error::other("an earlier line could not be written")));
        }
        Ok(())
    }

    /// Writes a line.
    pub(crate) fn note(&self, volume_id: &VolumeId, outcome: Result<&KeyInfo, &KeyFailure>) -> Result<(), KeyFailure> {
        (self.write)(volume_id, outcome).map_err(|error| {
            self.is_broken.store(true, Ordering::Relaxed);
            KeyFailure::Audit(error)
        })
    }
}

/// Writes one line: the provider and its KEK, and what became of it.
type WriteKek = dyn Fn(&str, &str, Result<(), &KmsFailure>) -> io::Result<()> + Send + Sync;

/// Where the line of a verb goes that has a KMS do something with a KEK.
pub struct KekTrail(Box<WriteKek>);

impl fmt::Debug for KekTrail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KekTrail")
    }
}

impl KekTrail {
    /// Gives the line to a function: the provider, its KEK, and why nothing became of it.
    #[must_use]
    pub fn to(write: impl Fn(&str, &str, Result<(), &KmsFailure>) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Box::new(write))
    }

    /// Writes the line.
    pub(crate) fn note(&self, provider: &str, kek_id: &str, outcome: Result<(), &KmsFailure>) -> io::Result<()> {
        (self.0)(provider, kek_id, outcome)
    }
}
