//! `coffer keys init --kubernetes`: what it makes, what it keeps, and what it refuses.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use coffer::{
    admin::keys::kubernetes::{Asked, InitFailure, init},
    config::args::Only,
    key::{
        cluster::ClusterKeys,
        embedded::Embedded,
        providers::{Provider, Providers},
        service::KeyService,
    },
};
use futures::future::try_join_all;
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::{
        core::v1::{ConfigMap, Secret},
        rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
    },
};
use kube::{
    Api, Client,
    api::{DeleteParams, ObjectMeta, PostParams},
};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use serde_json::json;
use testbed::{
    conformance::{soon, store::new_key, told},
    kube::ApiServer,
};

use super::{objects, release_by_hand, store, until};

const DAY: u64 = 24 * 60 * 60;
const SECRETS: [&str; 3] = ["cluster-key", "authority", "keyservice-tls"];

fn asked(namespace: &str) -> Asked {
    Asked { namespace: namespace.to_owned(), name: "coffer".to_owned(), service_names: Vec::new(), only: None }
}

async fn init_told(client: Client, asked: &Asked) -> Result<String, InitFailure> {
    let mut out = Vec::new();
    init(client, asked, &mut out).await?;
    Ok(String::from_utf8(out).expect("it tells text"))
}

fn secrets(client: Client, namespace: &str) -> Api<Secret> {
    Api::namespaced(client, namespace)
}

type Data = BTreeMap<String, BTreeMap<String, ByteString>>;

/// What the Secrets of an installation hold.
async fn held(client: Client, asked: &Asked) -> Result<Data> {
    let (api, mut held) = (secrets(client, &asked.namespace), Data::new());
    for suffix in SECRETS {
        let name = format!("{}-{suffix}", asked.name);
        if let Some(secret) = api.get_opt(&name).await? {
            held.insert(suffix.to_owned(), secret.data.unwrap_or_default());
        }
    }
    Ok(held)
}

fn pem<'a>(held: &'a Data, secret: &str, key: &str) -> Result<&'a str> {
    let bytes = held.get(secret).and_then(|data| data.get(key)).with_context(|| format!("{secret} has no {key}"))?;
    Ok(std::str::from_utf8(&bytes.0)?)
}

/// The authorities that nodes are told of.
async fn published(client: Client, asked: &Asked) -> Result<String> {
    let maps: Api<ConfigMap> = Api::namespaced(client, &asked.namespace);
    let map = maps.get(&format!("{}-authority", asked.name)).await?;
    map.data.and_then(|mut data| data.remove("ca.crt")).context("the ConfigMap has no ca.crt")
}

