//! Lines that hold together: each entry carries its place and the SHA-256 of the line before it, so that a line which is
//! changed, cut out, put in or moved shows.
//!
//! A process writes one chain. It has an id of its own, so that chains may lie one after the other in a file, or mixed
//! in what a cluster collects from several replicas. The hashes are of no secret key: whoever can write the whole of a
//! log can make another that fits, and whoever cuts the end off leaves a beginning that fits. So keep a copy where he
//! does not reach (standard output goes to the node's log), and compare how far each goes.

use std::{
    collections::{HashMap, hash_map},
    io::{self, BufRead, Read},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::volume::hex;

/// What the first line of a chain says of the line before it.
const NOTHING: [u8; 32] = [0; 32];
/// No line of ours is longer; what is, is none.
const LINE_BYTES: u64 = 1 << 20;

/// A chain that is being written.
#[derive(Debug)]
pub struct Chain {
    id: Uuid,
    sequence: u64,
    previous: [u8; 32],
}

impl Default for Chain {
    fn default() -> Self {
        Self { id: Uuid::new_v4(), sequence: 0, previous: NOTHING }
    }
}

#[derive(Serialize)]
struct Linked<'a, T> {
    #[serde(flatten)]
    entry: &'a T,
    chain: Uuid,
    sequence: u64,
    previous: String,
}

impl Chain {
    /// The next line, without its end, for an entry, which has to be a JSON object. It counts as written from here on:
    /// where it then cannot be written, the log shows that a line is missing.
    ///
    /// # Errors
    /// The entry is no JSON object.
    pub fn link<T: Serialize>(&mut self, entry: &T) -> serde_json::Result<Vec<u8>> {
        let sequence = self.sequence + 1;
        let linked = Linked { entry, chain: self.id, sequence, previous: hex(&self.previous) };
        let line = serde_json::to_vec(&linked)?;
        (self.sequence, self.previous) = (sequence, Sha256::digest(&line).into());
        Ok(line)
    }
}

/// Where a log does not hold together. Lines are counted from 1.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The log cannot be read.
    #[error("read the log behind line {line}")]
    Unreadable {
        /// The last line that was read.
        line: u64,
        /// The finding.
        #[source]
        source: io::Error,
    },
    /// It is not a line of a chain, or only a part of one.
    #[error("line {line} is no whole line of a chain")]
    Foreign {
        /// The line.
        line: u64,
    },
    /// A chain does not begin with its first line.
    #[error("line {line} is the first of chain {chain} here and number {sequence} in it: lines before it are missing")]
    Headless {
        /// The line.
        line: u64,
        /// The chain.
        chain: Uuid,
        /// The line's number in it.
        sequence: u64,
    },
    /// Lines are missing, there twice, or in another order.
    #[error("line {line} is number {sequence} of chain {chain}, and number {expected} was to come")]
    Order {
        /// The line.
        line: u64,
        /// The chain.
        chain: Uuid,
        /// The line's number in it.
        sequence: u64,
        /// The number that was to come.
        expected: u64,
    },
    /// A line is not what was written.
    #[error("line {line} of chain {chain} was changed after it was written: line {witness} knows it otherwise")]
    Changed {
        /// The line; where it is the first of its chain, this is the line that does not know that it is.
        line: u64,
        /// The chain.
        chain: Uuid,
        /// The line that carries its hash.
        witness: u64,
    },
}

#[derive(Deserialize)]
struct Link {
    chain: Uuid,
    sequence: u64,
    previous: String,
}

/// How far a chain was read.
struct Follower {
    line: u64,
    sequence: u64,
    hash: [u8; 32],
}

/// What lies between the lines of chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// It does not belong there: the log is a file of its own.
    Refused,
    /// It is passed over: the log is a part of another. A line of ours that was made such a one is missing in its chain.
    PassedOver,
}

/// Reads a log to its end, and returns how many lines hold together. Nothing can be said of what was cut off behind the
/// last line of a chain, nor whether that one line was changed.
///
/// # Errors
/// The first line that does not fit.
pub fn verify(reader: impl BufRead) -> Result<u64, Broken> {
    verify_among(reader, Others::Refused)
}

/// As [`verify`], of a log that may hold other lines.
///
/// # Errors
/// The first line that does not fit.
pub fn verify_among(mut reader: impl BufRead, others: Others) -> Result<u64, Broken> {
    let (mut chains, mut line, mut verified, mut bytes) = (HashMap::<Uuid, Follower>::new(), 0, 0, Vec::new());
    loop {
        bytes.clear();
        let read = Read::take(&mut reader, LINE_BYTES).read_until(b'\n', &mut bytes);
        if read.map_err(|source| Broken::Unreadable { line, source })? == 0 {
            return Ok(verified);
        }
        line += 1;
        let link = bytes.strip_suffix(b"\n").and_then(|text| Some((serde_json::from_slice(text).ok()?, text)));
        match (link, others) {
            (Some((link, text)), _) => {
                follow(&mut chains, link, line, Sha256::digest(text).into())?;
                verified += 1;
            }
            (None, Others::PassedOver) => {}
            (None, Others::Refused) => return Err(Broken::Foreign { line }),
        }
    }
}

