//! What every store of objects does on a server: the list of every store, strangers in the bucket, what is missing or
//! forbidden, bad weather, and a server that keeps no promise.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use coffer::{
    exec::Deadline,
    key::{
        record::{Record, RecordFault},
        store::{DekStore, StoreFailure},
    },
    volume::VolumeId,
};
use libtest_mimic::Trial;
use serde_json::json;
use testbed::{
    cloud::{Standing, StoreVariant, Weather, weather},
    conformance::{
        careless::{self, Forgets},
        soon,
        store::{conforms, long_list_pages, record},
        told,
    },
};
use uuid::Uuid;

use crate::{
    house::CLUSTER,
    servers::StoreServer,
    shelf::{self, Shelf, failure_of_get},
    store_trials,
    table::Notes,
    trial,
};

/// More than any service gives in one page of a list.
const MANY: usize = 2500;

pub(crate) fn trials() -> Vec<Trial> {
    let all = StoreServer::ALL;
    let ignores = "a_store_that_ignores_preconditions_is_refused".to_owned();
    let replaces = "a_store_that_replaces_whatever_is_there_is_refused".to_owned();
    let on_careless = [
        trial(ignores, async || refused(Forgets::Everything).await),
        trial(replaces, async || refused(Forgets::Replaces).await),
    ];
    [
        store_trials(&all, "does_what_every_store_does", what_every_store_does),
        store_trials(&all, "lists_2500_records_in_pages", long_list),
        store_trials(&all, "never_takes_torn_or_foreign_objects_for_records", strangers),
        store_trials(&all, "keeps_two_installations_apart_in_one_bucket", two_installations),
        store_trials(&all, "says_what_is_missing_or_forbidden", what_is_wrong),
        store_trials(&all, "is_asked_again_where_that_helps", weathered),
        store_trials(&[StoreServer::FakeGcs], "creates_and_replaces_by_the_services_own_conditions", conditions),
        on_careless.into(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn id(text: &str) -> VolumeId {
    text.parse().expect("a volume id")
}

async fn what_every_store_does(shelf: Shelf) -> Result<()> {
    let place = shelf.good().await?;
    let shown = conforms(&|| place.records()).await;
    shown.into_iter().for_each(|what| shelf.notes.shown(what));
    shelf.notes.not_shown("clock skew (the SDK signs with this machine's clock, and no server here looks at it)");
    Ok(())
}

/// What a server without lists can show.
async fn conditions(shelf: Shelf) -> Result<()> {
    let store = shelf.good().await?.records();
    let (one, id) = (record(CLUSTER, "vol-1").await, id("vol-1"));
    store.create(&one, soon()).await?;
    ensure!(matches!(store.create(&one, soon()).await, Err(StoreFailure::Exists(_))), "it was created twice");
    let stored = store.get(&id, soon()).await?.context("it is there")?;
    ensure!(stored.record == one, "another record is there");
    let changed = Record { format_attempt: 1, ..one.clone() };
    store.replace(&changed, stored.version, soon()).await?;
    ensure!(matches!(store.replace(&one, stored.version, soon()).await, Err(StoreFailure::Stale(_))), "stale");
    ensure!(store.get(&id, soon()).await?.context("it is there")?.record == changed, "it was not replaced");
    shelf.notes.shown("create only; stale replace refused");
    shelf.notes.not_shown("lists (its gRPC is of another version than the SDK's)");
    Ok(())
}

async fn long_list(shelf: Shelf) -> Result<()> {
    long_list_pages(shelf.good().await?.records(), MANY).await;
    shelf.notes.shown(format!("{MANY} records in pages"));
    Ok(())
}

async fn strangers(shelf: Shelf) -> Result<()> {
    let place = shelf.good().await?;
    let store = place.records();
    let (one, two) = (record(CLUSTER, "vol-1").await, record(CLUSTER, "vol-2").await);
    store.create(&one, soon()).await?;
    store.create(&two, soon()).await?;
    let whole = one.to_bytes();
    let mut longer = whole.clone();
    longer.push(b'\n');
    let wrong: [(&str, Vec<u8>); 7] = [
        ("torn early", whole[..1].to_vec()),
        ("torn", whole[..whole.len() / 2].to_vec()),
        ("torn late", whole[..whole.len() - 1].to_vec()),
        ("empty", Vec::new()),
        ("zeros", vec![0; whole.len()]),
        ("foreign", b"{}".to_vec()),
        ("longer", longer),
    ];
    for (what, bytes) in wrong {
        shelf.overwrite(&place, "vol-1", &bytes).await?;
        expect_fault(store.as_ref(), what, &two).await?;
    }
    shelf.overwrite(&place, "vol-1", &two.to_bytes()).await?;
    let fault = expect_fault(store.as_ref(), "another volume's", &two).await?;
    let is_other = matches!(&fault, StoreFailure::Fault { source: RecordFault::OtherVolume(_), .. });
    ensure!(is_other && told(&fault).contains("vol-2"), "another volume's record: {}", told(&fault));
    // What lies beside the records is none of them, whatever it is called.
    for name in ["readme.txt", "foreign.json", "=foreign.json", "deeper/vol-3.json"] {
        let name = format!("{}{name}", place.folder());
        shelf.bed.overwrite(&place.config, &name, b"{}".to_vec()).await.with_context(|| name.clone())?;
    }
    expect_fault(store.as_ref(), "strangers beside it", &two).await?;
    // Whatever the size of a page, each is told once; and what has not the name of a record, never.
    for limit in [1, 2, 100] {
        let (mut after, mut refused) = (None, Vec::new());
        loop {
            let page = store.list(after.as_ref(), limit, soon()).await?;
            refused.extend(page.refused.into_iter().map(|refused| refused.place));
            after = page.records.last().map(|record| record.volume_id.clone());
            if page.records.len() < limit {
                break;
            }
        }
        refused.sort_unstable();
        let ends = ["/=foreign.json in ", "/deeper/vol-3.json in ", "/foreign.json in ", "/vol-1.json in "];
        let are_all = refused.len() == ends.len() && refused.iter().zip(ends).all(|(place, end)| place.contains(end));
        ensure!(are_all, "in pages of {limit}, refused are {refused:?}");
    }
    shelf.overwrite(&place, "vol-1", &whole).await?;
    let read = store.get(&id("vol-1"), soon()).await?.context("it is there again")?.record;
    ensure!(read == one, "another record came back");
    shelf.notes.shown("torn, empty and foreign objects are no records, and are told");
    Ok(())
}

/// What lies in the place of vol-1 is no record, and a list says so beside the others.
async fn expect_fault(store: &dyn DekStore, what: &str, listed: &Record) -> Result<StoreFailure> {
    let failure = failure_of_get(store, "vol-1", soon()).await.with_context(|| format!("{what}: it is a record"))?;
    ensure!(matches!(&failure, StoreFailure::Fault { .. }), "{what}: {}", told(&failure));
    let text = told(&failure);
    ensure!(text.contains("vol-1") && text.contains("restore it"), "{what}: {text}");
    let page = store.list(None, 100, soon()).await?;
    ensure!(page.records == [listed.clone()], "{what}: listed are {page:?}");
    let is_told = page.refused.iter().any(|refused| refused.place.contains("vol-1.json in "));
    ensure!(is_told, "{what}: what is no record is not told: {page:?}");
    Ok(failure)
}

async fn two_installations(shelf: Shelf) -> Result<()> {
    let place = shelf.good().await?;
    let clusters = [Uuid::from_u128(1), Uuid::from_u128(2)];
    let stores = clusters.map(|cluster| place.records_of(cluster));
    let mut records = Vec::new();
    for (cluster, store) in clusters.into_iter().zip(&stores) {
        for name in ["vol-1", "ünïcode"] {
            let record = record(cluster, name).await;
            store.create(&record, soon()).await?;
            records.push((store, record));
        }
    }
    for (store, record) in &records {
        let read = store.get(&record.volume_id, soon()).await?.context("it is there")?.record;
        ensure!(read == *record, "the record of another installation was read");
    }
    for store in &stores {
        let mut listed = BTreeSet::new();
        for record in store.list(None, 100, soon()).await?.records {
            listed.insert((record.cluster_id, record.volume_id));
        }
        let own = records.iter().filter(|(other, _)| std::ptr::eq(*other, store));
        let own: BTreeSet<_> = own.map(|(_, record)| (record.cluster_id, record.volume_id.clone())).collect();
        ensure!(listed == own, "listed are {listed:?}");
    }
    shelf.notes.shown("several installations in one bucket");
    Ok(())
}

async fn what_is_wrong(shelf: Shelf) -> Result<()> {
    let record = record(CLUSTER, "vol-1").await;
    let what = "a missing bucket is named";
    if let Some(place) = shelf.variant(StoreVariant::MissingBucket, what).await? {
        let store = place.records();
        let failures = [
            ("create", store.create(&record, soon()).await.err()),
            ("get", failure_of_get(store.as_ref(), "vol-1", soon()).await),
            ("list", store.list(None, 10, soon()).await.err()),
        ];
        for (step, failure) in failures {
            let failure = failure.with_context(|| format!("{step} succeeds without a bucket"))?;
            let text = told(&failure);
            ensure!(matches!(failure, StoreFailure::NoBucket { .. }), "{step}: {text}");
            ensure!(text.contains(place.bucket_name()?) && text.contains("createIfMissing"), "{step}: {text}");
        }
        shelf.notes.shown(what);
    }
    let what = "createIfMissing";
    if let Some(place) = shelf.variant(StoreVariant::CreateIfMissing, what).await? {
        place.records().create(&record, soon()).await?;
        let read = place.records().get(&record.volume_id, soon()).await?.context("it is there")?.record;
        ensure!(read == record, "another record was read");
        shelf.notes.shown(what);
    }
    let what = "credentials that may not";
    if let Some(place) = shelf.variant(StoreVariant::NoPermission, what).await? {
        let store = place.records();
        let failures = [
            ("create", store.create(&record, soon()).await.err()),
            ("get", failure_of_get(store.as_ref(), "vol-1", soon()).await),
            ("list", store.list(None, 10, soon()).await.err()),
        ];
        for (step, failure) in failures {
            let failure = failure.with_context(|| format!("{step} succeeds without permission"))?;
            let fits = matches!(failure, StoreFailure::Denied { .. } | StoreFailure::Unauthenticated { .. });
            let text = told(&failure);
            ensure!(fits && text.contains(place.bucket_name()?), "{step}: {failure:?}: {text}");
        }
        shelf.notes.shown(what);
    }
    Ok(())
}

async fn weathered(shelf: Shelf) -> Result<()> {
    let (place, forecast) = (shelf.good().await?, shelf.bed.forecast().clone());
    place.ready().await?;
    let patient = place.called(|place| {
        (place.calls.timeout, place.calls.attempts) = (Duration::from_secs(2), 10);
    });
    let passing = [
        ("Unavailable", vec![Weather::Status(503)]),
        ("Internal error", vec![Weather::Status(500)]),
        ("Reset", vec![Weather::Reset]),
        ("Throttled", vec![Weather::Throttled { retry_after: None }]),
        ("Throttled for a second", vec![Weather::Throttled { retry_after: Some(1) }]),
        ("No answer", vec![Weather::Hang]),
        ("One after the other", vec![Weather::Status(503), Weather::Reset, Weather::Throttled { retry_after: None }]),
    ];
    for (number, (what, weather)) in passing.into_iter().enumerate() {
        let record = record(CLUSTER, &format!("vol-{number}")).await;
        let store = patient.ready().await?;
        forecast.set(weather.clone());
        store.create(&record, soon()).await.with_context(|| format!("{what}: create"))?;
        forecast.set(weather.clone());
        let stored = store.get(&record.volume_id, soon()).await.with_context(|| format!("{what}: get"))?;
        let stored = stored.with_context(|| format!("{what}: it is not there"))?;
        ensure!(stored.record == record, "{what}: another record was read");
        let mut next = record.clone();
        next.format_attempt += 1;
        forecast.set(weather.clone());
        store.replace(&next, stored.version, soon()).await.with_context(|| format!("{what}: replace"))?;
        forecast.set(weather);
        let page = store.list(None, 100, soon()).await.with_context(|| format!("{what}: list"))?.records;
        ensure!(page.len() == number + 1 && page.contains(&next), "{what}: listed are {page:?}");
    }

    // So many attempts as are configured and no more: the SDK makes none of its own.
    let store = place.called(|place| place.calls.attempts = 3).ready().await?;
    forecast.forget();
    forecast.always(Some(Weather::Status(503)));
    let failure = failure_of_get(&store, "vol-0", soon()).await.context("it answers in bad weather")?;
    let requests = forecast.requests();
    forecast.always(None);
    let is_outage = matches!(failure, StoreFailure::Unreachable { .. } | StoreFailure::Throttled { .. });
    ensure!(is_outage, "{}", told(&failure));
    ensure!(told(&failure).contains(place.bucket_name()?), "{}", told(&failure));
    ensure!(requests.len() == 3, "3 attempts are {requests:?}");

    let store = place.called(|place| place.calls.attempts = 100).ready().await?;
    forecast.always(Some(Weather::Throttled { retry_after: None }));
    let failure = failure_of_get(&store, "vol-0", Deadline::within(Duration::from_secs(2))).await;
    forecast.always(None);
    let failure = failure.context("it answers while it throttles")?;
    let fits = matches!(failure, StoreFailure::Throttled { .. } | StoreFailure::Deadline { .. });
    ensure!(fits, "throttled for ever: {}", told(&failure));

    let store = patient.ready().await?;
    forecast.always(Some(Weather::Garbage));
    let failure = failure_of_get(&store, "vol-0", soon()).await;
    forecast.always(None);
    failure.context("garbage was read as a record")?;
    shelf.notes.shown("throttled, 500, 503, reset and no answer are retried within the deadline; garbage is no record");
    Ok(())
}

/// A server that takes conditional writes and forgets the condition.
async fn refused(forgets: Forgets) -> Result<()> {
    let served = weather::serve(careless::router(forgets), None).await?;
    let folder = tempfile::tempdir()?;
    let secrets = ["id", "secret"].map(|name| folder.path().join(name));
    for path in &secrets {
        std::fs::write(path, "0123456789abcdef")?;
    }
    let config = json!({
        "type": "s3", "bucket": "careless", "region": "us-east-1", "pathStyle": true,
        "endpoint": format!("http://{}", served.address()), "insecureEndpoint": true,
        "auth": { "type": "static", "accessKeyIdFile": &secrets[0], "secretAccessKeyFile": &secrets[1] },
    });
    let place = shelf::open(folder.path(), config).await?;
    let created = place.records().create(&record(CLUSTER, "vol-1").await, soon()).await;
    let failure = created.err().context("it was trusted with a record")?;
    ensure!(matches!(failure, StoreFailure::NoPreconditions { .. }), "{failure:?}: {}", told(&failure));
    let text = told(&failure);
    ensure!(text.contains("careless") && text.contains("preconditions"), "{text}");
    let stored = place.records().get(&id("vol-1"), soon()).await?;
    ensure!(stored.is_none(), "a record was left on it");
    let what = match forgets {
        Forgets::Everything => "a store that ignores preconditions is refused",
        Forgets::Replaces => "a store that ignores If-Match is refused",
    };
    Notes::store("s3", "a server that forgets conditions".to_owned(), Standing::OurFake).shown(what);
    Ok(())
}