pub(super) async fn once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = ApiServer::start(folder.path()).await?;
    let (client, asked) = (server.client(), asked("coffer-system"));
    let failure = init_told(client.clone(), &asked).await.err().context("there is no namespace")?;
    ensure!(told(&failure).contains("coffer-system"), "{}", told(&failure));
    server.namespace("coffer-system").await?;
    // Also where the custom resources are not there yet: then there is no record.
    let first = init_told(client.clone(), &asked).await?;
    for line in ["cluster key made", "authority made", "certificate made", "Back it up", "kubectl -n coffer-system get"]
    {
        ensure!(first.contains(line), "{line} is not told:\n{first}");
    }
    let made = held(client.clone(), &asked).await?;
    ensure!(made.len() == SECRETS.len(), "{:?}", made.keys());
    let authority = pem(&made, "authority", "ca.crt")?;
    ensure!(
        pem(&made, "keyservice-tls", "ca.crt")? == authority && published(client.clone(), &asked).await? == authority
    );
    server.install_resources().await?;

    // The same again changes nothing; also as a program, and also several at once.
    let (ended_well, second, told) = program(&server, &["keys", "init", "--kubernetes", "coffer-system"])?;
    ensure!(ended_well, "{told}");
    for line in ["cluster key kept", "authority kept", "certificate kept"] {
        ensure!(second.contains(line), "{line} is not told:\n{second}");
    }
    ensure!(held(client.clone(), &asked).await? == made, "a second time changes something");
    let raced = Asked { name: "raced".to_owned(), ..asked.clone() };
    let all = try_join_all((0..8).map(|_| init_told(client.clone(), &raced))).await?;
    let ids: Vec<_> = all.iter().filter_map(|told| told.split("cluster id ").nth(1)?.lines().next()).collect();
    ensure!(ids.len() == 8 && ids.iter().all(|id| *id == ids[0]), "not all have the same key: {ids:?}");
    ensure!(all.iter().filter(|told| told.contains("cluster key made")).count() == 1, "{all:?}");

    // No key is made over records that need another.
    let config = configured(folder.path(), &made)?;
    let asks = ["records", "expect-none", "--config", config.as_str()];
    let (ended_well, told_none, told) = program(&server, &asks)?;
    ensure!(ended_well && told_none.contains("no volume has a key"), "{told}");
    derived(&server, folder.path()).await?;
    let (ended_well, _, told) = program(&server, &asks)?;
    ensure!(!ended_well && told.contains("volumes with keys: 1 (vol-derived)"), "{told}");
    secrets(client.clone(), "coffer-system").delete("coffer-cluster-key", &DeleteParams::default()).await?;
    let failure = init_told(client.clone(), &asked).await.err().context("a new key was made over records")?;
    ensure!(matches!(failure, InitFailure::Lost { records: 1, .. }), "{}", super::told(&failure));
    ensure!(!held(client.clone(), &asked).await?.contains_key("cluster-key"));
    let certificates = Asked { only: Some(Only::Certificates), ..asked.clone() };
    init_told(client.clone(), &certificates).await?;
    ensure!(!held(client.clone(), &asked).await?.contains_key("cluster-key"), "certificates alone were asked for");
    let (ended_well, ..) = program(&server, &["records", "show", "vol-derived", "--config", config.as_str()])?;
    ensure!(ended_well, "a record is not shown");
    release_by_hand(&objects(client.clone()), "vol-derived").await?;
    objects(client.clone()).delete("vol-derived", &DeleteParams::default()).await?;
    let again = init_told(client.clone(), &asked).await?;
    ensure!(again.contains("cluster key made"), "{again}");
    permissions(&server).await
}

/// Runs the program with the administrator's kubeconfig: whether it ends well, and what it tells on both outputs.
fn program(server: &ApiServer, words: &[&str]) -> Result<(bool, String, String)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coffer"));
    let command = command.args(words).env("KUBECONFIG", server.kubeconfig()).env_remove("COFFER_STATE_DIR");
    let output = command.output()?;
    Ok((output.status.success(), String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
}

/// A configuration with this store, and the cluster key from its Secret beside it.
fn configured(folder: &Path, held: &Data) -> Result<String> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join("cluster-key.json"))?;
    file.write_all(pem(held, "cluster-key", "cluster-key.json")?.as_bytes())?;
    let config = folder.join("coffer.yaml");
    fs::write(&config, "provider: { type: cluster-key, file: cluster-key.json }\nstore: { type: kubernetes }\n")?;
    Ok(config.to_str().context("the path is text")?.to_owned())
}

/// A record that needs the cluster key.
async fn derived(server: &ApiServer, folder: &Path) -> Result<()> {
    let path = folder.join("cluster-key.json");
    let keys = ClusterKeys::load(&path).context("the Secret holds what `coffer keys init` writes")?;
    let (cluster_id, provider) = (keys.cluster_id(), Provider::Cluster(keys));
    let providers = Providers { by_name: [("cluster".to_owned(), provider)].into(), default: "cluster".to_owned() };
    let service = Embedded::new(cluster_id, providers, store(server.client()));
    service.create(new_key("vol-derived"), soon()).await?;
    Ok(())
}

