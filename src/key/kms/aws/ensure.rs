//! KEKs that are made: one an alias, for a StorageClass or a namespace.
//!
//! The alias is what only one can create: who loses a race uses the winner's KEK. The loser's own wraps nothing; it is
//! tagged and told, and never deleted here, because no mistake of ours may ever delete a KEK.
//!
//! CreateKey takes no token by which it would know a call that is made again. So a KEK whose making was not answered is
//! left behind, and another one is made: it wraps nothing, has no alias, and bears the tag `coffer-alias` as every KEK that
//! is made here. It is told in the log and not looked for: that would take ListKeys on the whole account and
//! ListResourceTags on each of its keys, permissions that the way of a key is better without.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_sdk_kms::types::Tag;
use tokio::time::Instant;

use super::regional::Regional;
use crate::key::{access::aws::Answer, kms::KmsFailure};

/// How long an alias is trusted to be there. Within it, one that was made here is used by its KEK's ARN, because KMS
/// may take minutes until it finds a new alias everywhere.
const KNOWN_FOR: Duration = Duration::from_secs(600);
/// The tag that says which alias a KEK was made for.
const MADE_FOR: &str = "coffer-alias";
/// The tag of a KEK that lost a race.
const ORPHAN: &str = "coffer-orphan";

/// Aliases that were made or seen.
#[derive(Debug, Default)]
pub(super) struct Made {
    aliases: Mutex<HashMap<String, Alias>>,
    /// One alias after the other, so that nobody in this process races for one.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug)]
enum Alias {
    /// A KEK was made, and could not be given the alias yet: it gets it at the next attempt.
    Wanted { arn: String },
    /// It is there, since a moment; with its KEK, where that was made here.
    Known { since: Instant, arn: Option<String> },
}

impl Made {
    /// The ARN behind an alias that was made here a moment ago; else the name as it is.
    pub(super) fn arn(&self, kek: &str) -> String {
        match self.aliases().get(kek) {
            Some(Alias::Known { since, arn: Some(arn) }) if since.elapsed() < KNOWN_FOR => arn.clone(),
            _ => kek.to_owned(),
        }
    }

    fn is_known(&self, alias: &str) -> bool {
        matches!(self.aliases().get(alias), Some(Alias::Known { since, .. }) if since.elapsed() < KNOWN_FOR)
    }

    fn wanted(&self, alias: &str) -> Option<String> {
        match self.aliases().get(alias) {
            Some(Alias::Wanted { arn }) => Some(arn.clone()),
            _ => None,
        }
    }

    fn note(&self, alias: &str, state: Alias) {
        self.aliases().insert(alias.to_owned(), state);
    }

    fn aliases(&self) -> MutexGuard<'_, HashMap<String, Alias>> {
        self.aliases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes sure that an alias names a KEK that can be used, and makes both where there is none.
///
/// # Errors
/// KMS cannot be asked, refuses, or the alias names a KEK that cannot be used.
pub(super) async fn ensure(
    region: &Regional,
    made: &Made,
    alias: &str,
    tags: &BTreeMap<String, String>,
) -> Result<(), KmsFailure> {
    if made.is_known(alias) {
        return Ok(());
    }
    // Held across calls on purpose; a caller whose time is over lets go of it.
    let _turn = made.turn.lock().await;
    if made.is_known(alias) {
        return Ok(());
    }
    match region.metadata(alias).await {
        Ok(metadata) => {
            region.expect_usable(alias, &metadata)?;
            made.note(alias, Alias::Known { since: Instant::now(), arn: None });
            Ok(())
        }
        Err(KmsFailure::NoSuchKek { .. }) => make(region, made, alias, tags).await,
        Err(failure) => Err(failure),
    }
}

async fn make(region: &Regional, made: &Made, alias: &str, tags: &BTreeMap<String, String>) -> Result<(), KmsFailure> {
    let arn = match made.wanted(alias) {
        Some(arn) => arn,
        None => {
            let tags = tags.iter().map(|(key, value)| tag(key, value)).chain([tag(MADE_FOR, alias)]).collect();
            let made_one = region.create(alias, tags).await.inspect_err(|failure| {
                if matches!(failure, KmsFailure::Unreachable { .. } | KmsFailure::Garbled { .. }) {
                    tracing::warn!(
                        alias,
                        tag = MADE_FOR,
                        "the making of a KEK was not answered: one may be there that wraps nothing, known by its tag"
                    );
                }
            });
            let arn = made_one?;
            // Before anything else can fail: each KEK costs money, and is not to be made twice.
            made.note(alias, Alias::Wanted { arn: arn.clone() });
            arn
        }
    };
    match region.name(alias, &arn).await {
        Ok(()) => {
            tracing::info!(alias, kek = arn, "a KEK was made");
            made.note(alias, Alias::Known { since: Instant::now(), arn: Some(arn) });
            Ok(())
        }
        Err(Answer::Other { code, .. }) if code == "AlreadyExistsException" => {
            // Until the winner is seen, ours stays the wanted one, so that no attempt makes yet another.
            let metadata = region.metadata(alias).await.map_err(|failure| match failure {
                KmsFailure::NoSuchKek { .. } => {
                    KmsFailure::unreachable(&*region.endpoint, format!("{alias} was made a moment ago by another"))
                }
                failure => failure,
            })?;
            region.expect_usable(alias, &metadata)?;
            made.note(alias, Alias::Known { since: Instant::now(), arn: None });
            let tagged = region.tag(&arn, tag(ORPHAN, alias)).await.is_ok();
            tracing::warn!(alias, orphan = arn, tagged, "another was first; the orphan wraps nothing");
            Ok(())
        }
        Err(answer) => {
            tracing::warn!(alias, kek = arn, "a KEK was made and has no alias yet; the next attempt gives it one");
            Err(region.failure("kms:CreateAlias", alias, answer))
        }
    }
}

fn tag(key: &str, value: &str) -> Tag {
    Tag::builder().tag_key(key).tag_value(value).build().expect("key and value are set")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_alias_that_was_made_is_used_by_its_kek_for_a_while() {
        let made = Made::default();
        made.note("alias/a", Alias::Known { since: Instant::now(), arn: Some("arn:a".to_owned()) });
        made.note("alias/b", Alias::Known { since: Instant::now(), arn: None });
        made.note("alias/c", Alias::Wanted { arn: "arn:c".to_owned() });
        assert_eq!([made.arn("alias/a"), made.arn("alias/b"), made.arn("alias/c")], ["arn:a", "alias/b", "alias/c"]);
        assert_eq!((made.is_known("alias/b"), made.is_known("alias/c")), (true, false));
        assert_eq!(made.wanted("alias/c").as_deref(), Some("arn:c"));
        tokio::time::advance(KNOWN_FOR).await;
        assert_eq!(made.arn("alias/a"), "alias/a");
        assert!(!made.is_known("alias/b"));
    }
}
