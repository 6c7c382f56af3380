//! AWS: whose key signs a request is seen where it arrives, and what STS was asked for, by an STS of our own.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use coffer::key::kms::KmsFailure;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use testbed::{
    cloud::{
        Forecast, KmsBed, Variant, Weather,
        aws::{MiniStackKms, MotoKms, Sts},
    },
    conformance::{soon, told},
};

use super::{Sample, config, expect_fault, mounted::Mounted, notes, open};
use crate::{house::CLUSTER, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("aws_kms_on_moto_signs_with_the_pair_in_its_files_also_when_they_are_swapped".to_owned(), pair),
        trial("aws_kms_on_moto_signs_with_a_profile_of_a_credentials_file".to_owned(), profile),
        trial("aws_kms_on_moto_signs_with_what_sts_gives".to_owned(), given_by_moto),
        trial("aws_kms_on_moto_shows_sts_the_token_of_the_moment".to_owned(), web_identity),
        trial("aws_kms_on_moto_assumes_a_role_with_external_id_and_session_name".to_owned(), assumed_role),
        trial("aws_kms_on_ministack_asks_the_next_region_for_a_multi_region_kek".to_owned(), multi_region),
    ]
}

/// Everything since the last look was signed with one key, for KMS in the bed's region.
fn expect_signed(forecast: &Forecast, id: &str, token: Option<&str>) -> Result<()> {
    let signers = forecast.signers();
    forecast.forget();
    let fits = signers.iter().all(|signer| {
        let is_for = (signer.service.as_str(), signer.region.as_str()) == ("kms", "us-east-1");
        is_for && signer.access_key_id == id && signer.session_token.as_deref() == token
    });
    ensure!(fits && !signers.is_empty(), "{signers:?} in place of {id}");
    Ok(())
}

async fn pair() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = MotoKms::start(folder.path()).await?;
    let (whole, half) = (["id", "secret", "token"], ["id", "token"]);
    let files = |names: &[&'static str], which: &str| -> Vec<(&'static str, String)> {
        names.iter().map(|name| (*name, format!("{which}-{name}\n"))).collect()
    };
    let secret = mounted(&folder.path().join("secret"), &files(&whole, "first"))?;
    let mut config = config(&bed, Variant::Good).await?;
    config["auth"] = json!({
        "type": "static",
        "accessKeyIdFile": secret.file("id"),
        "secretAccessKeyFile": secret.file("secret"),
        "sessionTokenFile": secret.file("token"),
    });
    let kms = open(folder.path(), &config).await?.kms;
    let (kms, forecast) = (kms.as_ref(), bed.forecast());
    let sample = Sample::wrapped_by(kms).await?;
    expect_signed(forecast, "first-id", Some("first-token"))?;

    swap(&secret, &files(&whole, "second"))?;
    sample.opens(kms).await?;
    expect_signed(forecast, "second-id", Some("second-token")).context("after the swap")?;

    // Never a half of the one pair with a half of the other.
    swap(&secret, &files(&half, "third"))?;
    sample.opens(kms).await?;
    expect_signed(forecast, "second-id", Some("second-token")).context("with a half of a pair")?;
    swap(&secret, &files(&whole, "fourth"))?;
    sample.opens(kms).await?;
    expect_signed(forecast, "fourth-id", Some("fourth-token")).context("with a whole pair again")?;

    for key in ["accessKeyIdFile", "secretAccessKeyFile", "sessionTokenFile"] {
        let mut gone = config.clone();
        gone["auth"][key] = json!(secret.file("nothing"));
        expect_fault(folder.path(), &gone, "nothing").await.with_context(|| format!("{key} is not there"))?;
        let empty = folder.path().join("empty");
        fs::write(&empty, "\n")?;
        gone["auth"][key] = json!(empty);
        expect_fault(folder.path(), &gone, "empty").await.with_context(|| format!("{key} is empty"))?;
        if key != "sessionTokenFile" {
            let mut half = config.clone();
            half["auth"].as_object_mut().context("keys and values")?.remove(key);
            expect_fault(folder.path(), &half, &format!("auth.{key}")).await?;
        }
    }
    // The pair alone: no token is sent.
    config["auth"].as_object_mut().context("keys and values")?.remove("sessionTokenFile");
    Sample::wrapped_by(open(folder.path(), &config).await?.kms.as_ref()).await?;
    expect_signed(forecast, "fourth-id", None)?;
    notes(&bed).shown("a pair from a Secret's files, also with a session token, and swapped as Kubernetes swaps them");
    Ok(())
}

