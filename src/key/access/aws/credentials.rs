//! Where credentials come from: one source a configuration. The SDK keeps what it is given until shortly before its
//! end.

use std::{
    error::Error,
    fmt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use aws_config::{
    BehaviorVersion, Region, SdkConfig, default_provider::credentials::DefaultCredentialsChain,
    ecs::EcsCredentialsProvider, identity::IdentityCache, imds::credentials::ImdsCredentialsProvider,
    profile::ProfileFileCredentialsProvider, provider_config::ProviderConfig, retry::RetryConfig,
};
use aws_credential_types::{
    Credentials,
    provider::{self, ProvideCredentials, SharedCredentialsProvider, error::CredentialsError, future},
};
use aws_smithy_runtime_api::client::{http::SharedHttpClient, orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use super::Answer;
use crate::key::{
    access::{AwsAccess, AwsAuth, SettingsFault},
    record::AwsRole,
    reread::{self, Reread},
};

/// How long credentials of a profile are used that say nothing of an end, before its files are read again.
const PROFILE_TIME: Duration = Duration::from_secs(60);
/// What the session of a web identity is called. A role on top of it has a name of its own.
const WEB_SESSION: &str = "coffer-web-identity";

/// The configured source. `sts` is how STS is reached, without credentials.
pub(super) async fn source(
    access: &AwsAccess,
    sts: &SdkConfig,
    http: Option<SharedHttpClient>,
) -> Result<SharedCredentialsProvider, SettingsFault> {
    let region = Region::new(access.region.clone());
    let known = ProviderConfig::without_region()
        .with_region(Some(region.clone()))
        .with_behavior_version(Some(BehaviorVersion::latest()))
        .with_retry_config(RetryConfig::disabled());
    let known = match http {
        Some(http) => known.with_http_client(http),
        None => known,
    };
    Ok(match &access.auth {
        AwsAuth::Chain => {
            let chain = DefaultCredentialsChain::builder().region(region).configure(known).build().await;
            SharedCredentialsProvider::new(chain)
        }
        AwsAuth::Static { access_key_id_file, secret_access_key_file, session_token_file } => {
            let (id, secret) = (access_key_id_file.clone(), secret_access_key_file.clone());
            let token = session_token_file.clone();
            let files = [&id, &secret].into_iter().chain(&token).cloned().collect();
            let read = move || read_static(&id, &secret, token.as_deref());
            SharedCredentialsProvider::new(Files(Reread::new(files, read)?))
        }
        AwsAuth::Profile { name, credentials_file, config_file } => SharedCredentialsProvider::new(Profile {
            name: name.clone(),
            credentials_file: credentials_file.clone(),
            config_file: config_file.clone(),
            known,
        }),
        AwsAuth::WebIdentity { token_file, role_arn } => {
            let asked = Asked::WebIdentity { token_file: token_file.clone(), role_arn: role_arn.clone() };
            SharedCredentialsProvider::new(Sts { client: aws_sdk_sts::Client::new(sts), asked })
        }
        AwsAuth::Container => {
            SharedCredentialsProvider::new(EcsCredentialsProvider::builder().configure(&known).build())
        }
        AwsAuth::Imds => SharedCredentialsProvider::new(ImdsCredentialsProvider::builder().configure(&known).build()),
    })
}

/// A role, assumed with the credentials of a source, or of another role.
pub(super) fn assumed(role: &AwsRole, with: SharedCredentialsProvider, sts: SdkConfig) -> SharedCredentialsProvider {
    // Asked once an hour or so, and then for what the source has now.
    let sts = sts.into_builder().credentials_provider(with).identity_cache(IdentityCache::no_cache()).build();
    SharedCredentialsProvider::new(Sts { client: aws_sdk_sts::Client::new(&sts), asked: Asked::Role(role.clone()) })
}

fn read_static(id: &Path, secret: &Path, token: Option<&Path>) -> Result<Credentials, SettingsFault> {
    let (id, secret) = (reread::secret_text(id)?, reread::secret_text(secret)?);
    let token = token.map(reread::secret_text).transpose()?;
    // The SDK wipes what it is given; our own copies wipe themselves.
    Ok(Credentials::new(id.as_str(), secret.as_str(), token.map(|token| token.to_string()), None, "coffer-files"))
}

/// A pair from the files of a mounted Secret.
#[derive(Debug)]
struct Files(Reread<Credentials>);

impl ProvideCredentials for Files {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(Ok(self.0.current().as_ref().clone()))
    }
}

/// A profile, whose files are read at each question: the SDK's own provider would keep what it read first.
#[derive(Debug)]
struct Profile {
    name: String,
    credentials_file: Option<PathBuf>,
    config_file: Option<PathBuf>,
    known: ProviderConfig,
}

impl Profile {
    #[allow(deprecated, reason = "the names that are to be used are of a crate that only the SDK itself depends on")]
    fn read(&self) -> ProfileFileCredentialsProvider {
        use aws_config::profile::profile_file::{ProfileFileKind, ProfileFiles};
        let mut files = ProfileFiles::builder()
            .include_default_config_file(self.config_file.is_none())
            .include_default_credentials_file(self.credentials_file.is_none());
        if let Some(file) = &self.config_file {
            files = files.with_file(ProfileFileKind::Config, file);
        }
        if let Some(file) = &self.credentials_file {
            files = files.with_file(ProfileFileKind::Credentials, file);
        }
        let builder = ProfileFileCredentialsProvider::builder().configure(&self.known);
        builder.profile_name(&self.name).profile_files(files.build()).build()
    }

    async fn credentials(&self) -> provider::Result {
        let mut credentials = self.read().provide_credentials().await?;
        if credentials.expiry().is_none() {
            *credentials.expiry_mut() = Some(SystemTime::now() + PROFILE_TIME);
        }
        Ok(credentials)
    }
}

impl ProvideCredentials for Profile {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.credentials())
    }
}

