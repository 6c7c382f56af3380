//! Who is who at an API server that a test started: its certificate, the key that signs ServiceAccount tokens, and a
//! kubeconfig with a token of its own for each user.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};
use uuid::Uuid;

/// A user, by the file of its kubeconfig: its name and group at the API server.
pub(super) struct User {
    pub(super) file: String,
    pub(super) name: String,
    pub(super) group: &'static str,
}

impl User {
    pub(super) fn new(file: impl Into<String>, name: impl Into<String>, group: &'static str) -> Self {
        Self { file: file.into(), name: name.into(), group }
    }
}

/// The folder of an API server's certificates and kubeconfigs.
#[derive(Debug)]
pub(super) struct Identity {
    folder: PathBuf,
    url: String,
    authority: String,
}

impl Identity {
    /// Makes all of it for a server at a URL, which answers at these addresses.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(super) fn make(folder: &Path, url: &str, addresses: &[Ipv4Addr], users: &[User]) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Kubernetes of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned);
        let addresses = addresses.iter().map(ToString::to_string);
        let mut params = CertificateParams::new(names.into_iter().chain(addresses).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;

        let identity = Self { folder: folder.to_owned(), url: url.to_owned(), authority: issuer.pem() };
        identity.write("authority.crt", &identity.authority)?;
        identity.write("server.crt", &certificate.pem())?;
        identity.write("server.key", &key.serialize_pem())?;
        // ES256, which every reviewer of tokens takes.
        let signing = KeyPair::generate()?;
        identity.write("accounts.key", &signing.serialize_pem())?;
        identity.write("accounts.pub", &signing.public_key_pem())?;
        let mut tokens = String::new();
        for user in users {
            let token = Uuid::new_v4().simple().to_string();
            identity.write(&format!("{}.kubeconfig", user.file), &identity.kubeconfig(&token).to_string())?;
            tokens.push_str(&format!("{token},{},{},{:?}\n", user.name, user.file, user.group));
        }
        identity.write("tokens.csv", &tokens)?;
        Ok(identity)
    }

    /// One of its files.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A client with a bearer token.
    ///
    /// # Errors
    /// None that a kubeconfig of ours has.
    pub(super) async fn client(&self, token: &str) -> Result<Client> {
        of(serde_json::from_value(self.kubeconfig(token))?).await
    }

    /// A client for a user that was named when this was made.
    ///
    /// # Errors
    /// There is no such user.
    pub(super) async fn user(&self, file: &str) -> Result<Client> {
        let path = self.file(&format!("{file}.kubeconfig"));
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        of(serde_json::from_slice(&text)?).await
    }

    fn kubeconfig(&self, token: &str) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": {
                "server": self.url,
                "certificate-authority-data": BASE64_STANDARD.encode(&self.authority),
            } }],
            "users": [{ "name": "user", "user": { "token": token } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "user" } }],
            "current-context": "test",
        })
    }

    fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.file(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))
    }
}

async fn of(kubeconfig: Kubeconfig) -> Result<Client> {
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}
