//! Policies: which provider, KEK, role and context the key of a new volume gets, by where its claim comes from. Plain
//! rules and pure functions; nobody is asked anything.
//!
//! Rules stand in an order, and the **first that matches a claim applies, alone**. A rule matches where each of its
//! patterns matches ([`Match`]). A new volume is refused where that cannot be said of a rule that stands before the one
//! that matches, because the claim's namespace or name is not known: a rule is not got around by saying less.
//!
//! What the rule that applies and the class say is put together like this:
//!
//! | | the class says nothing | the class says the same | the class says something else |
//! |---|---|---|---|
//! | the rule says nothing | the provider's own choice | | the class has its way |
//! | the rule says something | the rule | the rule | refused; with `allowOverride`, the class has its way |
//!
//! This goes for the provider, for the KEK and for each key of the context by itself. A role no class asks for: where the
//! rule gives one, it holds. A class that has its way with another provider leaves the rule's KEK and role behind, which
//! mean something to the rule's provider only. The keys `cluster`, `volume` and `generation` of the context are Coffer's
//! own and refused to everybody. A `mandatory` rule is never overridden, and its provider is asked for again whenever a
//! key is released.

mod fault;
mod matching;

use std::collections::BTreeMap;

use crate::key::record::{AwsRole, Record};

pub use fault::PolicyFault;
pub use matching::{Claim, Match};

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
    /// The role in which that provider's KEKs are reached.
    pub role: Option<AwsRole>,
    /// What it adds to the context.
    pub context: BTreeMap<String, String>,
    /// Never overridden, and looked at again whenever a key is released.
    pub mandatory: bool,
    /// A class may ask for something else.
    pub allow_override: bool,
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
    /// The role in which it is reached; none for the provider's own identity.
    pub role: Option<AwsRole>,
    /// The context that both add.
    pub context: BTreeMap<String, String>,
}

/// What the rules give a record's volume at a provider, beside the provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given<'a> {
    /// The KEK; none for the provider's own.
    pub key_id: Option<&'a str>,
    /// The role in which it is reached; none for the provider's own identity.
    pub role: Option<&'a AwsRole>,
}

/// What the rules give a record's volume at a provider.
#[must_use]
pub fn given<'a>(rules: &'a [Rule], record: &Record, provider: &str) -> Given<'a> {
    match applying(rules, &Claim::of(record)) {
        Some((_, rule)) if rule.provider.as_deref() == Some(provider) => {
            Given { key_id: rule.key_id.as_deref(), role: rule.role.as_ref() }
        }
        _ => Given::default(),
    }
}

/// The first rule that matches a claim, with its place in the list. A volume that is there comes under it: what was not
/// known when it was made matches `*` alone.
#[must_use]
pub fn applying<'a>(rules: &'a [Rule], claim: &Claim<'_>) -> Option<(usize, &'a Rule)> {
    rules.iter().enumerate().find(|(_, rule)| rule.matches.fits(claim))
}

/// The first rule that matches a new volume's claim, with its place in the list.
///
/// # Errors
/// Whether an earlier one matches cannot be said.
pub fn governing<'a>(rules: &'a [Rule], claim: &Claim<'_>) -> Result<Option<(usize, &'a Rule)>, PolicyFault> {
    for (place, rule) in rules.iter().enumerate() {
        if rule.matches.fits(claim) {
            return Ok(Some((place, rule)));
        }
        if let Some(what) = rule.matches.lacks(claim) {
            return Err(PolicyFault::NotKnown { rule: rule.label(place), what });
        }
    }
    Ok(None)
}

