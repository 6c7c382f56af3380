//! What records and KEKs are said to be: verify, list, status, orphans. None of it tells a key.

use std::sync::Arc;

use coffer::{
    admin::{
        Place,
        answer::Print,
        keys::{self, list::Which as Keks},
        records::{
            list::{Which, list},
            verify::{VerifyFailure, verify},
        },
    },
    key::{
        embedded::Embedded,
        providers::{KmsProvider, Provider},
        record::{Base64, StoredKey},
        service::KeyService,
    },
    volume::hex,
};
use serde_json::Value;

use crate::{CLUSTER, LIVE, Rotating, cluster, deks, local, new, of, place, quiet, seeded, soon, tamper, wraps};

async fn verified(place: &Place) -> (Value, Result<(), VerifyFailure>) {
    let mut out = Vec::new();
    let ended = verify(place, Print::Json, &mut quiet(), &mut out).await;
    (serde_json::from_slice(&out).expect("JSON"), ended)
}

async fn status(place: &Place, print: Print) -> String {
    let mut out = Vec::new();
    keys::status::status(place, print, &mut quiet(), &mut out).await.expect("a status");
    String::from_utf8(out).expect("text")
}

async fn keks(place: &Place, which: Keks, print: Print) -> String {
    let mut out = Vec::new();
    keys::list::list(place, which, print, &mut quiet(), &mut out).await.expect("a list");
    String::from_utf8(out).expect("text")
}

async fn listed(place: &Place, which: Which, print: Print) -> String {
    let mut out = Vec::new();
    list(place.store.as_ref(), which, print, &mut quiet(), &mut out).await.expect("a list");
    String::from_utf8(out).expect("text")
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// What was found of a volume.
fn finding<'a>(rows: &'a Value, volume: &str) -> &'a str {
    let rows = rows.as_array().expect("rows");
    let row = rows.iter().find(|row| row["volumeId"] == volume).expect("a row of the volume");
    row["finding"].as_str().expect("text")
}

#[tokio::test]
async fn each_record_is_opened_and_each_failure_is_its_own() {
    let seeded = seeded().await;
    let (rows, ended) = verified(&seeded).await;
    ended.expect("all is well");
    assert_eq!(rows.as_array().expect("rows").len(), LIVE.len());
    assert!(LIVE.iter().all(|volume| finding(&rows, volume) == "ok"), "{rows}");

    tamper(seeded.store.as_ref(), "vol-ready", |record| record.name = "another".to_owned()).await;
    tamper(seeded.store.as_ref(), "vol-a", |record| {
        let Some(StoredKey::Wrapped { wrapped_dek, .. }) = &mut record.key else { panic!("it is wrapped") };
        let mut bytes = wrapped_dek.as_bytes().to_vec();
        bytes[0] ^= 1;
        *wrapped_dek = Base64::new(bytes);
    })
    .await;
    let without_b = place(of([("a", wraps(local(7))), ("cluster", cluster())]), seeded.store);
    let (rows, ended) = verified(&without_b).await;
    assert!(matches!(ended, Err(VerifyFailure::Bad { bad: 3, of: 4, refused: 0 })), "{ended:?}");
    let found = LIVE.map(|volume| finding(&rows, volume));
    assert_eq!(found, ["does-not-open", "provider-missing", "ok", "does-not-open"]);
}

