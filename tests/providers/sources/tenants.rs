//! Tenants whose KEK lies in an account of their own: a policy gives the role in which it is reached. moto keeps accounts
//! apart by the keys that its STS gives for a role; what STS was asked for, and by whom, an STS of our own has seen.

use std::{fs, io, path::Path};

use anyhow::{Context, Result, ensure};
use coffer::{
    admin::{
        Place, Trail,
        progress::Progress,
        records::Effect,
        rewrap::{Asked, Sweep},
    },
    config::file::{Environment, FileConfig},
    key::{
        embedded::Embedded,
        record::{AwsRole, Record, RecordFault, StoredKey},
        service::{KeyFailure, KeyService, Refusal},
        store::DekStore,
    },
};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use testbed::{
    cloud::{
        KmsBed, Variant,
        aws::{MotoKms, Sts},
    },
    conformance::{soon, told},
};

use super::{
    aws::{last_asked, with_sts},
    config, notes, records,
    scopes::{made, of, opens, ours, scoped},
};
use crate::{
    house::{CLUSTER, NAME},
    trial,
};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("aws_kms_on_moto_wraps_in_the_role_that_a_policy_gives".to_owned(), own_account),
        trial("aws_kms_on_moto_rewraps_into_a_tenants_account_and_back".to_owned(), rewrapped),
        trial("aws_kms_on_moto_makes_a_kek_for_a_namespace_in_its_tenants_account".to_owned(), made_there),
        trial("aws_kms_on_moto_asks_sts_for_what_the_policy_says_and_then_the_record".to_owned(), asked_for),
        trial("aws_kms_on_moto_assumes_a_policys_role_in_the_providers_role".to_owned(), role_on_role),
    ]
}

/// The tenant's account, and its role.
const TENANT: &str = "444455556666";
const ROLE: &str = "arn:aws:iam::444455556666:role/coffer";

/// What a configuration with these policies opens, as a process that was just started has it.
async fn place(folder: &Path, provider: &Value, policies: &Value) -> Result<Place> {
    fs::create_dir_all(folder.join("records"))?;
    let text = json!({
        "clusterId": CLUSTER,
        "providers": { NAME: provider },
        "store": records(folder),
        "policies": policies,
        "listen": { "unix": { "path": folder.join("keyservice.sock"), "allowedUids": [0] } },
    })
    .to_string();
    let file = FileConfig::parse(&text, &folder.join("keyservice.yaml"), &Environment::default())?;
    Ok(Place::of_config(&file, None).await?)
}

/// The same as a key service.
async fn service(folder: &Path, provider: &Value, policies: &Value) -> Result<Embedded> {
    let Place { cluster_id, providers, store, policies, .. } = place(folder, provider, policies).await?;
    Ok(Embedded::new(cluster_id, providers, store).with_policies(policies))
}

/// The policy that gives a role to the volumes of namespace `team-blue`.
fn policies(role: Value) -> Value {
    json!([{ "name": "blue", "match": { "namespace": "team-blue" }, "provider": NAME, "role": role }])
}

/// A provider that reaches STS where KMS is.
async fn provider(bed: &MotoKms) -> Result<Value> {
    let mut provider = config(bed, Variant::Good).await?;
    provider["stsEndpoint"] = provider["endpoint"].clone();
    Ok(provider)
}

async fn record(store: &dyn DekStore, volume_id: &str) -> Result<Record> {
    let volume_id = volume_id.parse().expect("a volume id");
    Ok(store.get(&volume_id, soon()).await?.context("a record")?.record)
}

async fn failure(service: &Embedded, volume_id: &str) -> Result<KeyFailure> {
    let volume_id = volume_id.parse().expect("a volume id");
    service.get(&volume_id, soon()).await.err().with_context(|| format!("{volume_id} opened"))
}

