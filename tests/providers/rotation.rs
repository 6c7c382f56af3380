//! Rotation by the KMS itself: it is switched on where somebody asks for it who may, and nowhere else; the operator's verb
//! says what it does, writes it down, and `coffer keys status` shows it.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use coffer::{
    key::kms::{Kms, KmsFailure, Rotation, rotation::DAY},
    keyservice::audit::verify,
    secret::InnerKey,
};
use jiff::Timestamp;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use testbed::{
    cloud::{KmsBed, Variant, azure::KeyVault, transit::OpenBao},
    conformance::{kms::Volume, soon, told},
};

use crate::{
    house::{House, NAME},
    kms_trials,
    servers::KmsServer,
    sources::{
        open,
        program::{coffer, config_file, ended},
    },
    table::Notes,
    trial,
};

const YEAR: Duration = Duration::from_secs(365 * DAY.as_secs());

pub(crate) fn trials() -> Vec<Trial> {
    let whole = KmsServer::WHOLE;
    let with_periods = [whole.as_slice(), &[KmsServer::MiniStack]].concat();
    let alone = [
        trial("azure_key_vault_keeps_the_rest_of_a_rotation_policy".to_owned(), policy),
        trial("the_program_has_a_kek_rotated_when_it_is_told_to_and_writes_it_down".to_owned(), verb),
        trial("the_program_says_what_to_do_where_there_is_no_timer".to_owned(), no_timer),
    ];
    [
        kms_trials(&with_periods, "is_rotated_by_itself_from_when_that_is_asked_for", by_itself),
        kms_trials(&whole, "lets_nobody_have_a_kek_rotated_who_may_only_use_it", denied),
        alone.into(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn by_itself(house: House) -> Result<()> {
    const WHAT: &str = "rotation by the KMS itself";
    let config = match house.bed.keeper().await? {
        Some(config) => config,
        None => house.good().await?,
    };
    let kms = house.open(&config).await?.kms;
    let periods = match kms.rotation_periods(None) {
        Ok(periods) => periods,
        Err(by_hand) => {
            ensure!(by_hand.to_string().contains("coffer rewrap"), "it does not say what to do: {by_hand}");
            let refused = kms.rotate_every(YEAR, None, soon()).await.err().context("it was done")?;
            ensure!(matches!(refused, KmsFailure::Refused { .. }), "{refused:?}");
            house.notes.not_shown(format!("{WHAT} (the service has no timer)"));
            return Ok(());
        }
    };
    let now = kms.rotation(None, soon()).await?;
    ensure!(now == Rotation::Off, "before anybody asked for it, it is {now}");
    let (key, volume) = (InnerKey::random(), Volume::of("vol-1"));
    let wrapped = kms.wrap(&key, None, &volume.binding(), soon()).await?;
    // Each is set twice: a call that was not answered is made again.
    for period in [periods.least, YEAR, YEAR] {
        kms.rotate_every(period, None, soon()).await.with_context(|| format!("every {period:?}"))?;
        expect_on(&house.notes, kms.as_ref(), period).await?;
    }
    let opened = kms.unwrap(&wrapped, &volume.binding(), soon()).await?;
    ensure!(opened.expose_secret() == key.expose_secret(), "it opened to another key");
    house.notes.shown(WHAT);
    Ok(())
}

/// It is on, as often as was asked; where the server tells when next, a period from now.
async fn expect_on(notes: &Notes, kms: &dyn Kms, asked: Duration) -> Result<()> {
    let Rotation::On { period, next } = kms.rotation(None, soon()).await? else { bail!("it is off") };
    match period {
        Some(period) => ensure!(period == asked, "every {period:?} in place of {asked:?}"),
        None => notes.not_shown("how often a KEK is rotated (this server does not tell)"),
    }
    match next {
        Some(next) => {
            let (left, asked) = (next.duration_since(Timestamp::now()).as_secs(), i64::try_from(asked.as_secs())?);
            ensure!(left.abs_diff(asked) < 600, "next on {next}, which is {left} s from now, and not {asked} s");
        }
        None => notes.not_shown("when a KEK is rotated next (this server does not tell)"),
    }
    Ok(())
}

async fn denied(house: House) -> Result<()> {
    const WHAT: &str = "rotation is not for who may only use the KEK";
    let Some(keeper) = house.bed.keeper().await? else {
        house.notes.not_shown(format!("{WHAT} (this server lets everybody, or has no timer)"));
        return Ok(());
    };
    let kms = house.open(&house.good().await?).await?.kms;
    let failure = kms.rotate_every(YEAR, None, soon()).await.err().context("it was done")?;
    let KmsFailure::Denied { action, hint, .. } = &failure else { bail!("{failure:?}") };
    let missing = match house.bed.provider() {
        "transit" => "/keys/coffer/config\" { capabilities = [\"update\"] }",
        "gcp-kms" => "cloudkms.cryptoKeys.update",
        _ => "rotation policy",
    };
    ensure!(action.contains(missing) || hint.contains(missing), "what is missing is not told: {}", told(&failure));
    let now = house.open(&keeper).await?.kms.rotation(None, soon()).await?;
    ensure!(now == Rotation::Off, "it was denied, and is {now}");
    house.notes.shown(WHAT);
    Ok(())
}

async fn policy() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = KeyVault::start(folder.path()).await?;
    let notice = json!({ "action": { "type": "Notify" }, "trigger": { "timeBeforeExpiry": "P30D" } });
    // Spelled in small letters, which the service does not rule out.
    let rotate = json!({ "action": { "type": "rotate" }, "trigger": { "timeAfterCreate": "P100D" } });
    bed.set_policy(json!({ "lifetimeActions": [rotate, notice], "attributes": { "expiryTime": "P730D" } }));
    let notes = Notes::provider(bed.provider(), bed.server(), bed.standing());
    let mut config = bed.keeper().await?.context("somebody may set policies")?;
    let kms = open(folder.path(), &config).await?.kms;
    expect_on(&notes, kms.as_ref(), 100 * DAY).await?;
    kms.rotate_every(90 * DAY, None, soon()).await?;
    expect_on(&notes, kms.as_ref(), 90 * DAY).await?;
    let kept = bed.policy();
    let rotate = json!({ "action": { "type": "Rotate" }, "trigger": { "timeAfterCreate": "P90D" } });
    ensure!(kept["lifetimeActions"] == json!([rotate, notice]), "{kept}");
    ensure!(kept["attributes"]["expiryTime"] == "P730D", "{kept}");
    // A version would be over before the next one is made.
    let failure = kms.rotate_every(1000 * DAY, None, soon()).await.err().context("it was done")?;
    ensure!(matches!(failure, KmsFailure::Refused { .. }) && told(&failure).contains("expires"), "{failure:?}");
    ensure!(bed.policy() == kept, "a policy that was refused is there");

    let kek = kms.describe(None, soon()).await?.id;
    config["keyVersion"] = kek.rsplit('/').next().context("an id has a version")?.into();
    let pinned = open(folder.path(), &config).await?.kms.rotation_periods(None).err();
    let pinned = pinned.context("a version that is pinned is rotated")?.to_string();
    ensure!(pinned.contains("keyVersion"), "{pinned}");
    notes.shown("a rotation policy keeps its notices and its time of expiry");
    Ok(())
}

/// A whole configuration file with this provider and an audit log.
fn audited(folder: &Path, provider: &Value) -> Result<String> {
    let path = config_file(folder, provider)?;
    let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
    config["auditLog"] = json!(folder.join("audit.log"));
    fs::write(&path, config.to_string())?;
    Ok(path.to_str().context("a path that is text")?.to_owned())
}

/// It ends with this status, and says this.
async fn expect_refused(words: &[&str], status: i32, said: &str) -> Result<()> {
    let output = ended(words, &[]).await?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(status), "coffer {words:?}: {}: {text}", output.status);
    ensure!(text.contains(said), "{said:?} is not in {text:?}");
    Ok(())
}

async fn verb() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = OpenBao::start(folder.path()).await?;
    let keeper = bed.keeper().await?.context("somebody may have keys rotated")?;
    let file = audited(folder.path(), &keeper)?;
    let enable = |more: &[&'static str]| {
        let words = ["keys", "rotation", "enable", "--config", file.as_str()];
        [words.as_slice(), more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = async |more: &[&'static str]| {
        let words = enable(more);
        coffer(&words.iter().map(String::as_str).collect::<Vec<_>>(), &[]).await
    };
    let refused = async |more: &[&'static str], status: i32, said: &str| {
        let words = enable(more);
        expect_refused(&words.iter().map(String::as_str).collect::<Vec<_>>(), status, said).await
    };
    let status = async || {
        let told = coffer(&["keys", "status", "--json", "--config", &file], &[]).await?;
        let mut status: Value = serde_json::from_str(&told)?;
        anyhow::Ok(status["providers"][0].take())
    };
    let log = folder.path().join("audit.log");
    let lines = || -> Result<Vec<Value>> {
        let text = fs::read_to_string(&log)?;
        ensure!(verify(text.as_bytes())? == u64::try_from(text.lines().count())?, "the log is not whole: {text}");
        Ok(text.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?)
    };

    let before = status().await?;
    ensure!(before["rotation"] == "off" && before["nextRotation"].is_null(), "{before}");
    let told = run(&["--period", "100d", "--dry-run"]).await?;
    ensure!(told.contains("rotation  off\n  would be  on, every 100 days\n"), "{told}");
    ensure!(status().await? == before && !log.exists(), "a dry run does something");

    let told = run(&["--period", "100d"]).await?;
    let kek = before["kekId"].as_str().context("a KEK")?;
    ensure!(told.starts_with(&format!("{kek} of provider {NAME} (transit)\n  rotation  off\n")), "{told}");
    ensure!(told.contains("  is to be  on, every 100 days\n  rotation  on, every 100 days, next on 20"), "{told}");
    let after = status().await?;
    ensure!(after["rotation"] == "on" && after["rotationPeriodSeconds"] == 8_640_000, "{after}");
    let next: Timestamp = after["nextRotation"].as_str().context("a time")?.parse()?;
    ensure!(next > Timestamp::now(), "{next}");
    let table = coffer(&["keys", "status", "--config", &file], &[]).await?;
    ensure!(table.contains("rotation       on, every 100 days, next on 20"), "{table}");
    let written = lines()?;
    let [line] = written.as_slice() else { bail!("{written:?}") };
    ensure!(line["operation"] == "enable-rotation" && line["result"] == "ok" && line["provider"] == NAME, "{line}");
    ensure!(line["kekId"] == kek && line["who"].as_str().is_some_and(|who| who.starts_with("uid:")), "{line}");

    let told = run(&[]).await?;
    ensure!(told.contains("on, every 100 days") && told.contains("nothing is done"), "{told}");
    ensure!(lines()?.len() == 1, "what was so already was written down");
    let other = run(&["--key-id", "coffer-rsa", NAME]).await?;
    ensure!(other.starts_with("transit:transit/coffer-rsa:v1 of") && other.contains("on, every 365 days"), "{other}");
    ensure!(status().await? == after, "another KEK's rotation changed this one's");
    refused(&["--period", "30m"], 64, "--period: it is 30 minutes; expected 1 hour to 36500 days").await?;
    refused(&["mian"], 64, "mian: no provider of this name is configured; did you mean main?").await?;

    let file_of_user = audited(folder.path(), &bed.config(Variant::Good).await?.context("a good one")?)?;
    ensure!(file_of_user == file, "it is the same file");
    refused(&["--period", "90d"], 1, "its policy needs: path \"transit/keys/coffer/config\"").await?;
    ensure!(status().await? == after, "it was refused, and changed");
    let written = lines()?;
    let last = written.last().context("lines")?;
    ensure!(last["result"] == "refused" && last["kekId"] == kek, "{last}");
    ensure!(last["reason"].as_str().is_some_and(|reason| reason.contains("is denied")), "{last}");
    ensure!(written.len() == 3, "{written:?}");
    let notes = Notes::provider(bed.provider(), bed.server(), bed.standing());
    notes.shown("`coffer keys rotation enable`, and what is seen of it in `coffer keys status`");
    Ok(())
}

async fn no_timer() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let state = folder.path().join("state");
    let state = state.to_str().context("a path that is text")?;
    coffer(&["keys", "init", "--state-dir", state], &[]).await?;
    let said = "provider cluster is rotated by hand only: a cluster key is nobody's but yours";
    expect_refused(&["keys", "rotation", "enable", "--state-dir", state], 64, said).await?;
    let status = coffer(&["keys", "status", "--state-dir", state], &[]).await?;
    ensure!(status.contains("rotation       by hand only"), "{status}");

    let key_file = folder.path().join("local.key");
    fs::write(&key_file, "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n")?;
    fs::set_permissions(&key_file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let local = json!({ "type": "local", "keyFile": key_file, "insecureLocalKey": true });
    let file = config_file(folder.path(), &local)?;
    let file = file.to_str().context("a path that is text")?;
    let said = "provider main is rotated by hand only: its KMS has no timer";
    expect_refused(&["keys", "rotation", "enable", "--config", file], 64, said).await?;
    let told = coffer(&["keys", "status", "--json", "--config", file], &[]).await?;
    let status: Value = serde_json::from_str(&told)?;
    ensure!(status["providers"][0]["rotation"] == "by-hand", "{status}");
    Ok(())
}
