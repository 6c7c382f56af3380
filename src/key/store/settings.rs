//! What each store is configured with, as checked values. No SDK is needed to read them.

use url::Url;

use crate::key::{
    access::{AwsAccess, AzureAccess, GoogleAccess},
    calls::CallSettings,
};

/// What all stores of objects have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectPlace {
    /// Begins the name of every object: empty, or ends with `/`.
    pub prefix: String,
    /// Make the bucket or container where it is missing.
    pub create_if_missing: bool,
    /// How it is called.
    pub calls: CallSettings,
}

/// Store `s3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3 {
    /// The bucket.
    pub bucket: String,
    /// Bucket names in the path of URLs and not in the host's name, as most servers that are not AWS want it.
    pub path_style: bool,
    /// Prefix and calls.
    pub place: ObjectPlace,
    /// How AWS is reached, and as whom.
    pub access: AwsAccess,
}

/// Store `gcs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gcs {
    /// The bucket.
    pub bucket: String,
    /// The project that a bucket is made in; needed only to make one.
    pub project: Option<String>,
    /// Prefix and calls.
    pub place: ObjectPlace,
    /// How Google is reached, and as whom.
    pub access: GoogleAccess,
}

/// Store `azure-blob`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AzureBlob {
    /// The account, such as `https://name.blob.core.windows.net`.
    pub account_url: Url,
    /// The container.
    pub container: String,
    /// Prefix and calls.
    pub place: ObjectPlace,
    /// How Azure is reached, and as whom.
    pub access: AzureAccess,
}
