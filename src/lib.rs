//! wip
pub mod proto;
pub mod exec;
pub mod key;
pub mod secret;
pub mod volume;
