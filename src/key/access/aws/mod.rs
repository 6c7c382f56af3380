//! How AWS is reached: the configuration of an SDK client, credentials from where the configuration says, and what its
//! answers mean.
//!
//! Only what is configured counts: of the environment nothing is read, except by the sources of credentials that are
//! made for it, and for the HTTP proxy. The SDK makes one attempt a call; it is made again by [`crate::key::calls`],
//! for all providers alike.

mod answer;
mod credentials;

use std::{fmt, path::Path, time::Duration};

use aws_config::{
    BehaviorVersion, Region, SdkConfig, identity::IdentityCache, retry::RetryConfig,
    stalled_stream_protection::StalledStreamProtectionConfig, timeout::TimeoutConfig,
};
use aws_smithy_http_client::{
    Builder,
    tls::{self, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::client::{
    http::{HttpClient, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector},
    runtime_components::RuntimeComponents,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::key::{
    access::{AwsAccess, AwsAuth, Endpoint, SettingsFault},
    reread::{self, Reread},
};

pub use answer::{Answer, told};

const CONNECT_TIME: Duration = Duration::from_secs(5);
/// How long credentials may take, so that what they wait for is told before an attempt of the default length ends.
const CREDENTIALS_TIME: Duration = Duration::from_secs(8);

/// What an SDK's client is made of: region, endpoint, trust, credentials, one attempt a call.
///
/// # Errors
/// A file cannot be read or does not hold what it should.
pub async fn sdk_config(access: &AwsAccess) -> Result<SdkConfig, SettingsFault> {
    let http = access.ca_file.as_deref().map(trusting).transpose()?;
    // Files are cheaper to look at than to miss: what they hold counts at once.
    let from_files = matches!(access.auth, AwsAuth::Static { .. }) && access.roles.is_empty();
    let cache = if from_files {
        IdentityCache::no_cache()
    } else {
        IdentityCache::lazy().load_timeout(CREDENTIALS_TIME).build()
    };
    let mut builder = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(access.region.clone()))
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIME).build())
        // Nothing here is a stream of any length; each attempt has its own deadline.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .identity_cache(cache);
    builder.set_http_client(http.clone());
    let base = builder.build();

    let url = |endpoint: &Endpoint| endpoint.url.as_str().trim_end_matches('/').to_owned();
    let mut sts = base.to_builder();
    sts.set_endpoint_url(access.sts_endpoint.as_ref().map(url));
    let sts = sts.build();
    let mut credentials = credentials::source(access, &sts, http).await?;
    for role in &access.roles {
        credentials = credentials::assumed(role, credentials, sts.clone());
    }
    let mut builder = base.into_builder().credentials_provider(credentials);
    builder.set_endpoint_url(access.endpoint.as_ref().map(url));
    Ok(builder.build())
}

/// What to look at where credentials are missing or refused: where they were to come from.
#[must_use]
pub fn credentials_hint(access: &AwsAccess) -> String {
    let source = match &access.auth {
        AwsAuth::Chain => {
            "auth is chain: environment, profile, web identity, container and instance metadata were tried".to_owned()
        }
        AwsAuth::Static { access_key_id_file, secret_access_key_file, .. } => {
            format!("check {} and {}", access_key_id_file.display(), secret_access_key_file.display())
        }
        AwsAuth::Profile { name, .. } => format!("check profile {name} of the shared configuration"),
        AwsAuth::WebIdentity { token_file, role_arn } => {
            let token = token_file.display();
            format!("check the token in {token}, and that {role_arn} trusts its issuer, audience and subject")
        }
        AwsAuth::Container => "check the pod's identity association, or the task's role".to_owned(),
        AwsAuth::Imds => "check the instance's profile, and the hop limit of its metadata service".to_owned(),
    };
    access.roles.iter().fold(source, |told, role| format!("{told}; then that {} may be assumed with them", role.arn))
}

