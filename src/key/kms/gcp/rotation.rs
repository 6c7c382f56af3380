//! Rotation by Cloud KMS itself: the key's rotation period, and the time of its next rotation. The new version becomes the
//! primary one.

use std::time::{Duration, SystemTime};

use google_cloud_kms_v1::model::{CryptoKey, UpdateCryptoKeyRequest, crypto_key::RotationSchedule};
use jiff::Timestamp;

use super::{GET, GcpKms};
use crate::key::kms::{KmsFailure, Periods, Rotation, rotation::DAY};

/// What Cloud KMS takes: at least a day, at most 876,000 hours.
pub(super) const PERIODS: Periods =
    Periods { least: DAY, most: Duration::from_secs(876_000 * 3600), step: Duration::from_secs(1) };
/// What IAM calls what is asked for.
const UPDATE: &str = "cloudkms.cryptoKeys.update";
/// What of a key is changed.
const FIELDS: [&str; 2] = ["rotation_period", "next_rotation_time"];

impl GcpKms {
    /// Whether Cloud KMS rotates a key.
    pub(super) async fn rotation_of(&self, name: &str) -> Result<Rotation, KmsFailure> {
        let found = self.client().await?.get_crypto_key().set_name(name).send().await;
        let found = found.map_err(|error| self.failure(GET, name, self.clients.cause(error)))?;
        Ok(rotation(&found))
    }

    /// Has a key rotated, the first time when a period is over.
    pub(super) async fn rotate(&self, name: &str, period: Duration) -> Result<(), KmsFailure> {
        let client = self.client().await?;
        let Some(request) = request(name, period, SystemTime::now()) else {
            let detail = format!("a period of {period:?} leads out of the calendar");
            return Err(KmsFailure::Refused { action: UPDATE, kek_id: name.to_owned(), detail });
        };
        let updated = client.update_crypto_key().with_request(request).send().await;
        updated.map(drop).map_err(|error| self.failure(UPDATE, name, self.clients.cause(error)))
    }
}

/// Both times have to be given at once. None where one cannot be written.
fn request(name: &str, period: Duration, now: SystemTime) -> Option<UpdateCryptoKeyRequest> {
    let mut key = CryptoKey::new().set_name(name);
    key.next_rotation_time = Some(now.checked_add(period)?.try_into().ok()?);
    key.rotation_schedule = Some(RotationSchedule::RotationPeriod(Box::new(period.try_into().ok()?)));
    let mut request = UpdateCryptoKeyRequest::new().set_crypto_key(key);
    request.update_mask.get_or_insert_default().paths = FIELDS.map(str::to_owned).to_vec();
    Some(request)
}

fn rotation(key: &CryptoKey) -> Rotation {
    if key.rotation_schedule.is_none() && key.next_rotation_time.is_none() {
        return Rotation::Off;
    }
    let period = key.rotation_period().and_then(|period| u64::try_from(period.seconds()).ok());
    let next = key.next_rotation_time.as_ref().and_then(|time| Timestamp::from_second(time.seconds()).ok());
    Rotation::On { period: period.map(Duration::from_secs), next }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "projects/p/locations/europe-west3/keyRings/r/cryptoKeys/k";

    #[test]
    fn a_period_is_asked_for_with_the_time_of_the_first_rotation() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let request = request(KEY, 90 * DAY, now).expect("it can be written");
        let mask = request.update_mask.expect("it says what is changed");
        assert_eq!(mask.paths, ["rotation_period", "next_rotation_time"]);
        let key = request.crypto_key.expect("it names a key");
        assert_eq!(key.name, KEY);
        let next = Timestamp::from_second(1_800_000_000 + 90 * 86_400).expect("a time");
        assert_eq!(rotation(&key), Rotation::On { period: Some(90 * DAY), next: Some(next) });
    }

    #[test]
    fn a_key_without_schedule_is_not_rotated() {
        assert_eq!(rotation(&CryptoKey::new().set_name(KEY)), Rotation::Off);
    }
}
