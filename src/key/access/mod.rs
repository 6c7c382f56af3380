//! How the clouds are reached, and as whom: what their providers and stores are configured with, and, a module a cloud,
//! the clients that come of it. The types here need no SDK.

#[cfg(feature = "_aws")]
pub mod aws;
#[cfg(feature = "_azure")]
pub mod azure;
#[cfg(feature = "_google")]
pub mod google;

use std::{net::IpAddr, path::PathBuf};

use url::Url;

use crate::key::record::AwsRole;

/// Why there is no client: a file cannot be read, or does not hold what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsFault(pub String);

/// A server under another address than its service's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its URL: https, or http where the configuration says `insecureEndpoint: true`.
    pub url: Url,
}

/// How AWS is reached, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsAccess {
    /// The region, such as `eu-central-1`.
    pub region: String,
    /// The service under another address.
    pub endpoint: Option<Endpoint>,
    /// STS under another address.
    pub sts_endpoint: Option<Endpoint>,
    /// Authorities in place of the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// Where credentials come from.
    pub auth: AwsAuth,
    /// Roles to assume: the first with these credentials, each other one with those of the one before it.
    pub roles: Vec<AwsRole>,
}

/// Where AWS credentials come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AwsAuth {
    /// The SDK's own chain: environment, profile, web identity, container, instance metadata.
    Chain,
    /// Files of a mounted Secret, read again when they change.
    Static {
        /// Holds the access key id.
        access_key_id_file: PathBuf,
        /// Holds the secret access key.
        secret_access_key_file: PathBuf,
        /// Holds the session token.
        session_token_file: Option<PathBuf>,
    },
    /// A profile of the shared configuration (SSO among them).
    Profile {
        /// Its name.
        name: String,
        /// The shared credentials file, where it is not in its usual place.
        credentials_file: Option<PathBuf>,
        /// The shared configuration file, where it is not in its usual place.
        config_file: Option<PathBuf>,
    },
    /// A token of an identity provider (IRSA), read again whenever credentials are asked for.
    WebIdentity {
        /// Holds the token.
        token_file: PathBuf,
        /// The role that the token is for.
        role_arn: String,
    },
    /// The container's agent (ECS, EKS Pod Identity), as its variables say.
    Container,
    /// The instance metadata service, version 2.
    Imds,
}

/// How Azure is reached, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AzureAccess {
    /// Where credentials come from.
    pub auth: AzureAuth,
    /// Entra ID under another address, as sovereign clouds have it.
    pub authority_host: Option<Endpoint>,
    /// Authorities in place of the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// The address of a private endpoint, where the DNS does not know it.
    pub ip_address: Option<IpAddr>,
}

/// Where Azure credentials come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AzureAuth {
    /// An application's secret.
    ClientSecret {
        /// The directory.
        tenant_id: String,
        /// The application.
        client_id: String,
        /// Holds the secret; read again when it changes.
        secret_file: PathBuf,
    },
    /// The identity that the machine or the pod has.
    ManagedIdentity {
        /// Of several user-assigned identities, this one.
        client_id: Option<String>,
    },
    /// A projected ServiceAccount token, exchanged for one of the application.
    WorkloadIdentity {
        /// The directory.
        tenant_id: String,
        /// The application.
        client_id: String,
        /// Holds the token; read again whenever one is asked for.
        token_file: PathBuf,
    },
    /// A shared access signature (blob storage only).
    Sas {
        /// Holds the signature's query text; read again when it changes.
        sas_file: PathBuf,
    },
}

/// How Google is reached, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoogleAccess {
    /// Where credentials come from.
    pub auth: GoogleAuth,
    /// The service under another address.
    pub endpoint: Option<Endpoint>,
}

/// Where Google credentials come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GoogleAuth {
    /// Application default credentials: workload identity, the metadata server, or the file that
    /// GOOGLE_APPLICATION_CREDENTIALS names.
    Default,
    /// A service account's or a workload identity federation's JSON file; read again when it changes.
    CredentialsFile(PathBuf),
    /// None, for emulators: only where the endpoint is insecure anyway.
    Anonymous,
}
