//! Whatever bytes come from a disk, a store, a file, a person or a peer: each reader is given every file of its corpus,
//! and then changes of these at random. The targets are those of libFuzzer (`make fuzz`), and say what must hold.
//!
//! In the corpus, what is called `good…` must be accepted and what is called `bad…` refused; `tests/fuzz/seeds.py` makes
//! both. What breaks a reader is made small and kept in `tests/fuzz/artifacts`: copied to the corpus, it is tried at
//! each run. `FUZZ_TIMES=10 cargo test --test fuzzing` tries ten times as many changes.

use std::{
    cell::Cell,
    collections::BTreeSet,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::Write,
    panic,
    path::{Path, PathBuf},
    time::Instant,
};

use proptest::{
    arbitrary::any,
    collection::vec,
    prop_oneof,
    strategy::Strategy,
    test_runner::{Config, TestError, TestRunner},
};
use testbed::{fuzz, project};

/// The most bytes of all corpora together: they are small, and stay so.
const CORPUS_BYTES: u64 = 200 * 1024;

/// Words that mean something to one reader or another.
const WORDS: &[&str] = &[
    "\"",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\n",
    "\0",
    "=",
    "/",
    "..",
    "-",
    "null",
    "true",
    "0",
    "-1",
    "1e999",
    "\\u0000",
    "18446744073709551616",
    "<<: *a",
    "&a ",
    "\u{feff}",
    "\u{85}",
];

/// Each target with its test and the number of changes that are tried.
macro_rules! targets {
    ($($test:ident: $target:ident, $cases:literal;)+) => {
        const TARGETS: &[&str] = &[$(stringify!($target)),+];
        $(
            #[test]
            fn $test() {
                tried(stringify!($target), fuzz::$target, $cases);
            }
        )+
    };
}

targets! {
    a_header_that_is_accepted_is_ours_and_encrypted: header, 2000;
    only_its_own_mark_says_that_a_volume_is_finished: mark, 2000;
    a_record_that_parses_writes_the_same_bytes: record, 4000;
    a_key_file_is_whole_or_refused_in_silence: keyfile, 2000;
    a_configuration_that_is_accepted_is_complete: configuration, 500;
    a_command_line_is_read_or_refused_in_words: arguments, 500;
    a_request_to_the_node_is_plain_or_refused: node, 5000;
    a_request_to_the_controller_is_plain_or_refused: controller, 5000;
    a_request_to_the_identity_is_answered: identity, 1000;
    the_key_service_blames_its_caller_for_what_its_caller_sends: keyservice, 600;
    a_reply_of_the_key_service_arrives_or_is_refused: reply, 4000;
    a_certificate_names_a_caller_or_nobody: certificate, 4000;
}

#[test]
fn every_target_has_a_corpus_and_is_one_of_libfuzzers() {
    let targets: BTreeSet<_> = TARGETS.iter().map(|target| (*target).to_owned()).collect();
    let stems = |folder: &str| -> BTreeSet<String> {
        let paths = entries(&home().join(folder));
        paths.iter().map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned()).collect()
    };
    assert_eq!(stems("corpus"), targets);
    assert_eq!(stems("fuzz_targets"), targets);
    let manifest = fs::read_to_string(home().join("Cargo.toml")).expect("the manifest of libFuzzer's targets");
    for target in TARGETS {
        let source = fs::read_to_string(home().join(format!("fuzz_targets/{target}.rs"))).expect("a source file");
        assert!(source.contains(&format!("fuzz::{target}(")), "{target} runs another target");
        assert!(manifest.contains(&format!("\"fuzz_targets/{target}.rs\"")), "{target} is not in the manifest");
    }
}

#[test]
fn the_corpora_stay_small() {
    let files = TARGETS.iter().flat_map(|target| entries(&home().join("corpus").join(target)));
    let bytes: u64 = files.map(|path| fs::metadata(path).expect("a file").len()).sum();
    assert!(bytes <= CORPUS_BYTES, "{bytes} bytes: keep the smallest of what libFuzzer found");
}