#[tokio::test]
async fn a_rotated_kek_shows_as_rewrap_needed_everywhere() {
    let (kms, store) = (Rotating::new(), seeded().await.store);
    let rotating = || ("r", Provider::Kms(KmsProvider::new(kms.clone())));
    let providers = || of([rotating(), ("a", wraps(local(7))), ("b", wraps(local(8))), ("cluster", cluster())]);
    Embedded::new(CLUSTER, providers(), store.clone()).create(new("vol-r", "r"), soon()).await.expect("a new key");
    let place = place(providers(), store);
    let needed = |status: &str| {
        let status = json(status);
        let rows = status["providers"].as_array().expect("providers");
        let row = rows.iter().find(|row| row["name"] == "r").expect("a row");
        row["rewrapNeeded"].as_u64().expect("a number")
    };
    assert_eq!(needed(&status(&place, Print::Json).await), 0);
    kms.rotate();
    assert_eq!(needed(&status(&place, Print::Json).await), 1);
    let (rows, ended) = verified(&place).await;
    ended.expect("an older KEK opens, too");
    assert_eq!(finding(&rows, "vol-r"), "rewrap-needed");
    let told = status(&place, Print::Table).await;
    assert!(told.contains("a (default)") && told.contains("rewrap needed  1"), "{told}");
}

#[tokio::test]
async fn orphans_are_keks_that_nobody_has_and_providers_that_nothing_needs() {
    let store = seeded().await.store;
    // b is gone, a has another key than the one it wrapped with, c was never used.
    let place = place(of([("a", wraps(local(9))), ("c", wraps(local(10))), ("cluster", cluster())]), store);
    let found = json(&keks(&place, Keks::Orphans, Print::Json).await);
    let rows = found["keks"].as_array().expect("rows");
    let told: Vec<_> = rows.iter().map(|row| (row["provider"].as_str(), row["finding"].as_str())).collect();
    assert_eq!(told, [(Some("a"), Some("does-not-open")), (Some("b"), Some("provider-missing"))]);
    assert_eq!(rows[0]["records"], 2);
    assert_eq!(found["unusedProviders"], serde_json::json!(["c"]));
    let all = json(&keks(&place, Keks::Named, Print::Json).await);
    assert_eq!(all["keks"].as_array().expect("rows").len(), 3);
    let told = status(&place, Print::Table).await;
    assert!(told.contains("1 records need provider b, which is not configured"), "{told}");
    let told = keks(&place, Keks::Orphans, Print::Table).await;
    assert!(told.contains("provider c: no record needs it") && told.contains("not seen here"), "{told}");
}

#[tokio::test]
async fn lists_tell_what_is_there_and_no_key() {
    let place = seeded().await;
    let table = listed(&place, Which::Live, Print::Table).await;
    assert!(table.starts_with("VOLUME") && table.contains("shop/data") && !table.contains("vol-gone"), "{table}");
    let rows = json(&listed(&place, Which::All, Print::Json).await);
    let rows = rows.as_array().expect("rows");
    assert_eq!(rows.len(), LIVE.len() + 1);
    let gone = rows.iter().find(|row| row["volumeId"] == "vol-gone").expect("the tombstone");
    assert_eq!((&gone["state"], &gone["kekId"]), (&"destroyed".into(), &Value::Null));
    assert_eq!(rows.iter().find(|row| row["volumeId"] == "vol-derived").expect("a row")["mechanism"], "coffer-v1");

    let mut told = vec![table];
    for print in [Print::Table, Print::Json] {
        told.push(listed(&place, Which::All, print).await);
        told.push(status(&place, print).await);
        told.push(keks(&place, Keks::Named, print).await);
        let mut out = Vec::new();
        verify(&place, print, &mut quiet(), &mut out).await.expect("all is well");
        told.push(String::from_utf8(out).expect("text"));
    }
    for dek in deks(&place.store).await {
        for shape in [hex(&dek), String::from(Base64::new(dek.as_slice()))] {
            assert!(told.iter().all(|text| !text.contains(&shape)), "a key was told");
        }
    }
}

#[tokio::test]
async fn an_empty_store_is_no_failure() {
    let store: Arc<coffer::key::store::memory::Memory> = Arc::default();
    let place = place(crate::providers(), store);
    let (rows, ended) = verified(&place).await;
    ended.expect("nothing is wrong with nothing");
    assert_eq!(rows, serde_json::json!([]));
    assert_eq!(json(&listed(&place, Which::All, Print::Json).await), serde_json::json!([]));
}
