//! Rotation by AWS KMS itself: every so many days, of symmetric KEKs whose material it made. A multi-region KEK is rotated
//! where its primary is, for all its replicas.

use std::time::Duration;

use aws_sdk_kms::types::KeyMetadata;
use jiff::Timestamp;

use super::{AwsKms, Place, arn::Arn, regional::Regional};
use crate::key::{
    access::aws::Answer,
    kms::{ByHand, KmsFailure, Periods, Rotation, rotation::DAY},
};

/// What AWS KMS takes.
pub(super) const PERIODS: Periods = Periods::days(90, 2560);
/// What there is in place of rotation for an RSA KEK.
pub(super) const RSA: ByHand = ByHand(
    "AWS KMS rotates no RSA KEK: make another one, point the provider's alias or keyId to it, and run coffer rewrap",
);
const GET: &str = "kms:GetKeyRotationStatus";
const ENABLE: &str = "kms:EnableKeyRotation";
const NOT_THIS_ONE: &str = "AWS KMS rotates symmetric KEKs whose material it made itself and keeps in its own key store; for \
                            another, make a KEK in its place, point the provider's alias or keyId to it, and run coffer \
                            rewrap";

impl AwsKms {
    /// Has a KEK rotated, in the region where it or its primary is.
    pub(super) async fn rotate(&self, kek: &str, period: Duration) -> Result<(), KmsFailure> {
        let kek = self.made.arn(kek);
        let place = self.places(&kek)?.into_iter().next();
        let Place { region, kek } =
            place.ok_or_else(|| KmsFailure::unreachable("aws-kms", "no region is configured"))?;
        let metadata = region.metadata(&kek).await?;
        let arn = metadata.arn().unwrap_or(metadata.key_id());
        let Some(primary) = primary(&metadata).filter(|primary| *primary != region.name) else {
            return region.rotate_every(arn, period).await;
        };
        let Some(region) = self.regions().find(|region| region.name == primary) else {
            return Err(KmsFailure::OtherRegion {
                kek_id: arn.to_owned(),
                region: region.name.clone(),
                hint: format!(
                    "this is a replica, and a multi-region KEK is rotated by its primary, in {primary}; add {primary} to \
                     the provider's regions"
                ),
            });
        };
        let arn = Arn::parse(arn).map_or_else(|| arn.to_owned(), |arn| arn.in_region(primary));
        region.rotate_every(&arn, period).await
    }
}

impl Regional {
    /// Whether KMS rotates a KEK, how often and when next.
    pub(super) async fn rotation(&self, kek: &str) -> Result<Rotation, KmsFailure> {
        // An alias is not taken here.
        let metadata = self.metadata(kek).await?;
        let arn = metadata.arn().unwrap_or(metadata.key_id());
        let sent = self.client.get_key_rotation_status().key_id(arn).send().await;
        let status = sent.map_err(|error| self.failure(GET, arn, Answer::of(&error)))?;
        if !status.key_rotation_enabled() {
            return Ok(Rotation::Off);
        }
        let days = status.rotation_period_in_days().and_then(|days| u32::try_from(days).ok());
        let next = status.next_rotation_date().and_then(|date| Timestamp::from_second(date.secs()).ok());
        Ok(Rotation::On { period: days.map(|days| days * DAY), next })
    }

    async fn rotate_every(&self, arn: &str, period: Duration) -> Result<(), KmsFailure> {
        let days = i32::try_from(period.as_secs() / DAY.as_secs()).unwrap_or(i32::MAX);
        let sent = self.client.enable_key_rotation().key_id(arn).rotation_period_in_days(days).send().await;
        match sent.map_err(|error| Answer::of(&error)) {
            Ok(_) => Ok(()),
            Err(Answer::Other { code, message, .. }) if code == "UnsupportedOperationException" => {
                Err(KmsFailure::WrongType {
                    kek_id: arn.to_owned(),
                    what: if message.is_empty() { code } else { message },
                    hint: NOT_THIS_ONE.to_owned(),
                })
            }
            Err(answer) => Err(self.failure(ENABLE, arn, answer)),
        }
    }
}

/// The region of a multi-region KEK's primary.
fn primary(metadata: &KeyMetadata) -> Option<&str> {
    metadata.multi_region_configuration()?.primary_key()?.region()
}

#[cfg(test)]
mod tests {
    use aws_sdk_kms::types::{MultiRegionConfiguration, MultiRegionKey, MultiRegionKeyType};

    use super::*;

    #[test]
    fn a_replica_knows_where_its_primary_is() {
        let key = |configuration| {
            let made = KeyMetadata::builder().key_id("mrk-7").set_multi_region_configuration(configuration).build();
            made.expect("it has an id")
        };
        assert_eq!(primary(&key(None)), None);
        let there = MultiRegionKey::builder().region("eu-west-1").build();
        let replica = MultiRegionConfiguration::builder()
            .multi_region_key_type(MultiRegionKeyType::Replica)
            .primary_key(there)
            .build();
        assert_eq!(primary(&key(Some(replica))), Some("eu-west-1"));
    }
}
