//! Policies: which provider, KEK and context the key of a new volume gets, by where its claim comes from. Plain rules
//! and pure functions; nobody is asked anything.
//!
//! Rules stand in an order, and the **first that matches a claim applies, alone**. A rule matches where each of its
//! patterns matches: `*` stands for any text, `?` for one character, case counts. What is not known of a claim is
//! matched by an absent pattern and by `*`, and by nothing else.
//!
//! What the rule that applies and the class say is put together like this:
//!
//! | | the class says nothing | the class says the same | the class says something else |
//! |---|---|---|---|
//! | the rule says nothing | the provider's own choice | | the class has its way |
//! | the rule says something | the rule | the rule | refused; with `allowOverride`, the class has its way |
//!
//! This goes for the provider, for the KEK and for each key of the context by itself. A class that has its way with
//! another provider leaves the rule's KEK behind, which means something to the rule's provider only. The keys `cluster`,
//! `volume` and `generation` of the context are Coffer's own and refused to everybody. A `mandatory` rule is never
//! overridden, and its provider is asked for again whenever a key is released.

use std::collections::BTreeMap;

use wildmatch::WildMatch;

use crate::key::record::Record;

/// Keys of the binding context that are ours.
pub const RESERVED_CONTEXT: [&str; 3] = ["cluster", "volume", "generation"];

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// What people call it.
    pub name: Option<String>,
    /// Which claims it is for.
    pub matches: Match,
    /// The provider that it gives.
    pub provider: Option<String>,
    /// The KEK of that provider that it gives.
    pub key_id: Option<String>,
    /// What it adds to the context.
    pub context: BTreeMap<String, String>,
    /// Never overridden, and looked at again whenever a key is released.
    pub mandatory: bool,
    /// A class may ask for something else.
    pub allow_override: bool,
}

/// Patterns of claims.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Of the StorageClass's name.
    pub storage_class: Option<String>,
    /// Of the namespace.
    pub namespace: Option<String>,
    /// Of the claim's name.
    pub claim: Option<String>,
}

/// What is known of a claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claim<'a> {
    /// The StorageClass.
    pub storage_class: Option<&'a str>,
    /// The namespace.
    pub namespace: Option<&'a str>,
    /// The claim's name.
    pub claim: Option<&'a str>,
}

/// What the class of a claim asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// A provider.
    pub provider: Option<&'a str>,
    /// A KEK.
    pub key_id: Option<&'a str>,
    /// More context.
    pub context: &'a BTreeMap<String, String>,
}

/// What comes of rules and class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The provider; none for the default one.
    pub provider: Option<String>,
    /// The KEK; none for the provider's own.
    pub key_id: Option<String>,
    /// The context that both add.
    pub context: BTreeMap<String, String>,
}

/// Why a class does not get what it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyFault {
    /// Another provider than the rule's.
    #[error("policy {rule} gives provider {given}, and provider {asked} is asked for; {remedy}")]
    OtherProvider {
        /// The rule.
        rule: String,
        /// What it gives.
        given: String,
        /// What is asked for.
        asked: String,
        /// What can be done.
        remedy: &'static str,
    },
    /// Another KEK than the rule's.
    #[error("policy {rule} gives key {given}, and key {asked} is asked for; {remedy}")]
    OtherKey {
        /// The rule.
        rule: String,
        /// What it gives.
        given: String,
        /// What is asked for.
        asked: String,
        /// What can be done.
        remedy: &'static str,
    },
    /// Another value than the rule's for a key of the context.
    #[error("policy {rule} gives context {key}={given}, and {key}={asked} is asked for; {remedy}")]
    OtherContext {
        /// The rule.
        rule: String,
        /// The key.
        key: String,
        /// What the rule gives.
        given: String,
        /// What is asked for.
        asked: String,
        /// What can be done.
        remedy: &'static str,
    },
    /// A key of the context that is ours.
    #[error("context key {0:?} is Coffer's own; name it otherwise")]
    Reserved(String),
}

impl<'a> Claim<'a> {
    /// What a record knows of its volume's claim.
    #[must_use]
    pub fn of(record: &'a Record) -> Self {
        Self {
            storage_class: record.storage_class.as_deref(),
            namespace: record.tenant.as_deref(),
            claim: record.claim.as_deref(),
        }
    }
}

/// The KEK that the rules give a record's volume at a provider; none for the provider's own.
#[must_use]
pub fn key_id<'a>(rules: &'a [Rule], record: &Record, provider: &str) -> Option<&'a str> {
    let (_, rule) = applying(rules, &Claim::of(record))?;
    rule.key_id.as_deref().filter(|_| rule.provider.as_deref() == Some(provider))
}

/// The first rule that matches a claim, with its place in the list.
#[must_use]
pub fn applying<'a>(rules: &'a [Rule], claim: &Claim<'_>) -> Option<(usize, &'a Rule)> {
    rules.iter().enumerate().find(|(_, rule)| rule.matches.fits(claim))
}

