//! The servers that there are to try on.

use std::{path::Path, sync::Arc};

use anyhow::Result;
use testbed::cloud::{
    KmsBed, StoreBed,
    aws::{MiniStackKms, MotoKms, MotoS3, Versity},
    azure::{Azurite, KeyVault, ManagedHsm},
    google::{CloudKms, CloudStorage, FakeGcsServer},
    kes::KesServer,
    transit::OpenBao,
};

/// A server of a KMS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KmsServer {
    OpenBao,
    Moto,
    /// It takes changed ciphertexts, and is there for the states of keys, which moto does not know.
    MiniStack,
    KeyVault,
    ManagedHsm,
    CloudKms,
    Kes,
}

impl KmsServer {
    /// Those on which everything is tried.
    pub(crate) const WHOLE: [Self; 6] =
        [Self::OpenBao, Self::Moto, Self::KeyVault, Self::ManagedHsm, Self::CloudKms, Self::Kes];

    /// How tests are named after it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OpenBao => "transit_on_openbao",
            Self::Moto => "aws_kms_on_moto",
            Self::MiniStack => "aws_kms_on_ministack",
            Self::KeyVault => "azure_key_vault",
            Self::ManagedHsm => "azure_managed_hsm",
            Self::CloudKms => "gcp_kms",
            Self::Kes => "kes",
        }
    }

    pub(crate) async fn start(self, folder: &Path) -> Result<Arc<dyn KmsBed>> {
        Ok(match self {
            Self::OpenBao => Arc::new(OpenBao::start(folder).await?),
            Self::Moto => Arc::new(MotoKms::start(folder).await?),
            Self::MiniStack => Arc::new(MiniStackKms::start(folder).await?),
            Self::KeyVault => Arc::new(KeyVault::start(folder).await?),
            Self::ManagedHsm => Arc::new(ManagedHsm::start(folder).await?),
            Self::CloudKms => Arc::new(CloudKms::start(folder).await?),
            Self::Kes => Arc::new(KesServer::start(folder).await?),
        })
    }
}

/// A server of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreServer {
    Versity,
    Moto,
    CloudStorage,
    Azurite,
    /// It knows no lists, so not every test is for it.
    FakeGcs,
}

impl StoreServer {
    /// Those that know all that a store needs.
    pub(crate) const ALL: [Self; 4] = [Self::Versity, Self::Moto, Self::CloudStorage, Self::Azurite];

    /// How tests are named after it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Versity => "s3_on_versitygw",
            Self::Moto => "s3_on_moto",
            Self::CloudStorage => "gcs",
            Self::Azurite => "azure_blob_on_azurite",
            Self::FakeGcs => "gcs_on_fake_gcs_server",
        }
    }

    pub(crate) async fn start(self, folder: &Path) -> Result<Arc<dyn StoreBed>> {
        Ok(match self {
            Self::Versity => Arc::new(Versity::start(folder).await?),
            Self::Moto => Arc::new(MotoS3::start(folder).await?),
            Self::CloudStorage => Arc::new(CloudStorage::start(folder).await?),
            Self::Azurite => Arc::new(Azurite::start(folder).await?),
            Self::FakeGcs => Arc::new(FakeGcsServer::start(folder).await?),
        })
    }
}
