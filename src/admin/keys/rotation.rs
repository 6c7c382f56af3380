//! `coffer keys rotation enable`: has a KMS rotate a KEK by itself, and how each provider's KEK stands to that.
//!
//! It says what it will do, does it, writes it down, and shows what the KMS says afterwards. Nothing else in Coffer
//! switches rotation on: it costs money in some KMS, and whoever looks after the KEK should have meant it.

use std::{
    io::{self, Write},
    time::Duration,
};

use crate::{
    admin::{KekTrail, Place, answer::plain, records::Effect},
    config::{Faults, did_you_mean},
    exec::Deadline,
    key::{
        kms::{
            ByHand, KmsFailure, Rotation,
            rotation::{DAY, told},
            settings::KeyScope,
        },
        providers::{KmsProvider, Provider},
    },
    server::rpc,
};

/// How often, where nobody says it.
const USUAL: Duration = Duration::from_secs(365 * DAY.as_secs());
/// How long a KMS may take for each question.
const ASK_TIME: Duration = Duration::from_secs(30);
/// What there is in place of a timer for a cluster key.
const CLUSTER_KEY: ByHand = ByHand(
    "a cluster key is nobody's but yours: to have its volumes under another key, add a provider that wraps, make it the \
     default, and run coffer rewrap --from OLD --to NEW",
);

/// How a provider's KEK stands to rotation.
#[derive(Debug)]
pub(crate) enum Standing {
    /// As the KMS says.
    Is(Rotation),
    /// It has no timer.
    ByHand,
    /// The KMS does not tell.
    NotKnown(KmsFailure),
}

impl Standing {
    /// Of the KEK that a provider wraps with.
    pub(crate) async fn of(provider: &Provider) -> Self {
        match provider {
            Provider::Kms(provider) if provider.kms.rotation_periods(None).is_ok() => {
                let asked = provider.kms.rotation(None, Deadline::within(ASK_TIME)).await;
                asked.map_or_else(Self::NotKnown, Self::Is)
            }
            Provider::Kms(_) | Provider::Cluster(_) => Self::ByHand,
        }
    }

    /// In one word.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Is(Rotation::On { .. }) => "on",
            Self::Is(Rotation::Off) => "off",
            Self::ByHand => "by-hand",
            Self::NotKnown(_) => "unknown",
        }
    }

    /// For people.
    pub(crate) fn told(&self) -> String {
        match self {
            Self::Is(rotation) => rotation.to_string(),
            Self::ByHand => "by hand only".to_owned(),
            Self::NotKnown(failure) => format!("unknown ({})", rpc::message(failure)),
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The provider; none for the one of new volumes.
    pub provider: Option<String>,
    /// A KEK of it; none for its configured one.
    pub key_id: Option<String>,
    /// How often; none for as often as now, or else once a year.
    pub period: Option<Duration>,
    /// Whether it is done.
    pub effect: Effect,
}

/// Why it is not done.
#[derive(Debug, thiserror::Error)]
pub enum EnableFailure {
    /// The KMS cannot be asked, or refuses.
    #[error("provider {provider}")]
    Kms {
        /// The provider.
        provider: String,
        /// What it said.
        #[source]
        source: KmsFailure,
    },
    /// The KMS took it, and does nothing.
    #[error(
        "provider {provider}: its KMS took the order and does not rotate KEK {kek_id} by itself; is it of a version that \
         can? Until then rotate by hand, and run coffer rewrap"
    )]
    NotOn {
        /// The provider.
        provider: String,
        /// The KEK.
        kek_id: String,
    },
    /// It is done, and nobody could write it down.
    #[error("KEK {kek_id} is rotated by its KMS from now on, and the audit log could not be written")]
    Audit {
        /// The KEK.
        kek_id: String,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// Standard output failed.
    #[error("write to standard output")]
    Output(#[from] io::Error),
}

/// What can be done, before anybody is asked.
#[derive(Debug)]
pub struct Plan<'a> {
    name: &'a str,
    provider: &'a KmsProvider,
    asked: Asked,
}

