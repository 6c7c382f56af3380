//! The operator's verbs, one file each. They print to standard output.

pub mod answer;
pub mod audit;
pub mod config;
pub mod inventory;
pub mod keys;
pub mod place;
pub mod policy;
pub mod progress;
pub mod records;
pub mod rewrap;
pub mod trail;
#[cfg(feature = "controller")]
pub mod volumes;

use std::path::{Path, PathBuf};

pub use place::Place;
pub use trail::{KekTrail, Trail};

/// Where things lie in a state folder.
#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// A state folder.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The cluster key.
    #[must_use]
    pub fn cluster_key(&self) -> PathBuf {
        self.0.join("cluster-key.json")
    }

    /// One file a record.
    #[must_use]
    pub fn records(&self) -> PathBuf {
        self.0.join("records")
    }

    /// One file a volume.
    #[must_use]
    pub fn volumes(&self) -> PathBuf {
        self.0.join("volumes")
    }

    /// The socket on which CSI is served.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.0.join("csi.sock")
    }

    /// The file whose lock says that a driver runs on this folder.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }
}
