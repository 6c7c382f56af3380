//! The private authority of an installation, and the certificate with which its key service proves itself. ECDSA on
//! P-256, X.509 as RFC 5280 has it.
//!
//! An authority may sign servers and nothing below it (path length 0). It is renewed long before its end, and the old
//! one stays in the bundle beside the new one: who knows only the old one is not locked out, and who knows both trusts
//! whatever either has signed.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::parse_x509_certificate;
use zeroize::Zeroizing;

/// How long an authority lasts: ten years.
const AUTHORITY_TIME: Duration = Duration::from_secs(3652 * 24 * 60 * 60);
/// How long a server's certificate lasts: a year.
const SERVER_TIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// So long before now a certificate begins, for clocks that are behind.
const EARLIER: Duration = Duration::from_secs(5 * 60);

/// Why there is no certificate, or why one is not taken.
#[derive(Debug, thiserror::Error)]
pub enum CertificateFault {
    /// It could not be made.
    #[error("make a certificate")]
    Made(#[from] rcgen::Error),
    /// What lies there is none.
    #[error("{0}")]
    Unusable(String),
}

/// A certificate, or a bundle that begins with it, and its private key. PEM.
pub(super) struct Identity {
    /// The certificate; of an authority, those before it follow.
    pub(super) certificate: String,
    /// PKCS#8.
    pub(super) private_key: Zeroizing<String>,
}

/// How a certificate stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    /// It lasts.
    Fresh,
    /// It is good and has less than a third of its life left.
    Old,
    /// It has ended, or has not begun.
    Invalid,
}

/// Makes an authority. `before` are the certificates of those that it takes over from; they go into the bundle as long
/// as they last.
pub(super) fn authority(before: &str, now: Timestamp) -> Result<Identity, CertificateFault> {
    let key = KeyPair::generate()?;
    let mut params =
        params(&format!("Coffer authority of {}", now.strftime("%Y-%m-%d")), now, end(now, AUTHORITY_TIME));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let mut bundle = params.self_signed(&key)?.pem();
    for older in pems(before) {
        if age(&older, now)? != Age::Invalid {
            bundle.push_str(&older);
        }
    }
    Ok(Identity { certificate: bundle, private_key: Zeroizing::new(key.serialize_pem()) })
}

/// Makes a server's certificate for these names. It ends no later than the authority.
pub(super) fn server(authority: &Identity, names: &[String], now: Timestamp) -> Result<Identity, CertificateFault> {
    let certificate = first(&authority.certificate)?;
    let (_, authority_ends) = validity(&certificate)?;
    let issuer = Issuer::from_ca_cert_der(&certificate, KeyPair::from_pem(&authority.private_key)?)?;
    let key = KeyPair::generate()?;
    let mut params = params("Coffer key service", now, end(now, SERVER_TIME).min(authority_ends));
    params.subject_alt_names = CertificateParams::new(names.to_vec())?.subject_alt_names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer)?.pem();
    Ok(Identity { certificate, private_key: Zeroizing::new(key.serialize_pem()) })
}

/// Whether a private key belongs to the first certificate.
///
/// # Errors
/// It does not, or one of them is none.
pub(super) fn fits(identity: &Identity) -> Result<(), CertificateFault> {
    let key = PrivateKeyDer::from_pem_slice(identity.private_key.as_bytes())
        .map_err(|_| CertificateFault::Unusable("the private key is none in PEM".to_owned()))?;
    CertifiedKey::from_der(vec![first(&identity.certificate)?], key, &aws_lc_rs::default_provider())
        .map(drop)
        .map_err(|error| CertificateFault::Unusable(format!("certificate and private key do not fit: {error}")))
}

