//! A key as the engine describes it: its type, its versions, and how often the engine rotates it.

use std::time::Duration;

use jiff::{Timestamp, fmt::friendly::SpanParser};
use serde::Deserialize;
use serde_json::Value;

use crate::key::{
    kms::{Periods, Rotation, rotation::DAY},
    record::KekMechanism,
};

/// How often the engine rotates a key: once an hour at most, which is how often it looks. A century is our own limit.
pub(super) const PERIODS: Periods = Periods {
    least: Duration::from_secs(3600),
    most: Duration::from_secs(36_500 * DAY.as_secs()),
    step: Duration::from_secs(1),
};

/// A key as the engine describes it.
#[derive(Deserialize)]
pub(super) struct KeyInfo {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) latest_version: u64,
    pub(super) supports_encryption: bool,
    pub(super) supports_decryption: bool,
    /// OpenBao alone has it.
    #[serde(default)]
    pub(super) soft_deleted: bool,
    /// Seconds, or a text such as `720h`.
    #[serde(default)]
    auto_rotate_period: Value,
    /// By version: when it was made, in seconds since 1970; or an object, of which that is a part.
    #[serde(default)]
    keys: Value,
}

impl KeyInfo {
    pub(super) fn mechanism(&self) -> Option<KekMechanism> {
        match self.kind.as_str() {
            "aes128-gcm96" | "aes256-gcm96" | "chacha20-poly1305" | "xchacha20-poly1305" => {
                Some(KekMechanism::Symmetric)
            }
            // The engine encrypts with RSA by OAEP with SHA-256.
            "rsa-2048" | "rsa-3072" | "rsa-4096" => Some(KekMechanism::RsaOaep256),
            _ => None,
        }
    }

    /// Whether the engine rotates it: as soon as the newest version is a period old, within an hour.
    pub(super) fn rotation(&self) -> Rotation {
        let (is_on, period) = match &self.auto_rotate_period {
            Value::Number(seconds) => (seconds.as_f64() != Some(0.0), seconds.as_u64().map(Duration::from_secs)),
            Value::String(text) => {
                let is_on = !matches!(text.as_str(), "" | "0" | "0s");
                (is_on, SpanParser::new().parse_unsigned_duration(text).ok())
            }
            _ => (false, None),
        };
        if !is_on {
            return Rotation::Off;
        }
        let made = made(&self.keys[self.latest_version.to_string()]);
        let next = made.zip(period).and_then(|(made, period)| made.checked_add(period).ok());
        Rotation::On { period, next }
    }
}

/// When a version was made.
fn made(version: &Value) -> Option<Timestamp> {
    match version {
        Value::Number(seconds) => Timestamp::from_second(seconds.as_i64()?).ok(),
        version => version["creation_time"].as_str()?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotation(period: &str, keys: &str) -> Rotation {
        let json = format!(
            r#"{{"type":"aes256-gcm96","latest_version":2,"supports_encryption":true,"supports_decryption":true,
                "auto_rotate_period":{period},"keys":{keys}}}"#
        );
        serde_json::from_str::<KeyInfo>(&json).expect("a key").rotation()
    }

    #[test]
    fn the_next_rotation_is_a_period_after_the_newest_version() {
        let month = Some(Duration::from_secs(720 * 3600));
        let next = Some("2026-12-26T20:18:15Z".parse::<Timestamp>().expect("a time"));
        let keys = r#"{"1":1795000000,"2":1795724295}"#;
        assert_eq!(rotation("2592000", keys), Rotation::On { period: month, next });
        assert_eq!(rotation("\"720h\"", keys), Rotation::On { period: month, next });
        let objects = r#"{"2":{"creation_time":"2026-11-26T20:18:15Z","name":"rsa-2048"}}"#;
        assert_eq!(rotation("2592000", objects), Rotation::On { period: month, next });
        assert_eq!(rotation("2592000", "null"), Rotation::On { period: month, next: None });
        assert_eq!(rotation("\"often\"", keys), Rotation::On { period: None, next: None });
        for off in ["0", "\"0\"", "\"0s\"", "\"\"", "null"] {
            assert_eq!(rotation(off, keys), Rotation::Off, "{off}");
        }
    }
}
