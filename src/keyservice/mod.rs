//! The key service over the wire: gRPC on a unix socket (peer credentials) or over TLS (client certificates), who may
//! have what, and a line of audit for each key that was made, released, refused or destroyed.

pub mod client;
pub mod hpke;
pub mod wire;

#[cfg(feature = "keyservice")]
pub mod audit;
#[cfg(feature = "keyservice")]
pub mod auth;
#[cfg(feature = "keyservice")]
pub mod server;
