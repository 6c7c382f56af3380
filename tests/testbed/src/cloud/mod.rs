//! External KMS and object stores for tests: real servers and emulators that are started here, and fakes of our own
//! where nothing else can be had. A fake uses real cryptography, checks tokens and preconditions, and refuses what the
//! service refuses; it is never part of the program.

pub mod aws;
pub mod azure;
pub mod google;
pub mod kes;
pub mod plan;
pub mod server;
pub mod transit;
pub mod weather;

use anyhow::Result;
use serde_json::Value;
use tonic::async_trait;

pub use weather::{Forecast, Weather};

/// What stands in for a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The product itself.
    RealServer,
    /// Somebody else's imitation.
    Emulator,
    /// Our imitation.
    OurFake,
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::RealServer => "real server",
            Self::Emulator => "emulator",
            Self::OurFake => "our fake",
        })
    }
}

/// Which configuration of a provider a test wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Everything is right.
    Good,
    /// An RSA KEK, where the provider has any.
    Rsa,
    /// There is no such KEK.
    MissingKek,
    /// The KEK is made for something else (signing, say).
    WrongType,
    /// The identity may do nothing with the KEK.
    NoPermission,
    /// The KEK is in another region.
    WrongRegion,
    /// The server does not take the credentials.
    BadCredentials,
}

/// A KMS that a provider is tried on. One bed is one server with a KEK of its own; it ends when it is dropped.
#[async_trait]
pub trait KmsBed: Send + Sync {
    /// The provider's type in the configuration, such as `transit`.
    fn provider(&self) -> &'static str;
    /// What the server is, with its version, such as `OpenBao 2.7.2`.
    fn server(&self) -> String;
    /// What it stands for.
    fn standing(&self) -> Standing;
    /// The provider's configuration, as it stands under `providers.<name>`; none where the service has no such thing.
    ///
    /// # Errors
    /// The server does not do what was needed for it.
    async fn config(&self, variant: Variant) -> Result<Option<Value>>;
    /// The good configuration of somebody who may also have the KMS rotate the KEK by itself, which whoever uses it may
    /// not; none where this server cannot, or lets everybody.
    ///
    /// # Errors
    /// The server does not do what was needed for it.
    async fn keeper(&self) -> Result<Option<Value>> {
        Ok(None)
    }
    /// What happens to the next requests.
    fn forecast(&self) -> &Forecast;
    /// Gives the KEK a new version; false where this server cannot.
    ///
    /// # Errors
    /// The server refuses.
    async fn rotate(&self) -> Result<bool>;
    /// Moves the alias that the good configuration names to another KEK; false where the service has no aliases.
    ///
    /// # Errors
    /// The server refuses.
    async fn move_alias(&self) -> Result<bool> {
        Ok(false)
    }
    /// Switches the KEK off or on; false where this server cannot.
    ///
    /// # Errors
    /// The server refuses.
    async fn enable(&self, enabled: bool) -> Result<bool>;
    /// Ends the server, and starts it again at the same address with the same KEK; false where this one forgets.
    ///
    /// # Errors
    /// It does not end or start.
    async fn outage(&self, begins: bool) -> Result<bool>;
}

/// Which configuration of a store a test wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreVariant {
    /// A bucket that is there.
    Good,
    /// A bucket that is missing, and `createIfMissing` off.
    MissingBucket,
    /// A bucket that is missing, and `createIfMissing` on.
    CreateIfMissing,
    /// Credentials that the server does not take, or that may not.
    NoPermission,
}

/// An object store that records are kept in. One bed is one server; it ends when it is dropped.
#[async_trait]
pub trait StoreBed: Send + Sync {
    /// The store's type in the configuration, such as `s3`.
    fn store(&self) -> &'static str;
    /// What the server is, with its version.
    fn server(&self) -> String;
    /// What it stands for.
    fn standing(&self) -> Standing;
    /// The store's configuration, as it stands under `store`, in a bucket of its own at each call; none where this
    /// server does not know such a thing (an emulator that lets everybody in).
    ///
    /// # Errors
    /// The server does not do what was needed for it.
    async fn config(&self, variant: StoreVariant) -> Result<Option<Value>>;
    /// What happens to the next requests.
    fn forecast(&self) -> &Forecast;
    /// Puts bytes in place of an object, without any condition, as a stranger would. `config` is one that was given by
    /// [`StoreBed::config`], `name` the object's whole name.
    ///
    /// # Errors
    /// The server refuses.
    async fn overwrite(&self, config: &Value, name: &str, bytes: Vec<u8>) -> Result<()>;
}
