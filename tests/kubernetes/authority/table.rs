//! A table of what was refused, and how.

use anyhow::{Result, bail, ensure};
use tonic::{Code, Status};

use super::Place;

/// What was refused, and how.
#[derive(Default)]
pub(super) struct Table(String);

impl Table {
    /// Checks an answer and the line that was written of it.
    pub(super) fn refused<T>(
        &mut self,
        place: &Place,
        what: &str,
        answer: Result<T, Status>,
        (code, operation, reason): (Code, &str, &str),
    ) -> Result<()> {
        let Err(status) = answer else { bail!("{what}: it was not refused") };
        let line = place.service.last();
        let told = line["reason"].as_str().unwrap_or_default();
        let result = if code == Code::Unavailable { "failed" } else { "refused" };
        ensure!(status.code() == code, "{what}: {status:?}");
        ensure!(line["operation"] == operation && line["result"] == result, "{what}: {line}");
        ensure!(told.contains(reason), "{what}: {line}");
        let code = format!("{code:?}");
        self.0 += &format!("{what:<44} {code:<18} {operation:<13} {told}\n");
        Ok(())
    }

    /// Adds a line of its own.
    pub(super) fn note(&mut self, line: &str) {
        self.0 += line;
        self.0.push('\n');
    }

    #[expect(clippy::print_stdout, reason = "the refusals are to be seen")]
    pub(super) fn tell(&self) {
        println!("{:<44} {:<18} {:<13} reason in the audit log\n{}", "refused", "code", "operation", self.0);
    }
}