/// Whether who trusts the bundle takes the certificate for each of the names, now.
///
/// # Errors
/// It is not taken for one of them.
pub(super) fn trusted(
    certificate: &str,
    bundle: &str,
    names: &[String],
    now: Timestamp,
) -> Result<(), CertificateFault> {
    let unusable = |what: String| CertificateFault::Unusable(what);
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        let root = root.map_err(|error| unusable(format!("the authority is no certificate: {error}")))?;
        roots.add(root).map_err(|error| unusable(format!("the authority is not one to trust: {error}")))?;
    }
    let provider: Arc<CryptoProvider> = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| unusable(format!("the authority is not one to trust: {error}")))?;
    let (certificate, time) = (first(certificate)?, UnixTime::since_unix_epoch(since_epoch(now)));
    for name in names {
        let server = ServerName::try_from(name.as_str()).map_err(|error| unusable(format!("{name}: {error}")))?;
        verifier
            .verify_server_cert(&certificate, &[], &server, &[], time)
            .map_err(|error| unusable(format!("it is not taken for {name}: {error}")))?;
    }
    Ok(())
}

/// How the first certificate stands in its life.
///
/// # Errors
/// It is none.
pub(super) fn age(certificate: &str, now: Timestamp) -> Result<Age, CertificateFault> {
    let (begins, ends) = validity(&first(certificate)?)?;
    if now < begins || now >= ends {
        return Ok(Age::Invalid);
    }
    let (left, whole) = (ends.duration_since(now), ends.duration_since(begins));
    Ok(if left.as_secs() < whole.as_secs() / 3 { Age::Old } else { Age::Fresh })
}

/// When the first certificate ends.
///
/// # Errors
/// It is none.
pub(super) fn ends(certificate: &str) -> Result<Timestamp, CertificateFault> {
    Ok(validity(&first(certificate)?)?.1)
}

/// A Service's name in each form in which it is called within the cluster; any other name as it is. No name is there
/// twice.
pub(super) fn forms(names: &[String]) -> Vec<String> {
    let mut all = Vec::new();
    for name in names {
        let parts: Vec<_> = name.split('.').collect();
        let forms = match parts.as_slice() {
            [service, namespace, "svc", ..] => vec![
                (*service).to_owned(),
                format!("{service}.{namespace}"),
                format!("{service}.{namespace}.svc"),
                format!("{service}.{namespace}.svc.cluster.local"),
                name.clone(),
            ],
            _ => vec![name.clone()],
        };
        for form in forms {
            if !all.contains(&form) {
                all.push(form);
            }
        }
    }
    all
}

fn params(name: &str, now: Timestamp, ends: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_epoch(now).saturating_sub(EARLIER);
    params.not_after = epoch + since_epoch(ends);
    params
}

fn end(now: Timestamp, time: Duration) -> Timestamp {
    now.checked_add(time).expect("it is centuries until time ends")
}

fn since_epoch(time: Timestamp) -> Duration {
    Duration::from_secs(u64::try_from(time.as_second()).unwrap_or_default())
}

fn first(bundle: &str) -> Result<CertificateDer<'static>, CertificateFault> {
    let first = CertificateDer::from_pem_slice(bundle.as_bytes());
    first.map_err(|_| CertificateFault::Unusable("it holds no certificate in PEM".to_owned()))
}

fn validity(certificate: &CertificateDer<'_>) -> Result<(Timestamp, Timestamp), CertificateFault> {
    let unusable = || CertificateFault::Unusable("it is no certificate".to_owned());
    let (_, parsed) = parse_x509_certificate(certificate).map_err(|_| unusable())?;
    let time = |seconds: i64| Timestamp::from_second(seconds).map_err(|_| unusable());
    let validity = parsed.validity();
    Ok((time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?))
}