fn mounted(folder: &Path, files: &[(&'static str, String)]) -> Result<Mounted> {
    Mounted::at(folder.to_owned(), &texts(files))
}

fn swap(secret: &Mounted, files: &[(&'static str, String)]) -> Result<()> {
    secret.swap(&texts(files))
}

fn texts<'a>(files: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    files.iter().map(|(name, content)| (*name, content.as_str())).collect()
}

async fn profile() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = MotoKms::start(folder.path()).await?;
    let (credentials, shared) = (folder.path().join("credentials"), folder.path().join("config"));
    let section = |profile: &str, of: &str| {
        format!("[{profile}]\naws_access_key_id = {of}-id\naws_secret_access_key = {of}-secret\n")
    };
    fs::write(&credentials, [section("default", "usual"), section("coffer", "first")].concat())?;
    fs::write(&shared, "[profile coffer]\nregion = eu-west-1\n")?;
    let mut config = config(&bed, Variant::Good).await?;
    config["auth"] = json!({
        "type": "profile",
        "profile": "coffer",
        "credentialsFile": credentials,
        "configFile": shared,
    });
    let kms = open(folder.path(), &config).await?.kms;
    let sample = Sample::wrapped_by(kms.as_ref()).await?;
    expect_signed(bed.forecast(), "first-id", None)?;
    fs::write(&credentials, section("coffer", "second"))?;
    let again = open(folder.path(), &config).await?.kms;
    sample.opens(again.as_ref()).await?;
    expect_signed(bed.forecast(), "second-id", None)?;

    config["auth"]["profile"] = "nobody".into();
    let failure = sample.failure(open(folder.path(), &config).await?.kms.as_ref()).await?;
    ensure!(matches!(failure, KmsFailure::Unauthenticated { .. }), "a profile that is not there: {failure:?}");
    ensure!(told(&failure).contains("nobody"), "{}", told(&failure));
    let notes = notes(&bed);
    notes.shown("a profile of a credentials file");
    notes.not_shown("a profile's files that change under an open provider (they are read again after a minute)");
    Ok(())
}

/// Keys of an emulator's STS, by a token and by a role.
async fn given_by_moto() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = MotoKms::start(folder.path()).await?;
    let good = config(&bed, Variant::Good).await?;
    let token = folder.path().join("token");
    fs::write(&token, "token-of-an-identity-provider")?;
    let mut by_token = good.clone();
    by_token["stsEndpoint"] = good["endpoint"].clone();
    by_token["auth"] = json!({ "type": "web-identity", "tokenFile": token, "roleArn": Sts::ROLE });
    let mut by_role = good.clone();
    by_role["stsEndpoint"] = good["endpoint"].clone();
    by_role["role"] = json!({ "arn": Sts::ROLE, "externalId": Sts::EXTERNAL_ID, "sessionName": "coffer-here" });
    let mut by_both = by_token.clone();
    by_both["role"] = by_role["role"].clone();
    for (what, config) in [("web identity", by_token), ("a role", by_role), ("a role on web identity", by_both)] {
        bed.forecast().forget();
        let kms = open(folder.path(), &config).await?.kms;
        Sample::wrapped_by(kms.as_ref()).await.with_context(|| what.to_owned())?;
        let signers = bed.forecast().signers();
        let (for_sts, for_kms): (Vec<_>, Vec<_>) = signers.iter().partition(|signer| signer.service == "sts");
        let is_temporary =
            for_kms.iter().all(|signer| signer.access_key_id.starts_with("ASIA") && signer.session_token.is_some());
        ensure!(is_temporary && !for_kms.is_empty(), "{what}: {signers:?}");
        // A token takes the place of a signature.
        let expected = usize::from(what != "web identity");
        ensure!(for_sts.len() == expected, "{what}: STS was asked by {for_sts:?}");
        notes(&bed).shown(format!("keys that STS gives for {what}"));
    }
    Ok(())
}

/// A bed's good configuration with an STS of its own, whose authority is in a mounted file.
pub(super) async fn with_sts(folder: &Path, bed: &MotoKms) -> Result<(Sts, Mounted, Value)> {
    let sts = Sts::start(folder).await?;
    let ca = fs::read_to_string(sts.ca_file())?;
    let authorities = Mounted::at(folder.join("authorities"), &[("ca.crt", ca.as_str())])?;
    let mut config = config(bed, Variant::Good).await?;
    config["stsEndpoint"] = sts.url().into();
    config["caFile"] = json!(authorities.file("ca.crt"));
    // So that each call asks for keys.
    sts.set_lifetime(Duration::from_secs(5));
    Ok((sts, authorities, config))
}

/// What STS was asked for last.
pub(super) fn last_asked(sts: &Sts, expected: &[(&str, &str)]) -> Result<()> {
    let asked = sts.asked().pop().context("STS was not asked")?;
    for (field, value) in expected {
        ensure!(asked.get(*field).map(String::as_str) == Some(*value), "{field} is not {value}: {asked:?}");
    }
    Ok(())
}

/// The last use of KMS was signed with the key that STS gave last.
fn expect_last_key(forecast: &Forecast, sts: &Sts) -> Result<()> {
    let (signer, key) = (forecast.signers().pop().context("nobody signed")?, sts.keys().pop().context("no key")?);
    let token = format!("token-of-{key}");
    ensure!(signer.access_key_id == key && signer.session_token == Some(token), "{signer:?} in place of {key}");
    Ok(())
}

async fn web_identity() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = MotoKms::start(folder.path()).await?;
    let (sts, _, mut config) = with_sts(folder.path(), &bed).await?;
    let token = Mounted::at(folder.path().join("token"), &[("token", sts.token().as_str())])?;
    config["auth"] = json!({ "type": "web-identity", "tokenFile": token.file("token"), "roleArn": Sts::ROLE });
    let kms = open(folder.path(), &config).await?.kms;
    let (kms, forecast) = (kms.as_ref(), bed.forecast());
    let sample = Sample::wrapped_by(kms).await?;
    let of_moment = |sts: &Sts| {
        let (action, token) = ("AssumeRoleWithWebIdentity", sts.token());
        last_asked(sts, &[("Action", action), ("RoleArn", Sts::ROLE), ("WebIdentityToken", token.as_str())])
    };
    of_moment(&sts)?;
    expect_last_key(forecast, &sts)?;

    sts.renew_token();
    let failure = sample.failure(kms).await?;
    let text = told(&failure);
    ensure!(matches!(failure, KmsFailure::Unauthenticated { .. }), "a token that is taken no more: {failure:?}");
    ensure!(text.contains("InvalidIdentityToken") && text.contains(Sts::ROLE), "{text}");
    ensure!(!text.contains("token-0-of"), "the token is told: {text}");
    token.swap(&[("token", sts.token().as_str())])?;
    sample.opens(kms).await.context("with the new token")?;
    of_moment(&sts)?;
    expect_last_key(forecast, &sts)?;

    // Keys that last are kept.
    sts.set_lifetime(Duration::from_secs(3600));
    sample.opens(kms).await?;
    let asked = sts.asked().len();
    sample.opens(kms).await?;
    ensure!(sts.asked().len() == asked, "STS is asked for each call: {:?}", sts.asked());

    config["auth"]["tokenFile"] = json!(token.file("nothing"));
    let failure = sample.failure(open(folder.path(), &config).await?.kms.as_ref()).await?;
    ensure!(matches!(failure, KmsFailure::Unauthenticated { .. }), "a token that is not there: {failure:?}");
    ensure!(told(&failure).contains("nothing"), "{}", told(&failure));
    notes(&bed).shown("web identity, its token read again (STS: our fake)");
    Ok(())
}

