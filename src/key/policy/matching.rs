//! Which claims a rule is for: patterns, and what is known of a claim.
//!
//! `*` stands for any text, `?` for one character, case counts. What is not known of a claim is matched by an absent
//! pattern and by `*`, and by nothing else.

use wildmatch::WildMatch;

use crate::key::record::Record;

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

impl Match {
    /// Whether a claim fits.
    #[must_use]
    pub fn fits(&self, claim: &Claim<'_>) -> bool {
        fits(&self.storage_class, claim.storage_class)
            && fits(&self.namespace, claim.namespace)
            && fits(&self.claim, claim.claim)
    }

    /// What would have to be known of a claim to say whether it fits; none where that is plain.
    ///
    /// A provisioner passes on namespace and name, or does not. A class that does not say its own name is another matter:
    /// whoever makes classes makes policies, too.
    #[must_use]
    pub fn lacks(&self, claim: &Claim<'_>) -> Option<&'static str> {
        let hangs = |pattern: &Option<String>, value: Option<&str>| value.is_none() && !fits(pattern, value);
        let hangs = (hangs(&self.namespace, claim.namespace), hangs(&self.claim, claim.claim));
        let rest_fits = fits(&self.storage_class, claim.storage_class)
            && (hangs.0 || fits(&self.namespace, claim.namespace))
            && (hangs.1 || fits(&self.claim, claim.claim));
        match hangs {
            (true, false) if rest_fits => Some("namespace"),
            (false, true) if rest_fits => Some("name"),
            (true, true) if rest_fits => Some("namespace and name"),
            _ => None,
        }
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

fn fits(pattern: &Option<String>, value: Option<&str>) -> bool {
    match (pattern, value) {
        (None, _) => true,
        (Some(pattern), None) => is_any(pattern),
        (Some(pattern), Some(value)) => WildMatch::new(pattern).matches(value),
    }
}

fn is_any(pattern: &str) -> bool {
    !pattern.is_empty() && pattern.bytes().all(|byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Patterns from `class/namespace/claim`, where `-` is an absent one.
    fn of(patterns: &str) -> Match {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty() && text != "-");
        let mut parts = patterns.split('/').map(some);
        let mut next = || parts.next().flatten();
        Match { storage_class: next(), namespace: next(), claim: next() }
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
    fn what_has_to_be_known_is_told_and_nothing_else() {
        let check = |patterns: &str, class, namespace, name, expected| {
            let claim = Claim { storage_class: class, namespace, claim: name };
            assert_eq!(of(patterns).lacks(&claim), expected, "{patterns} and {claim:?}");
        };
        check("-/team-*", None, None, None, Some("namespace"));
        check("-/-/db", None, Some("x"), None, Some("name"));
        check("-/x/db", None, None, None, Some("namespace and name"));
        check("-/x/db", None, None, Some("db"), Some("namespace"));
        // It fits, or it does not, whatever is not known.
        check("-/*/**", None, None, None, None);
        check("-/x/db", None, None, Some("log"), None);
        check("-/x/db", None, Some("y"), None, None);
        check("gold/x", Some("silver"), None, None, None);
        check("gold/x", None, None, None, None);
        check("gold", None, None, None, None);
        check("-/x", None, Some("x"), None, None);
    }

    #[test]
    fn patterns_behind_others_that_cover_them_are_seen() {
        let covers = |a: &str, b: &str| of(a).covers(&of(b));
        assert!(covers("-", "gold/team-a") && covers("*/**", "-/x/y") && covers("gold", "gold/x"));
        assert!(!covers("gold", "-") && !covers("-/a", "-/b") && !covers("gold/a", "gold"));
        assert!(of("*/-/**").fits_all() && !of("?").fits_all());
    }
}
