//! The audit log: one JSON object a line for each create, release, refusal, change of state and destruction. It holds
//! who, what and when, and never a byte of a key.

use std::{
    fmt,
    io::{self, Write},
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    key::service::{KeyFailure, KeyInfo, Refusal},
    volume::VolumeId,
};

/// What was asked of the key service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// A new key.
    Create,
    /// A DEK.
    Release,
    /// What a record says.
    Describe,
    /// A step of the state machine.
    BeginFormat,
    /// A step of the state machine.
    MarkReady,
    /// The end of a key.
    Destroy,
    /// A list of records.
    List,
    /// A connection whose caller is not known.
    Connect,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    time: Timestamp,
    operation: Operation,
    result: &'static str,
    who: &'a str,
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
    reason: Option<String>,
}

/// Where the lines go.
pub struct Audit(Mutex<Box<dyn Write + Send>>);

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Audit")
    }
}

impl Audit {
    /// A log that is written to what is given.
    #[must_use]
    pub fn to(writer: impl Write + Send + 'static) -> Self {
        Self(Mutex::new(Box::new(writer)))
    }

    /// Writes down what was done.
    ///
    /// # Errors
    /// The line could not be written.
    pub fn done(
        &self,
        who: &str,
        operation: Operation,
        volume_id: Option<&VolumeId>,
        info: Option<&KeyInfo>,
    ) -> io::Result<()> {
        self.write(&Line {
            time: Timestamp::now(),
            operation,
            result: "ok",
            who,
            volume_id,
            generation: info.map(|info| info.generation),
            node: info.and_then(|info| info.node.as_deref()),
            provider: info.map(|info| info.provider.as_str()),
            kek_id: info.map(|info| info.kek_id.as_str()),
            reason: None,
        })
    }

    /// Writes down what was not done, and why.
    ///
    /// # Errors
    /// The line could not be written.
    pub fn not_done(
        &self,
        who: &str,
        operation: Operation,
        volume_id: Option<&VolumeId>,
        failure: &KeyFailure,
    ) -> io::Result<()> {
        let result = match failure.refusal() {
            Refusal::Unavailable | Refusal::Deadline | Refusal::Busy | Refusal::Fault => "failed",
            Refusal::Missing | Refusal::Exists | Refusal::State | Refusal::Denied | Refusal::Invalid => "refused",
        };
        let reason = Some(failure.to_string());
        let (generation, node, provider, kek_id) = (None, None, None, None);
        let time = Timestamp::now();
        self.write(&Line { time, operation, result, who, volume_id, generation, node, provider, kek_id, reason })
    }

    fn write(&self, line: &Line<'_>) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(&bytes)?;
        writer.flush()
    }
}
