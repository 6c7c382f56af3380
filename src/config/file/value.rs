//! What a value is checked against, and how it is told that it does not fit.

use std::{collections::BTreeMap, fmt::Display, ops::RangeInclusive, str::FromStr, time::Duration};

use jiff::fmt::friendly::SpanParser;
use serde_json::Value;
use url::Url;

use crate::{
    config::did_you_mean,
    key::{access::Endpoint, policy::RESERVED_CONTEXT},
};

/// The most bytes of one text.
const TEXT_BYTES: usize = 4096;

/// Why a value does not fit.
#[derive(Debug)]
pub(super) enum Misfit {
    /// It is something else altogether.
    Other,
    /// It is this text.
    Not(String),
    /// What is wrong; what was expected is told behind it.
    What(String),
    /// All there is to say.
    Said(String),
}

impl Misfit {
    /// A text that is none of the choices.
    pub(super) fn choice(text: &str, names: &[&'static str]) -> Self {
        let hint = did_you_mean(text, names.iter().copied());
        Self::Said(format!("{text:?} is not one of {}{hint}", names.join(", ")))
    }

    /// What there is to say.
    pub(super) fn text(self, expected: &str) -> String {
        match self {
            Self::Other => format!("expected {expected}"),
            Self::Not(text) => format!("expected {expected}, not {text:?}"),
            Self::What(what) => format!("{what}; expected {expected}"),
            Self::Said(text) => text,
        }
    }
}

/// Text that is not empty.
pub(super) fn text(value: &Value) -> Result<String, Misfit> {
    match value {
        Value::String(text) if text.is_empty() => Err(Misfit::What("is empty".to_owned())),
        Value::String(text) if text.len() > TEXT_BYTES => {
            Err(Misfit::What(format!("has {} bytes, and at most {TEXT_BYTES} are allowed", text.len())))
        }
        Value::String(text) if text.chars().any(char::is_control) => {
            Err(Misfit::What("holds a control character".to_owned()))
        }
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Err(Misfit::What(format!("{value} is not text: put it in quotes"))),
        Value::Null | Value::Array(_) | Value::Object(_) => Err(Misfit::Other),
    }
}

/// Text that is checked.
pub(super) fn checked<T>(check: impl Fn(&str) -> Result<T, Misfit>) -> impl Fn(&Value) -> Result<T, Misfit> {
    move |value| check(&text(value)?)
}

/// Text that means something else, such as a UUID or an address.
pub(super) fn parsed<T: FromStr>(value: &Value) -> Result<T, Misfit> {
    let text = text(value)?;
    text.parse().map_err(|_| Misfit::Not(text))
}

/// `true` or `false`.
pub(super) fn flag(value: &Value) -> Result<bool, Misfit> {
    value.as_bool().ok_or(Misfit::Other)
}

/// A whole number; variables hold it as text.
pub(super) fn whole(range: RangeInclusive<u64>) -> impl Fn(&Value) -> Result<u64, Misfit> {
    move |value| {
        let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
        let number = number.ok_or_else(|| Misfit::Not(plain(value)))?;
        expect_within(&number, &range, number)?;
        Ok(number)
    }
}

/// A length of time with a unit, such as `5m` or `250ms`; or 0.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&Value) -> Result<Duration, Misfit> {
    move |value| {
        let text = match value {
            Value::Number(number) => number.to_string(),
            value => text(value)?,
        };
        let has_unit = text.ends_with(|last: char| last.is_ascii_alphabetic());
        let duration = match text.as_str() {
            "0" => Duration::ZERO,
            negative if negative.starts_with('-') => return Err(Misfit::What(format!("{text} is negative"))),
            _ if text.starts_with(|first: char| first.is_ascii_digit()) && !has_unit => {
                return Err(Misfit::What(format!("{text} has no unit")));
            }
            _ => SpanParser::new()
                .parse_unsigned_duration(&text)
                .map_err(|_| Misfit::What(format!("{text:?} is no length of time")))?,
        };
        expect_within(&duration, &range, text)?;
        Ok(duration)
    }
}

fn expect_within<T: PartialOrd>(value: &T, range: &RangeInclusive<T>, told: impl Display) -> Result<(), Misfit> {
    if value < range.start() {
        return Err(Misfit::What(format!("{told} is too little")));
    }
    if value > range.end() {
        return Err(Misfit::What(format!("{told} is too much")));
    }
    Ok(())
}

