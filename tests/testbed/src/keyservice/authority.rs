//! An authority of a test's own: certificates of a key service and of those who ask it, as files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use coffer::server::tls::{Clients, Files, ServerFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

/// An authority. What it certifies lies in its folder.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    /// A new one, with its own certificate in `ca.pem`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(folder: &Path) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority =
            Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)?, folder: folder.to_owned() };
        fs::write(authority.certificate(), authority.issuer.pem())?;
        Ok(authority)
    }

    /// Its own certificate.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// The server `localhost`, in `server.crt` and `server.key`, for such clients.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn server(&self, clients: Clients) -> Result<ServerFiles> {
        let name = SanType::DnsName("localhost".try_into()?);
        let Files { certificate, private_key, .. } = self.certify("server", Some(name))?;
        Ok(ServerFiles { certificate, private_key, clients })
    }

    /// A client whose URI says who it is. An empty one says nothing.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn client(&self, uri: &str) -> Result<Files> {
        let name = match uri {
            "" => None,
            uri => Some(SanType::URI(uri.try_into()?)),
        };
        self.certify(&format!("client-{}", uri.replace(['/', ':'], "-")), name)
    }

    fn certify(&self, file: &str, name: Option<SanType>) -> Result<Files> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names.extend(name);
        let key = KeyPair::generate()?;
        let path = |suffix: &str| self.folder.join(format!("{file}.{suffix}"));
        let files = Files { certificate: path("crt"), private_key: path("key"), authority: self.certificate() };
        fs::write(&files.certificate, params.signed_by(&key, &self.issuer)?.pem())?;
        fs::write(&files.private_key, key.serialize_pem())?;
        Ok(files)
    }
}
