//! What a KMS does with a KEK by its own timer: whether it rotates it, how often, and when next.
//!
//! A KMS that rotates a KEK keeps the older material, so that what was wrapped before goes on to open. Nothing here is
//! switched on by a start or by a configuration: only the operator's verb asks for it.

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::{exec::Deadline, key::kms::Kms};

/// A day of any calendar without leap seconds.
pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How often a KMS is asked for its metrics, of what changes once in months.
const ASK_EVERY: Duration = Duration::from_secs(6 * 60 * 60);
/// How long it may take.
const ASK_TIME: Duration = Duration::from_secs(30);

/// Whether a KMS rotates a KEK by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// It does.
    On {
        /// How often; none where the KMS does not say.
        period: Option<Duration>,
        /// When next; none where the KMS does not say.
        next: Option<Timestamp>,
    },
    /// It does not.
    Off,
}

impl fmt::Display for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::On { period, next } = self else { return f.write_str("off") };
        f.write_str("on")?;
        if let Some(period) = period {
            write!(f, ", every {}", told(*period))?;
        }
        match next {
            Some(next) => write!(f, ", next on {}", next.strftime("%Y-%m-%d")),
            None => Ok(()),
        }
    }
}

/// Why a KMS does not rotate a KEK by itself, and what to do in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ByHand(pub &'static str);

/// How often a KMS can be asked to rotate a KEK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Periods {
    /// The shortest period.
    pub least: Duration,
    /// The longest.
    pub most: Duration,
    /// What it counts in.
    pub step: Duration,
}

impl Periods {
    /// So many whole days.
    #[must_use]
    pub const fn days(least: u64, most: u64) -> Self {
        let day = DAY.as_secs();
        Self { least: Duration::from_secs(least * day), most: Duration::from_secs(most * day), step: DAY }
    }

    /// Whether a period is one of these.
    ///
    /// # Errors
    /// It is not; which ones are.
    pub fn check(&self, period: Duration) -> Result<(), String> {
        let Self { least, most, step } = *self;
        let is_whole = period.subsec_nanos() == 0 && period.as_secs().is_multiple_of(step.as_secs().max(1));
        if is_whole && (least..=most).contains(&period) {
            return Ok(());
        }
        let whole = if step == DAY { ", in whole days" } else { "" };
        Err(format!("it is {}; expected {} to {}{whole}", told(period), told(least), told(most)))
    }
}

/// A period for people, in the largest unit that it is a whole number of.
#[must_use]
pub fn told(period: Duration) -> String {
    let seconds = period.as_secs();
    let units = [(DAY.as_secs(), "day"), (3600, "hour"), (60, "minute")];
    let unit = units.into_iter().find(|(size, _)| seconds > 0 && seconds.is_multiple_of(*size));
    let (size, unit) = unit.unwrap_or((1, "second"));
    let count = seconds / size;
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// Keeps the metrics of how KEKs are rotated, by the names of the providers that wrap with them, until the end. A KMS that
/// is away or does not let us ask has none, and is asked again some hours later.
pub async fn keep(keks: Vec<(String, Arc<dyn Kms>)>, end: CancellationToken) {
    let asking = async {
        loop {
            for (provider, kms) in &keks {
                match kms.rotation(None, Deadline::within(ASK_TIME)).await {
                    Ok(rotation) => tell(provider, rotation),
                    Err(error) => tracing::debug!(provider, %error, "how the KEK is rotated is not known"),
                }
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    };
    end.run_until_cancelled(asking).await;
}

fn tell(provider: &str, rotation: Rotation) {
    let (on, next) = match rotation {
        Rotation::On { next, .. } => (1.0, next),
        Rotation::Off => (0.0, None),
    };
    metrics::gauge!("coffer_kek_rotation", "provider" => provider.to_owned()).set(on);
    let next = next.map_or(0.0, |next| next.as_second() as f64);
    metrics::gauge!("coffer_kek_rotates_seconds", "provider" => provider.to_owned()).set(next);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_is_told_in_the_largest_unit_that_fits() {
        let check = |seconds, text| assert_eq!(told(Duration::from_secs(seconds)), text);
        check(0, "0 seconds");
        check(1, "1 second");
        check(90, "90 seconds");
        check(120, "2 minutes");
        check(3600, "1 hour");
        check(36 * 3600, "36 hours");
        check(365 * 86_400, "365 days");
    }

    #[test]
    fn a_period_that_a_kms_does_not_take_is_told_with_those_that_it_does() {
        let periods = Periods::days(90, 2560);
        assert_eq!(periods.check(90 * DAY), Ok(()));
        assert_eq!(periods.check(2560 * DAY), Ok(()));
        let refused = |period| periods.check(period).expect_err("it is none of them");
        assert_eq!(refused(89 * DAY), "it is 89 days; expected 90 days to 2560 days, in whole days");
        assert_eq!(refused(2561 * DAY), "it is 2561 days; expected 90 days to 2560 days, in whole days");
        let uneven = 90 * DAY + Duration::from_secs(3600);
        assert_eq!(refused(uneven), "it is 2161 hours; expected 90 days to 2560 days, in whole days");
        let seconds = Periods { least: DAY, most: 100 * DAY, step: Duration::from_secs(1) };
        assert_eq!(seconds.check(uneven), Ok(()));
        assert!(seconds.check(DAY + Duration::from_millis(1)).is_err());
    }

    #[test]
    fn what_a_kms_does_not_say_is_left_out() {
        let next = Some("2027-11-26T08:00:00Z".parse().expect("a time"));
        let check = |rotation: Rotation, text| assert_eq!(rotation.to_string(), text);
        check(Rotation::Off, "off");
        check(Rotation::On { period: None, next: None }, "on");
        check(Rotation::On { period: Some(90 * DAY), next: None }, "on, every 90 days");
        check(Rotation::On { period: Some(DAY), next }, "on, every 1 day, next on 2027-11-26");
    }
}
