//! Google's services: Cloud KMS and Cloud Storage imitated by ourselves, because no emulator does what a KEK or a list of
//! records needs, and fake-gcs-server for the part of Cloud Storage that it does.

mod accounts;
mod emulator;
mod kms;
mod storage;

pub use emulator::FakeGcsServer;
pub use kms::CloudKms;
pub use storage::CloudStorage;
