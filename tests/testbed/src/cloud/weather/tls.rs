//! Certificates of a test's own, for servers and their clients.

use std::{
    fmt, fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::PrivateKeyDer,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// A server's certificate and key, and whether it asks clients for certificates.
#[derive(Clone)]
pub struct Tls(Arc<ServerConfig>);

impl Tls {
    pub(super) async fn accept(
        self,
        stream: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Option<ClientCertificate>)> {
        let stream = TlsAcceptor::from(self.0).accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let client = shown.map(|certificate| ClientCertificate(certificate.to_vec()));
        Ok((stream, client))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

/// Who the client is, in DER: in each request's extensions where a client was asked for a certificate and showed one.
#[derive(Clone, Debug)]
pub struct ClientCertificate(pub Vec<u8>);

/// A certificate authority of a test's own.
pub struct Authority {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one, its certificate in the folder's `ca.pem`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(folder: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Authority of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let authority = Self { folder: folder.to_owned(), issuer };
        fs::write(authority.ca_file(), authority.issuer.pem()).context("write an authority's certificate")?;
        Ok(authority)
    }

    /// The authority's certificate, for those who are to trust it.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// A server by these names: DNS names or IP addresses.
    ///
    /// # Errors
    /// A name is not one.
    pub fn server(&self, names: &[&str]) -> Result<Tls> {
        self.tls(names, WebPkiClientVerifier::no_client_auth())
    }

    /// The same that asks its clients for a certificate of this authority, but takes those who have none.
    ///
    /// # Errors
    /// A name is not one.
    pub fn server_asking(&self, names: &[&str]) -> Result<Tls> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone())?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let asking = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        self.tls(names, asking.allow_unauthenticated().build()?)
    }

    /// A client's certificate and key (PKCS#8), in PEM: the folder's `NAME.crt` and `NAME.key`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn client(&self, name: &str) -> Result<(PathBuf, PathBuf)> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let files = (self.folder.join(format!("{name}.crt")), self.folder.join(format!("{name}.key")));
        fs::write(&files.0, certificate.pem()).context("write a client's certificate")?;
        let mut file = fs::OpenOptions::new();
        let mut file = file.write(true).create(true).truncate(true).mode(0o600).open(&files.1)?;
        file.write_all(key.serialize_pem().as_bytes()).context("write a client's key")?;
        Ok(files)
    }

    fn tls(&self, names: &[&str], clients: Arc<dyn ClientCertVerifier>) -> Result<Tls> {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "Server of a test");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![certificate.into()], PrivateKeyDer::from(key))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Tls(Arc::new(config)))
    }
}
