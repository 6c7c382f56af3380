//! Keys: where a DEK comes from, how it is wrapped, and the record that says all of it. Knows no gRPC, no Kubernetes
//! and no devices.
//!
//! `service` is the joint that the rest of the program sees. `embedded` is the key service itself: it derives a DEK
//! (`derive`) or wraps one (`envelope`) under the KEK that a `kms` holds, binds it to its volume (`binding`), and
//! keeps the `record` in a `store`.

pub mod binding;
pub mod derive;
pub mod record;
pub mod service;

#[cfg(feature = "keyservice")]
pub mod access;
#[cfg(feature = "keyservice")]
pub mod calls;
#[cfg(feature = "keyservice")]
pub mod cluster;
#[cfg(feature = "keyservice")]
pub mod embedded;
#[cfg(feature = "keyservice")]
pub mod envelope;
#[cfg(feature = "keyservice")]
pub mod keyfile;
#[cfg(feature = "keyservice")]
pub mod kms;
#[cfg(feature = "keyservice")]
pub mod policy;
#[cfg(feature = "keyservice")]
pub mod providers;
#[cfg(feature = "keyservice")]
pub mod reread;
#[cfg(feature = "keyservice")]
pub mod roles;
#[cfg(feature = "keyservice")]
pub mod store;
