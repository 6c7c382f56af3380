//! What lines of the audit log are about.

use serde::Serialize;

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
    /// A key under another KEK.
    Rewrap,
    /// A record that is brought back.
    Import,
    /// A KEK that its KMS is to rotate by itself.
    EnableRotation,
    /// A call whose caller is not known, or asks too often.
    Connect,
}

impl Operation {
    /// Its name, as it is in a line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Release => "release",
            Self::Describe => "describe",
            Self::BeginFormat => "begin-format",
            Self::MarkReady => "mark-ready",
            Self::Destroy => "destroy",
            Self::List => "list",
            Self::Rewrap => "rewrap",
            Self::Import => "import",
            Self::EnableRotation => "enable-rotation",
            Self::Connect => "connect",
        }
    }
}
