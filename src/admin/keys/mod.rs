//! `coffer keys …`, one file a verb, and how records stand to the KEKs that wrap now.

#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod list;
pub mod rotation;
pub mod status;

#[cfg(feature = "kubernetes")]
mod certificates;
pub(crate) mod current;
mod init;

pub use init::{init, lost};
