//! Events (Kubernetes: events.k8s.io/v1): what people see under `kubectl describe`, where no sidecar says it already.
//! They are told once and never waited for long: what an Event says is in a status or a log line too.

use std::{fmt, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use crate::kubernetes::GROUP;

/// How long telling may take.
const TIME: Duration = Duration::from_secs(5);
/// The most bytes of a note (Event v1: note).
const NOTE_BYTES: usize = 1024;

/// Who tells.
#[derive(Clone)]
pub struct Events(Recorder);

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A volume was deleted, and its key destroyed.
    KeyDestroyed,
    /// A file is to go and its key is in use.
    KeyInUse,
    /// A file is not there that should be.
    FileGone,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::KeyDestroyed => "KeyDestroyed",
            Self::KeyInUse => "KeyInUse",
            Self::FileGone => "FileGone",
        }
    }

    /// What was being done, in one word.
    fn action(self) -> &'static str {
        match self {
            Self::KeyDestroyed => "DeleteVolume",
            Self::KeyInUse => "RemoveFile",
            Self::FileGone => "KeepFile",
        }
    }

    fn kind(self) -> EventType {
        match self {
            Self::KeyDestroyed => EventType::Normal,
            Self::KeyInUse | Self::FileGone => EventType::Warning,
        }
    }
}

impl Events {
    /// Tells through this client.
    #[must_use]
    pub fn through(client: Client) -> Self {
        Self(Recorder::new(client, Reporter::from(GROUP)))
    }

    /// Tells something about an object. That it could not be told is a line of the log and nothing else.
    pub async fn tell(&self, about: &ObjectReference, reason: Reason, note: &str) {
        let event = Event {
            type_: reason.kind(),
            reason: reason.as_str().to_owned(),
            note: Some(shortened(note).to_owned()),
            action: reason.action().to_owned(),
            secondary: None,
        };
        let failed = match tokio::time::timeout(TIME, self.0.publish(&event, about)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the API server has not answered".to_owned(),
        };
        let (name, reason) = (about.name.as_deref().unwrap_or_default(), reason.as_str());
        tracing::warn!(name, reason, error = failed, "an event was not told");
    }
}

/// As much of a text as a note takes, and no half character.
fn shortened(note: &str) -> &str {
    let mut end = note.len().min(NOTE_BYTES);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    &note[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        let long = "é".repeat(NOTE_BYTES);
        assert_eq!(shortened(&long).len(), NOTE_BYTES);
        assert_eq!(shortened(&format!("a{long}")).len(), NOTE_BYTES - 1);
    }
}