async fn own_account() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = MotoKms::start(folder.path()).await?;
    let (kek, provider) = (bed.kek_of(TENANT).await?, provider(&bed).await?);
    let (folder, given) = (folder.path(), policies(json!({ "arn": ROLE })));
    let ruled = service(folder, &provider, &given).await?;
    let red = made(&ruled, of("team-red", "vol-red")).await?;
    bed.forecast().forget();
    let blue = made(&ruled, of("team-blue", "vol-blue")).await?;
    ensure!(blue == kek && blue.contains(TENANT), "{blue} in place of {kek}");
    ensure!(!red.contains(TENANT), "another namespace's volume is under {red}");
    let signers = bed.forecast().signers();
    let (for_sts, for_kms): (Vec<_>, Vec<_>) = signers.iter().partition(|signer| signer.service == "sts");
    let is_of_role = |signer: &&testbed::cloud::weather::Signer| signer.access_key_id.starts_with("ASIA");
    ensure!(for_sts.len() == 1 && !for_sts.iter().any(is_of_role), "STS was asked by {for_sts:?}");
    ensure!(!for_kms.is_empty() && for_kms.iter().all(is_of_role), "KMS was asked by {for_kms:?}");
    opens(&ruled, "vol-blue").await?;

    // The policy is gone, and what it gave is not.
    let bare = service(folder, &provider, &json!([])).await?;
    opens(&bare, "vol-blue").await.context("without the policy")?;
    opens(&bare, "vol-red").await?;
    let later = made(&bare, of("team-blue", "vol-later")).await?;
    ensure!(later == red, "without a policy it is under {later}");

    // The record says who is asked, and whoever changes that gets nothing.
    let store = place(folder, &provider, &json!([])).await?.store;
    let whole = record(store.as_ref(), "vol-blue").await?;
    let role = whole.key.as_ref().and_then(StoredKey::role).cloned().context("the record names no role")?;
    ensure!(role.arn == ROLE && role.session_name == format!("coffer-{CLUSTER}"), "{role:?}");
    let of_account = |account: &str| AwsRole { arn: format!("arn:aws:iam::{account}:role/other"), ..role.clone() };
    for (what, changed) in [
        ("no role", None),
        ("a role of another account", Some(of_account("777788889999"))),
        ("another role of the account", Some(of_account(TENANT))),
    ] {
        let key = whole.key.clone().map(|key| key.in_role(changed));
        swap(store.as_ref(), &Record { key, ..whole.clone() }).await?;
        match failure(&service(folder, &provider, &given).await?, "vol-blue").await.context(what)? {
            KeyFailure::Unwrap { .. } => {}
            KeyFailure::Record { source: RecordFault::Mac, .. } if what.starts_with("another") => {}
            failure => anyhow::bail!("{what}: {failure:?}"),
        }
    }
    swap(store.as_ref(), &whole).await?;
    opens(&service(folder, &provider, &given).await?, "vol-blue").await.context("what is whole opens")?;
    notes(&bed)
        .shown("a KEK of another account, reached in the role that a policy gives, also when the policy is gone");
    Ok(())
}

async fn swap(store: &dyn DekStore, record: &Record) -> Result<()> {
    let version = store.get(&record.volume_id, soon()).await?.context("a record")?.version;
    Ok(store.replace(record, version, soon()).await?)
}

/// Everything that needs it goes to where the policies say that it is.
async fn sweep(place: &Place) -> Result<String> {
    let (mut out, asked) = (Vec::new(), Asked { from: None, to: None, volume: None, effect: Effect::Real });
    let trail = Trail::to(|_, _| Ok(()));
    Sweep::plan(place, asked)?.run(&trail, &mut Progress::lines(io::sink()), &mut out).await?;
    Ok(String::from_utf8(out)?)
}

async fn rewrapped() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = MotoKms::start(folder.path()).await?;
    let (kek, provider) = (bed.kek_of(TENANT).await?, provider(&bed).await?);
    let (folder, none, given) = (folder.path(), json!([]), policies(json!({ "arn": ROLE })));
    let first = service(folder, &provider, &none).await?;
    let own = made(&first, of("team-blue", "vol-1")).await?;
    let key = first.get(&"vol-1".parse().expect("a volume id"), soon()).await?.dek;
    for (policies, expected) in [(&given, &kek), (&none, &own), (&given, &kek)] {
        let place = place(folder, &provider, policies).await?;
        let told = sweep(&place).await?;
        ensure!(told.contains("1 of 1 rewrapped, 0 skipped"), "{told}");
        let told = sweep(&place).await?;
        ensure!(told.contains("0 of 1 rewrapped, 1 skipped"), "a second time: {told}");
        let service = service(folder, &provider, policies).await?;
        let opened = service.get(&"vol-1".parse().expect("a volume id"), soon()).await?;
        ensure!(opened.info.kek_id == *expected, "{} in place of {expected}", opened.info.kek_id);
        ensure!(opened.dek.expose_secret() == key.expose_secret(), "another key");
    }
    notes(&bed).shown("a rewrap into a tenant's account, and out of it");
    Ok(())
}

