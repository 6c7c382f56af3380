//! Records as custom resources at a real API server: what every store does, deletions by hand, strangers, permissions,
//! and what `coffer keys init` makes beside them.

mod keys;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use coffer::{
    exec::Deadline,
    key::{
        record::{Record, RecordFault},
        store::{DekStore, StoreFailure, kubernetes::VolumeKeys},
    },
    kubernetes::{
        release,
        volume_key::{DELETING, KEY_IN_USE, KeyState, VolumeKey},
    },
    volume::VolumeId,
};
use k8s_openapi::api::{
    events::v1::Event,
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::wait::{await_condition, conditions::is_deleted},
};
use libtest_mimic::Trial;
use serde_json::json;
use testbed::{
    conformance::{
        soon,
        store::{conforms, long_list_pages, record},
        told,
    },
    kube::ApiServer,
};
use uuid::Uuid;

use crate::Bed;

const CLUSTER: Uuid = Uuid::from_u128(7);
/// More than the store asks for at once, several times.
const MANY: usize = 2500;
const WAIT: Duration = Duration::from_secs(30);

pub(crate) fn trials(bed: &Bed) -> Vec<Trial> {
    vec![
        bed.trial("the_kubernetes_store_does_what_every_store_does", |_| every_store()),
        bed.trial("a_key_in_use_outlives_its_deletion_and_says_why", deleted_in_use),
        bed.trial("a_tombstone_can_be_deleted_and_a_key_that_follows_it_is_held_again", tombstone),
        bed.trial("nothing_is_created_in_what_is_being_deleted", created_while_deleted),
        bed.trial("foreign_and_edited_objects_are_no_records", strangers),
        bed.trial("a_store_needs_each_of_its_permissions_and_names_the_one_that_is_missing", permissions),
        bed.trial("keys_init_makes_each_thing_once_and_no_key_where_records_need_another", |_| keys::once()),
        bed.trial("keys_init_renews_certificates_and_keeps_the_authority", keys::renewed),
        bed.trial("keys_init_leaves_alone_what_is_not_its_own", keys::foreign),
    ]
}

fn id(text: &str) -> VolumeId {
    text.parse().expect("a volume id")
}

fn store(client: Client) -> Arc<dyn DekStore> {
    Arc::new(VolumeKeys::new(client))
}

fn objects(client: Client) -> Api<VolumeKey> {
    Api::all(client)
}

/// Looks until there is something to see.
async fn until<T, F: Future<Output = Result<Option<T>>>>(what: &str, look: impl Fn() -> F) -> Result<T> {
    let start = tokio::time::Instant::now();
    while start.elapsed() < WAIT {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("{what}: not within {WAIT:?}")
}

async fn every_store() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = ApiServer::start(folder.path()).await?;
    let door = || store(server.client());
    let one = record(CLUSTER, "vol-1").await;
    for (step, failure) in [
        ("get", door().get(&one.volume_id, soon()).await.err()),
        ("create", door().create(&one, soon()).await.err()),
        ("list", door().list(None, 10, soon()).await.err()),
    ] {
        let failure = failure.with_context(|| format!("{step} succeeds without the custom resource"))?;
        let text = told(&failure);
        ensure!(matches!(failure, StoreFailure::Refused { .. }) && text.contains("helm upgrade"), "{step}: {text}");
    }
    server.install_resources().await?;
    conforms(&door).await;
    clear(&server).await?;
    long_list_pages(door(), MANY).await;
    // Another process has not seen the pages before.
    let page = door().list(Some(&id("vol-00999")), 1000, soon()).await?;
    let ids: Vec<_> = page.records.iter().map(|record| record.volume_id.as_str().to_owned()).collect();
    ensure!(ids.first().map(String::as_str) == Some("vol-01000") && ids.len() == 1000, "{ids:?}");
    let one = id("vol-00000");
    server.stop().await;
    let failure = door_failure(&server, &one).await?;
    ensure!(matches!(failure, StoreFailure::Unreachable { .. } | StoreFailure::Deadline { .. }), "{}", told(&failure));
    server.restart().await?;
    ensure!(store(server.client()).get(&one, soon()).await?.is_some(), "the record did not outlive the API server");
    Ok(())
}

