//! OpenBao: each way to log in, tokens that end or are revoked, and that nothing is made by asking for it.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use coffer::{key::kms::KmsFailure, secret::InnerKey};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use testbed::{
    cloud::{KmsBed, Variant, transit::OpenBao},
    conformance::{kms::Volume, soon, told},
    tap::until,
};
use tokio::time::Instant;

use super::{Sample, config, expect_fault, mounted::Mounted, notes, open};
use crate::trial;

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("transit_on_openbao_logs_in_in_every_way_and_again_when_its_tokens_are_revoked".to_owned(), logins),
        trial("transit_on_openbao_outlives_leases_of_seconds".to_owned(), short_leases),
        trial("transit_on_openbao_takes_a_token_that_is_swapped".to_owned(), token_file),
        trial("transit_on_openbao_makes_no_key_by_wrapping".to_owned(), missing_key),
    ]
}

/// How many requests went to a path that ends so.
fn count(bed: &OpenBao, end: &str) -> usize {
    bed.forecast().requests().iter().filter(|request| request.ends_with(end)).count()
}

async fn logins() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = OpenBao::start(folder.path()).await?;
    for (what, config) in bed.also_good() {
        bed.forecast().forget();
        let kms = open(folder.path(), &config).await.with_context(|| what.to_owned())?.kms;
        let kms = kms.as_ref();
        let sample = Sample::wrapped_by(kms).await.with_context(|| what.to_owned())?;
        if config["auth"]["type"] != "token" {
            let logins = count(&bed, "/login");
            ensure!(logins >= 1, "{what}: {:?}", bed.forecast().requests());
            bed.revoke_logins().await?;
            // The server may take a moment until a revoked token is gone; nobody notices when it is.
            until("another login", async || {
                sample.opens(kms).await.with_context(|| format!("{what}, after its tokens were revoked"))?;
                Ok(count(&bed, "/login") > logins)
            })
            .await?;
        }
        for key in ["tokenFile", "secretIdFile"] {
            if !config["auth"][key].is_null() {
                let mut gone = config.clone();
                gone["auth"][key] = json!(folder.path().join("nothing"));
                expect_fault(folder.path(), &gone, "nothing").await.with_context(|| format!("{what}: {key}"))?;
            }
        }
        notes(&bed).shown(what);
    }
    notes(&bed).shown("logs in again, inside the call, when its token is revoked");
    Ok(())
}

async fn short_leases() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = OpenBao::start(folder.path()).await?;
    let short = |(what, config): (&str, Value)| what.contains("leases of").then_some(config);
    let config = bed.also_good().into_iter().find_map(short).context("a configuration with short leases")?;
    let kms = open(folder.path(), &config).await?.kms;
    let kms = kms.as_ref();
    bed.forecast().forget();
    let sample = Sample::wrapped_by(kms).await?;
    // Longer than any token of it lasts.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(14) {
        sample.opens(kms).await.with_context(|| format!("after {:?}", start.elapsed()))?;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let (renewals, logins) = (count(&bed, "/auth/token/renew-self"), count(&bed, "/login"));
    ensure!(renewals >= 1 && logins >= 2, "{renewals} renewals and {logins} logins");
    ensure!(renewals + logins < 20, "{renewals} renewals and {logins} logins");
    notes(&bed).shown("leases of seconds, renewed and then replaced");
    Ok(())
}

async fn token_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = OpenBao::start(folder.path()).await?;
    let token = async |variant| {
        let config = config(&bed, variant).await?;
        let path = config["auth"]["tokenFile"].as_str().context("a tokenFile")?.to_owned();
        anyhow::Ok(fs::read_to_string(path)?)
    };
    let good = token(Variant::Good).await?;
    let (powerless, wrong) = (token(Variant::NoPermission).await?, token(Variant::BadCredentials).await?);
    let mounted = Mounted::at(folder.path().join("mounted"), &[("token", good.as_str())])?;
    let mut config = config(&bed, Variant::Good).await?;
    config["auth"]["tokenFile"] = json!(mounted.file("token"));
    let kms = open(folder.path(), &config).await?.kms;
    let kms = kms.as_ref();
    let sample = Sample::wrapped_by(kms).await?;
    mounted.swap(&[("token", powerless.as_str())])?;
    let failure = sample.failure(kms).await?;
    ensure!(matches!(failure, KmsFailure::Denied { .. }), "a token that may not: {failure:?}");
    mounted.swap(&[("token", wrong.as_str())])?;
    let failure = sample.failure(kms).await?;
    let is_refused = matches!(failure, KmsFailure::Denied { .. } | KmsFailure::Unauthenticated { .. });
    ensure!(is_refused, "a token that nobody gave: {failure:?}");
    ensure!(!told(&failure).contains(wrong.trim()), "the token is told: {}", told(&failure));
    mounted.swap(&[("token", good.as_str())])?;
    sample.opens(kms).await.context("with the good token back")?;
    notes(&bed).shown("a token file, swapped as Kubernetes swaps it");
    Ok(())
}

async fn missing_key() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = OpenBao::start(folder.path()).await?;
    let config = config(&bed, Variant::MissingKek).await?;
    let name = config["keyName"].as_str().context("a keyName")?;
    let kms = open(folder.path(), &config).await?.kms;
    let volume = Volume::of("vol-1");
    let wrapped = kms.wrap(&InnerKey::random(), None, &volume.binding(), soon()).await;
    ensure!(wrapped.is_err(), "a key that is not there wraps");
    ensure!(!bed.has_key(name).await?, "wrapping made {name}");
    notes(&bed).shown("wrapping with a missing key makes none");
    Ok(())
}
