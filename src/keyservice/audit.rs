//! The audit log: one JSON object a line for each create, release, refusal, change of state and destruction. It holds
//! who, what and when, and never a byte of a key. Its lines hold together ([`crate::chain`]), so that one that is cut
//! out or changed shows.

mod operation;

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    chain::Chain,
    key::service::{KeyFailure, KeyInfo, Refusal},
    volume::VolumeId,
};

pub use crate::chain::{Broken, Others, verify, verify_among};
pub use operation::Operation;

/// A pod, as the API server names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its UID: a name is used again, this is not.
    pub uid: String,
}

/// Who asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// `node:NAME`, `controller:NAME`, `uid:NUMBER`, `process`; or in words, who it might have been.
    pub name: String,
    /// The pod, where a token names one.
    pub pod: Option<Pod>,
}

impl Who {
    /// Somebody of whom there is no more to say.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), pod: None }
    }
}

/// How an operation ended that was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The caller may not, or what he asks for is not possible.
    Refused,
    /// Something else is at fault; a later try may succeed.
    Failed,
}

impl Ending {
    fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }

    /// The one that belongs to what a caller can do about it.
    #[must_use]
    pub fn of(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unavailable | Refusal::Deadline | Refusal::Busy | Refusal::Fault => Self::Failed,
            Refusal::Missing | Refusal::Exists | Refusal::State | Refusal::Denied | Refusal::Invalid => Self::Refused,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    time: Timestamp,
    operation: Operation,
    result: &'static str,
    who: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a Pod>,
    #[serde(skip_serializing_if = "Option::is_none")]
    volume_id: Option<&'a VolumeId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kek_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// How many lines like this one were not written since the last that was.
    #[serde(skip_serializing_if = "is_zero")]
    untold: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Opens a file for the log, which is only appended to; a new one is for its owner alone. A line that was torn there, by
/// a crash or a full disk, gets its end, so that it spoils no other.
///
/// # Errors
/// It cannot be opened, read or written.
pub fn file(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    // What is no file has no end to look at: a pipe, or a terminal.
    if file.metadata()?.is_file() && file.seek(SeekFrom::End(0))? > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    Ok(file)
}

/// Where the lines go: to one place or several, the same lines to each.
pub struct Audit(Mutex<Log>);

struct Log {
    chain: Chain,
    places: Vec<Place>,
}

struct Place {
    writer: Box<dyn Write + Send>,
    /// A line was not written to its end, so the next one begins a line of its own.
    is_torn: bool,
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Audit")
    }
}

impl Audit {
    /// A log that is written to what is given.
    #[must_use]
    pub fn to(writer: impl Write + Send + 'static) -> Self {
        Self(Mutex::new(Log { chain: Chain::default(), places: vec![Place::of(writer)] }))
    }

    /// The same log, written to another place as well.
    #[must_use]
    pub fn and_to(self, writer: impl Write + Send + 'static) -> Self {
        let mut log = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        log.places.push(Place::of(writer));
        Self(Mutex::new(log))
    }

    /// Writes down what was done.
    ///
    /// # Errors
    /// The line could not be written everywhere.
    pub fn done(
        &self,
        who: &Who,
        operation: Operation,
        volume_id: Option<&VolumeId>,
        info: Option<&KeyInfo>,
    ) -> io::Result<()> {
        self.write(&Line {
            volume_id,
            generation: info.map(|info| info.generation),
            node: info.and_then(|info| info.node.as_deref()),
            provider: info.map(|info| info.provider.as_str()),
            kek_id: info.map(|info| info.kek_id.as_str()),
            ..line(who, operation, "ok")
        })
    }

    /// Writes down what was not done, and why.
    ///
    /// # Errors
    /// The line could not be written everywhere.
    pub fn not_done(
        &self,
        who: &Who,
        operation: Operation,
        volume_id: Option<&VolumeId>,
        failure: &KeyFailure,
    ) -> io::Result<()> {
        let reason = failure.to_string();
        let ending = Ending::of(failure.refusal()).name();
        self.write(&Line { volume_id, reason: Some(&reason), ..line(who, operation, ending) })
    }

    /// Writes down what became of a provider's KEK, or why it stays as it is.
    ///
    /// # Errors
    /// The line could not be written everywhere.
    pub fn of_kek(
        &self,
        who: &Who,
        operation: Operation,
        (provider, kek_id): (&str, &str),
        outcome: Result<(), (Ending, String)>,
    ) -> io::Result<()> {
        let (result, reason) = match &outcome {
            Ok(()) => ("ok", None),
            Err((ending, reason)) => (ending.name(), Some(reason.as_str())),
        };
        self.write(&Line { provider: Some(provider), kek_id: Some(kek_id), reason, ..line(who, operation, result) })
    }

