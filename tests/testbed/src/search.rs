//! Secrets that are looked for: in which forms, and how bytes, files, folders and a process's memory are looked through.
//!
//! Every form is 15 bytes or longer, so that none is there by chance.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};
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
    names: Vec<String>,
    /// The forms, each in the bucket of its first two bytes. The first bucket is empty.
    buckets: Vec<Vec<Form>>,
    /// The bucket of each pair of bytes.
    starts: Vec<usize>,
    longest: usize,
}

struct Form {
    mark: usize,
    name: &'static str,
    bytes: Vec<u8>,
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

    fn find(&self, bytes: &[u8]) -> Vec<(usize, &Form)> {
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
fn forms(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
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

/// A secret where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The place; of a process's memory, with the region.
    pub place: String,
    /// The secret's name.
    pub mark: String,
    /// The form.
    pub form: &'static str,
    /// Bytes from the start of the place; in memory, the address.
    pub offset: u64,
}

/// A search, with all that it has found so far.
pub struct Search<'a> {
    /// What was found.
    pub found: Vec<Found>,
    /// The places that were looked through.
    pub places: BTreeSet<String>,
    /// How many bytes those were.
    pub bytes: u64,
    marks: &'a Marks,
}

const PIECE: usize = 1 << 20;
/// How long a process may take to forget: a connection lets go of its buffers a moment after its end.
const FORGET_TIME: Duration = Duration::from_secs(5);

/// Looks through a process's memory until it has forgotten what it should, or should have.
///
/// # Errors
/// As [`Search::memory`].
pub async fn memory_at_rest<'a>(
    marks: &'a Marks,
    place: &str,
    pid: u32,
    is_allowed: impl Fn(&Found) -> bool,
) -> Result<Search<'a>> {
    let start = Instant::now();
    loop {
        let mut search = Search::new(marks);
        search.memory(place, pid)?;
        if search.found.iter().all(&is_allowed) || start.elapsed() > FORGET_TIME {
            return Ok(search);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl<'a> Search<'a> {
    /// A search for secrets that has looked nowhere yet.
    #[must_use]
    pub fn new(marks: &'a Marks) -> Self {
        Self { found: Vec::new(), places: BTreeSet::new(), bytes: 0, marks }
    }

    /// Looks through bytes that are at hand.
    pub fn bytes(&mut self, place: &str, bytes: &[u8]) {
        self.places.insert(place.to_owned());
        self.look(place, bytes, 0, 0);
        self.bytes += bytes.len() as u64;
    }

    /// Looks through a file. What was never written to it is left out.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn file(&mut self, path: &Path) -> Result<()> {
        let place = path.display().to_string();
        let mut through = || -> io::Result<()> {
            let (file, mut at) = (File::open(path)?, 0);
            loop {
                let data = match seek(&file, SeekFrom::Data(at)) {
                    // There is nothing behind.
                    Err(Errno::NXIO) => return Ok(()),
                    data => data?,
                };
                at = seek(&file, SeekFrom::Hole(data))?;
                self.pieces(&place, data..at, |buffer, at| file.read_at(buffer, at))?;
            }
        };
        through().with_context(|| format!("look through {place}"))?;
        self.places.insert(place);
        Ok(())
    }

    /// Looks through every file below a folder, but for these files and folders.
    ///
    /// # Errors
    /// Something there cannot be read.
    pub fn folder(&mut self, path: &Path, without: &[PathBuf]) -> Result<()> {
        for entry in fs::read_dir(path).with_context(|| format!("list {}", path.display()))? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if without.contains(&path) {
                continue;
            }
            if kind.is_dir() {
                self.folder(&path, without)?;
            } else if kind.is_file() {
                self.file(&path)?;
            }
        }
        Ok(())
    }

    /// Looks through what `/proc` tells of a process: its environment, its words, its regions and its state.
    ///
    /// # Errors
    /// There is no such process.
    pub fn process(&mut self, pid: u32) -> Result<()> {
        for name in ["environ", "cmdline", "maps", "status"] {
            let path = format!("/proc/{pid}/{name}");
            self.bytes(&path, &fs::read(&path).with_context(|| path.clone())?);
        }
        Ok(())
    }

    /// Looks through all of a process's memory that can be read (proc_pid_mem(5)).
    ///
    /// # Errors
    /// There is no such process, or a part of its memory that is there cannot be read.
    pub fn memory(&mut self, place: &str, pid: u32) -> Result<()> {
        let maps = || fs::read_to_string(format!("/proc/{pid}/maps"));
        let (before, memory) = (self.bytes, File::open(format!("/proc/{pid}/mem"))?);
        let mut unread = Vec::new();
        for line in maps()?.lines() {
            let mut fields = line.split_ascii_whitespace();
            let (Some(range), Some(rights)) = (fields.next(), fields.next()) else { continue };
            let name = fields.nth(3).unwrap_or("anonymous");
            // The kernel's own pages ([vvar], [vsyscall]) are not the process's.
            if !rights.starts_with('r') || name.starts_with("[v") {
                continue;
            }
            let (start, end) = range.split_once('-').context("a region has a start and an end")?;
            let region = u64::from_str_radix(start, 16)?..u64::from_str_radix(end, 16)?;
            let looked = self.pieces(&format!("{place}, {name}"), region, |buffer, at| memory.read_at(buffer, at));
            if looked.is_err() {
                unread.push(line.to_owned());
            }
        }
        // A region that has gone meanwhile is no loss.
        let now = maps()?;
        unread.retain(|line| now.lines().any(|still| still == line));
        ensure!(unread.is_empty(), "{place}: these regions cannot be read: {unread:#?}");
        ensure!(self.bytes > before, "{place}: process {pid} has no memory");
        self.places.insert(place.to_owned());
        Ok(())
    }

    /// Takes over what another search has found.
    pub fn absorb(&mut self, other: Self) {
        self.found.extend(other.found);
        self.places.extend(other.places);
        self.bytes += other.bytes;
    }

    /// Looks through what is read piece by piece, and finds what lies across two pieces.
    fn pieces(
        &mut self,
        place: &str,
        range: Range<u64>,
        read: impl Fn(&mut [u8], u64) -> io::Result<usize>,
    ) -> io::Result<()> {
        let overlap = self.marks.longest - 1;
        let (mut buffer, mut kept, mut at) = (vec![0; overlap + PIECE], 0, range.start);
        while at < range.end {
            let wanted = usize::try_from(range.end - at).map_or(PIECE, |left| left.min(PIECE));
            let length = read(&mut buffer[kept..kept + wanted], at)?;
            if length == 0 {
                break;
            }
            let filled = kept + length;
            self.look(place, &buffer[..filled], kept, at - kept as u64);
            self.bytes += length as u64;
            at += length as u64;
            kept = filled.min(overlap);
            buffer.copy_within(filled - kept..filled, 0);
        }
        Ok(())
    }

    /// Looks through bytes of which the first `before` were looked through already: what ends there was found then.
    fn look(&mut self, place: &str, bytes: &[u8], before: usize, offset: u64) {
        let marks = self.marks;
        let new = marks.find(bytes).into_iter().filter(|(at, form)| at + form.bytes.len() > before);
        self.found.extend(new.map(|(at, form)| Found {
            place: place.to_owned(),
            mark: marks.names[form.mark].clone(),
            form: form.name,
            offset: offset + at as u64,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks() -> (Vec<u8>, Marks) {
        let secret: Vec<u8> = (0..32_u8).map(|byte| byte.wrapping_mul(41).wrapping_add(160)).collect();
        let mut marks = Marks::default();
        marks.add("secret", &secret);
        (secret, marks)
    }

    #[test]
    fn every_form_is_found_where_it_stands() {
        let (secret, marks) = marks();
        for (name, form) in forms(&secret) {
            assert!(form.len() >= 15, "{name} has {} bytes", form.len());
            let mut search = Search::new(&marks);
            search.bytes("text", &[b"before ".as_slice(), &form, b" behind"].concat());
            assert!(search.found.iter().any(|found| found.form == name && found.offset == 7), "{:?}", search.found);
        }
        let mut search = Search::new(&marks);
        search.bytes("text", &secret[..15]);
        assert!(search.found.is_empty(), "{:?}", search.found);
    }

    #[test]
    fn what_lies_across_two_pieces_is_found_once() {
        let (secret, marks) = marks();
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        for offset in [0, PIECE - 40, PIECE - 16, 3 * PIECE - 1] {
            file.as_file().set_len(0).expect("it can be emptied");
            file.as_file().write_all_at(&vec![1; 3 * PIECE + 64], 0).expect("it can be written");
            file.as_file().write_all_at(&secret, offset as u64).expect("it can be written");
            let mut search = Search::new(&marks);
            search.file(file.path()).expect("it can be read");
            let raw: Vec<_> = search.found.iter().filter(|found| found.form == AS_IT_IS[0]).collect();
            assert_eq!(raw.len(), 1, "{:?}", search.found);
            assert_eq!(raw[0].offset, offset as u64);
        }
    }

    #[test]
    fn the_base64_of_a_text_is_that_of_the_standard() {
        // RFC 4648, 10.
        assert_eq!(base64(b"foobar", BASE64), b"Zm9vYmFy");
        assert_eq!(base64(b"\xfb\xff\xfe", BASE64_URL), b"-__-");
    }
}