async fn assumed_role() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = MotoKms::start(folder.path()).await?;
    let (sts, authorities, mut config) = with_sts(folder.path(), &bed).await?;
    let pair = Mounted::at(folder.path().join("pair"), &[("id", "first-id"), ("secret", "first-secret")])?;
    config["auth"] =
        json!({ "type": "static", "accessKeyIdFile": pair.file("id"), "secretAccessKeyFile": pair.file("secret") });
    config["role"] = json!({ "arn": Sts::ROLE, "externalId": Sts::EXTERNAL_ID });
    let kms = open(folder.path(), &config).await?.kms;
    let (kms, forecast) = (kms.as_ref(), bed.forecast());
    let sample = Sample::wrapped_by(kms).await?;
    let usual = format!("coffer-{CLUSTER}");
    let external = ("ExternalId", Sts::EXTERNAL_ID);
    let expected = [("Action", "AssumeRole"), ("RoleArn", Sts::ROLE), ("RoleSessionName", usual.as_str()), external];
    last_asked(&sts, &expected)?;
    expect_last_key(forecast, &sts)?;
    let asks_as = |id: &str| -> Result<()> {
        let signer = sts.forecast().signers().pop().context("nobody asked STS")?;
        ensure!((signer.access_key_id.as_str(), signer.service.as_str()) == (id, "sts"), "{signer:?}");
        Ok(())
    };
    asks_as("first-id")?;

    pair.swap(&[("id", "second-id"), ("secret", "second-secret")])?;
    sample.opens(kms).await?;
    asks_as("second-id").context("after the swap")?;
    expect_last_key(forecast, &sts)?;

    // STS is under another authority from now on: nothing is taken from it until the file says so.
    let ca_file = sts.move_to_another_authority().await?;
    let failure = sample.failure(kms).await?;
    ensure!(failure.is_outage(), "an STS that is not trusted: {failure:?}");
    authorities.swap(&[("ca.crt", fs::read_to_string(ca_file)?.as_str())])?;
    sample.opens(kms).await.context("with the new authority")?;

    config["role"]["sessionName"] = "coffer-here".into();
    sample.opens(open(folder.path(), &config).await?.kms.as_ref()).await?;
    last_asked(&sts, &[("RoleSessionName", "coffer-here")])?;
    config["role"]["externalId"] = "another".into();
    let failure = sample.failure(open(folder.path(), &config).await?.kms.as_ref()).await?;
    ensure!(matches!(failure, KmsFailure::Unauthenticated { .. }), "another external id: {failure:?}");
    ensure!(told(&failure).contains(Sts::ROLE), "{}", told(&failure));
    let notes = notes(&bed);
    notes.shown("a role with external id and session name (STS: our fake)");
    notes.shown("caFile swapped under an open provider (STS: our fake)");
    Ok(())
}

