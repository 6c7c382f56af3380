//! A client's private key in PEM, which may be encrypted: PKCS#8 with PBES2 (RFC 5958, RFC 8018), or the older form
//! whose headers name the cipher (RFC 1423), as OpenSSL writes both.

use base64::{Engine, prelude::BASE64_STANDARD};
use cbc::{
    Decryptor,
    cipher::{BlockModeDecrypt, KeyIvInit, block_padding::Pkcs7},
};
use md5::{Digest, Md5};
use pkcs8::EncryptedPrivateKeyInfoRef;
use zeroize::Zeroizing;

/// Why a private key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PrivateKeyFault {
    /// Nothing in the file is one.
    #[error("it holds no private key (PEM)")]
    Missing,
    /// Its form is broken.
    #[error("its PEM is torn or malformed")]
    Torn,
    /// It is encrypted, and no password is configured.
    #[error("it is encrypted: passwordFile has to name a file with its password")]
    NoPassword,
    /// It is encrypted by something that is not known here.
    #[error("it is encrypted by {0}; make it anew: openssl pkcs8 -topk8 -v2 aes-256-cbc")]
    Cipher(String),
    /// The password is not the one it was encrypted with.
    #[error("the password in passwordFile does not open it")]
    Password,
}

/// The first private key of a PEM text, as PEM without encryption. A password that is not needed is not looked at.
pub(super) fn open(pem: &str, password: Option<&str>) -> Result<Zeroizing<String>, PrivateKeyFault> {
    let Section { label, cipher, der } = Section::first(pem)?;
    let password = || password.ok_or(PrivateKeyFault::NoPassword);
    if label == "ENCRYPTED PRIVATE KEY" {
        Ok(written("PRIVATE KEY", &pbes2(&der, password()?)?))
    } else if let Some(cipher) = cipher {
        Ok(written(label, &rfc1423(cipher, der, password()?)?))
    } else {
        Ok(written(label, &der))
    }
}

/// A private key between its lines.
struct Section<'a> {
    label: &'a str,
    /// What DEK-Info says, in the older form.
    cipher: Option<&'a str>,
    der: Zeroizing<Vec<u8>>,
}

impl<'a> Section<'a> {
    fn first(pem: &'a str) -> Result<Self, PrivateKeyFault> {
        let mut lines = pem.lines().map(str::trim);
        let label = lines.find_map(|line| {
            let label = line.strip_prefix("-----BEGIN ")?.strip_suffix("-----")?;
            label.ends_with("PRIVATE KEY").then_some(label)
        });
        let label = label.ok_or(PrivateKeyFault::Missing)?;
        let (mut cipher, mut text) = (None, Zeroizing::new(String::with_capacity(pem.len())));
        loop {
            let line = lines.next().ok_or(PrivateKeyFault::Torn)?;
            if let Some(end) = line.strip_prefix("-----END ") {
                if end.strip_suffix("-----") != Some(label) {
                    return Err(PrivateKeyFault::Torn);
                }
                break;
            }
            match line.split_once(':') {
                Some(("DEK-Info", value)) => cipher = Some(value.trim()),
                Some(_) => {}
                None => text.push_str(line),
            }
        }
        let der = BASE64_STANDARD.decode(text.as_bytes()).map_err(|_| PrivateKeyFault::Torn)?;
        Ok(Self { label, cipher, der: Zeroizing::new(der) })
    }
}

fn pbes2(der: &[u8], password: &str) -> Result<Zeroizing<Vec<u8>>, PrivateKeyFault> {
    let other = || PrivateKeyFault::Cipher("something other than PBES2 with AES or 3DES".to_owned());
    let encrypted = EncryptedPrivateKeyInfoRef::try_from(der).map_err(|_| other())?;
    let opened = encrypted.decrypt(password).map_err(|_| PrivateKeyFault::Password)?;
    Ok(Zeroizing::new(opened.as_bytes().to_vec()))
}

fn rfc1423(cipher: &str, der: Zeroizing<Vec<u8>>, password: &str) -> Result<Zeroizing<Vec<u8>>, PrivateKeyFault> {
    let (name, iv) = cipher.split_once(',').ok_or(PrivateKeyFault::Torn)?;
    let iv = bytes(iv.trim()).ok_or(PrivateKeyFault::Torn)?;
    match name.trim() {
        "AES-256-CBC" => decrypted::<Decryptor<aes_gcm::aes::Aes256>>(der, &iv, password),
        "AES-192-CBC" => decrypted::<Decryptor<aes_gcm::aes::Aes192>>(der, &iv, password),
        "AES-128-CBC" => decrypted::<Decryptor<aes_gcm::aes::Aes128>>(der, &iv, password),
        "DES-EDE3-CBC" => decrypted::<Decryptor<des::TdesEde3>>(der, &iv, password),
        other => Err(PrivateKeyFault::Cipher(other.to_owned())),
    }
}

