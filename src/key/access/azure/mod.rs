//! How Azure is reached, and as whom: the HTTP client under its SDKs, the credentials, and what their failures mean.
//!
//! One call is one attempt: the SDKs' own retries are off. Client certificates are not offered, because the SDK's would
//! bring OpenSSL.

mod failure;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use azure_core::{
    cloud::{CloudConfiguration, CustomConfiguration},
    credentials::{AccessToken, Secret, TokenCredential, TokenRequestOptions},
    error::ErrorKind,
    http::{AsyncRawResponse, ClientMethodOptions, ClientOptions, HttpClient, Request, RetryOptions, Transport},
};
use azure_identity::{
    ClientAssertion, ClientAssertionCredential, ClientAssertionCredentialOptions, ClientSecretCredential,
    ClientSecretCredentialOptions, ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId,
};
use url::Url;

use crate::key::{
    access::{AzureAccess, AzureAuth, SettingsFault},
    reread::{Reread, bytes, secret_text},
};

pub use failure::{AzureFailure, Said, classify};

/// How long a connection may take to come about.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// How a client of one service sends its requests.
///
/// # Errors
/// The authorities' file cannot be read or holds none.
pub fn client_options(access: &AzureAccess, service: &Url) -> Result<ClientOptions, SettingsFault> {
    let pinned = service.host_str().map(str::to_owned).zip(access.ip_address);
    let sender = Sender::new(access.ca_file.clone(), pinned)?;
    Ok(options(Arc::new(sender)))
}

/// Where tokens come from; none for a shared access signature, which needs no token.
///
/// Without an authority host the SDK takes the public cloud's, or the one in AZURE_AUTHORITY_HOST, which AKS sets for
/// pods with a workload identity.
///
/// # Errors
/// A file cannot be read or does not hold what it should, or an id or the authority host is not one.
pub fn credential(access: &AzureAccess) -> Result<Option<Arc<dyn TokenCredential>>, SettingsFault> {
    let mut client_options = options(Arc::new(TokenSender(Sender::new(access.ca_file.clone(), None)?)));
    if let Some(host) = &access.authority_host {
        let mut cloud = CustomConfiguration::default();
        cloud.authority_host = host.url.to_string();
        client_options.cloud = Some(Arc::new(CloudConfiguration::Custom(cloud)));
    }
    let fault = |error: azure_core::Error| SettingsFault(format!("Azure credentials: {error}"));
    let credential: Arc<dyn TokenCredential> = match access.auth.clone() {
        AzureAuth::ClientSecret { tenant_id, client_id, secret_file } => {
            let file = secret_file.clone();
            let build = move || {
                let secret = Secret::new(secret_text(&file)?.as_str().to_owned());
                let options = ClientSecretCredentialOptions { client_options: client_options.clone() };
                ClientSecretCredential::new(&tenant_id, client_id.clone(), secret, Some(options)).map_err(fault)
            };
            Arc::new(FromSecretFile(Reread::new(vec![secret_file], build)?))
        }
        AzureAuth::ManagedIdentity { client_id } => {
            let options = ManagedIdentityCredentialOptions {
                user_assigned_id: client_id.map(UserAssignedId::ClientId),
                client_options,
            };
            ManagedIdentityCredential::new(Some(options)).map_err(fault)?
        }
        AzureAuth::WorkloadIdentity { tenant_id, client_id, token_file } => {
            // A file that is missing is told now, not when the first key is needed.
            drop(secret_text(&token_file)?);
            let options = ClientAssertionCredentialOptions { client_options };
            ClientAssertionCredential::new(tenant_id, client_id, ProjectedToken(token_file), Some(options))
                .map_err(fault)?
        }
        AzureAuth::Sas { .. } => return Ok(None),
    };
    Ok(Some(credential))
}

fn options(client: Arc<dyn HttpClient>) -> ClientOptions {
    ClientOptions { retry: RetryOptions::none(), transport: Some(Transport::new(client)), ..Default::default() }
}

