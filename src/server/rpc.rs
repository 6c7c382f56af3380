//! What every gRPC server of the program does alike: a caller's deadline, and a failure in one line with its code.

use std::{error::Error, time::Duration};

use tonic::{Code, Status, metadata::MetadataMap};

use crate::{
    exec::Deadline,
    key::service::{KeyFailure, Refusal},
};

/// How long work may take whose caller names no deadline.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(120);

/// The deadline that a caller set by gRPC's `grpc-timeout`, or the default one of two minutes.
#[must_use]
pub fn deadline(metadata: &MetadataMap) -> Deadline {
    let asked = metadata.get("grpc-timeout").and_then(|value| timeout(value.to_str().ok()?));
    Deadline::within(asked.unwrap_or(DEFAULT_DEADLINE))
}

/// Up to eight digits and a unit, as gRPC over HTTP/2 writes it.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// A failure and its causes in one line.
#[must_use]
pub fn message(failure: &dyn Error) -> String {
    let mut text = failure.to_string();
    let mut cause = failure.source();
    while let Some(error) = cause {
        let told = error.to_string();
        // A failure that shows its cause in its own words is not told twice.
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        cause = error.source();
    }
    text
}

/// The code of a refusal by the key service.
#[must_use]
pub fn code(refusal: Refusal) -> Code {
    match refusal {
        Refusal::Missing => Code::NotFound,
        Refusal::Exists => Code::AlreadyExists,
        Refusal::State => Code::FailedPrecondition,
        Refusal::Busy => Code::Aborted,
        Refusal::Denied => Code::PermissionDenied,
        Refusal::Invalid => Code::InvalidArgument,
        Refusal::Unavailable => Code::Unavailable,
        Refusal::Deadline => Code::DeadlineExceeded,
        Refusal::Fault => Code::Internal,
    }
}

/// A failure of the key service as the status of an RPC.
#[must_use]
#[expect(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
pub fn status(failure: KeyFailure) -> Status {
    Status::new(code(failure.refusal()), message(&failure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_deadline_is_read_and_nonsense_is_not() {
        assert_eq!(timeout("90S"), Some(Duration::from_secs(90)));
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        for nonsense in ["", "S", "9", "123456789S", "-1S", "1é"] {
            assert_eq!(timeout(nonsense), None, "{nonsense:?}");
        }
    }
}