/// One of some words.
pub(super) fn choice<T: Copy>(choices: &'static [(&'static str, T)]) -> impl Fn(&Value) -> Result<T, Misfit> {
    move |value| {
        let text = value.as_str().ok_or(Misfit::Other)?;
        let found = choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice);
        found.ok_or_else(|| Misfit::choice(text, &choices.iter().map(|(name, _)| *name).collect::<Vec<_>>()))
    }
}

/// The words, as they are told.
pub(super) fn names<T>(choices: &[(&'static str, T)]) -> String {
    choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// A list of at least one item.
pub(super) fn list<T>(item: impl Fn(&Value) -> Result<T, Misfit>) -> impl Fn(&Value) -> Result<Vec<T>, Misfit> {
    move |value| {
        let items = value.as_array().ok_or(Misfit::Other)?;
        if items.is_empty() {
            return Err(Misfit::What("is empty".to_owned()));
        }
        items.iter().map(&item).collect()
    }
}

/// Pairs of key and value, both text.
pub(super) fn pairs(value: &Value) -> Result<BTreeMap<String, String>, Misfit> {
    let pair = |(key, value): (&String, &Value)| {
        let text = text(value).map_err(|misfit| match misfit {
            Misfit::What(what) => Misfit::What(format!("{key}: {what}")),
            misfit => misfit,
        })?;
        text_of_key(key).map(|key| (key, text))
    };
    value.as_object().ok_or(Misfit::Other)?.iter().map(pair).collect()
}

fn text_of_key(key: &str) -> Result<String, Misfit> {
    if key.is_empty() || key.len() > 128 || key.chars().any(char::is_control) {
        return Err(Misfit::What(format!("{key:?} is no key; a key has 1 to 128 bytes")));
    }
    Ok(key.to_owned())
}

/// Pairs that go into the encryption context.
pub(super) fn context(value: &Value) -> Result<BTreeMap<String, String>, Misfit> {
    let context = pairs(value)?;
    if let Some(key) = context.keys().find(|key| RESERVED_CONTEXT.contains(&key.as_str())) {
        return Err(Misfit::Said(format!("{key} is Coffer's own key; name it otherwise")));
    }
    let bytes: usize = context.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > TEXT_BYTES {
        return Err(Misfit::What(format!("has {bytes} bytes, and at most {TEXT_BYTES} are allowed")));
    }
    Ok(context)
}

/// Text of letters, digits and some other characters.
pub(super) fn word(most: usize, others: &'static str) -> impl Fn(&Value) -> Result<String, Misfit> {
    checked(move |text| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
        if text.len() <= most && text.chars().all(allowed) {
            return Ok(text.to_owned());
        }
        Err(Misfit::Not(text.to_owned()))
    })
}

/// Whether a URL may be http.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plain {
    /// Only where `insecureEndpoint: true` says so, as this does or does not.
    Asked(bool),
    /// Never.
    Never,
}

/// Where a server is: a URL without a user, a query or a fragment, and without a slash at its end.
pub(super) fn endpoint(plain: Plain) -> impl Fn(&Value) -> Result<Endpoint, Misfit> {
    checked(move |text| {
        let what = |what: &str| Misfit::What(what.to_owned());
        // A URL may hold a password: it is never told.
        let mut url = Url::parse(text).map_err(|error| Misfit::What(format!("is no URL ({error})")))?;
        match (url.scheme(), plain) {
            ("https", _) | ("http", Plain::Asked(true)) => {}
            ("http", Plain::Asked(false)) => {
                let text = "is http, which protects neither keys nor tokens; expected https, or insecureEndpoint: true";
                return Err(Misfit::Said(text.to_owned()));
            }
            (scheme, _) => return Err(Misfit::What(format!("is {scheme}"))),
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(what("names no host"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(what("names a user"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(what("has a query or a fragment"));
        }
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&path);
        Ok(Endpoint { url })
    })
}

/// A value as people write it.
pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// `a, b or c`
pub(super) fn join(names: &[&str], word: &str) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [rest @ .., last] => format!("{} {word} {last}", rest.join(", ")),
    }
}
