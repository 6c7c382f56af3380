//! Who this client is to a KES server: its certificate and key, and the identity that the server knows them by.

use std::{fmt, path::Path};

use reqwest::{Client, Identity};
use sha2::{Digest, Sha256};
use x509_parser::{parse_x509_certificate, pem::Pem};
use zeroize::Zeroizing;

use crate::{
    key::{
        access::SettingsFault,
        kms::{http, kes::private_key, settings},
        reread,
    },
    volume::hex,
};

/// A client that shows a certificate.
pub(super) struct Caller {
    /// The client.
    pub(super) client: Client,
    /// Its identity: the SHA-256 of its public key (SubjectPublicKeyInfo in DER), in hexadecimal digits.
    pub(super) identity: String,
}

impl Caller {
    /// Reads certificate and key. The identity is logged, because the server's policy has to name it.
    pub(super) fn load(settings: &settings::Kes) -> Result<Self, SettingsFault> {
        let settings::Kes { ca_file, certificate_file, private_key_file, password_file, .. } = settings;
        let certificate = reread::bytes(certificate_file)?;
        let identity = identity(&certificate);
        let identity = identity.ok_or_else(|| fault(certificate_file, &"it holds no certificate (PEM)"))?;
        let password = password_file.as_deref().map(reread::secret_text).transpose()?;
        let key = Zeroizing::new(reread::bytes(private_key_file)?);
        let key = std::str::from_utf8(&key).map_err(|_| fault(private_key_file, &"it is no text (PEM)"))?;
        let key = private_key::open(key, password.as_ref().map(|password| password.as_str()));
        let key = key.map_err(|error| fault(private_key_file, &error))?;
        let both = Zeroizing::new([certificate.as_slice(), b"\n".as_slice(), key.as_bytes()].concat());
        let shown = Identity::from_pem(&both).map_err(|error| fault(private_key_file, &http::causes(&error)))?;
        let client = http::client(ca_file.as_deref(), Some(shown))?;
        tracing::info!(identity, certificate = %certificate_file.display(), "the identity of this client of KES");
        Ok(Self { client, identity })
    }
}

fn fault(path: &Path, what: &dyn fmt::Display) -> SettingsFault {
    SettingsFault(format!("{}: {what}", path.display()))
}

/// The identity of the first certificate of a PEM file.
fn identity(pem: &[u8]) -> Option<String> {
    let mut sections = Pem::iter_from_buffer(pem).map_while(Result::ok);
    let section = sections.find(|section| section.label == "CERTIFICATE")?;
    let (_, certificate) = parse_x509_certificate(&section.contents).ok()?;
    Some(hex(&Sha256::digest(certificate.public_key().raw)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::key::access::Endpoint;

    /// `openssl req -x509 -subj /CN=coffer -days 36500`, and its key by `openssl ec -aes256`.
    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBeTCCAR+gAwIBAgIUcNb20VHgSG9sV+0segYGk+DUuj4wCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGY29mZmVyMCAXDTI2MTEyNDE4NTkwOVoYDzIxMjYxMDMxMTg1
OTA5WjARMQ8wDQYDVQQDDAZjb2ZmZXIwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AAQoT0MLmR4jfDMTuzR53Yc9y3INBm87tVrCORsCyB2a/lGawrKRWGNTwXfCz+s8
XTQ73i+k2YSTYX+kRbPHB2iEo1MwUTAdBgNVHQ4EFgQUDJSzzkexDUejeWW/Dg1g
8PuDlcAwHwYDVR0jBBgwFoAUDJSzzkexDUejeWW/Dg1g8PuDlcAwDwYDVR0TAQH/
BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiEAzzKTThMFK1cIR7wydy980njfH4Yh
tpi/fyOua4tfzrMCIHHbKKyuw9II0lhsOoxZ+rZ1LA3u3UthORn5uEMBDAV7
-----END CERTIFICATE-----
";
    const KEY: &str = "-----BEGIN EC PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: AES-256-CBC,A773D7F359460A45CFA0608187700022

QZdRFdFoLwqLyi0HcgX0zo2kwZ7+VddDjfbdex27Vi732CpIXrQRnn464pM/MkYU
yT0orxP4tf0Nkj6g9kfX9r32blJj9Uc6hRQVYXG1r+YoxJUoc5PLZvxJm2nRCzAx
BqHOOSUyM0ZVqMPDkFl/hgWM3JTDufvBWIVf20xUegg=
-----END EC PRIVATE KEY-----
";
    /// `openssl x509 -pubkey -noout | openssl pkey -pubin -outform der | sha256sum`
    const IDENTITY: &str = "c366f259e722a70b7976e3340b0757da4dda66473cf6c9ba2ff746494f632664";

    fn files(folder: &Path, certificate: &str, key: &str, password: &str) -> settings::Kes {
        for (name, content) in [("tls.crt", certificate), ("tls.key", key), ("password", password)] {
            fs::write(folder.join(name), content).expect("it can be written");
        }
        settings::Kes {
            endpoints: vec![Endpoint { url: "https://127.0.0.1:7373".parse().expect("a URL") }],
            key_name: "coffer".to_owned(),
            ca_file: Some(folder.join("tls.crt")),
            certificate_file: folder.join("tls.crt"),
            private_key_file: folder.join("tls.key"),
            password_file: Some(folder.join("password")),
        }
    }

    #[test]
    fn the_identity_is_the_hash_of_the_public_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let caller = Caller::load(&files(folder.path(), CERTIFICATE, KEY, "secret-1\n")).expect("it loads");
        assert_eq!(caller.identity, IDENTITY);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let fault = |certificate: &str, key: &str, password: &str| {
            let loaded = Caller::load(&files(folder.path(), certificate, key, password));
            let fault = loaded.err().expect("it does not load").0;
            fault.strip_prefix(&format!("{}/", folder.path().display())).expect("it names the file").to_owned()
        };
        assert_eq!(fault("", KEY, "secret-1"), "tls.crt: it holds no certificate (PEM)");
        assert_eq!(fault(CERTIFICATE, "", "secret-1"), "tls.key: it holds no private key (PEM)");
        assert_eq!(fault(CERTIFICATE, KEY, "other"), "tls.key: the password in passwordFile does not open it");
        assert_eq!(fault(CERTIFICATE, KEY, " \n"), "password: it is empty");
    }
}