async fn multi_region() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = MiniStackKms::start(folder.path()).await?;
    let kms = open(folder.path(), &bed.multi_region().await?).await?.kms;
    let (kms, forecast) = (kms.as_ref(), bed.forecast());
    let in_first = Sample::wrapped_by(kms).await?;
    let expect_regions = |expected: &[&str]| -> Result<()> {
        let signers = forecast.signers();
        forecast.forget();
        let regions: Vec<_> = signers.iter().map(|signer| signer.region.as_str()).collect();
        ensure!(regions == expected, "{regions:?} in place of {expected:?}");
        Ok(())
    };
    expect_regions(&["us-east-1"; 2])?;
    ensure!(in_first.wrapped.kek_id.contains(":us-east-1:"), "{}", in_first.wrapped.kek_id);

    // Both are behind one address here, so it is the first request of a call that gets no answer.
    for weather in [Weather::Reset, Weather::Status(503)] {
        forecast.set(vec![weather.clone()]);
        in_first.opens(kms).await.with_context(|| format!("{weather:?} in the first region"))?;
        expect_regions(&["us-east-1", "eu-west-1"])?;
    }
    forecast.set(vec![Weather::Reset]);
    let wrapped = kms.wrap(&in_first.key, None, &in_first.volume.binding(), soon()).await?;
    expect_regions(&["us-east-1", "eu-west-1"])?;
    ensure!(wrapped.kek_id.contains(":eu-west-1:"), "{}", wrapped.kek_id);
    let in_second = Sample { wrapped, ..in_first };
    in_second.opens(kms).await.context("what the second region wrapped, in the first")?;
    expect_regions(&["us-east-1"])?;
    forecast.set(vec![Weather::Reset]);
    kms.describe(None, soon()).await.context("describe in the second region")?;
    ensure!(forecast.signers().iter().any(|signer| signer.region == "eu-west-1"), "{:?}", forecast.signers());

    // A refusal is an answer: the second region is not asked for another.
    forecast.forget();
    forecast.set(vec![Weather::Status(403)]);
    let failure = in_second.failure(kms).await?;
    ensure!(matches!(failure, KmsFailure::Denied { .. }), "{failure:?}");
    expect_regions(&["us-east-1"])?;
    notes(&bed).shown("a multi-region KEK in the region that answers");
    Ok(())
}