async fn door_failure(server: &ApiServer, volume_id: &VolumeId) -> Result<StoreFailure> {
    let got = store(server.client()).get(volume_id, Deadline::within(Duration::from_secs(3))).await;
    got.err().context("an API server that is away answers")
}

/// Takes every record away, as nobody should.
async fn clear(server: &ApiServer) -> Result<()> {
    let api = objects(server.client());
    for object in api.list(&ListParams::default()).await? {
        let name = object.name_any();
        release_by_hand(&api, &name).await?;
        api.delete(&name, &DeleteParams::default()).await?;
    }
    Ok(())
}

async fn release_by_hand(api: &Api<VolumeKey>, name: &str) -> Result<()> {
    let patch = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    api.patch(name, &PatchParams::default(), &patch).await.map(drop).context("take the finalizers off")
}

async fn get(api: &Api<VolumeKey>, name: &str) -> Result<VolumeKey> {
    api.get(name).await.with_context(|| format!("get VolumeKey {name}"))
}

async fn gone(api: &Api<VolumeKey>, object: &VolumeKey) -> Result<()> {
    let uid = object.uid().context("an object has a uid")?;
    let name = object.name_any();
    let deleted = await_condition(api.clone(), &name, is_deleted(&uid));
    tokio::time::timeout(WAIT, deleted).await.context("it is still there")??;
    Ok(())
}

async fn replace(store: &dyn DekStore, record: &Record) -> Result<(), StoreFailure> {
    let stored = store.get(&record.volume_id, soon()).await?.expect("it is there");
    store.replace(record, stored.version, soon()).await
}

async fn deleted_in_use(server: Arc<ApiServer>) -> Result<()> {
    let (store, api) = (store(server.client()), objects(server.client()));
    let watch = tokio::spawn(release::watch(server.client()));
    let record = Record {
        name: "pvc-1".to_owned(),
        tenant: Some("shop".to_owned()),
        claim: Some("orders".to_owned()),
        storage_class: Some("gold".to_owned()),
        ..record(CLUSTER, "vol-in-use").await
    };
    store.create(&record, soon()).await?;
    let made = get(&api, "vol-in-use").await?;
    let status = made.status.clone().context("it has a status")?;
    ensure!(made.finalizers() == [KEY_IN_USE], "{:?}", made.finalizers());
    ensure!(status.state == KeyState::Prepared && status.generation == 1 && status.provider == record.provider);
    ensure!(status.claim == record.claim && status.namespace == record.tenant && status.node == record.node);
    ensure!(status.storage_class == record.storage_class && status.kek_id.is_some(), "{status:?}");
    api.delete("vol-in-use", &DeleteParams::default()).await?;
    let waits = |object: Option<&VolumeKey>| {
        let conditions = object.and_then(|object| object.status.as_ref()).map(|status| &status.conditions);
        conditions.is_some_and(|all| all.iter().any(|condition| condition.type_ == DELETING))
    };
    let told = tokio::time::timeout(WAIT, await_condition(api.clone(), "vol-in-use", waits)).await;
    let waiting = told.context("no condition says why")??.context("the object is gone")?;
    let condition = waiting.status.as_ref().context("a status")?.conditions[0].clone();
    ensure!(condition.status == "False" && condition.reason == "KeyInUse", "{condition:?}");
    ensure!(condition.message.contains("delete the PersistentVolumeClaim shop/orders"), "{}", condition.message);
    ensure!(waiting.spec == made.spec, "the record was changed");
    let events: Api<Event> = Api::namespaced(server.client(), "default");
    let event = until("an Event of it", || async {
        let all = events.list(&ListParams::default()).await?.items;
        Ok(all
            .into_iter()
            .find(|event| event.regarding.as_ref().is_some_and(|object| object.name.as_deref() == Some("vol-in-use"))))
    })
    .await?;
    ensure!(event.type_.as_deref() == Some("Warning") && event.reason.as_deref() == Some("KeyInUse"), "{event:?}");
    // The volume works on: its record is read and changed as ever, and what is told stays.
    let changed = Record { format_attempt: 1, ..record.clone() };
    replace(store.as_ref(), &changed).await?;
    ensure!(store.get(&record.volume_id, soon()).await?.is_some_and(|stored| stored.record == changed));
    let status = get(&api, "vol-in-use").await?.status.context("a status")?;
    ensure!(status.conditions == [condition], "{status:?}");
    // With its key the object goes.
    replace(store.as_ref(), &changed.tombstone()).await?;
    gone(&api, &made).await?;
    ensure!(store.get(&record.volume_id, soon()).await?.is_none());
    watch.abort();
    Ok(())
}