/// What the key of a new volume gets.
///
/// # Errors
/// The class asks for something else than the rule that applies gives, and may not; or for a reserved key of the
/// context. Or it cannot be said which rule applies.
pub fn decide(rules: &[Rule], claim: &Claim<'_>, asked: &Asked<'_>) -> Result<Decision, PolicyFault> {
    expect_unreserved(asked.context)?;
    let Some((place, rule)) = governing(rules, claim)? else {
        return Ok(Decision {
            provider: asked.provider.map(str::to_owned),
            key_id: asked.key_id.map(str::to_owned),
            role: None,
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
    let is_own = rule.provider.is_none() || provider == rule.provider;
    let role = rule.role.clone().filter(|_| is_own);
    let key_id = match rule.settle(rule.key_id.as_deref().filter(|_| is_own), asked.key_id) {
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
    Ok(Decision { provider, key_id, role, context })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::service::KeyFailure;

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
    fn a_role_holds_with_the_rules_provider_and_with_no_other() {
        let role = AwsRole { arn: "arn:r".to_owned(), session_name: "s".to_owned(), external_id: None };
        let rule = Rule { role: Some(role.clone()), allow_override: true, ..rule("", "a", "k", "") };
        let nothing = BTreeMap::new();
        let check = |provider, key_id, expected: Option<&AwsRole>| {
            let asked = Asked { provider, key_id, context: &nothing };
            let decision = decide(std::slice::from_ref(&rule), &Claim::default(), &asked).expect("nothing forbids it");
            assert_eq!(decision.role.as_ref(), expected, "{asked:?}");
        };
        check(None, None, Some(&role));
        check(Some("a"), Some("j"), Some(&role));
        check(Some("b"), None, None);
    }

    #[test]
    fn a_rule_is_not_got_around_by_saying_less() {
        let rules = [
            rule("free", "b", "", ""),
            rule("gold/pay-*", "a", "", ""),
            rule("-/-/db", "a", "", ""),
            rule("-", "b", "", ""),
        ];
        let nothing = BTreeMap::new();
        let asked = Asked { provider: None, key_id: None, context: &nothing };
        let check = |class, namespace, name, expected: Result<usize, &str>| {
            let claim = Claim { storage_class: class, namespace, claim: name };
            match (governing(&rules, &claim), expected) {
                (Ok(Some((place, _))), Ok(expected)) => assert_eq!(place, expected, "{claim:?}"),
                (Err(fault), Err(text)) => {
                    assert_eq!(fault.to_string(), text, "{claim:?}");
                    assert_eq!(decide(&rules, &claim, &asked), Err(fault.clone()));
                    assert!(matches!(KeyFailure::from(fault), KeyFailure::Forbidden(_)), "{claim:?}");
                }
                (found, expected) => panic!("{claim:?}: {found:?}, and not {expected:?}"),
            }
        };
        let not_known = |rule: &str, what: &str| {
            format!(
                "policy {rule} goes by the claim's {what}, which is not known; run external-provisioner with \
                 --extra-create-metadata, which passes it on"
            )
        };
        // An earlier rule that needs neither, and one whose class is another's anyway.
        check(Some("free"), None, None, Ok(0));
        check(Some("gold"), Some("pay-1"), None, Ok(1));
        check(Some("gold"), Some("shop"), Some("db"), Ok(2));
        check(Some("gold"), Some("shop"), Some("x"), Ok(3));
        check(Some("silver"), None, Some("db"), Ok(2));
        check(Some("silver"), None, Some("x"), Ok(3));
        check(None, None, Some("x"), Ok(3));
        check(Some("gold"), None, Some("db"), Err(&not_known("policies[1]", "namespace")));
        check(Some("gold"), None, None, Err(&not_known("policies[1]", "namespace")));
        check(Some("gold"), Some("shop"), None, Err(&not_known("policies[2]", "name")));
        check(None, None, None, Err(&not_known("policies[2]", "name")));
    }

    #[test]
    fn without_a_rule_the_class_has_its_way() {
        let (rules, asked) = ([rule("gold", "a", "", "")], context("t=1"));
        let asked = Asked { provider: Some("b"), key_id: None, context: &asked };
        let decision = decide(&rules, &Claim::default(), &asked).expect("nothing forbids it");
        assert_eq!(decision.provider.as_deref(), Some("b"));
        assert_eq!(decision.context, context("t=1"));
    }
}
