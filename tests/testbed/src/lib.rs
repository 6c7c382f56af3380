//! What Coffer's tests, demonstration and benchmarks stand on: a Linux kernel with device-mapper, a running
//! `coffer dev` on it, and a CSI client.

pub mod cloud;
pub mod conformance;
pub mod csi;
pub mod dm;
pub mod driver;
pub mod figures;
pub mod fuzz;
pub mod guest;
pub mod keyservice;
pub mod kube;
pub mod pause;
pub mod search;
pub mod tap;

/// The workspace's folder.
#[must_use]
pub fn project() -> std::path::PathBuf {
    let testbed = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    testbed.ancestors().nth(2).expect("the testbed is two folders below the project").to_owned()
}