async fn tombstone(server: Arc<ApiServer>) -> Result<()> {
    let (store, api) = (store(server.client()), objects(server.client()));
    let record = record(CLUSTER, "vol-tombstone").await;
    store.create(&record, soon()).await?;
    replace(store.as_ref(), &record.tombstone()).await?;
    let dead = get(&api, "vol-tombstone").await?;
    ensure!(dead.finalizers().is_empty(), "{:?}", dead.finalizers());
    ensure!(dead.status.as_ref().is_some_and(|status| status.state == KeyState::Destroyed && status.kek_id.is_none()));
    replace(store.as_ref(), &Record { generation: 2, ..record.clone() }).await?;
    let alive = get(&api, "vol-tombstone").await?;
    ensure!(alive.finalizers() == [KEY_IN_USE] && alive.status.as_ref().is_some_and(|status| status.generation == 2));
    replace(store.as_ref(), &record.tombstone()).await?;
    api.delete("vol-tombstone", &DeleteParams::default()).await?;
    gone(&api, &dead).await?;
    ensure!(store.get(&record.volume_id, soon()).await?.is_none());
    Ok(())
}

async fn created_while_deleted(server: Arc<ApiServer>) -> Result<()> {
    let (store, api) = (store(server.client()), objects(server.client()));
    let record = record(CLUSTER, "vol-half-gone").await;
    store.create(&record, soon()).await?;
    let patch = Patch::Merge(json!({ "metadata": { "finalizers": [KEY_IN_USE, "example.com/another"] } }));
    api.patch("vol-half-gone", &PatchParams::default(), &patch).await?;
    replace(store.as_ref(), &record.tombstone()).await?;
    let half_gone = get(&api, "vol-half-gone").await?;
    ensure!(half_gone.finalizers() == ["example.com/another"], "{:?}", half_gone.finalizers());
    api.delete("vol-half-gone", &DeleteParams::default()).await?;
    let created = store.create(&record, soon()).await;
    ensure!(matches!(created, Err(StoreFailure::Exists(_))), "{created:?}");
    let failure = replace(store.as_ref(), &record).await.err().context("a key was put into what is being deleted")?;
    ensure!(told(&failure).contains("is being deleted"), "{}", told(&failure));
    release_by_hand(&api, "vol-half-gone").await?;
    gone(&api, &half_gone).await?;
    store.create(&record, soon()).await?;
    Ok(())
}

async fn strangers(server: Arc<ApiServer>) -> Result<()> {
    let (store, api) = (store(server.client()), objects(server.client()));
    let (one, two) = (record(CLUSTER, "vol-strange").await, record(CLUSTER, "Strange Two").await);
    store.create(&one, soon()).await?;
    store.create(&two, soon()).await?;
    let whole = String::from_utf8(one.to_bytes())?;
    let put = async |text: &str| {
        let patch = Patch::Merge(json!({ "spec": { "record": text } }));
        api.patch("vol-strange", &PatchParams::default(), &patch).await
    };
    let wrong = [
        ("torn", whole[..whole.len() / 2].to_owned()),
        ("foreign", "{}".to_owned()),
        ("longer", format!("{whole}\n")),
        ("another's", String::from_utf8(two.to_bytes())?),
    ];
    for (what, text) in wrong {
        put(&text).await?;
        let failure =
            store.get(&one.volume_id, soon()).await.err().with_context(|| format!("{what}: it is a record"))?;
        ensure!(matches!(failure, StoreFailure::Fault { .. }), "{what}: {}", told(&failure));
        let is_other = matches!(&failure, StoreFailure::Fault { source: RecordFault::OtherVolume(_), .. });
        ensure!(is_other == (what == "another's"), "{what}: {}", told(&failure));
        let listed = store.list(None, 1000, soon()).await?;
        ensure!(listed.records.iter().all(|record| record.volume_id != one.volume_id), "{what}: it is listed");
        ensure!(listed.records.contains(&two), "{what}: it hides another");
        ensure!(listed.refused.iter().any(|refused| refused.place.contains("vol-strange")), "{what}: it is not told");
        // What is no record is replaced by none; another's whole record lies here with that one's version.
        if is_other {
            continue;
        }
        let replaced = store.get(&two.volume_id, soon()).await?.context("it is there")?;
        let stale = store.replace(&one, replaced.version, soon()).await;
        ensure!(matches!(stale, Err(StoreFailure::Stale(_))), "{what}: {stale:?}");
    }
    put(&whole).await?;
    ensure!(store.get(&one.volume_id, soon()).await?.is_some_and(|stored| stored.record == one));
    let empty = put("").await;
    ensure!(empty.is_err(), "an empty record was taken");
    let patch = Patch::Merge(json!({ "spec": { "volumeId": "another" } }));
    let moved = api.patch("vol-strange", &PatchParams::default(), &patch).await;
    ensure!(moved.as_ref().is_err_and(|error| error.to_string().contains("one volume for good")), "{moved:?}");
    Ok(())
}

