//! Secrets that are looked for, and in which forms. Every form is 15 bytes or longer, so that none is there by chance.

use std::fs;

use serde_json::Value;

/// The forms of a secret as it is, whole and in halves: what an incomplete copy leaves behind is seen, too.
pub const AS_IT_IS: [&str; 3] = ["raw", "first half", "second half"];

/// Files of a configuration that hold what nobody may see.
const SECRET_FILES: [&str; 6] =
    ["secretAccessKeyFile", "sessionTokenFile", "clientSecretFile", "tokenFile", "secretIdFile", "passwordFile"];
/// What is shorter would be found by chance.
const MARK_BYTES: usize = 32;

/// Secrets by name, in all their forms.
pub struct Marks {
    pub(super) names: Vec<String>,
    /// The forms, each in the bucket of its first two bytes. The first bucket is empty.
    buckets: Vec<Vec<Form>>,
    /// The bucket of each pair of bytes.
    starts: Vec<usize>,
    pub(super) longest: usize,
}

pub(super) struct Form {
    pub(super) mark: usize,
    pub(super) name: &'static str,
    pub(super) bytes: Vec<u8>,
}

impl Default for Marks {
    fn default() -> Self {
        Self { names: Vec::new(), buckets: vec![Vec::new()], starts: vec![0; 1 << 16], longest: 1 }
    }
}

impl Marks {
    /// Adds a secret, of 32 bytes or a little more.
    pub fn add(&mut self, name: &str, secret: &[u8]) {
        let mark = self.names.len();
        self.names.push(name.to_owned());
        for (name, bytes) in forms(secret) {
            let start = start(&bytes);
            if self.starts[start] == 0 {
                self.starts[start] = self.buckets.len();
                self.buckets.push(Vec::new());
            }
            let bucket = &mut self.buckets[self.starts[start]];
            // A text is the same in several forms.
            if bucket.iter().all(|known| known.bytes != bytes) {
                self.longest = self.longest.max(bytes.len());
                bucket.push(Form { mark, name, bytes });
            }
        }
    }

    /// Adds what the files hold that a provider's configuration names and nobody may see. One that is not there is passed
    /// over, because a wrong configuration may name it, and so is what is so short that it would be found by chance.
    pub fn add_files(&mut self, config: &Value) {
        match config {
            Value::Object(map) => {
                for (key, value) in map {
                    match value.as_str() {
                        Some(path) if SECRET_FILES.contains(&key.as_str()) => {
                            let content = fs::read(path).unwrap_or_default();
                            let secret = content.trim_ascii();
                            if secret.len() >= MARK_BYTES {
                                self.add(key, secret);
                            }
                        }
                        _ => self.add_files(value),
                    }
                }
            }
            Value::Array(all) => all.iter().for_each(|value| self.add_files(value)),
            _ => {}
        }
    }

    /// How many secrets there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// The forms that stand in these bytes, and where.
    pub(super) fn find(&self, bytes: &[u8]) -> Vec<(usize, &Form)> {
        let mut found = Vec::new();
        for (at, pair) in bytes.windows(2).enumerate() {
            let bucket = self.starts[start(pair)];
            if bucket > 0 {
                let here = self.buckets[bucket].iter().filter(|form| bytes[at..].starts_with(&form.bytes));
                found.extend(here.map(|form| (at, form)));
            }
        }
        found
    }
}

fn start(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) * 256 + usize::from(bytes[1])
}

/// How a secret can look: as it is, in digits, as a list that `Debug` or JSON writes, in base64 within a longer text,
/// and taken for text.
pub(super) fn forms(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let (first, second) = secret.split_at(secret.len() / 2);
    let [raw, first_half, second_half] = AS_IT_IS;
    let mut forms = vec![(raw, secret.to_vec()), (first_half, first.to_vec()), (second_half, second.to_vec())];
    for half in [first, second] {
        let hex: String = half.iter().map(|byte| format!("{byte:02x}")).collect();
        let capitals = hex.to_uppercase();
        forms.extend([("hex", hex.into_bytes()), ("hex in capitals", capitals.into_bytes())]);
    }
    for part in secret.chunks_exact(8) {
        let numbers: Vec<_> = part.iter().map(ToString::to_string).collect();
        forms.extend([("list", numbers.join(", ").into_bytes()), ("JSON list", numbers.join(",").into_bytes())]);
    }
    for alphabet in [BASE64, BASE64_URL] {
        // Three bytes are four characters, so what stands before it makes three different texts of it.
        for before in 0..3_usize {
            let whole = base64(&[vec![0; before].as_slice(), secret].concat(), alphabet);
            forms.push(("base64", whole[(before * 8).div_ceil(6)..].to_vec()));
        }
    }
    let text = String::from_utf8_lossy(secret).trim().to_owned();
    let (debug, json) = (format!("{text:?}"), json(&text));
    let debug = debug.as_bytes()[1..debug.len() - 1].to_vec();
    forms.extend([("text", text.into_bytes()), ("JSON text", json.into_bytes()), ("debug text", debug)]);
    forms
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const BASE64_URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Base64 (RFC 4648), the characters of which all six bits are known.
fn base64(bytes: &[u8], alphabet: &[u8; 64]) -> Vec<u8> {
    let bit = |at: usize| usize::from((bytes[at / 8] >> (7 - at % 8)) & 1);
    let character = |at: usize| alphabet[(6 * at..6 * at + 6).fold(0, |value, at| 2 * value + bit(at))];
    (0..bytes.len() * 8 / 6).map(character).collect()
}

/// A text inside a JSON string (RFC 8259, 7).
fn json(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '"' => escaped.push_str("\\\""),
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            '\u{8}' => escaped.push_str("\\b"),
            '\u{c}' => escaped.push_str("\\f"),
            ..' ' => escaped.push_str(&format!("\\u{:04x}", u32::from(character))),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base64_of_a_text_is_that_of_the_standard() {
        // RFC 4648, 10.
        assert_eq!(base64(b"foobar", BASE64), b"Zm9vYmFy");
        assert_eq!(base64(b"\xfb\xff\xfe", BASE64_URL), b"-__-");
    }
}