/// A client that trusts a file's authorities and no others, as the file is now.
fn trusting(ca_file: &Path) -> Result<SharedHttpClient, SettingsFault> {
    let file = ca_file.to_owned();
    let build = move || {
        let pem = reread::bytes(&file)?;
        let fault = |what: &dyn fmt::Display| SettingsFault(format!("{}: {what}", file.display()));
        // The SDK takes only what is right, so it is looked at before.
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| fault(&error))?;
            roots.add(certificate).map_err(|error| fault(&error))?;
        }
        if roots.is_empty() {
            return Err(fault(&"it holds no certificate (PEM)"));
        }
        let context = TlsContext::builder().with_trust_store(TrustStore::empty().with_pem_certificate(pem)).build();
        let provider = tls::Provider::Rustls(CryptoMode::AwsLc);
        Ok(Builder::new().tls_provider(provider).tls_context(context.map_err(|error| fault(&error))?).build_https())
    };
    Ok(SharedHttpClient::new(Trusting(Reread::new(vec![ca_file.to_owned()], build)?)))
}

#[derive(Debug)]
struct Trusting(Reread<SharedHttpClient>);

impl HttpClient for Trusting {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        self.0.current().http_connector(settings, components)
    }
}

#[cfg(test)]
mod tests {
    use aws_credential_types::provider::ProvideCredentials;

    use super::*;
    use crate::key::record::AwsRole;

    fn access(folder: &Path) -> AwsAccess {
        AwsAccess {
            region: "eu-central-1".to_owned(),
            endpoint: None,
            sts_endpoint: None,
            ca_file: None,
            auth: AwsAuth::Static {
                access_key_id_file: folder.join("id"),
                secret_access_key_file: folder.join("secret"),
                session_token_file: None,
            },
            roles: Vec::new(),
        }
    }

    fn write(folder: &Path, name: &str, text: &str) {
        std::fs::write(folder.join(name), text).expect("it can be written");
    }

    #[tokio::test]
    async fn a_pair_that_is_swapped_counts_at_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let missing = sdk_config(&access(folder.path())).await.map(|_| ());
        assert!(missing.expect_err("there are no files").to_string().contains("id"));
        write(folder.path(), "id", "first\n");
        write(folder.path(), "secret", "marked-secret\n");
        let config = sdk_config(&access(folder.path())).await.expect("there is a pair");
        let provider = config.credentials_provider().expect("it was set");
        let id = async || provider.provide_credentials().await.expect("there is a pair").access_key_id().to_owned();
        assert_eq!(id().await, "first");
        write(folder.path(), "id", "second key\n");
        assert_eq!(id().await, "second key");
        assert!(!format!("{config:?}").contains("marked-secret"));
    }

    #[tokio::test]
    async fn a_file_without_a_certificate_is_a_fault_and_no_panic() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write(folder.path(), "id", "id");
        write(folder.path(), "secret", "secret");
        for text in ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            write(folder.path(), "ca.pem", text);
            let access = AwsAccess { ca_file: Some(folder.path().join("ca.pem")), ..access(folder.path()) };
            let fault = sdk_config(&access).await.map(|_| ()).expect_err("it is no certificate");
            assert!(fault.to_string().contains("ca.pem"), "{fault}");
        }
    }

    #[test]
    fn the_hint_names_what_was_tried() {
        let mut access = access(Path::new("/etc/coffer/aws"));
        assert_eq!(credentials_hint(&access), "check /etc/coffer/aws/id and /etc/coffer/aws/secret");
        access.auth = AwsAuth::Imds;
        let role = |arn: &str| AwsRole { arn: arn.to_owned(), session_name: "coffer".to_owned(), external_id: None };
        access.roles = vec![role("arn:aws:iam::1:role/coffer"), role("arn:aws:iam::2:role/tenant")];
        assert_eq!(
            credentials_hint(&access),
            "check the instance's profile, and the hop limit of its metadata service; then that \
             arn:aws:iam::1:role/coffer may be assumed with them; then that arn:aws:iam::2:role/tenant may be assumed \
             with them"
        );
    }
}
