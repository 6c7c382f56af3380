//! wip
#[cfg(feature = "node")]
pub mod csi;
pub mod proto;
pub mod keyservice;
pub mod server;
pub mod exec;
pub mod key;
#[cfg(feature = "node")]
pub mod node;
pub mod secret;
pub mod volume;