/// Credentials that STS gives for a role.
#[derive(Debug)]
struct Sts {
    client: aws_sdk_sts::Client,
    asked: Asked,
}

#[derive(Debug)]
enum Asked {
    WebIdentity { token_file: PathBuf, role_arn: String },
    Role(AwsRole),
}

impl Sts {
    async fn credentials(&self) -> provider::Result {
        let given = match &self.asked {
            Asked::WebIdentity { token_file, role_arn } => {
                let token = reread::secret_text(token_file).map_err(CredentialsError::provider_error)?;
                let ask = self.client.assume_role_with_web_identity().role_arn(role_arn);
                let sent = ask.role_session_name(WEB_SESSION).web_identity_token(token.as_str()).send().await;
                sent.map_err(|error| refused("AssumeRoleWithWebIdentity", role_arn, &error))?.credentials
            }
            Asked::Role(role) => {
                let ask = self.client.assume_role().role_arn(&role.arn).role_session_name(&role.session_name);
                let sent = ask.set_external_id(role.external_id.clone()).send().await;
                sent.map_err(|error| refused("AssumeRole", &role.arn, &error))?.credentials
            }
        };
        let given = given.ok_or_else(|| CredentialsError::unhandled("STS answered without credentials"))?;
        let expiry = SystemTime::try_from(given.expiration).ok();
        let (id, secret, token) = (given.access_key_id, given.secret_access_key, given.session_token);
        Ok(Credentials::new(id, secret, Some(token), expiry, "coffer-sts"))
    }
}

impl ProvideCredentials for Sts {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.credentials())
    }
}

/// STS does not answer, which another attempt may change.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct StsAway(String);

fn refused<E>(action: &str, role: &str, error: &SdkError<E, HttpResponse>) -> CredentialsError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let why = |why: &dyn fmt::Display| format!("{action} of {role}: {why}");
    match Answer::of(error) {
        Answer::Away(what) => CredentialsError::provider_error(StsAway(why(&what))),
        Answer::Throttled(_) => CredentialsError::provider_error(StsAway(why(&"STS is asked too often"))),
        Answer::Unauthenticated(what) | Answer::Denied(what) => CredentialsError::provider_error(why(&what)),
        Answer::Garbled => CredentialsError::provider_error(why(&"STS answered what is none of its answers")),
        Answer::Other { code, message, .. } => {
            CredentialsError::provider_error(why(&format_args!("{code}: {message}")))
        }
    }
}
