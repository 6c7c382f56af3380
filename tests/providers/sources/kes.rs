//! KES: who a client is, by certificates that change under an open provider and keys behind a password; and servers
//! that take over for one another.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use coffer::key::{
    calls::CallSettings,
    kms::{Kms, KmsFailure},
};
use libtest_mimic::Trial;
use pkcs8::{PrivateKeyInfoRef, pkcs5::pbes2};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};
use testbed::{
    cloud::{KmsBed, Variant, kes::KesServer},
    conformance::soon,
};

use super::{Sample, config, expect_fault, mounted::Mounted, notes, open};
use crate::{house::no_cache, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("kes_goes_on_with_another_server".to_owned(), failover),
        trial("kes_takes_a_client_certificate_that_is_swapped".to_owned(), certificate),
        trial("kes_takes_a_private_key_behind_a_password".to_owned(), password),
    ]
}

async fn failover() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = KesServer::start(folder.path()).await?;
    let (second, forecast) = bed.another().await?;
    let mut config = config(&bed, Variant::Good).await?;
    let first = config["endpoints"][0].take();
    config["endpoints"] = json!([first, format!("https://{}", second.address())]);
    let provider = open(folder.path(), &config).await?;
    let kms = provider.kms.as_ref();
    let sample = Sample::wrapped_by(kms).await?;
    ensure!(forecast.requests().is_empty(), "the second is asked while the first answers: {:?}", forecast.requests());

    bed.outage(true).await?;
    let calls = CallSettings { timeout: Duration::from_secs(5), attempts: 3, concurrency: 4 };
    let guarded = provider.guarded(calls, no_cache());
    let opened =
        guarded.unwrap(&sample.wrapped, &sample.volume.binding(), soon()).await.context("the first is away")?;
    ensure!(opened.expose_secret() == sample.key.expose_secret(), "it opened to another key");
    ensure!(forecast.requests().len() == 1, "the second: {:?}", forecast.requests());

    // The first is left alone for a while, also when it is back.
    bed.outage(false).await?;
    bed.forecast().forget();
    sample.opens(kms).await.context("one attempt")?;
    ensure!(bed.forecast().requests().is_empty(), "it is asked at once: {:?}", bed.forecast().requests());
    ensure!(forecast.requests().len() == 2, "the second: {:?}", forecast.requests());

    // Where no other is left, it is asked all the same.
    drop(second);
    let failure = sample.failure(kms).await?;
    ensure!(failure.is_outage(), "the second is away: {failure:?}");
    sample.opens(kms).await.context("the first is back, the second away")?;
    ensure!(bed.forecast().requests().len() == 1, "the first: {:?}", bed.forecast().requests());
    notes(&bed).shown("two servers: the one goes on for the other");
    Ok(())
}

/// The content of a file that a configuration names.
fn content(config: &Value, key: &str) -> Result<String> {
    let path = config[key].as_str().with_context(|| format!("{key} in {config}"))?;
    Ok(fs::read_to_string(path)?)
}

async fn certificate() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = KesServer::start(folder.path()).await?;
    let mut good = config(&bed, Variant::Good).await?;
    let powerless = config(&bed, Variant::NoPermission).await?;
    let pair = |config: &Value| anyhow::Ok((content(config, "certificateFile")?, content(config, "privateKeyFile")?));
    let ((certificate, key), (other, others_key)) = (pair(&good)?, pair(&powerless)?);
    let ours = [("tls.crt", certificate.as_str()), ("tls.key", key.as_str())];
    let theirs = [("tls.crt", other.as_str()), ("tls.key", others_key.as_str())];
    let torn = [("tls.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n"), ("tls.key", others_key.as_str())];
    let secret = Mounted::at(folder.path().join("secret"), &ours)?;
    good["certificateFile"] = json!(secret.file("tls.crt"));
    good["privateKeyFile"] = json!(secret.file("tls.key"));
    let kms = open(folder.path(), &good).await?.kms;
    let kms = kms.as_ref();
    let sample = Sample::wrapped_by(kms).await?;

    secret.swap(&theirs)?;
    let failure = sample.failure(kms).await?;
    ensure!(matches!(failure, KmsFailure::Denied { .. }), "a client that may not: {failure:?}");
    secret.swap(&ours)?;
    sample.opens(kms).await.context("with the client back")?;
    secret.swap(&torn)?;
    sample.opens(kms).await.context("with what is no certificate")?;
    secret.swap(&ours)?;

    for key in ["certificateFile", "privateKeyFile"] {
        let mut gone = good.clone();
        gone[key] = json!(secret.file("nothing"));
        expect_fault(folder.path(), &gone, "nothing").await?;
    }
    notes(&bed).shown("a client certificate, swapped as Kubernetes swaps it");
    Ok(())
}

async fn password() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = KesServer::start(folder.path()).await?;
    let mut config = config(&bed, Variant::Good).await?;
    let key = PrivatePkcs8KeyDer::from_pem_slice(content(&config, "privateKeyFile")?.as_bytes())?;
    let encrypted = encrypted(key.secret_pkcs8_der(), "password-1")?;
    let files = [("tls.key", encrypted.as_str()), ("password", "password-1\n"), ("wrong", "password-2\n")];
    let secret = Mounted::at(folder.path().join("secret"), &files)?;
    config["privateKeyFile"] = json!(secret.file("tls.key"));
    expect_fault(folder.path(), &config, "tls.key").await.context("without a password")?;
    config["passwordFile"] = json!(secret.file("wrong"));
    expect_fault(folder.path(), &config, "tls.key").await.context("with a wrong password")?;
    config["passwordFile"] = json!(secret.file("password"));
    Sample::wrapped_by(open(folder.path(), &config).await?.kms.as_ref()).await?;
    notes(&bed).shown("a private key behind a password");
    Ok(())
}

/// A private key (PKCS#8) as `openssl pkcs8 -topk8 -v2 aes-256-cbc` encrypts it.
fn encrypted(key: &[u8], password: &str) -> Result<String> {
    let failed = |error: &dyn std::fmt::Display| anyhow::anyhow!("encrypt a key: {error}");
    let by = pbes2::Parameters::generate_pbkdf2_sha256_aes256cbc(2048, b"a test's", *b"a test's vector!");
    let by = by.map_err(|error| failed(&error))?;
    let key = PrivateKeyInfoRef::try_from(key).map_err(|error| failed(&error))?;
    let encrypted = key.encrypt_with_params(by, password).map_err(|error| failed(&error))?;
    let text = BASE64_STANDARD.encode(encrypted.as_bytes());
    let mut pem = "-----BEGIN ENCRYPTED PRIVATE KEY-----\n".to_owned();
    for line in text.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line)?);
        pem.push('\n');
    }
    pem.push_str("-----END ENCRYPTED PRIVATE KEY-----\n");
    Ok(pem)
}
