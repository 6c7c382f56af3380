//! Targets of fuzzing: one function for each reader of foreign bytes, with what must hold for any bytes at all.
//!
//! A target panics where a reader breaks its promise, and says whether the bytes were accepted, so that a driver can see
//! that the good ones are. Two drivers run the same targets: `tests/fuzzing.rs`, a test with a stable toolchain, and
//! libFuzzer by `tests/fuzz`. Their corpus is `tests/fuzz/corpus`, a folder for each target. No target touches more of
//! the machine than a temporary file.

mod config;
mod csi;
mod header;
mod keys;
mod keyservice;

use std::{fs, sync::LazyLock};

use tempfile::NamedTempFile;
use tokio::runtime::{Builder, Runtime};

pub use config::{arguments, configuration};
pub use csi::{controller, identity, node};
pub use header::{header, mark};
pub use keys::{keyfile, record};
pub use keyservice::{certificate, keyservice, reply};

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("a runtime can be made"));

fn wait<F: Future>(future: F) -> F::Output {
    RUNTIME.block_on(future)
}

/// An input as a file that only its owner can read, for readers that read files.
fn file(bytes: &[u8]) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a temporary file can be made");
    fs::write(file.path(), bytes).expect("a temporary file can be written");
    file
}