    /// Writes down that a call was turned away before anything was looked at, and how many more were since the last
    /// such line.
    ///
    /// # Errors
    /// The line could not be written everywhere.
    pub fn turned_away(&self, who: &Who, ending: Ending, reason: &str, untold: u64) -> io::Result<()> {
        self.write(&Line { reason: Some(reason), untold, ..line(who, Operation::Connect, ending.name()) })
    }

    fn write(&self, line: &Line<'_>) -> io::Result<()> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Log { chain, places } = &mut *log;
        let mut bytes = chain.link(line)?;
        bytes.push(b'\n');
        // Each place gets the line, whatever happened at another.
        let mut outcome = Ok(());
        for place in places {
            outcome = outcome.and(place.write(&bytes));
        }
        metrics::counter!("coffer_audit_lines_total", "operation" => line.operation.name(), "result" => line.result)
            .increment(1);
        outcome
    }
}

fn line<'a>(who: &'a Who, operation: Operation, result: &'static str) -> Line<'a> {
    Line {
        time: Timestamp::now(),
        operation,
        result,
        who: &who.name,
        pod: who.pod.as_ref(),
        volume_id: None,
        generation: None,
        node: None,
        provider: None,
        kek_id: None,
        reason: None,
        untold: 0,
    }
}

impl Place {
    fn of(writer: impl Write + Send + 'static) -> Self {
        Self { writer: Box::new(writer), is_torn: false }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let was_torn = std::mem::replace(&mut self.is_torn, true);
        if was_torn {
            self.writer.write_all(b"\n")?;
        }
        self.writer.write_all(line)?;
        self.writer.flush()?;
        self.is_torn = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A disk that has room for so many bytes.
    #[derive(Clone)]
    struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Disk {
        fn with_room(room: usize) -> Self {
            Self(Arc::new(Mutex::new((Vec::new(), room))))
        }

        fn make_room(&self) {
            self.0.lock().expect("no panic while it is held").1 = usize::MAX;
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("no panic while it is held").0.clone()).expect("text")
        }
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (written, room) = &mut *self.0.lock().expect("no panic while it is held");
            let taken = bytes.len().min(*room);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            *room -= taken;
            written.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn refuse(audit: &Audit) -> io::Result<()> {
        audit.turned_away(&Who::named("somebody"), Ending::Refused, "his token is missing", 0)
    }

    #[test]
    fn each_place_has_the_same_lines_and_they_hold_together() {
        let (one, two) = (Disk::with_room(usize::MAX), Disk::with_room(usize::MAX));
        let audit = Audit::to(one.clone()).and_to(two.clone());
        let pod = Some(Pod { name: "coffer-node-x".to_owned(), uid: "1".to_owned() });
        audit.done(&Who { name: "node:n1".to_owned(), pod }, Operation::Release, None, None).expect("written");
        refuse(&audit).expect("written");
        assert_eq!(one.text(), two.text());
        assert_eq!(verify(one.text().as_bytes()).expect("whole"), 2);
        let first: serde_json::Value = serde_json::from_str(one.text().lines().next().expect("a line")).expect("JSON");
        assert_eq!((&first["who"], &first["pod"]["name"]), (&"node:n1".into(), &"coffer-node-x".into()));
        assert_eq!(first["untold"], serde_json::Value::Null);
    }

    #[test]
    fn a_line_that_was_torn_shows_and_spoils_no_other() {
        let (full, whole) = (Disk::with_room(100), Disk::with_room(usize::MAX));
        let audit = Audit::to(full.clone()).and_to(whole.clone());
        refuse(&audit).expect_err("no room");
        full.make_room();
        refuse(&audit).expect("written");
        let lines = full.text();
        let second = lines.lines().nth(1).expect("a second line");
        assert_eq!(Some(second), whole.text().lines().nth(1));
        assert!(matches!(verify(lines.as_bytes()).expect_err("a line is torn"), Broken::Foreign { line: 1 }));
        assert_eq!(verify(whole.text().as_bytes()).expect("whole"), 2);
    }

    #[test]
    fn a_line_that_a_crash_has_torn_in_a_file_gets_its_end() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("audit.log");
        let begin = || refuse(&Audit::to(file(&path).expect("it opens"))).expect("written");
        begin();
        begin();
        let whole = std::fs::read(&path).expect("a log");
        assert_eq!(verify(whole.as_slice()).expect("whole"), 2);
        std::fs::write(&path, &whole[..whole.len() - 10]).expect("torn");
        begin();
        let lines = std::fs::read(&path).expect("a log");
        assert!(matches!(verify(lines.as_slice()).expect_err("torn"), Broken::Foreign { line: 2 }));
        let last = lines.split_inclusive(|byte| *byte == b'\n').next_back().expect("a line");
        assert_eq!(verify(last).expect("whole"), 1);
    }

    #[test]
    fn an_operation_has_the_name_that_is_in_its_line() {
        for operation in [Operation::BeginFormat, Operation::MarkReady, Operation::Rewrap, Operation::Connect] {
            assert_eq!(serde_json::to_value(operation).expect("a name"), operation.name());
        }
    }
}
