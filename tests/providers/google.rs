//! What is Google's alone: authorities, which its client library takes from the environment, and what Cloud Storage says by
//! status 412 and asks for before it lets an object be replaced.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use coffer::key::store::StoreFailure;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use testbed::{
    cloud::{
        KmsBed, StoreBed, StoreVariant, Variant,
        google::{CloudKms, CloudStorage},
        weather::Authority,
    },
    conformance::{soon, store::record, told},
};

use crate::{
    house::{CLUSTER, NAME},
    shelf::open,
    sources::program::{coffer, config_file, ended},
    table::Notes,
    trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("gcp_kms_is_trusted_by_the_authorities_of_the_environment".to_owned(), kms_authorities),
        trial("gcs_is_trusted_by_the_authorities_of_the_environment".to_owned(), store_authorities),
        trial("gcs_takes_no_constraint_for_a_race_that_somebody_else_won".to_owned(), constraints),
        trial("gcs_says_that_replacing_takes_the_permission_to_delete".to_owned(), no_delete),
    ]
}

fn notes(bed: &impl StoreBed) -> Notes {
    Notes::store(bed.store(), bed.server(), bed.standing())
}

/// An authority of a test's own, and a folder with its certificate alone, as a ConfigMap would be mounted.
fn authority(folder: &Path) -> Result<(Authority, String)> {
    let mounted = folder.join("authorities");
    fs::create_dir(&mounted)?;
    let authority = Authority::new(folder)?;
    fs::copy(authority.ca_file(), mounted.join("ca.crt"))?;
    Ok((authority, mounted.to_str().context("a path that is text")?.to_owned()))
}

/// A bundle of somebody else's.
fn others(folder: &Path) -> Result<String> {
    let folder = folder.join("others");
    fs::create_dir(&folder)?;
    let file = Authority::new(&folder)?.ca_file();
    Ok(file.to_str().context("a path that is text")?.to_owned())
}

async fn kms_authorities() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = CloudKms::start(folder.path()).await?;
    let (authority, mounted) = authority(folder.path())?;
    let good = bed.config(Variant::Good).await?.context("a good configuration")?;
    let (config, _served) = bed.by_tls(&good, authority.server(&["127.0.0.1"])?).await?;
    let file = config_file(folder.path(), &config)?;
    let file = file.to_str().context("a path that is text")?;
    let works = async |variables: &[(&str, &str)]| {
        let told = coffer(&["keys", "status", "--json", "--config", file], variables).await?;
        let status: Value = serde_json::from_str(&told)?;
        let (kek, failure) = (&status["providers"][0]["kekId"], &status["providers"][0]["failure"]);
        ensure!(kek.is_string() == failure.is_null(), "{status}");
        anyhow::Ok(kek.is_string())
    };
    let (others, own) = (others(folder.path())?, authority.ca_file());
    let own = own.to_str().context("a path that is text")?;
    ensure!(!works(&[("SSL_CERT_FILE", others.as_str())]).await?, "a server of no known authority is trusted");
    ensure!(works(&[("SSL_CERT_FILE", own)]).await?, "a server is not trusted by SSL_CERT_FILE");
    let both = [("SSL_CERT_FILE", others.as_str()), ("SSL_CERT_DIR", mounted.as_str())];
    ensure!(works(&both).await?, "a server is not trusted by SSL_CERT_DIR, beside a bundle");
    Notes::provider(bed.provider(), bed.server(), bed.standing())
        .shown("an authority of one's own by SSL_CERT_FILE, and by SSL_CERT_DIR beside it; TLS by no other");
    Ok(())
}