/// What the key of a new volume gets.
///
/// # Errors
/// The class asks for something else than the rule that applies gives, and may not; or for a reserved key of the
/// context.
pub fn decide(rules: &[Rule], claim: &Claim<'_>, asked: &Asked<'_>) -> Result<Decision, PolicyFault> {
    expect_unreserved(asked.context)?;
    let Some((place, rule)) = applying(rules, claim) else {
        return Ok(Decision {
            provider: asked.provider.map(str::to_owned),
            key_id: asked.key_id.map(str::to_owned),
            context: asked.context.clone(),
        });
    };
    expect_unreserved(&rule.context)?;
    let (label, remedy) = (rule.label(place), rule.remedy());
    let provider = match rule.settle(rule.provider.as_deref(), asked.provider) {
        Ok(provider) => provider.map(str::to_owned),
        Err((given, asked)) => {
            return Err(PolicyFault::OtherProvider { rule: label, given, asked, remedy });
        }
    };
    let own_key = rule.key_id.as_deref().filter(|_| rule.provider.is_none() || provider == rule.provider);
    let key_id = match rule.settle(own_key, asked.key_id) {
        Ok(key_id) => key_id.map(str::to_owned),
        Err((given, asked)) => return Err(PolicyFault::OtherKey { rule: label, given, asked, remedy }),
    };
    let mut context = asked.context.clone();
    for (key, value) in &rule.context {
        match rule.settle(Some(value.as_str()), asked.context.get(key).map(String::as_str)) {
            Ok(value) => drop(context.insert(key.clone(), value.unwrap_or_default().to_owned())),
            Err((given, asked)) => {
                return Err(PolicyFault::OtherContext { rule: label, key: key.clone(), given, asked, remedy });
            }
        }
    }
    Ok(Decision { provider, key_id, context })
}

fn expect_unreserved(context: &BTreeMap<String, String>) -> Result<(), PolicyFault> {
    match context.keys().find(|key| RESERVED_CONTEXT.contains(&key.as_str())) {
        Some(key) => Err(PolicyFault::Reserved(key.clone())),
        None => Ok(()),
    }
}

impl Rule {
    /// What it is called: its name, or its place in the list.
    #[must_use]
    pub fn label(&self, place: usize) -> String {
        self.name.clone().unwrap_or_else(|| format!("policies[{place}]"))
    }

    /// What holds of what the rule gives and what is asked for; or both, where they quarrel.
    fn settle<'a>(&self, given: Option<&'a str>, asked: Option<&'a str>) -> Result<Option<&'a str>, (String, String)> {
        match (given, asked) {
            (Some(given), Some(asked)) if given != asked => {
                if self.allow_override && !self.mandatory {
                    Ok(Some(asked))
                } else {
                    Err((given.to_owned(), asked.to_owned()))
                }
            }
            (Some(given), _) => Ok(Some(given)),
            (None, asked) => Ok(asked),
        }
    }

    fn remedy(&self) -> &'static str {
        if self.mandatory {
            "the policy is mandatory: take that out of the StorageClass"
        } else {
            "take that out of the StorageClass, or set allowOverride: true in the policy"
        }
    }
}

impl Match {
    /// Whether a claim fits.
    #[must_use]
    pub fn fits(&self, claim: &Claim<'_>) -> bool {
        let fits = |pattern: &Option<String>, value: Option<&str>| match (pattern, value) {
            (None, _) => true,
            (Some(pattern), None) => is_any(pattern),
            (Some(pattern), Some(value)) => WildMatch::new(pattern).matches(value),
        };
        fits(&self.storage_class, claim.storage_class)
            && fits(&self.namespace, claim.namespace)
            && fits(&self.claim, claim.claim)
    }

    /// Whether every claim fits.
    #[must_use]
    pub fn fits_all(&self) -> bool {
        [&self.storage_class, &self.namespace, &self.claim]
            .into_iter()
            .all(|pattern| pattern.as_deref().is_none_or(is_any))
    }

    /// Whether it is plain that every claim that fits another fits this one: its patterns are the same, or `*`.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let covers = |own: &Option<String>, other: &Option<String>| own.as_deref().is_none_or(is_any) || own == other;
        covers(&self.storage_class, &other.storage_class)
            && covers(&self.namespace, &other.namespace)
            && covers(&self.claim, &other.claim)
    }
}

