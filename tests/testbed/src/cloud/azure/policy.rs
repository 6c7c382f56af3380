//! Rotation policies as our imitation of a vault takes them.

use serde_json::{Value, json};

use super::vault::Kind;

/// What a key has before anybody gave it a policy.
pub(super) fn first(kind: Kind) -> Value {
    match kind {
        Kind::Vault => json!({
            "lifetimeActions": [{"trigger": {"timeBeforeExpiry": "P30D"}, "action": {"type": "Notify"}}],
            "attributes": {},
        }),
        Kind::ManagedHsm => json!({ "lifetimeActions": [], "attributes": {} }),
    }
}

/// A policy as it is kept; else what is wrong with it.
pub(super) fn good(policy: &Value, kind: Kind) -> Result<Value, &'static str> {
    let least = if kind == Kind::Vault { 7 } else { 28 };
    let expiry = match &policy["attributes"]["expiryTime"] {
        Value::Null => None,
        expiry => Some(days(expiry).filter(|expiry| *expiry >= 28).ok_or("expiryTime must be at least 28 days.")?),
    };
    let actions = policy["lifetimeActions"].as_array().map(Vec::as_slice).unwrap_or_default();
    for action in actions {
        let (trigger, kind) = (&action["trigger"], action["action"]["type"].as_str().unwrap_or_default());
        match (kind, days(&trigger["timeAfterCreate"]), days(&trigger["timeBeforeExpiry"])) {
            ("Rotate", Some(after), None) if after < least => return Err("timeAfterCreate is too short."),
            ("Rotate", Some(after), None) if expiry.is_some_and(|expiry| after + least > expiry) => {
                return Err("timeAfterCreate must end before the key expires.");
            }
            ("Rotate", Some(_), None) => {}
            ("Rotate" | "Notify", None, Some(before)) if before >= 7 => {}
            _ => return Err("a lifetime action is none that can be."),
        }
    }
    Ok(json!({ "lifetimeActions": actions, "attributes": { "expiryTime": policy["attributes"]["expiryTime"] } }))
}

/// `P90D`
fn days(length: &Value) -> Option<u32> {
    length.as_str()?.strip_prefix('P')?.strip_suffix('D')?.parse().ok()
}