/// Takes a line to its chain.
fn follow(chains: &mut HashMap<Uuid, Follower>, link: Link, line: u64, hash: [u8; 32]) -> Result<(), Broken> {
    let Link { chain, sequence, previous } = link;
    match chains.entry(chain) {
        hash_map::Entry::Vacant(_) if sequence != 1 => return Err(Broken::Headless { line, chain, sequence }),
        hash_map::Entry::Vacant(_) if previous != hex(&NOTHING) => {
            return Err(Broken::Changed { line, chain, witness: line });
        }
        hash_map::Entry::Vacant(place) => {
            place.insert(Follower { line, sequence, hash });
        }
        hash_map::Entry::Occupied(mut place) => {
            let last = place.get_mut();
            let expected = last.sequence + 1;
            if sequence != expected {
                return Err(Broken::Order { line, chain, sequence, expected });
            }
            if previous != hex(&last.hash) {
                return Err(Broken::Changed { line: last.line, chain, witness: line });
            }
            *last = Follower { line, sequence, hash };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn log(lines: usize) -> Vec<String> {
        let mut chain = Chain::default();
        let line = |number| chain.link(&json!({ "volumeId": format!("vol-{number}") })).expect("an object");
        (0..lines).map(line).map(|line| String::from_utf8(line).expect("JSON is text")).collect()
    }

    fn verified(lines: &[String]) -> Result<u64, Broken> {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        verify(text.as_bytes())
    }

    fn broken(lines: &[String]) -> Broken {
        verified(lines).expect_err("it does not hold together")
    }

    #[test]
    fn what_was_written_holds_together_and_says_so_itself() {
        let lines = log(3);
        assert_eq!(verified(&lines).expect("whole"), 3);
        assert_eq!(verified(&[]).expect("empty"), 0);
        let second: serde_json::Value = serde_json::from_str(&lines[1]).expect("JSON");
        assert_eq!(second["volumeId"], "vol-1");
        assert_eq!(second["sequence"], 2);
        assert_eq!(second["previous"], hex(&Sha256::digest(lines[0].as_bytes())));
        let first: serde_json::Value = serde_json::from_str(&lines[0]).expect("JSON");
        assert_eq!(first["previous"], "0".repeat(64));
        assert_eq!(first["chain"], second["chain"]);
    }

    #[test]
    fn a_line_that_was_cut_out_shows_wherever_it_was() {
        let lines = log(5);
        let without = |place: usize| [&lines[..place], &lines[place + 1..]].concat();
        assert!(matches!(broken(&without(0)), Broken::Headless { line: 1, sequence: 2, .. }));
        assert!(matches!(broken(&without(2)), Broken::Order { line: 3, sequence: 4, expected: 3, .. }));
        // What is cut off at the end leaves a log that is shorter, and that is all there is to see.
        assert_eq!(verified(&without(4)).expect("whole"), 4);
    }

    #[test]
    fn a_line_that_was_changed_shows_by_the_next() {
        let mut lines = log(4);
        lines[1] = lines[1].replace("vol-1", "vol-9");
        assert!(matches!(broken(&lines), Broken::Changed { line: 2, witness: 3, .. }));
        let mut lines = log(2);
        lines[0] = lines[0].replace("\"previous\":\"00", "\"previous\":\"10");
        assert!(matches!(broken(&lines), Broken::Changed { line: 1, witness: 1, .. }));
    }

    #[test]
    fn lines_in_another_order_or_there_twice_show() {
        let mut swapped = log(4);
        swapped.swap(1, 2);
        assert!(matches!(broken(&swapped), Broken::Order { line: 2, sequence: 3, expected: 2, .. }));
        let mut twice = log(3);
        twice.insert(1, twice[0].clone());
        assert!(matches!(broken(&twice), Broken::Order { line: 2, sequence: 1, expected: 2, .. }));
    }

    #[test]
    fn processes_that_write_one_after_the_other_or_at_once_each_have_their_chain() {
        let (one, two) = (log(3), log(2));
        assert_eq!(verified(&[one.clone(), two.clone()].concat()).expect("whole"), 5);
        let mixed = [&one[0], &two[0], &one[1], &two[1], &one[2]].map(Clone::clone);
        assert_eq!(verified(&mixed).expect("whole"), 5);
        let lost = [&one[0], &two[0], &one[2], &two[1]].map(Clone::clone);
        assert!(matches!(broken(&lost), Broken::Order { line: 3, .. }));
    }

    #[test]
    fn other_lines_are_passed_over_where_they_may_be_and_hide_no_line_that_is_missing() {
        let among = |lines: &[String]| {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            verify_among(text.as_bytes(), Others::PassedOver)
        };
        let mut lines = log(3);
        lines.insert(1, "2026-01-01T00:00:00Z  INFO serving the key service".to_owned());
        lines.insert(2, "{\"level\":\"INFO\"}".to_owned());
        assert_eq!(among(&lines).expect("whole"), 3);
        lines[3] = "{}".to_owned();
        assert!(matches!(among(&lines).expect_err("missing"), Broken::Order { line: 5, sequence: 3, expected: 2, .. }));
    }

    #[test]
    fn what_is_no_whole_line_is_told_with_its_place() {
        let mut lines = log(2);
        lines.push("{}".to_owned());
        assert!(matches!(broken(&lines), Broken::Foreign { line: 3 }));
        let text = log(2).join("\n");
        assert!(matches!(verify(text.as_bytes()).expect_err("its end is torn"), Broken::Foreign { line: 2 }));
        assert!(matches!(verify(&b"\n"[..]).expect_err("empty"), Broken::Foreign { line: 1 }));
    }
}
