//! What Coffer's tests, demonstration and benchmarks stand on: a Linux kernel with device-mapper, a running
//! `coffer dev` on it, and a CSI client.

pub mod csi;
pub mod driver;
pub mod guest;
pub mod keyservice;
pub mod pause;

/// The workspace's folder.
#[must_use]
pub fn project() -> std::path::PathBuf {
    let testbed = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    testbed.ancestors().nth(2).expect("the testbed is two folders below the project").to_owned()
}
