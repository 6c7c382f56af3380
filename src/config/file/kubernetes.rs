//! Callers of a Kubernetes cluster: whose tokens count, and for what.

use std::{num::NonZeroU32, time::Duration};

use serde_json::Value;

use crate::{
    config::file::{
        reading::Reading,
        section::Section,
        value::{Misfit, checked, duration, list, parsed, whole, word},
    },
    keyservice::bearer::{Account, Settings, is_object_name},
};

/// The title of its keys: a store and ways to log in are called kubernetes as well.
const TITLE: &str = "Callers of Kubernetes";
const ACCOUNTS: &str = "a list of NAMESPACE/NAME";

/// Reads the section, where the file has one.
pub(super) fn read(top: &mut Section, reading: &mut Reading<'_>) -> Option<Settings> {
    let mut section = top.section("kubernetes", TITLE, reading)?;
    let audience = section.ask("audience", "1 to 253 of A-Z, a-z, 0-9, -, ., _, : and /");
    let audience = audience.or("coffer", reading, word(253, "-._:/"));
    let node_accounts = section.ask("nodeAccounts", ACCOUNTS).required(reading, list(parsed::<Account>));
    let controllers = section.ask("controllerAccounts", ACCOUNTS).documented("none");
    let controller_accounts = controllers.optional(reading, accounts).unwrap_or_default();
    let drivers = section.ask("drivers", "a list of names of CSI drivers").documented("coffer.csi");
    let drivers = drivers.or(vec!["coffer.csi"], reading, list(checked(driver)));
    let review_expiry = section.ask("reviewExpiry", "a length of time such as 10s, from 1s to 5m");
    let review_expiry = review_expiry.or("10s", reading, duration(Duration::from_secs(1)..=Duration::from_secs(300)));
    let watch_expiry = section.ask("watchExpiry", "a length of time such as 3m, from 30s to 10m");
    let watch_expiry = watch_expiry.or("3m", reading, duration(Duration::from_secs(30)..=Duration::from_secs(600)));
    let requests = section.ask("requestsPerSecond", "a number from 1 to 10000").or(50, reading, number);
    if let Some(account) =
        controller_accounts.iter().find(|account| node_accounts.iter().flatten().any(|node| node == *account))
    {
        let what = format!("{account} is one of nodeAccounts as well; an account is a node's or a controller's");
        section.fault("controllerAccounts", &what, reading);
    }
    section.finish(reading);
    Some(Settings {
        audience,
        node_accounts: node_accounts?,
        controller_accounts,
        drivers,
        review_expiry,
        watch_expiry,
        requests_per_second: requests,
    })
}

/// A list that may be empty, as a chart writes it.
fn accounts(value: &Value) -> Result<Vec<Account>, Misfit> {
    match value.as_array() {
        Some(items) if items.is_empty() => Ok(Vec::new()),
        _ => list(parsed::<Account>)(value),
    }
}

/// A driver's name is a domain (CSI, GetPluginInfoResponse).
fn driver(text: &str) -> Result<String, Misfit> {
    if is_object_name(text) { Ok(text.to_owned()) } else { Err(Misfit::Not(text.to_owned())) }
}

fn number(value: &Value) -> Result<NonZeroU32, Misfit> {
    let number = whole(1..=10_000)(value)?;
    u32::try_from(number).ok().and_then(NonZeroU32::new).ok_or(Misfit::Other)
}