async fn store_authorities() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = CloudStorage::start(folder.path()).await?;
    let (authority, mounted) = authority(folder.path())?;
    let good = bed.config(StoreVariant::Good).await?.context("a good configuration")?;
    open(folder.path(), good.clone()).await?.records().create(&record(CLUSTER, "vol-1").await, soon()).await?;
    let (store, _served) = bed.by_tls(&good, authority.server(&["127.0.0.1"])?).await?;
    let key_file = folder.path().join("local.key");
    fs::write(&key_file, "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n")?;
    fs::set_permissions(&key_file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let file = folder.path().join("keyservice.yaml");
    let config = json!({
        "clusterId": CLUSTER,
        "providers": { NAME: { "type": "local", "keyFile": key_file, "insecureLocalKey": true } },
        "store": store,
        "listen": { "unix": { "path": folder.path().join("keyservice.sock"), "allowedUids": [0] } },
    });
    fs::write(&file, config.to_string())?;
    let file = file.to_str().context("a path that is text")?;
    // A list goes by gRPC, a record by the JSON API: each has a client of its own.
    for words in [["records", "list", "--config", file].as_slice(), &["records", "show", "vol-1", "--config", file]] {
        let others = others(&tempfile::tempdir_in(folder.path())?.keep())?;
        let refused = ended(words, &[("SSL_CERT_FILE", others.as_str())]).await?;
        ensure!(!refused.status.success(), "{words:?}: a server of no known authority is trusted");
        let both = [("SSL_CERT_FILE", others.as_str()), ("SSL_CERT_DIR", mounted.as_str())];
        let told = coffer(words, &both).await.context("a server is not trusted by SSL_CERT_DIR")?;
        ensure!(told.contains("vol-1"), "{words:?}: {told}");
    }
    notes(&bed).shown("an authority of one's own by SSL_CERT_DIR beside SSL_CERT_FILE; TLS by no other");
    Ok(())
}

async fn constraints() -> Result<()> {
    // The reason that is documented, and the one that was seen.
    for reason in ["orgPolicyConstraintFailed", "conditionNotMet"] {
        let folder = tempfile::tempdir()?;
        let bed = CloudStorage::start(folder.path()).await?;
        let config = bed.config(StoreVariant::Good).await?.context("a good configuration")?;
        let store = open(folder.path(), config).await?.records();
        let (one, two) = (record(CLUSTER, "vol-1").await, record(CLUSTER, "vol-2").await);
        store.create(&one, soon()).await?;
        ensure!(matches!(store.create(&one, soon()).await, Err(StoreFailure::Exists(_))), "{reason}: created twice");
        let stored = store.get(&one.volume_id, soon()).await?.context("it is there")?;
        bed.constrain(reason);
        let failures = [
            store.create(&two, soon()).await.err().context("it was created")?,
            store.replace(&one, stored.version, soon()).await.err().context("it was replaced")?,
        ];
        for failure in failures {
            ensure!(matches!(failure, StoreFailure::Refused { .. }), "{reason}: {failure:?}");
            ensure!(told(&failure).contains("constraints/gcp.restrictNonCmekServices"), "{reason}: {}", told(&failure));
        }
        notes(&bed).shown("an organisation's constraint is told, and is no lost race");
    }
    Ok(())
}

async fn no_delete() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = CloudStorage::start(folder.path()).await?;
    let config = bed.config(StoreVariant::Good).await?.context("a good configuration")?;
    let (one, two) = (record(CLUSTER, "vol-1").await, record(CLUSTER, "vol-2").await);
    open(folder.path(), config.clone()).await?.records().create(&one, soon()).await?;
    let poor = open(folder.path(), bed.without_delete(&config)).await?.records();
    ensure!(poor.get(&one.volume_id, soon()).await?.is_some(), "it cannot be read");
    // Found out before anything is stored that could never be changed again.
    let failure = poor.create(&two, soon()).await.err().context("it was created")?;
    ensure!(matches!(failure, StoreFailure::Denied { .. }), "{failure:?}");
    ensure!(told(&failure).contains("storage.objects.delete"), "{}", told(&failure));
    ensure!(poor.get(&two.volume_id, soon()).await?.is_none(), "it was stored");
    notes(&bed).shown("an account that may make objects and not replace them is refused before it stores anything");
    Ok(())
}