/// Lets an account do these things with VolumeKeys.
async fn let_do(server: &ApiServer, account: &str, verbs: &[&str]) -> Result<()> {
    let name = format!("store-test-{account}");
    let role: ClusterRole = serde_json::from_value(json!({
        "metadata": { "name": name },
        "rules": [{ "apiGroups": ["coffer.csi"], "resources": ["volumekeys"], "verbs": verbs }],
    }))?;
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
        "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": "store-test" }],
    }))?;
    Api::<ClusterRole>::all(server.client()).create(&PostParams::default(), &role).await?;
    Api::<ClusterRoleBinding>::all(server.client()).create(&PostParams::default(), &binding).await?;
    Ok(())
}

/// What each verb of a role is for, tried: the permission that was missing, by what was tried.
async fn tried(store: &dyn DekStore, account: &str, there: &Record) -> Result<BTreeMap<&'static str, String>> {
    let new = record(CLUSTER, &format!("vol-by-{account}-{}", Uuid::new_v4())).await;
    let stored = coffer::key::store::Version::of(&there.to_bytes());
    let mut missing = BTreeMap::new();
    for (verb, result) in [
        ("get", store.get(&there.volume_id, soon()).await.map(drop)),
        ("list", store.list(None, 1, soon()).await.map(drop)),
        ("create", store.create(&new, soon()).await),
        ("update", store.replace(there, stored, soon()).await),
    ] {
        match result {
            Ok(()) => {}
            Err(failure @ StoreFailure::Denied { .. }) => drop(missing.insert(verb, told(&failure))),
            Err(failure) => return Err(failure).context(verb),
        }
    }
    Ok(missing)
}

async fn permissions(server: Arc<ApiServer>) -> Result<()> {
    const VERBS: [&str; 4] = ["get", "list", "create", "update"];
    let there = record(CLUSTER, "vol-guarded").await;
    store(server.client()).create(&there, soon()).await?;
    let nobody = store(server.as_account("store-test", "nobody").await?);
    let denied = tried(nobody.as_ref(), "nobody", &there).await?;
    ensure!(denied.len() == VERBS.len(), "without a role one may: {denied:?}");
    ensure!(denied["get"].contains("get volumekeys.coffer.csi in the Kubernetes API is denied"), "{denied:?}");
    for lacking in [None, Some("get"), Some("list"), Some("create"), Some("update")] {
        let account = lacking.map_or("everything".to_owned(), |verb| format!("without-{verb}"));
        let verbs: Vec<_> = VERBS.into_iter().filter(|verb| lacking != Some(*verb)).collect();
        let store = store(server.as_account("store-test", &account).await?);
        let_do(&server, &account, &verbs).await?;
        // Who may not read cannot replace either.
        let wanted: Vec<_> = match lacking {
            None => vec![],
            Some("get") => vec!["get", "update"],
            Some(verb) => vec![verb],
        };
        // The API server hears of a new role a moment later.
        until(&format!("{account}: {wanted:?} is what is missing"), || async {
            let missing = tried(store.as_ref(), &account, &there).await?;
            let verbs: Vec<_> = missing.keys().copied().collect();
            Ok((verbs == wanted).then_some(()))
        })
        .await?;
    }
    Ok(())
}
