//! The program itself: what an operator asks it for, against OpenBao.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use coffer::{
    admin::Place,
    key::{embedded::Embedded, service::KeyService},
};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use testbed::{
    cloud::{KmsBed, Variant, transit::OpenBao},
    conformance::{soon, store::new_key},
};

use super::{Sample, config, notes, open, records};
use crate::{
    house::{CLUSTER, NAME, read_config},
    trial,
};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("the_program_rewraps_on_openbao_and_the_old_version_can_go".to_owned(), rewrap),
        trial("the_program_says_where_each_value_comes_from".to_owned(), sources),
    ]
}

/// Writes a whole configuration file with this provider, and makes the folder of its records.
pub(crate) fn config_file(folder: &Path, provider: &Value) -> Result<PathBuf> {
    fs::create_dir_all(folder.join("records"))?;
    let path = folder.join("keyservice.yaml");
    let config = json!({
        "clusterId": CLUSTER,
        "providers": { NAME: provider },
        "store": records(folder),
        "listen": { "unix": { "path": folder.join("keyservice.sock"), "allowedUids": [0] } },
    });
    fs::write(&path, config.to_string())?;
    Ok(path)
}

/// What the program prints, in an environment of these variables alone.
pub(crate) async fn coffer(words: &[&str], variables: &[(&str, &str)]) -> Result<String> {
    let output = ended(words, variables).await?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "coffer {words:?}: {}: {told}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// The same, however it ends.
pub(crate) async fn ended(words: &[&str], variables: &[(&str, &str)]) -> Result<Output> {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_coffer"));
    command.args(words).env_clear().envs(variables.iter().copied()).stdin(Stdio::null());
    command.output().await.context("run coffer")
}

async fn rewrap() -> Result<()> {
    const VOLUMES: [&str; 3] = ["vol-1", "vol-2", "vol-3"];
    let folder = tempfile::tempdir()?;
    let bed = OpenBao::start(folder.path()).await?;
    let provider = config(&bed, Variant::Good).await?;
    let file = config_file(folder.path(), &provider)?;
    let file = file.to_str().context("a path that is text")?;
    let service = async || {
        let place = Place::of_config(&read_config(folder.path(), &provider, &records(folder.path()))?, None).await?;
        anyhow::Ok(Embedded::new(place.cluster_id, place.providers, place.store))
    };
    let status = async || {
        let told = coffer(&["keys", "status", "--json", "--config", file], &[]).await?;
        let mut status: Value = serde_json::from_str(&told)?;
        anyhow::Ok(status["providers"][0].take())
    };
    let before = service().await?;
    let mut keys = Vec::new();
    for volume in VOLUMES {
        before.create(new_key(volume), soon()).await?;
        keys.push(before.get(&volume.parse().expect("a volume id"), soon()).await?.dek);
    }
    let kms = open(folder.path(), &provider).await?.kms;
    let left_behind = Sample::wrapped_by(kms.as_ref()).await?;
    let first = status().await?;
    let fits = first["name"] == NAME && first["type"] == "transit" && first["isDefault"] == true;
    ensure!(fits && first["records"] == json!({ "prepared": 3 }) && first["rewrapNeeded"] == 0, "{first}");

    bed.rotate().await?;
    let rotated = status().await?;
    ensure!(rotated["rewrapNeeded"] == 3 && rotated["kekId"] != first["kekId"], "{rotated} after {first}");
    let told = coffer(&["rewrap", "--config", file, "--dry-run"], &[]).await?;
    ensure!(told.contains("3 of 3 would be rewrapped"), "{told}");
    ensure!(status().await? == rotated, "a dry run changes something");
    let told = coffer(&["rewrap", "--config", file], &[]).await?;
    ensure!(told.contains("3 of 3 rewrapped, 0 skipped"), "{told}");
    let clean = status().await?;
    ensure!(clean["rewrapNeeded"] == 0 && clean["kekId"] == rotated["kekId"], "{clean}");
    let told = coffer(&["rewrap", "--config", file], &[]).await?;
    ensure!(told.contains("0 of 3 rewrapped, 3 skipped"), "{told}");

    bed.archive_old_versions().await?;
    let failure = left_behind.failure(kms.as_ref()).await.context("the old version still opens")?;
    ensure!(!failure.is_outage(), "an archived version is told as {failure:?}");
    let after = service().await?;
    for (volume, key) in VOLUMES.iter().zip(&keys) {
        let opened = after.get(&volume.parse().expect("a volume id"), soon()).await.context("after the rewrap")?;
        ensure!(opened.dek.expose_secret() == key.expose_secret(), "{volume} has another key");
    }
    notes(&bed).shown("rotate, `coffer keys status`, `coffer rewrap`, and the old version archived");
    Ok(())
}

async fn sources() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = OpenBao::start(folder.path()).await?;
    let mut provider = config(&bed, Variant::Good).await?;
    let address = provider["address"].as_str().context("an address")?.to_owned();
    let token_file = provider["auth"]["tokenFile"].as_str().context("a tokenFile")?.to_owned();
    provider.as_object_mut().context("keys and values")?.remove("address");
    let file = config_file(folder.path(), &provider)?;
    let file = file.to_str().context("a path that is text")?;
    let variables = [("BAO_ADDR", address.as_str())];
    let told = coffer(&["config", "show", "--sources", file], &variables).await?;
    let expect = |key: &str, value: &str, source: &str| -> Result<()> {
        let key = format!("providers.{NAME}.{key}");
        let mut rows = told.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = rows.find(|row| row.first() == Some(&key.as_str())).with_context(|| format!("no {key}:\n{told}"))?;
        ensure!(row.get(1) == Some(&value) && row[2..].join(" ") == source, "{row:?}: not {value} of {source}");
        Ok(())
    };
    expect("address", &address, "environment BAO_ADDR")?;
    expect("auth.tokenFile", &token_file, "file")?;
    expect("calls.timeout", "10s", "default")?;
    let token = fs::read_to_string(&token_file)?;
    ensure!(!told.contains(token.trim()), "the token is shown");
    // What was shown is what is used.
    let told = coffer(&["keys", "status", "--json", "--config", file], &variables).await?;
    let status: Value = serde_json::from_str(&told)?;
    ensure!(status["providers"][0]["kekId"].is_string(), "{status}");
    notes(&bed).shown("`coffer config show --sources`");
    Ok(())
}
