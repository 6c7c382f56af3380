//! Azure: an application's secret, a ServiceAccount token and the machine's own identity, on our imitation of Key Vault
//! and of the directory that gives tokens.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use coffer::key::kms::KmsFailure;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use testbed::{
    cloud::{Variant, azure::KeyVault},
    conformance::told,
};

use super::{
    Sample, config, expect_fault,
    mounted::Mounted,
    notes, open,
    program::{coffer, config_file},
};
use crate::trial;

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("azure_key_vault_takes_a_client_secret_that_is_swapped".to_owned(), client_secret),
        trial("azure_key_vault_takes_the_service_account_token_of_the_moment".to_owned(), workload_identity),
        trial("azure_key_vault_takes_the_machines_identity".to_owned(), managed_identity),
        trial("azure_key_vault_is_trusted_by_the_authorities_of_the_moment".to_owned(), authorities),
    ]
}

/// Seconds that a token holds: the SDK uses one as long as it holds, whatever became of what it was got with.
const SHORT: u64 = 1;

/// Waits until the tokens of before have ended.
async fn tokens_ended() {
    tokio::time::sleep(Duration::from_secs(SHORT + 1)).await;
}

/// The content of a file that a configuration names.
fn content(config: &Value, key: &str) -> Result<String> {
    let path = config["auth"][key].as_str().with_context(|| format!("auth.{key} in {config}"))?;
    Ok(fs::read_to_string(path)?)
}

fn expect_unauthenticated(failure: &KmsFailure) -> Result<()> {
    ensure!(matches!(failure, KmsFailure::Unauthenticated { .. }), "{failure:?}: {}", told(failure));
    Ok(())
}

async fn client_secret() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = KeyVault::start(folder.path()).await?;
    bed.set_token_lifetime(SHORT);
    let mut good = config(&bed, Variant::Good).await?;
    let right = content(&good, "clientSecretFile")?;
    let wrong = content(&config(&bed, Variant::BadCredentials).await?, "clientSecretFile")?;
    let secret = Mounted::at(folder.path().join("secret"), &[("secret", right.as_str())])?;
    good["auth"]["clientSecretFile"] = json!(secret.file("secret"));
    let kms = open(folder.path(), &good).await?.kms;
    let kms = kms.as_ref();
    let sample = Sample::wrapped_by(kms).await?;

    secret.swap(&[("secret", wrong.as_str())])?;
    tokens_ended().await;
    let failure = sample.failure(kms).await.context("with a secret that is not the application's")?;
    expect_unauthenticated(&failure)?;
    ensure!(!told(&failure).contains(&wrong), "the secret is told: {}", told(&failure));
    // A file that is gone for a moment takes nothing away.
    secret.swap(&[("secret", right.as_str())])?;
    sample.opens(kms).await.context("with the secret back")?;
    secret.swap(&[])?;
    sample.opens(kms).await.context("while there is no file")?;

    good["auth"]["clientSecretFile"] = json!(secret.file("nothing"));
    expect_fault(folder.path(), &good, "nothing").await?;
    notes(&bed).shown("a client secret, swapped as Kubernetes swaps it");
    Ok(())
}

async fn workload_identity() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = KeyVault::start(folder.path()).await?;
    bed.set_token_lifetime(SHORT);
    let mut config = bed.workload_identity();
    let token = Mounted::at(folder.path().join("projected"), &[("token", content(&config, "tokenFile")?.as_str())])?;
    let newest = config.clone();
    config["auth"]["tokenFile"] = json!(token.file("token"));
    let kms = open(folder.path(), &config).await?.kms;
    let kms = kms.as_ref();
    let sample = Sample::wrapped_by(kms).await?;

    bed.renew_service_account_token()?;
    tokens_ended().await;
    let failure = sample.failure(kms).await.context("with a token that is taken no more")?;
    expect_unauthenticated(&failure)?;
    token.swap(&[("token", content(&newest, "tokenFile")?.as_str())])?;
    sample.opens(kms).await.context("with the token of the moment")?;

    config["auth"]["tokenFile"] = json!(token.file("nothing"));
    expect_fault(folder.path(), &config, "nothing").await?;
    notes(&bed).shown("workload identity, its token read again");
    Ok(())
}

/// Its variables are a whole process's, so a process of its own has them.
async fn managed_identity() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = KeyVault::start(folder.path()).await?;
    let (config, variables) = bed.managed_identity();
    let file = config_file(folder.path(), &config)?;
    let file = file.to_str().context("a path that is text")?;
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let status = async |variables: &[(&str, &str)]| {
        let told = coffer(&["keys", "status", "--json", "--config", file], variables).await?;
        let mut status: Value = serde_json::from_str(&told)?;
        anyhow::Ok(status["providers"][0].take())
    };
    let well = status(variables.as_slice()).await?;
    ensure!(well["kekId"].is_string() && well["failure"].is_null(), "{well}");
    let wrong = [variables[0], ("IDENTITY_HEADER", "that-of-another-machine")];
    let ill = status(wrong.as_slice()).await?;
    ensure!(ill["kekId"].is_null() && ill["failure"].is_string(), "{ill}");
    notes(&bed).shown("managed identity (App Service), by the program itself");
    Ok(())
}

async fn authorities() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = KeyVault::start(folder.path()).await?;
    let mut config = config(&bed, Variant::Good).await?;
    let first = fs::read_to_string(config["caFile"].as_str().context("a caFile")?)?;
    let authorities = Mounted::at(folder.path().join("authorities"), &[("ca.crt", first.as_str())])?;
    config["caFile"] = json!(authorities.file("ca.crt"));
    let kms = open(folder.path(), &config).await?.kms;
    let kms = kms.as_ref();
    let sample = Sample::wrapped_by(kms).await?;

    let second = fs::read_to_string(bed.move_to_another_authority().await?)?;
    let failure = sample.failure(kms).await.context("a vault that is not trusted")?;
    ensure!(failure.is_outage(), "{failure:?}");
    // The directory is still under the first.
    authorities.swap(&[("ca.crt", [first, second].concat().as_str())])?;
    sample.opens(kms).await.context("with both authorities")?;
    notes(&bed).shown("caFile, swapped under an open provider");
    Ok(())
}