/// Sends requests. Its client is made again when the authorities' file changes.
#[derive(Debug)]
struct Sender(Reread<reqwest::Client>);

impl Sender {
    fn new(ca_file: Option<PathBuf>, pinned: Option<(String, IpAddr)>) -> Result<Self, SettingsFault> {
        let files = ca_file.iter().cloned().collect();
        let build = move || {
            let mut builder = reqwest::Client::builder()
                .connect_timeout(CONNECT_WITHIN)
                .redirect(reqwest::redirect::Policy::none())
                .tls_version_min(reqwest::tls::Version::TLS_1_2)
                // The Blob Storage SDK counts the bytes that it gets, so they must be those that were sent.
                .no_gzip()
                .no_deflate();
            if let Some(path) = &ca_file {
                let authorities = reqwest::Certificate::from_pem_bundle(&bytes(path)?).unwrap_or_default();
                if authorities.is_empty() {
                    return Err(SettingsFault(format!("{}: it holds no certificates in PEM", path.display())));
                }
                builder = builder.tls_certs_only(authorities);
            }
            if let Some((host, address)) = &pinned {
                // A proxy would look the name up itself. Port 0 stands for the URL's.
                builder = builder.resolve(host, SocketAddr::new(*address, 0)).no_proxy();
            }
            builder.build().map_err(|error| SettingsFault(format!("the HTTP client for Azure: {error}")))
        };
        Reread::new(files, build).map(Self)
    }
}

#[async_trait]
impl HttpClient for Sender {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let client = self.0.current();
        HttpClient::execute_request(&*client, request).await
    }
}

/// Asks for tokens. The SDK takes every answer for Entra ID's own, and cannot read those whose text has line breaks;
/// so what is no success becomes an error here.
#[derive(Debug)]
struct TokenSender(Sender);

#[async_trait]
impl HttpClient for TokenSender {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let response = self.0.execute_request(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let response = response.try_into_raw_response().await?;
        let said = Said::of(&response);
        let (status, error_code, message) = (response.status(), Some(said.code.clone()), said.to_string());
        let kind = ErrorKind::HttpResponse { status, error_code, raw_response: Some(Box::new(response)) };
        Err(azure_core::Error::with_message(kind, message))
    }
}

/// A client secret that is read again when its file changes.
#[derive(Debug)]
struct FromSecretFile(Reread<Arc<ClientSecretCredential>>);

#[async_trait]
impl TokenCredential for FromSecretFile {
    async fn get_token(
        &self,
        scopes: &[&str],
        options: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        let credential = self.0.current();
        credential.get_token(scopes, options).await
    }
}

/// A projected ServiceAccount token. The SDK's own workload identity keeps what it read for ten minutes.
#[derive(Debug)]
struct ProjectedToken(PathBuf);

#[async_trait]
impl ClientAssertion for ProjectedToken {
    async fn secret(&self, _: Option<ClientMethodOptions<'_>>) -> azure_core::Result<String> {
        match secret_text(&self.0) {
            Ok(token) => Ok(token.as_str().to_owned()),
            Err(fault) => Err(azure_core::Error::with_message(ErrorKind::Credential, fault.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use azure_core::http::Method;

    use super::*;

    #[tokio::test]
    async fn no_url_is_in_a_failure() {
        // Nobody listens on port 1.
        let sender = Sender::new(None, None).expect("a client");
        let url = "http://127.0.0.1:1/container?sig=secret".parse().expect("a URL");
        let request = Request::new(url, Method::Get);
        let error = sender.execute_request(&request).await.expect_err("nobody answers");
        let AzureFailure::NoAnswer(cause) = classify(error) else { panic!("somebody answered") };
        let mut told = format!("{cause:?}");
        let mut next: Option<&dyn Error> = Some(&*cause);
        while let Some(error) = next {
            told += &error.to_string();
            next = error.source();
        }
        assert!(!told.contains("secret"), "{told}");
    }
}
