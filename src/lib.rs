//! wip
pub mod proto;
pub mod exec;
pub mod key;
#[cfg(feature = "node")]
pub mod node;
pub mod secret;
pub mod volume;