async fn made_there() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = MotoKms::start(folder.path()).await?;
    let provider = scoped(&provider(&bed).await?, "namespace")?;
    let (folder, given) = (folder.path(), policies(json!({ "arn": ROLE })));
    let ruled = service(folder, &provider, &given).await?;
    let blue = made(&ruled, of("team-blue", "vol-1")).await?;
    let again = made(&ruled, of("team-blue", "vol-2")).await?;
    ensure!(blue == again && blue.contains(TENANT), "{blue}, {again}");
    let here = ours(bed.aliases().await?.into_keys());
    ensure!(here.is_empty(), "a KEK was made in our own account: {here:?}");
    let restarted = service(folder, &provider, &given).await?;
    ensure!(made(&restarted, of("team-blue", "vol-3")).await? == blue, "a restart makes another KEK");
    for volume in ["vol-1", "vol-2", "vol-3"] {
        opens(&restarted, volume).await?;
    }
    notes(&bed).shown("a KEK for a namespace that is made in its tenant's account");
    Ok(())
}

async fn asked_for() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = MotoKms::start(folder.path()).await?;
    let (sts, _authorities, provider) = with_sts(folder.path(), &bed).await?;
    let folder = folder.path();
    let with = |external_id: &str| policies(json!({ "arn": Sts::ROLE, "externalId": external_id }));
    let ruled = service(folder, &provider, &with(Sts::EXTERNAL_ID)).await?;
    made(&ruled, of("team-blue", "vol-1")).await?;
    let usual = format!("coffer-{CLUSTER}");
    let external = ("ExternalId", Sts::EXTERNAL_ID);
    let expected = [("Action", "AssumeRole"), ("RoleArn", Sts::ROLE), ("RoleSessionName", usual.as_str()), external];
    last_asked(&sts, &expected)?;

    let asked = sts.asked().len();
    opens(&service(folder, &provider, &json!([])).await?, "vol-1").await.context("by the record alone")?;
    ensure!(sts.asked().len() > asked, "STS was not asked");
    last_asked(&sts, &expected)?;

    // What the policy says now goes before what the record says.
    let failure = failure(&service(folder, &provider, &with("another")).await?, "vol-1").await?;
    ensure!(failure.refusal() == Refusal::Unavailable, "{:?}: {}", failure.refusal(), told(&failure));
    ensure!(told(&failure).contains(Sts::ROLE), "{}", told(&failure));
    last_asked(&sts, &[("ExternalId", "another")])?;
    opens(&service(folder, &provider, &with(Sts::EXTERNAL_ID)).await?, "vol-1").await?;
    notes(&bed).shown("a policy's role with external id and session name, and then the record's (STS: our fake)");
    Ok(())
}

async fn role_on_role() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bed = MotoKms::start(folder.path()).await?;
    let (sts, _authorities, mut provider) = with_sts(folder.path(), &bed).await?;
    provider["role"] = json!({ "arn": Sts::ROLE, "externalId": Sts::EXTERNAL_ID });
    let ruled = service(folder.path(), &provider, &policies(json!({ "arn": ROLE }))).await?;
    // The fake knows one role, and lets nobody into another: who asked for it is what is looked at.
    let created = ruled.create(of("team-blue", "vol-1"), soon()).await;
    let failure = created.err().context("a role was assumed that there is not")?;
    ensure!(told(&failure).contains(ROLE), "{}", told(&failure));
    last_asked(&sts, &[("Action", "AssumeRole"), ("RoleArn", ROLE)])?;
    let (signer, key) = (sts.forecast().signers().pop().context("nobody signed")?, sts.keys().pop().context("no key")?);
    ensure!(signer.access_key_id == key, "{signer:?} asked, and not {key} of the provider's role");
    made(&ruled, of("team-red", "vol-2")).await.context("a volume without a rule, in the provider's role")?;
    notes(&bed).shown("a policy's role on top of the provider's (STS: our fake)");
    Ok(())
}
