//! What every provider does on a server: the list of every KMS, and what goes wrong or changes in the KMS itself.

use anyhow::{Context, Result, bail, ensure};
use coffer::{
    key::{
        kms::{Kek, KekState, Kms, KmsFailure, Wrapped},
        service::Refusal,
    },
    secret::InnerKey,
};
use libtest_mimic::Trial;
use serde_json::Value;
use testbed::{
    cloud::{Standing, Variant},
    conformance::{
        kms::{Flips, Subject, Volume, conforms},
        soon, told,
    },
};

use crate::{
    house::{Configured, House},
    kms_trials,
    servers::KmsServer,
};

pub(crate) fn trials() -> Vec<Trial> {
    let whole = KmsServer::WHOLE;
    let with_states = [whole.as_slice(), &[KmsServer::MiniStack]].concat();
    [
        kms_trials(&whole, "does_what_every_kms_does", what_every_kms_does),
        kms_trials(&whole, "does_what_every_kms_does_with_an_rsa_key", the_same_with_rsa),
        kms_trials(&whole, "says_what_is_wrong_and_what_to_look_at", what_is_wrong),
        kms_trials(&with_states, "tells_a_key_that_is_switched_off_and_opens_when_it_is_back", switched_off),
        kms_trials(&whole, "opens_old_keys_after_a_rotation_and_names_the_new_version", rotated),
        kms_trials(&whole, "opens_old_keys_after_an_alias_has_moved_and_shows_that", moved),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn what_every_kms_does(house: House) -> Result<()> {
    let config = house.good().await?;
    list(&house, &config, "").await
}

async fn the_same_with_rsa(house: House) -> Result<()> {
    match house.config(Variant::Rsa, "an RSA KEK beside the good one (there is none)").await? {
        Some(config) => list(&house, &config, " (RSA)").await,
        None => Ok(()),
    }
}

async fn list(house: &House, config: &Value, with: &str) -> Result<()> {
    let kms = house.open(config).await?.kms;
    let binds = house.binds(kms.as_ref()).await?;
    let shown = conforms(&Subject { kms, binds, flips: Flips::EveryByte }).await;
    shown.into_iter().for_each(|what| house.notes.shown(format!("{what}{with}")));
    Ok(())
}

async fn what_is_wrong(house: House) -> Result<()> {
    let cases = [
        (Variant::MissingKek, "a missing KEK"),
        (Variant::WrongType, "a KEK of the wrong type"),
        (Variant::NoPermission, "no permission"),
        (Variant::WrongRegion, "a wrong region"),
        (Variant::BadCredentials, "credentials that are not taken"),
    ];
    for (variant, what) in cases {
        let Some(config) = house.config(variant, what).await? else { continue };
        let kms = house.open(&config).await.with_context(|| what.to_owned())?.kms;
        let described = kms.describe(None, soon()).await;
        check(variant, Step::Describe, described.err(), &config).with_context(|| format!("describe with {what}"))?;
        let (key, volume) = (InnerKey::random(), Volume::of("vol-1"));
        let wrapped = kms.wrap(&key, None, &volume.binding(), soon()).await;
        if variant == Variant::WrongType && wrapped.is_ok() && house.bed.standing() == Standing::Emulator {
            house.notes.not_shown(format!(
                "{what}, when it wraps (this server lets it; before the first wrap it is described)"
            ));
        } else {
            check(variant, Step::Wrap, wrapped.err(), &config).with_context(|| format!("wrap with {what}"))?;
        }
        house.notes.shown(what);
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Describe,
    Wrap,
}

/// Each kind of trouble has its own variant, its hint and its refusal.
fn check(variant: Variant, step: Step, failure: Option<KmsFailure>, config: &Value) -> Result<()> {
    let failure = failure.context("it succeeded")?;
    let text = told(&failure);
    let fits = match (variant, &failure) {
        (Variant::MissingKek, KmsFailure::NoSuchKek { .. }) => true,
        // Where wrapping with a missing key would make one, that is what the identity may not do.
        (Variant::MissingKek, KmsFailure::Denied { .. }) => step == Step::Wrap,
        (Variant::WrongType, KmsFailure::WrongType { .. }) => true,
        (Variant::NoPermission, KmsFailure::Denied { action, detail, .. }) => !action.is_empty() && !detail.is_empty(),
        (Variant::WrongRegion, KmsFailure::OtherRegion { region, .. }) => !region.is_empty() && text.contains(region),
        (Variant::WrongRegion, KmsFailure::NoSuchKek { .. }) => text.contains(region(config)?),
        (Variant::BadCredentials, KmsFailure::Unauthenticated { .. } | KmsFailure::Denied { .. }) => true,
        _ => false,
    };
    ensure!(fits, "it is told as {failure:?}: {text}");
    expect_hint(&failure)?;
    let refusal = match failure {
        KmsFailure::Denied { .. } => Refusal::Denied,
        KmsFailure::Unauthenticated { .. } => Refusal::Unavailable,
        _ => Refusal::State,
    };
    ensure!(failure.refusal() == refusal, "{:?} in place of {refusal:?}: {text}", failure.refusal());
    Ok(())
}

/// The region or location that a provider is configured for.
fn region(config: &Value) -> Result<&str> {
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let location = || text("keyName")?.split_once("/locations/")?.1.split('/').next();
    text("region").or_else(location).with_context(|| format!("a region in {config}"))
}

/// The text says what to look at next.
fn expect_hint(failure: &KmsFailure) -> Result<()> {
    let (KmsFailure::NoSuchKek { hint, .. }
    | KmsFailure::Unusable { hint, .. }
    | KmsFailure::WrongType { hint, .. }
    | KmsFailure::OtherRegion { hint, .. }
    | KmsFailure::Denied { hint, .. }
    | KmsFailure::Unauthenticated { hint, .. }) = failure
    else {
        bail!("{failure} is of a kind without hints")
    };
    ensure!(hint.trim().len() > 10, "no hint: {failure}");
    ensure!(failure.to_string().ends_with(hint.as_str()), "the hint is not told: {failure}");
    Ok(())
}

async fn switched_off(house: House) -> Result<()> {
    const WHAT: &str = "a KEK that is switched off";
    let Configured { kms, .. } = house.open(&house.good().await?).await?;
    let (key, volume) = (InnerKey::random(), Volume::of("vol-1"));
    let wrapped = kms.wrap(&key, None, &volume.binding(), soon()).await?;
    if !house.bed.enable(false).await? {
        house.notes.not_shown(format!("{WHAT} (this server does not know it)"));
        return Ok(());
    }
    let failures = [
        ("describe", kms.describe(None, soon()).await.err()),
        ("wrap", kms.wrap(&key, None, &volume.binding(), soon()).await.err()),
        ("unwrap", kms.unwrap(&wrapped, &volume.binding(), soon()).await.err()),
    ];
    for (step, failure) in failures {
        let failure = failure.with_context(|| format!("{step} succeeds with {WHAT}"))?;
        // OpenBao switches a key off by deleting it softly.
        let is_disabled =
            matches!(&failure, KmsFailure::Unusable { state: KekState::Disabled | KekState::PendingDeletion, .. });
        ensure!(is_disabled, "{step}: it is told as {failure:?}");
        ensure!(failure.refusal() == Refusal::State, "{step}: {:?}", failure.refusal());
        expect_hint(&failure).with_context(|| step.to_owned())?;
    }
    ensure!(house.bed.enable(true).await?, "it cannot be switched on again");
    expect_opens(kms.as_ref(), &wrapped, &volume, &key).await?;
    house.notes.shown(WHAT);
    Ok(())
}

async fn rotated(house: House) -> Result<()> {
    const WHAT: &str = "a rotated KEK";
    let Configured { kms, .. } = house.open(&house.good().await?).await?;
    let (key, volume) = (InnerKey::random(), Volume::of("vol-1"));
    let old = kms.wrap(&key, None, &volume.binding(), soon()).await?;
    if !house.bed.rotate().await? {
        house.notes.not_shown(format!("{WHAT} (this server cannot)"));
        return Ok(());
    }
    expect_opens(kms.as_ref(), &old, &volume, &key).await?;
    let (new, kek) = now(kms.as_ref(), &key, &volume).await?;
    expect_opens(kms.as_ref(), &new, &volume, &key).await?;
    ensure!(new.kek_id == kek.id, "{} wraps, and {} is described", new.kek_id, kek.id);
    match house.bed.provider() {
        // A key of these has one name for all its versions, and the KMS finds the version in the wrapped bytes.
        "aws-kms" | "kes" => {
            ensure!(new.kek_id == old.kek_id, "{} became {}", old.kek_id, new.kek_id);
            house.notes.not_shown(format!("{WHAT}'s version in its name (the service names none)"));
        }
        _ => ensure!(new.kek_id != old.kek_id, "the new version has the old one's name, {}", old.kek_id),
    }
    house.notes.shown(WHAT);
    Ok(())
}

async fn moved(house: House) -> Result<()> {
    const WHAT: &str = "an alias that moved to another KEK";
    let Configured { kms, .. } = house.open(&house.good().await?).await?;
    let (key, volume) = (InnerKey::random(), Volume::of("vol-1"));
    let old = kms.wrap(&key, None, &volume.binding(), soon()).await?;
    if !house.bed.move_alias().await? {
        house.notes.not_shown(format!("{WHAT} (the service has none)"));
        return Ok(());
    }
    expect_opens(kms.as_ref(), &old, &volume, &key).await?;
    let (new, kek) = now(kms.as_ref(), &key, &volume).await?;
    ensure!(kek.id != old.kek_id, "nobody sees that {} no longer wraps", old.kek_id);
    ensure!(new.kek_id == kek.id, "{} wraps, and {} is described", new.kek_id, kek.id);
    expect_opens(kms.as_ref(), &new, &volume, &key).await?;
    house.notes.shown(WHAT);
    Ok(())
}

/// What wraps now, and what is described.
async fn now(kms: &dyn Kms, key: &InnerKey, volume: &Volume) -> Result<(Wrapped, Kek)> {
    Ok((kms.wrap(key, None, &volume.binding(), soon()).await?, kms.describe(None, soon()).await?))
}

async fn expect_opens(kms: &dyn Kms, wrapped: &Wrapped, volume: &Volume, key: &InnerKey) -> Result<()> {
    let opened = kms.unwrap(wrapped, &volume.binding(), soon()).await?;
    ensure!(opened.expose_secret() == key.expose_secret(), "{} opened to another key", wrapped.kek_id);
    Ok(())
}