impl<'a> Plan<'a> {
    /// Looks at what is asked for.
    ///
    /// # Errors
    /// There is no such provider, its KEK is rotated by hand alone, or the KMS takes no such period.
    pub fn of(place: &'a Place, asked: Asked) -> Result<Self, Faults> {
        let by_name = &place.providers.by_name;
        let name = asked.provider.as_deref().unwrap_or(&place.providers.default);
        let Some((name, provider)) = by_name.get_key_value(name) else {
            let hint = did_you_mean(name, by_name.keys().map(String::as_str));
            return Err(Faults::one(format!("{name}: no provider of this name is configured{hint}")));
        };
        let by_hand = |why: ByHand| Faults::one(format!("provider {name} is rotated by hand only: {why}"));
        let Provider::Kms(provider) = provider else { return Err(by_hand(CLUSTER_KEY)) };
        let what = match provider.scope {
            KeyScope::Key => None,
            KeyScope::Class => Some("StorageClass"),
            KeyScope::Namespace => Some("namespace"),
        };
        if let (Some(what), None) = (what, &asked.key_id) {
            return Err(Faults::one(format!(
                "provider {name} has a KEK for each {what}; name one by --key-id (coffer keys list shows them)"
            )));
        }
        let periods = provider.kms.rotation_periods(asked.key_id.as_deref()).map_err(by_hand)?;
        periods.check(asked.period.unwrap_or(USUAL)).map_err(|why| Faults::one(format!("--period: {why}")))?;
        Ok(Self { name, provider, asked })
    }

    /// Says what is and what will be, and has it so; all of it but the last where that is asked for.
    ///
    /// # Errors
    /// The KMS refuses, cannot be asked, or does nothing; or it cannot be told or written down.
    pub async fn run(&self, trail: &KekTrail, out: &mut impl Write) -> Result<(), EnableFailure> {
        let Self { name, provider: KmsProvider { kms, type_name, .. }, asked } = self;
        let failed = |source| EnableFailure::Kms { provider: (*name).to_owned(), source };
        let (key_id, deadline) = (asked.key_id.as_deref(), || Deadline::within(ASK_TIME));
        let kek_id = kms.describe(key_id, deadline()).await.map_err(failed)?.id;
        let before = kms.rotation(key_id, deadline()).await.map_err(failed)?;
        writeln!(out, "{} of provider {} ({type_name})", plain(&kek_id), plain(name))?;
        writeln!(out, "  rotation  {before}")?;
        let Some(period) = missing(before, asked.period) else {
            writeln!(out, "  it is so already, and nothing is done")?;
            return Ok(());
        };
        if asked.effect == Effect::DryRun {
            writeln!(out, "  would be  on, every {}", told(period))?;
            return Ok(());
        }
        writeln!(out, "  is to be  on, every {}", told(period))?;
        let done = kms.rotate_every(period, key_id, deadline()).await;
        let noted = trail.note(name, &kek_id, done.as_ref().copied());
        // That it was refused weighs more than that nobody could write it down.
        done.map_err(failed)?;
        noted.map_err(|source| EnableFailure::Audit { kek_id: kek_id.clone(), source })?;
        let after = kms.rotation(key_id, deadline()).await.map_err(failed)?;
        writeln!(out, "  rotation  {after}")?;
        match after {
            Rotation::On { .. } => Ok(()),
            Rotation::Off => Err(EnableFailure::NotOn { provider: (*name).to_owned(), kek_id }),
        }
    }
}

/// The period that is to be set; none where it is as it should be.
fn missing(now: Rotation, asked: Option<Duration>) -> Option<Duration> {
    match (now, asked) {
        (Rotation::On { .. }, None) => None,
        (Rotation::On { period, .. }, Some(asked)) if period == Some(asked) => None,
        (_, asked) => Some(asked.unwrap_or(USUAL)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_done() {
        let on = |period| Rotation::On { period, next: None };
        assert_eq!(missing(Rotation::Off, None), Some(365 * DAY));
        assert_eq!(missing(Rotation::Off, Some(90 * DAY)), Some(90 * DAY));
        assert_eq!(missing(on(Some(90 * DAY)), None), None);
        assert_eq!(missing(on(Some(90 * DAY)), Some(90 * DAY)), None);
        assert_eq!(missing(on(Some(90 * DAY)), Some(91 * DAY)), Some(91 * DAY));
        // A KMS that does not say how often is asked again.
        assert_eq!(missing(on(None), Some(91 * DAY)), Some(91 * DAY));
        assert_eq!(missing(on(None), None), None);
    }
}
