//! `coffer keys …`, one file a verb, and how records stand to the KEKs that wrap now.

pub mod list;
pub mod status;

pub(crate) mod current;
mod init;

pub use init::{init, lost};