fn decrypted<C: BlockModeDecrypt + KeyIvInit>(
    mut der: Zeroizing<Vec<u8>>,
    iv: &[u8],
    password: &str,
) -> Result<Zeroizing<Vec<u8>>, PrivateKeyFault> {
    let salt = iv.first_chunk().ok_or(PrivateKeyFault::Torn)?;
    let mut key = Zeroizing::new(vec![0; C::key_size()]);
    derive(&mut key, password, salt);
    let cipher = C::new_from_slices(&key, iv).map_err(|_| PrivateKeyFault::Torn)?;
    let length = cipher.decrypt_padded::<Pkcs7>(&mut der).map_err(|_| PrivateKeyFault::Password)?.len();
    der.truncate(length);
    // A wrong password can leave a good padding: one in some 250 does. Every key is a DER sequence.
    if der.first() == Some(&0x30) { Ok(der) } else { Err(PrivateKeyFault::Password) }
}

/// `D1 = MD5(password ‖ salt)`, `Dn = MD5(Dn-1 ‖ password ‖ salt)`, `key = D1 ‖ D2 ‖ …`, as OpenSSL's EVP_BytesToKey does.
/// The form prescribes it; only as good as the password.
fn derive(key: &mut [u8], password: &str, salt: &[u8; 8]) {
    let mut block = Zeroizing::new(Vec::new());
    for part in key.chunks_mut(16) {
        let digest = Md5::new().chain_update(block.as_slice()).chain_update(password).chain_update(salt).finalize();
        block = Zeroizing::new(digest.to_vec());
        part.copy_from_slice(&block[..part.len()]);
    }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits = (0..hex.len()).step_by(2);
    digits.map(|start| u8::from_str_radix(hex.get(start..start + 2)?, 16).ok()).collect()
}

fn written(label: &str, der: &[u8]) -> Zeroizing<String> {
    let text = Zeroizing::new(BASE64_STANDARD.encode(der));
    let mut pem = Zeroizing::new(String::with_capacity(text.len() + text.len() / 64 + 2 * label.len() + 40));
    pem.push_str("-----BEGIN ");
    pem.push_str(label);
    pem.push_str("-----\n");
    for (place, letter) in text.chars().enumerate() {
        if place > 0 && place % 64 == 0 {
            pem.push('\n');
        }
        pem.push(letter);
    }
    pem.push_str("\n-----END ");
    pem.push_str(label);
    pem.push_str("-----\n");
    pem
}

#[cfg(test)]
mod tests {
    use sha2::Sha256;

    use super::*;
    use crate::volume::hex;

    /// SHA-256 of the key that all of these hold, in PKCS#8: `openssl pkcs8 -topk8 -nocrypt -outform der`.
    const PKCS8: &str = "010ac234d628219b7aee30216c5a49b4a90b8e3c3e5be0708fde447d0dc0e571";
    /// The same in SEC 1: `openssl ec -outform der`.
    const SEC1: &str = "a0bbe9ecdca4c7c019e9931fad5ca3e09ad4395f376aebda7e79016c91fff8db";
    const PASSWORD: &str = "secret-1";

    /// `openssl pkcs8 -topk8 -v2 aes-256-cbc`, `… -v2 aes-128-cbc -v2prf hmacWithSHA1`, `… -v2 des3` of OpenSSL 3.0.
    const PBES2: [&str; 3] = [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAi1lZpqtB1xhwICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEHjH5QfQ/nkR/F8/izM5+yMEgZBC
8Ee1QJcQqvgaSH+Y0lDryMBenfZkJdmCw5wL/ROhK5Uce0pg6IsuM5UnGIK4r1/l
RZXg8t/4ftB1almQavK2poI2K4BG5AxwpQ4HpFSgYoq8wl195kh5E+6u90llE2kJ
XEBea6/QTdnF3d4Mr6bkY2+9+4IgFnAxsqNZguEIAACH1w1wi1R8agMWweipieM=
-----END ENCRYPTED PRIVATE KEY-----
",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHeMEkGCSqGSIb3DQEFDTA8MBsGCSqGSIb3DQEFDDAOBAhMvne47rj/IAICCAAw
HQYJYIZIAWUDBAECBBDGtJk02gt24Z2tXBVOmqokBIGQdVvUhSvWhd3zbNi9AhHh
hWFRPHnpRecEkrSIX3vmlS2Pa4iRtX0fWRxdSunt9whvRB6s6e+NLCxgcXJKGDQ+
nsILfBNHwd8RrnGKCxPh+ZafdxZnKjERLwrPCjjNk6YT305WIaVBAUYBL51cRdLc
9lnvMwo8vjTFErterOiY+AFXGBNbUq+VKc2qSCyNJ+XB
-----END ENCRYPTED PRIVATE KEY-----
",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHjME4GCSqGSIb3DQEFDTBBMCkGCSqGSIb3DQEFDDAcBAgof6yq4ljTMQICCAAw
DAYIKoZIhvcNAgkFADAUBggqhkiG9w0DBwQI2tLNw++ZJ7QEgZDLd1DFaMLhH58m
PVpJUmemPpSEOQGrotzUi1tMVigktpEvbIxCdEARCNwi38STLPkUSVkrsP4ob1FK
D9jFnoYkHTnMcKIWEnvyPNeKRWgF4pfjUAc9PNLX/ZBrdaAxBfvVtBlsA3qJl9cV
xy3kTTNxRZ5afwyYiJmZIKUsSdO50s4pGnloS3mxqS3Q/M2+LWQ=
-----END ENCRYPTED PRIVATE KEY-----
",
    ];

