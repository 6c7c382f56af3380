//! The key service over the wire: gRPC on a unix socket (peer credentials) or over TLS (client certificates, or tokens of
//! a Kubernetes cluster), who may have what, and a line of audit for each key that was made, released, refused or
//! destroyed.

pub mod client;
pub mod hpke;
pub mod token;
pub mod wire;

#[cfg(feature = "keyservice")]
pub mod audit;
#[cfg(feature = "keyservice")]
pub mod auth;
#[cfg(feature = "keyservice")]
pub mod bearer;
#[cfg(all(feature = "keyservice", feature = "kubernetes"))]
pub mod kubernetes;
#[cfg(all(feature = "keyservice", not(feature = "kubernetes")))]
#[path = "kubernetes/absent.rs"]
pub mod kubernetes;
#[cfg(feature = "keyservice")]
pub mod limit;
#[cfg(feature = "keyservice")]
pub mod server;