fn is_any(pattern: &str) -> bool {
    !pattern.is_empty() && pattern.bytes().all(|byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(text: &str) -> BTreeMap<String, String> {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// A rule from `class/namespace/claim`, where `-` is an absent pattern.
    fn rule(patterns: &str, provider: &str, key_id: &str, pairs: &str) -> Rule {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty() && text != "-");
        let mut parts = patterns.split('/').map(some);
        let mut next = || parts.next().flatten();
        let matches = Match { storage_class: next(), namespace: next(), claim: next() };
        let (provider, key_id) = (some(provider), some(key_id));
        Rule { matches, provider, key_id, context: context(pairs), ..Rule::default() }
    }

    #[test]
    fn the_first_rule_that_matches_applies() {
        let rules = [
            rule("gold", "a", "", ""),
            rule("-/team-*", "b", "", ""),
            rule("*/-/db-?", "c", "", ""),
            rule("-", "d", "", ""),
        ];
        let check = |class, namespace, name, expected: usize| {
            let claim = Claim { storage_class: class, namespace, claim: name };
            assert_eq!(applying(&rules, &claim).map(|(place, _)| place), Some(expected), "{claim:?}");
        };
        check(Some("gold"), Some("team-a"), None, 0);
        check(Some("golden"), Some("team-a"), None, 1);
        check(Some("Gold"), Some("team-"), None, 1);
        check(None, Some("Team-a"), Some("db-1"), 2);
        check(Some("x"), None, Some("db-12"), 3);
        check(None, None, None, 3);
    }

    #[test]
    fn what_is_not_known_is_matched_by_a_star_and_by_nothing_else() {
        let claim = Claim::default();
        for (pattern, fits) in [("*", true), ("**", true), ("?", false), ("a*", false), ("*?", false), ("", false)] {
            let matches = Match { storage_class: Some(pattern.to_owned()), ..Match::default() };
            assert_eq!(matches.fits(&claim), fits, "{pattern:?}");
        }
        assert!(Match::default().fits(&claim));
    }

    #[test]
    fn rule_and_class_are_put_together_as_the_table_says() {
        let nothing = rule("", "", "", "");
        let given = rule("", "a", "k", "t=1");
        let open = Rule { allow_override: true, ..given.clone() };
        let mandatory = Rule { mandatory: true, ..open.clone() };
        let check = |rule: &Rule, provider, key_id, pairs: &str, expected: Result<(&str, &str, &str), &str>| {
            let (rules, asked) = ([rule.clone()], context(pairs));
            let asked = Asked { provider, key_id, context: &asked };
            let decision = decide(&rules, &Claim::default(), &asked);
            match (decision, expected) {
                (Ok(decision), Ok((provider, key_id, pairs))) => {
                    let told = (decision.provider.unwrap_or_default(), decision.key_id.unwrap_or_default());
                    assert_eq!((told.0.as_str(), told.1.as_str()), (provider, key_id), "{asked:?}");
                    assert_eq!(decision.context, context(pairs), "{asked:?}");
                }
                (Err(fault), Err(part)) => assert!(fault.to_string().contains(part), "{fault} lacks {part}"),
                (decision, expected) => panic!("{asked:?}: {decision:?}, and not {expected:?}"),
            }
        };
        check(&nothing, None, None, "", Ok(("", "", "")));
        check(&nothing, Some("b"), Some("j"), "t=2", Ok(("b", "j", "t=2")));
        check(&given, None, None, "", Ok(("a", "k", "t=1")));
        check(&given, Some("a"), Some("k"), "t=1,u=2", Ok(("a", "k", "t=1,u=2")));
        check(&given, Some("b"), None, "", Err("gives provider a, and provider b is asked for; take that out"));
        check(&given, None, Some("j"), "", Err("gives key k, and key j is asked for"));
        check(&given, None, None, "t=2", Err("gives context t=1, and t=2 is asked for"));
        check(&open, Some("b"), None, "t=2", Ok(("b", "", "t=2")));
        check(&open, Some("b"), Some("j"), "", Ok(("b", "j", "t=1")));
        check(&open, None, Some("j"), "", Ok(("a", "j", "t=1")));
        check(&mandatory, Some("b"), None, "", Err("the policy is mandatory"));
        check(&mandatory, Some("a"), None, "v=3", Ok(("a", "k", "t=1,v=3")));
        check(&given, None, None, "volume=x", Err("\"volume\" is Coffer's own"));
        check(&rule("", "", "", "cluster=x"), None, None, "", Err("\"cluster\" is Coffer's own"));
    }

    #[test]
    fn without_a_rule_the_class_has_its_way() {
        let (rules, asked) = ([rule("gold", "a", "", "")], context("t=1"));
        let asked = Asked { provider: Some("b"), key_id: None, context: &asked };
        let decision = decide(&rules, &Claim::default(), &asked).expect("nothing forbids it");
        assert_eq!(decision.provider.as_deref(), Some("b"));
        assert_eq!(decision.context, context("t=1"));
    }

    #[test]
    fn a_rule_behind_one_that_covers_it_is_seen() {
        let covers = |a: &str, b: &str| rule(a, "", "", "").matches.covers(&rule(b, "", "", "").matches);
        assert!(covers("-", "gold/team-a") && covers("*/**", "-/x/y") && covers("gold", "gold/x"));
        assert!(!covers("gold", "-") && !covers("-/a", "-/b") && !covers("gold/a", "gold"));
        assert!(rule("*/-/**", "", "", "").matches.fits_all() && !rule("?", "", "", "").matches.fits_all());
    }
}