    /// `openssl ec -aes256`, `-aes128` and `-des3` of OpenSSL 3.0.
    const RFC1423: [&str; 3] = [
        "-----BEGIN EC PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: AES-256-CBC,A773D7F359460A45CFA0608187700022

QZdRFdFoLwqLyi0HcgX0zo2kwZ7+VddDjfbdex27Vi732CpIXrQRnn464pM/MkYU
yT0orxP4tf0Nkj6g9kfX9r32blJj9Uc6hRQVYXG1r+YoxJUoc5PLZvxJm2nRCzAx
BqHOOSUyM0ZVqMPDkFl/hgWM3JTDufvBWIVf20xUegg=
-----END EC PRIVATE KEY-----
",
        "-----BEGIN EC PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: AES-128-CBC,6F3C11722E05A7BA1612B1372DF2FB3B

RK5Ekg5hdAAf4vl2YMJViprybACo6cLlZyWi0gSLf8YNDeUj6lvmTlUBNsafYjJe
yhmF+sKqqwJOF5BwOHedNdn8vmTzqASEnoqfJWsUkb3JImoRjhD/QcTwn8OZ/eyp
2wl392Lq4LX2ZTFZKnOVFvgIJY6W2UNdUELVc2MfM/Q=
-----END EC PRIVATE KEY-----
",
        "-----BEGIN EC PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: DES-EDE3-CBC,781C98D4B29DC3A6

2qK6JGYFRT3FlZH8KwZW/fzOeEGLF+y3SIBMXftxquVcjRH++Qu7t5fFokQz3qtq
seRsFRH8qsIk4bJzoNImLz+2x2iznzsUNohuE7adetgN2NM3/ZjUeOzcmh6mHnEi
IsbZOGDYMWh8fOIGGYoQufBbwPoxwftZEEtxjeUv78o=
-----END EC PRIVATE KEY-----
",
    ];

    fn check(pem: &str, label: &str, sha256: &str) {
        let opened = open(pem, Some(PASSWORD)).expect("the password opens it");
        let section = Section::first(&opened).expect("what is written can be read");
        assert_eq!((section.label, section.cipher), (label, None));
        assert_eq!(hex(&Sha256::digest(&section.der)), sha256);
        // What is open needs no password.
        assert_eq!(open(&opened, None), Ok(opened.clone()));
        assert_eq!(open(pem, None), Err(PrivateKeyFault::NoPassword));
        assert_eq!(open(pem, Some("secret-2")), Err(PrivateKeyFault::Password));
    }

    #[test]
    fn keys_that_openssl_encrypted_open_with_their_password_only() {
        for pem in PBES2 {
            check(pem, "PRIVATE KEY", PKCS8);
        }
        for pem in RFC1423 {
            check(pem, "EC PRIVATE KEY", SEC1);
        }
    }

    #[test]
    fn what_is_no_private_key_says_what_it_is() {
        let fault = |pem: &str| open(pem, Some(PASSWORD)).expect_err("it is none");
        let [pem, ..] = RFC1423;
        assert_eq!(fault(""), PrivateKeyFault::Missing);
        assert_eq!(fault("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"), PrivateKeyFault::Missing);
        assert_eq!(fault(pem.trim_end_matches("-----END EC PRIVATE KEY-----\n")), PrivateKeyFault::Torn);
        assert_eq!(fault(&pem.replace("A773", "zz73")), PrivateKeyFault::Torn);
        assert_eq!(fault(&pem.replace("QZdR", "!!!!")), PrivateKeyFault::Torn);
        assert_eq!(fault(&pem.replace("AES-256-CBC", "RC2-CBC")), PrivateKeyFault::Cipher("RC2-CBC".to_owned()));
    }
}