/// Gives a target its whole corpus, and then changes of it.
fn tried(target: &str, run: fn(&[u8]) -> bool, cases: u32) {
    let start = Instant::now();
    let mut corpus = Vec::new();
    for path in entries(&home().join("corpus").join(target)) {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let bytes = fs::read(&path).expect("a file of the corpus");
        let accepted =
            panic::catch_unwind(|| run(&bytes)).unwrap_or_else(|_| panic!("{target}/{name} breaks its reader"));
        assert!(accepted || !name.starts_with("good"), "{target}/{name} is refused");
        assert!(!accepted || !name.starts_with("bad"), "{target}/{name} is accepted");
        corpus.push(bytes);
    }
    let times = std::env::var("FUZZ_TIMES").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    let cases = cases.saturating_mul(times);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let accepted = Cell::new(0);
    let outcome = TestRunner::new(config).run(&(any::<usize>(), vec(edit(), 1..6)), |(which, edits)| {
        if run(&changed(&corpus, which, &edits)) {
            accepted.set(accepted.get() + 1);
        }
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, (which, edits))) => {
            let path = keep(target, &changed(&corpus, which, &edits));
            panic!("{target} breaks: {reason}\nthe input is kept: {}", path.display());
        }
        Err(TestError::Abort(reason)) => panic!("{target} was not tried: {reason}"),
    }
    let (seeds, accepted, seconds) = (corpus.len(), accepted.get(), start.elapsed().as_secs_f64());
    // Past the harness, which keeps what a test prints to itself as long as it passes.
    let told = format!("fuzzing {target}: {seeds} files, {cases} changes, {accepted} accepted, {seconds:.1} s\n");
    std::io::stderr().write_all(told.as_bytes()).expect("standard error takes a line");
}

/// One change of an input. Places and lengths are taken as remainders, so that each fits every input.
#[derive(Clone, Debug)]
enum Edit {
    Flip { at: usize, bit: u32 },
    Set { at: usize, byte: u8 },
    Word { at: usize, word: usize },
    Insert { at: usize, bytes: Vec<u8> },
    Remove { at: usize, length: usize },
    Repeat { at: usize, length: usize, times: usize },
    Splice { at: usize, which: usize, from: usize, length: usize },
    Cut { at: usize },
}

fn edit() -> impl Strategy<Value = Edit> {
    let place = any::<usize>;
    prop_oneof![
        4 => (place(), 0..8_u32).prop_map(|(at, bit)| Edit::Flip { at, bit }),
        4 => (place(), any::<u8>()).prop_map(|(at, byte)| Edit::Set { at, byte }),
        4 => (place(), place()).prop_map(|(at, word)| Edit::Word { at, word }),
        2 => (place(), vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Edit::Insert { at, bytes }),
        3 => (place(), 1..33_usize).prop_map(|(at, length)| Edit::Remove { at, length }),
        1 => (place(), 1..65_usize, 1..65_usize).prop_map(|(at, length, times)| Edit::Repeat { at, length, times }),
        3 => (place(), place(), place(), 1..129_usize)
            .prop_map(|(at, which, from, length)| Edit::Splice { at, which, from, length }),
        1 => place().prop_map(|at| Edit::Cut { at }),
    ]
}

fn changed(corpus: &[Vec<u8>], which: usize, edits: &[Edit]) -> Vec<u8> {
    let mut bytes = corpus[which % corpus.len()].clone();
    for edit in edits {
        edit.apply(&mut bytes, corpus);
    }
    bytes
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let whole = bytes.len();
        // An end is a place as well, at which there is something to insert and nothing to change.
        let place = |at: usize| at % (whole + 1);
        match self {
            Self::Flip { at, bit } => {
                if let Some(byte) = bytes.get_mut(place(*at)) {
                    *byte ^= 1_u8 << bit;
                }
            }
            Self::Set { at, byte } => {
                if let Some(old) = bytes.get_mut(place(*at)) {
                    *old = *byte;
                }
            }
            Self::Word { at, word } => insert(bytes, place(*at), WORDS[word % WORDS.len()].as_bytes()),
            Self::Insert { at, bytes: new } => insert(bytes, place(*at), new),
            Self::Remove { at, length } => {
                let at = place(*at);
                bytes.drain(at..whole.min(at + length));
            }
            Self::Repeat { at, length, times } => {
                let at = place(*at);
                let part = bytes[at..whole.min(at + length)].repeat(*times);
                insert(bytes, at, &part);
            }
            Self::Splice { at, which, from, length } => {
                let other = &corpus[which % corpus.len()];
                let from = from % (other.len() + 1);
                insert(bytes, place(*at), &other[from..other.len().min(from + length)]);
            }
            Self::Cut { at } => bytes.truncate(place(*at)),
        }
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    let behind = bytes.split_off(at);
    bytes.extend_from_slice(new);
    bytes.extend(behind);
}

/// Keeps an input that broke a reader, under a name of its own.
fn keep(target: &str, bytes: &[u8]) -> PathBuf {
    let folder = home().join("artifacts").join(target);
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let path = folder.join(format!("small-{:016x}", hasher.finish()));
    fs::create_dir_all(&folder).and_then(|()| fs::write(&path, bytes)).expect("the input can be kept");
    path
}

fn home() -> PathBuf {
    project().join("tests/fuzz")
}

/// What lies in a folder, in the order of the names, so that a run can be told of by its numbers.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = listed.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}
