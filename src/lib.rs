//! wip
#[cfg(feature = "keyservice")]
pub mod admin;
pub mod config;
#[cfg(feature = "node")]
pub mod csi;
pub mod exec;
pub mod key;
pub mod keyservice;
#[cfg(feature = "node")]
pub mod node;
pub mod proto;
pub mod secret;
pub mod server;
pub mod telemetry;
pub mod volume;
