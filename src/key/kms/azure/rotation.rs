//! Rotation by the vault itself: the key's rotation policy, which makes the next version so long after the newest. What
//! else a policy says (the time of expiry, notices of it) is left as it is.

use std::time::Duration;

use azure_core::http::{RequestContent, Response};
use azure_security_keyvault_keys::models::{
    Key, KeyRotationPolicy, KeyRotationPolicyAction, KeyRotationPolicyAttributes, LifetimeAction,
    LifetimeActionTrigger, LifetimeActionType,
};
use jiff::{Span, Timestamp, tz::TimeZone};
use serde::Deserialize;

use super::{AzureKeyVault, GET, GET_POLICY, KeyId, SET_POLICY, VaultType};
use crate::key::kms::{ByHand, KmsFailure, Periods, Rotation, rotation::DAY};

/// What there is in place of rotation where one version is to wrap.
pub(super) const PINNED: ByHand = ByHand(
    "keyVersion names the version that wraps, whatever newer ones there are: take it out of the provider, then ask again",
);

/// What a vault takes: a week at least, in a managed HSM 28 days.
pub(super) const fn periods(kind: VaultType) -> Periods {
    match kind {
        VaultType::Vault => Periods::days(7, 36_500),
        VaultType::ManagedHsm => Periods::days(28, 36_500),
    }
}

impl AzureKeyVault {
    /// Whether the vault rotates a key.
    pub(super) async fn rotation_of(&self, key: &KeyId) -> Result<Rotation, KmsFailure> {
        let Some(trigger) = self.policy(key).await?.trigger() else { return Ok(Rotation::Off) };
        let newest = self.client.get_key(&key.name, None).await.and_then(Response::into_model);
        let newest = newest.map_err(|error| self.vault.failure(GET, &self.vault.id(key), error))?;
        Ok(trigger.on(&newest))
    }

    /// Has a key rotated so long after each version was made.
    pub(super) async fn rotate(&self, key: &KeyId, period: Duration) -> Result<(), KmsFailure> {
        let fail = |error| self.vault.failure(SET_POLICY, &self.vault.id(key), error);
        let policy = self.policy(key).await?.with(period);
        let body: RequestContent<KeyRotationPolicy> = policy.try_into().map_err(fail)?;
        self.client.update_key_rotation_policy(&key.name, body, None).await.map(drop).map_err(fail)
    }

    async fn policy(&self, key: &KeyId) -> Result<Policy, KmsFailure> {
        let answer = self.client.get_key_rotation_policy(&key.name, None).await;
        let policy = answer.and_then(|answer| answer.into_body().json::<Policy>());
        policy.map_err(|error| self.vault.failure(GET_POLICY, &self.vault.id(key), error))
    }
}

/// A policy as it is read: the SDK's own reader wants the names of actions in one spelling, and the service gives no
/// promise of it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    lifetime_actions: Option<Vec<Action>>,
    attributes: Option<Attributes>,
}

#[derive(Debug, Deserialize)]
struct Action {
    action: Kind,
    trigger: Option<Trigger>,
}

#[derive(Debug, Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    name: String,
}

/// When it is done: a length of time as ISO 8601 writes it, from one of these.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Trigger {
    time_after_create: Option<String>,
    time_before_expiry: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attributes {
    expiry_time: Option<String>,
}

impl Action {
    fn is(&self, kind: KeyRotationPolicyAction) -> bool {
        self.action.name.eq_ignore_ascii_case(kind.as_ref())
    }
}

impl Policy {
    /// When the key is rotated; none where it is not.
    fn trigger(&self) -> Option<Trigger> {
        let actions = self.lifetime_actions.as_deref().unwrap_or_default();
        let action = actions.iter().find(|action| action.is(KeyRotationPolicyAction::Rotate))?;
        Some(action.trigger.clone().unwrap_or_default())
    }

    /// The same policy with this period.
    fn with(self, period: Duration) -> KeyRotationPolicy {
        let action = |kind, trigger| LifetimeAction {
            action: Some(LifetimeActionType { type_prop: Some(kind) }),
            trigger: Some(trigger),
        };
        let days = period.as_secs() / DAY.as_secs();
        let after = LifetimeActionTrigger { time_after_create: Some(format!("P{days}D")), ..Default::default() };
        let mut actions = vec![action(KeyRotationPolicyAction::Rotate, after)];
        let notices = self.lifetime_actions.into_iter().flatten();
        actions.extend(notices.filter(|notice| notice.is(KeyRotationPolicyAction::Notify)).map(|notice| {
            let Trigger { time_after_create, time_before_expiry } = notice.trigger.unwrap_or_default();
            action(KeyRotationPolicyAction::Notify, LifetimeActionTrigger { time_after_create, time_before_expiry })
        }));
        let expiry_time = self.attributes.and_then(|attributes| attributes.expiry_time);
        let attributes =
            expiry_time.map(|time| KeyRotationPolicyAttributes { expiry_time: Some(time), ..Default::default() });
        KeyRotationPolicy { attributes, lifetime_actions: Some(actions), ..Default::default() }
    }
}

