//! Coffer: a Kubernetes CSI driver for volumes that only their owner can read.
//!
//! A node that stages a volume asks the key service for that volume's data encryption key (DEK), opens the LUKS2
//! volume with it, and mounts it. The map, from the edge inwards; imports run down only:
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`], [`telemetry`], [`server`] | what every role needs before it serves |
//! | `admin` | the operator's verbs |
//! | `csi` | the CSI protocol at the edge: requests become types, failures become codes |
//! | [`keyservice`] | the key service over the wire, who may have what, and the audit log |
//! | `kubernetes` | the API server: custom resources, and the local volumes of a whole cluster |
//! | `node` | the work on a node: devices, LUKS headers, mappings, file systems, mounts |
//! | [`key`] | keys: derivation, envelope, records, stores, and the joint to all of it |
//! | [`exec`], [`step`], [`volume`], [`secret`], [`proto`] | programs, named steps, plain types, keys in memory, generated messages |
//!
//! Invariants, each with a test: a volume is formatted only while its record says that no user has written to it; only
//! a header that was authenticated is opened, and it is the checked copy that is opened; a key is stored before it is
//! used; a refusal changes nothing; no DEK is in an argument, an environment, a file, a log line or an error.

#[cfg(feature = "keyservice")]
pub mod admin;
#[cfg(feature = "keyservice")]
pub mod chain;
pub mod config;
#[cfg(feature = "node")]
pub mod csi;
pub mod exec;
pub mod key;
pub mod keyservice;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
#[cfg(feature = "node")]
pub mod node;
pub mod proto;
pub mod secret;
pub mod server;
#[cfg(feature = "node")]
pub mod step;
pub mod telemetry;
pub mod volume;
