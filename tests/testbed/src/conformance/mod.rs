//! What each joint promises, as one list a joint: every KMS and every store runs the same, on whatever stands behind it.
//!
//! A list panics where a promise is broken, as a test does, and returns what it has shown.

pub mod careless;
pub mod kms;
pub mod store;

use std::time::Duration;

use coffer::exec::Deadline;

/// A deadline that only what hangs misses.
#[must_use]
pub fn soon() -> Deadline {
    Deadline::within(Duration::from_secs(60))
}

/// The whole chain of an error, as logs tell it.
#[must_use]
pub fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