impl Trigger {
    /// What it comes to for a key whose newest version this is.
    fn on(&self, newest: &Key) -> Rotation {
        let attributes = newest.attributes.as_ref();
        let moment =
            |time: Option<azure_core::time::OffsetDateTime>| Timestamp::from_second(time?.unix_timestamp()).ok();
        let created = moment(attributes.and_then(|attributes| attributes.created));
        let expires = moment(attributes.and_then(|attributes| attributes.expires));
        let next = match (&self.time_after_create, &self.time_before_expiry) {
            (Some(after), _) => created.and_then(|created| moved(created, after, 1)),
            (None, Some(before)) => expires.and_then(|expires| moved(expires, before, -1)),
            (None, None) => None,
        };
        let period =
            created.zip(next).and_then(|(created, next)| Duration::try_from(next.duration_since(created)).ok());
        Rotation::On { period, next }
    }
}

/// A moment and a length of time, in the calendar: a month is as long as it is.
fn moved(from: Timestamp, length: &str, sign: i64) -> Option<Timestamp> {
    let length = length.parse::<Span>().ok()?.checked_mul(sign).ok()?;
    Some(from.to_zoned(TimeZone::UTC).checked_add(length).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(json: &str) -> Policy {
        serde_json::from_str(json).expect("a policy")
    }

    fn key(json: &str) -> Key {
        serde_json::from_str(json).expect("a key")
    }

    #[test]
    fn a_policy_keeps_what_it_says_beside_the_rotation() {
        let before = policy(
            r#"{"id":"https://v/keys/k/rotationpolicy","attributes":{"expiryTime":"P2Y","created":1},"lifetimeActions":[
                {"trigger":{"timeAfterCreate":"P18M","timeBeforeExpiry":null},"action":{"type":"rotate"}},
                {"trigger":{"timeBeforeExpiry":"P30D"},"action":{"type":"notify"}}]}"#,
        );
        let after = serde_json::to_value(before.with(90 * DAY)).expect("JSON");
        let expected = serde_json::json!({
            "attributes": { "expiryTime": "P2Y" },
            "lifetimeActions": [
                { "action": { "type": "Rotate" }, "trigger": { "timeAfterCreate": "P90D" } },
                { "action": { "type": "Notify" }, "trigger": { "timeBeforeExpiry": "P30D" } },
            ],
        });
        assert_eq!(after, expected);
        let first = serde_json::to_value(Policy::default().with(28 * DAY)).expect("JSON");
        let expected = serde_json::json!({
            "lifetimeActions": [{ "action": { "type": "Rotate" }, "trigger": { "timeAfterCreate": "P28D" } }],
        });
        assert_eq!(first, expected);
    }

    #[test]
    fn the_next_rotation_is_counted_from_the_newest_version() {
        // 2026-01-31 and 2027-01-31.
        let newest = key(r#"{"attributes":{"created":1769817600,"exp":1801353600}}"#);
        let check = |trigger: &str, next: &str, days: u32| {
            let json = format!(r#"{{"lifetimeActions":[{{"trigger":{trigger},"action":{{"type":"Rotate"}}}}]}}"#);
            let trigger = policy(&json).trigger().expect("it rotates");
            let next = Some(format!("{next}T00:00:00Z").parse().expect("a time"));
            assert_eq!(trigger.on(&newest), Rotation::On { period: Some(days * DAY), next }, "{json}");
        };
        check(r#"{"timeAfterCreate":"P90D"}"#, "2026-05-01", 90);
        check(r#"{"timeAfterCreate":"P1M","timeBeforeExpiry":null}"#, "2026-02-28", 28);
        check(r#"{"timeBeforeExpiry":"P31D"}"#, "2026-12-31", 334);
        let nothing = Trigger::default().on(&key("{}"));
        assert_eq!(nothing, Rotation::On { period: None, next: None });
    }

    #[test]
    fn a_policy_without_rotation_rotates_nothing() {
        for json in [
            "{}",
            r#"{"lifetimeActions":null}"#,
            r#"{"lifetimeActions":[{"trigger":{"timeBeforeExpiry":"P30D"},"action":{"type":"Notify"}}]}"#,
        ] {
            assert!(policy(json).trigger().is_none(), "{json}");
        }
    }
}