/// The certificates of a bundle, one by one.
fn pems(bundle: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let parts = bundle.split_inclusive(END).filter(|part| part.ends_with(END));
    parts.map(|part| format!("{}\n", part.trim_start())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn names() -> Vec<String> {
        forms(&["keys.system.svc".to_owned(), "10.0.0.1".to_owned()])
    }

    fn later(now: Timestamp, days: u32) -> Timestamp {
        end(now, DAY * days)
    }

    fn check(certificate: &str, bundle: &str, names: &[String], now: Timestamp) -> Result<(), String> {
        trusted(certificate, bundle, names, now).map_err(|fault| fault.to_string())
    }

    #[test]
    fn a_service_has_each_form_of_its_name_and_a_host_its_own_alone() {
        let of = |names: &[&str]| forms(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        let service = ["keys", "keys.system", "keys.system.svc", "keys.system.svc.cluster.local"];
        assert_eq!(of(&["keys.system.svc"]), service);
        assert_eq!(of(&["keys.system.svc.cluster.local", "keys.system.svc"]), service);
        assert_eq!(
            of(&["keys.system.svc.example.org"]).last().map(String::as_str),
            Some("keys.system.svc.example.org")
        );
        assert_eq!(of(&["localhost", "keys.example.org", "::1"]), ["localhost", "keys.example.org", "::1"]);
    }

    #[test]
    fn a_server_is_trusted_for_its_names_and_no_other_while_it_lasts() {
        let now = Timestamp::now();
        let authority = authority("", now).expect("an authority");
        let server = server(&authority, &names(), now).expect("a server");
        fits(&authority).expect("they fit");
        fits(&server).expect("they fit");
        assert_eq!(check(&server.certificate, &authority.certificate, &names(), now), Ok(()));
        for other in ["other.system.svc", "localhost", "10.0.0.2"] {
            let told = check(&server.certificate, &authority.certificate, &[other.to_owned()], now);
            assert!(told.is_err_and(|told| told.contains(other)), "{other}");
        }
        assert!(check(&server.certificate, &authority.certificate, &names(), later(now, 366)).is_err());
        let stranger = self::authority("", now).expect("another");
        assert!(check(&server.certificate, &stranger.certificate, &names(), now).is_err());
        let mixed = Identity { certificate: server.certificate, private_key: authority.private_key };
        assert!(fits(&mixed).is_err(), "a key fits another's certificate");
    }

    #[test]
    fn a_certificate_is_old_when_less_than_a_third_of_its_life_is_left() {
        let now = Timestamp::now();
        let authority = authority("", now).expect("an authority");
        let server = server(&authority, &names(), now).expect("a server");
        let at = |certificate: &str, days: u32| age(certificate, later(now, days)).expect("a certificate");
        assert_eq!(
            [0, 240, 245, 364, 366].map(|days| at(&server.certificate, days)),
            [Age::Fresh, Age::Fresh, Age::Old, Age::Old, Age::Invalid]
        );
        assert_eq!(at(&authority.certificate, 2000), Age::Fresh);
        assert_eq!(at(&authority.certificate, 3000), Age::Old);
        assert!(age("no certificate", now).is_err());
    }

    #[test]
    fn a_new_authority_brings_the_old_one_with_it_until_that_has_ended() {
        let now = Timestamp::now();
        let old = authority("", now).expect("an authority");
        let server = server(&old, &names(), now).expect("a server");
        let new = authority(&old.certificate, later(now, 1)).expect("the next one");
        assert_eq!(pems(&new.certificate).len(), 2);
        assert_eq!(check(&server.certificate, &new.certificate, &names(), later(now, 1)), Ok(()));
        let signed_by_new = self::server(&new, &names(), later(now, 1)).expect("a server");
        assert_eq!(check(&signed_by_new.certificate, &new.certificate, &names(), later(now, 2)), Ok(()));
        assert!(check(&signed_by_new.certificate, &old.certificate, &names(), later(now, 2)).is_err());
        let much_later = authority(&new.certificate, later(now, 4000)).expect("one more");
        assert_eq!(pems(&much_later.certificate).len(), 1, "what has ended is left out");
    }

    #[test]
    fn no_server_outlasts_its_authority() {
        let now = Timestamp::now();
        let authority = authority("", now).expect("an authority");
        let server = server(&authority, &names(), later(now, 3600)).expect("a server");
        assert_eq!(ends(&server.certificate).expect("it ends"), ends(&authority.certificate).expect("it ends"));
    }
}