/// What the chart's hook may do, and no more.
async fn permissions(server: &ApiServer) -> Result<()> {
    server.namespace("limited").await?;
    let objects: Role = serde_json::from_value(json!({
        "metadata": { "name": "setup" },
        "rules": [{ "apiGroups": [""], "resources": ["secrets", "configmaps"], "verbs": ["get", "create", "update"] }],
    }))?;
    let records: ClusterRole = serde_json::from_value(json!({
        "metadata": { "name": "setup" },
        "rules": [{ "apiGroups": ["coffer.csi"], "resources": ["volumekeys"], "verbs": ["list"] }],
    }))?;
    let subjects = json!([{ "kind": "ServiceAccount", "name": "setup", "namespace": "limited" }]);
    let binding = |kind: &str| {
        let role = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "setup" });
        json!({ "metadata": { "name": "setup" }, "roleRef": role, "subjects": subjects })
    };
    let (how, client) = (PostParams::default(), server.client());
    let account = server.as_account("limited", "setup").await?;
    let asked = asked("limited");
    let failure = init_told(account.clone(), &asked).await.err().context("it may do everything")?;
    ensure!(told(&failure).contains("forbidden"), "{}", told(&failure));
    let (bound, bound_to_all): (RoleBinding, ClusterRoleBinding) =
        (serde_json::from_value(binding("Role"))?, serde_json::from_value(binding("ClusterRole"))?);
    Api::<Role>::namespaced(client.clone(), "limited").create(&how, &objects).await?;
    Api::<RoleBinding>::namespaced(client.clone(), "limited").create(&how, &bound).await?;
    Api::<ClusterRole>::all(client.clone()).create(&how, &records).await?;
    Api::<ClusterRoleBinding>::all(client).create(&how, &bound_to_all).await?;
    until("an account with this role may", || async {
        match init_told(account.clone(), &asked).await {
            Ok(_) => Ok(Some(())),
            Err(failure) if told(&failure).contains("forbidden") => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    })
    .await
}

fn on(day: i64) -> Result<Duration> {
    let seconds = Timestamp::now().as_second() + day * i64::try_from(DAY)?;
    Ok(Duration::from_secs(u64::try_from(seconds)?))
}

fn params(names: &[&str], begins: i64, ends: i64) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())?;
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + on(begins)?;
    params.not_after = epoch + on(ends)?;
    Ok(params)
}

/// Puts other texts into a Secret.
async fn put(client: Client, asked: &Asked, suffix: &str, texts: &[(&str, String)]) -> Result<()> {
    let (api, name) = (secrets(client, &asked.namespace), format!("{}-{suffix}", asked.name));
    let mut secret = api.get(&name).await?;
    for (key, text) in texts {
        secret.data.get_or_insert_default().insert((*key).to_owned(), ByteString(text.clone().into_bytes()));
    }
    api.replace(&name, &PostParams::default(), &secret).await?;
    Ok(())
}

