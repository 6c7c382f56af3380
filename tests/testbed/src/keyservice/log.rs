//! An audit log in memory, and what was written to it.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value;

/// How much is kept. No test writes as much; a benchmark does, and looks at none of it.
const MOST_BYTES: usize = 16 << 20;

/// An audit log. Its copies are one and the same.
#[derive(Clone, Debug, Default)]
pub struct AuditLog(Arc<Mutex<Vec<u8>>>);

impl Write for AuditLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() > MOST_BYTES {
            log.clear();
        }
        log.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AuditLog {
    /// All that was written.
    ///
    /// # Panics
    /// It is no text.
    #[must_use]
    pub fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        String::from_utf8(bytes).expect("an audit log is text")
    }

    /// Its lines.
    ///
    /// # Panics
    /// One is not JSON.
    #[must_use]
    pub fn lines(&self) -> Vec<Value> {
        self.text().lines().map(json).collect()
    }

    /// Its last line; null where there is none.
    ///
    /// # Panics
    /// It is not JSON.
    #[must_use]
    pub fn last(&self) -> Value {
        self.text().lines().last().map(json).unwrap_or_default()
    }
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("a line of the audit log is not JSON: {error}: {line}"))
}