pub(super) async fn renewed(server: Arc<ApiServer>) -> Result<()> {
    let (client, asked) = (server.client(), Asked { only: Some(Only::Certificates), ..asked("renewed") });
    server.namespace("renewed").await?;
    init_told(client.clone(), &asked).await?;
    let first = held(client.clone(), &asked).await?;

    // A certificate that has little of its time left is made anew; the authority stays.
    let names = ["coffer-keyservice", "coffer-keyservice.renewed", "coffer-keyservice.renewed.svc"];
    let names = [names.as_slice(), &["coffer-keyservice.renewed.svc.cluster.local"]].concat();
    let issuer = Issuer::from_ca_cert_pem(
        pem(&first, "authority", "ca.crt")?,
        KeyPair::from_pem(pem(&first, "authority", "ca.key")?)?,
    )?;
    let key = KeyPair::generate()?;
    let mut old = params(&names, -300, 60)?;
    old.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let old = old.signed_by(&key, &issuer)?.pem();
    let texts = [("tls.crt", old.clone()), ("tls.key", key.serialize_pem())];
    put(client.clone(), &asked, "keyservice-tls", &texts).await?;
    let told = init_told(client.clone(), &asked).await?;
    ensure!(told.contains("certificate renewed") && told.contains("authority kept"), "{told}");
    let second = held(client.clone(), &asked).await?;
    ensure!(second["authority"] == first["authority"] && pem(&second, "keyservice-tls", "tls.crt")? != old);

    // One more name needs another certificate, and the same authority.
    let wider = Asked { service_names: vec!["keys.example.org".to_owned(), "10.9.8.7".to_owned()], ..asked.clone() };
    let told = init_told(client.clone(), &wider).await?;
    ensure!(told.contains("certificate renewed") && told.contains("authority kept"), "{told}");
    ensure!(init_told(client.clone(), &wider).await?.contains("certificate kept"));

    // An authority that has little of its time left gets a successor; both are trusted, and the old one signs once more.
    let key = KeyPair::generate()?;
    let mut old = params(&[], -3000, 600)?;
    old.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    old.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let old = old.self_signed(&key)?.pem();
    put(client.clone(), &asked, "authority", &[("ca.crt", old.clone()), ("ca.key", key.serialize_pem())]).await?;
    let told = init_told(client.clone(), &asked).await?;
    ensure!(told.contains("ATTENTION") && told.contains("authority renewed"), "{told}");
    let bundle = published(client.clone(), &asked).await?;
    ensure!(bundle.matches("BEGIN CERTIFICATE").count() == 2 && bundle.ends_with(&old), "{bundle}");
    let third = held(client.clone(), &asked).await?;
    ensure!(pem(&third, "authority", "ca.crt")? == bundle && pem(&third, "keyservice-tls", "ca.crt")? == bundle);
    let told = init_told(client.clone(), &asked).await?;
    ensure!(told.contains("certificate kept") && told.contains("authority kept"), "{told}");
    ensure!(held(client, &asked).await? == third, "another time changes something");
    Ok(())
}

pub(super) async fn foreign(server: Arc<ApiServer>) -> Result<()> {
    let client = server.client();
    server.namespace("foreign").await?;
    let (api, how) = (secrets(client.clone(), "foreign"), PostParams::default());
    let secret = |name: &str, key: &str| Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        data: Some([(key.to_owned(), ByteString(b"somebody's".to_vec()))].into()),
        ..Secret::default()
    };
    api.create(&how, &secret("coffer-cluster-key", "cluster-key.json")).await?;
    api.create(&how, &secret("other-keyservice-tls", "tls.crt")).await?;
    api.create(&how, &secret("third-authority", "ca.crt")).await?;
    let of = |name: &str| Asked { name: name.to_owned(), only: Some(Only::Certificates), ..asked("foreign") };
    let failure = init_told(client.clone(), &asked("foreign")).await.err().context("a damaged key is no fault")?;
    ensure!(matches!(failure, InitFailure::Unusable { .. }), "{}", told(&failure));
    let text = told(&failure);
    ensure!(text.contains("no cluster key file") && !text.contains("somebody's"), "{text}");
    let failure = init_told(client.clone(), &of("other")).await.err().context("another's certificate was replaced")?;
    ensure!(matches!(failure, InitFailure::Foreign { .. }) && told(&failure).contains("other-keyservice-tls"));
    let failure = init_told(client.clone(), &of("third")).await.err().context("another's authority was replaced")?;
    ensure!(matches!(failure, InitFailure::Unusable { .. }), "{}", told(&failure));
    for name in ["coffer-cluster-key", "other-keyservice-tls", "third-authority"] {
        let data = api.get(name).await?.data.unwrap_or_default();
        ensure!(data.values().all(|bytes| bytes.0 == b"somebody's") && data.len() == 1, "{name} was changed");
    }
    Ok(())
}
