//! Which gRPC code each failure has. The matches are whole: a new failure does not compile until it has a code.
//!
//! INVALID_ARGUMENT is for a request that is wrong whatever stands behind it: a parameter that is not known, a provider
//! that does not exist. Where the request would be good with another configuration, it is FAILED_PRECONDITION: a policy
//! gives something else than the class asks for, a rule goes by a namespace that the provisioner did not pass on, a KEK
//! takes no context. PERMISSION_DENIED is for callers who may not, and for a KMS that does not let us; CSI means by it the
//! identity in a request's secrets, which nobody has here. To external-provisioner all three are final: it begins anew
//! after a pause, and by then a policy may be another.

use tonic::{Code, Status};

#[cfg(feature = "controller")]
use crate::node::pool::PoolsFailure;
use crate::{
    csi::request::Invalid,
    exec::ExecFailure,
    key::service::KeyFailure,
    node::{
        failure::NodeFailure,
        header::HeaderFault,
        luks::LuksFailure,
        source::{SourceFailure, local::PoolFailure},
    },
    server::rpc,
};

impl From<Invalid> for Status {
    fn from(invalid: Invalid) -> Self {
        Self::invalid_argument(invalid.to_string())
    }
}

impl From<NodeFailure> for Status {
    fn from(failure: NodeFailure) -> Self {
        // Here every failure of a node becomes an answer, once.
        if let Some(reason) = refusal(&failure) {
            metrics::counter!("coffer_format_refusals_total", "reason" => reason).increment(1);
        }
        Self::new(node_code(&failure), rpc::message(&failure))
    }
}

impl From<KeyFailure> for Status {
    fn from(failure: KeyFailure) -> Self {
        rpc::status(failure)
    }
}

impl From<PoolFailure> for Status {
    fn from(failure: PoolFailure) -> Self {
        Self::new(pool_code(&failure), rpc::message(&failure))
    }
}

#[cfg(feature = "controller")]
impl From<PoolsFailure> for Status {
    fn from(failure: PoolsFailure) -> Self {
        Self::new(pools_code(&failure), rpc::message(&failure))
    }
}

impl From<SourceFailure> for Status {
    fn from(failure: SourceFailure) -> Self {
        Self::new(source_code(&failure), rpc::message(&failure))
    }
}

fn node_code(failure: &NodeFailure) -> Code {
    match failure {
        NodeFailure::Key { source, .. } => rpc::code(source.refusal()),
        NodeFailure::Source { source, .. } => source_code(source),
        NodeFailure::Pool { source, .. } => pool_code(source),
        NodeFailure::Luks { source, .. } => match source {
            LuksFailure::Memory(_) => Code::Internal,
            LuksFailure::WrongKey => Code::FailedPrecondition,
            LuksFailure::Busy(_) => Code::Aborted,
            LuksFailure::Program(source) => exec_code(source),
        },
        NodeFailure::Filesystem { source, .. } => exec_code(source),
        NodeFailure::Header { .. }
        | NodeFailure::NotBlank { .. }
        | NodeFailure::NewHeader { .. }
        | NodeFailure::NotKept { .. }
        | NodeFailure::TooSmall { .. }
        | NodeFailure::NoIntegrity(_)
        | NodeFailure::OtherContent { .. }
        | NodeFailure::HasWriter { .. }
        | NodeFailure::NotStaged { .. }
        | NodeFailure::Occupied { .. }
        | NodeFailure::InUse { .. } => Code::FailedPrecondition,
        NodeFailure::Mount { .. } | NodeFailure::Io { .. } => Code::Internal,
        NodeFailure::Path { .. } | NodeFailure::Unsupported(_) => Code::InvalidArgument,
        NodeFailure::Incompatible { .. } => Code::AlreadyExists,
        NodeFailure::NotThere { .. } => Code::NotFound,
        NodeFailure::StaleMapping { .. } | NodeFailure::Busy { .. } => Code::Aborted,
        NodeFailure::NotThatLarge { .. } => Code::OutOfRange,
        NodeFailure::Waited(_) => Code::DeadlineExceeded,
    }
}

/// One word for a refusal to format or to open what lies on a device; none for every other failure.
fn refusal(failure: &NodeFailure) -> Option<&'static str> {
    match failure {
        NodeFailure::Header { source, .. } => Some(match source {
            HeaderFault::Foreign(_) => "foreign-data",
            HeaderFault::Tag => "header-changed",
            HeaderFault::Damaged => "header-damaged",
            HeaderFault::Metadata(_) => "header-metadata",
        }),
        NodeFailure::Luks { source: LuksFailure::WrongKey, .. } => Some("wrong-key"),
        NodeFailure::NotBlank { .. } => Some("not-blank"),
        NodeFailure::NewHeader { .. } => Some("new-header"),
        NodeFailure::NotKept { .. } => Some("not-kept"),
        NodeFailure::TooSmall { .. } => Some("too-small"),
        NodeFailure::NoIntegrity(_) => Some("no-integrity"),
        NodeFailure::OtherContent { .. } => Some("other-content"),
        NodeFailure::Key { .. }
        | NodeFailure::Source { .. }
        | NodeFailure::Pool { .. }
        | NodeFailure::Luks {
            source: LuksFailure::Memory(_) | LuksFailure::Busy(_) | LuksFailure::Program(_), ..
        }
        | NodeFailure::Filesystem { .. }
        | NodeFailure::HasWriter { .. }
        | NodeFailure::NotStaged { .. }
        | NodeFailure::Occupied { .. }
        | NodeFailure::InUse { .. }
        | NodeFailure::Mount { .. }
        | NodeFailure::Io { .. }
        | NodeFailure::Path { .. }
        | NodeFailure::Unsupported(_)
        | NodeFailure::Incompatible { .. }
        | NodeFailure::NotThere { .. }
        | NodeFailure::StaleMapping { .. }
        | NodeFailure::Busy { .. }
        | NodeFailure::NotThatLarge { .. }
        | NodeFailure::Waited(_) => None,
    }
}

fn pool_code(failure: &PoolFailure) -> Code {
    match failure {
        PoolFailure::Full { .. } => Code::ResourceExhausted,
        PoolFailure::InUse { .. } => Code::FailedPrecondition,
        PoolFailure::Source(source) => source_code(source),
    }
}

/// Which of these external-provisioner takes for "in progress, ask again", for "another node, please" and for final is
/// its `checkError`: DEADLINE_EXCEEDED, UNAVAILABLE and ABORTED; RESOURCE_EXHAUSTED; and every other.
#[cfg(feature = "controller")]
fn pools_code(failure: &PoolsFailure) -> Code {
    match failure {
        PoolsFailure::Pool(failure) => pool_code(failure),
        PoolsFailure::Elsewhere { .. } | PoolsFailure::NoRoom { .. } | PoolsFailure::Full { .. } => {
            Code::ResourceExhausted
        }
        PoolsFailure::NoRecord(_) | PoolsFailure::Staged { .. } | PoolsFailure::Broken { .. } => {
            Code::FailedPrecondition
        }
        PoolsFailure::OnOtherNode { .. } | PoolsFailure::OtherSize { .. } => Code::AlreadyExists,
        PoolsFailure::Leaving { .. } | PoolsFailure::Busy(_) => Code::Aborted,
        PoolsFailure::Waited { .. } | PoolsFailure::Late { .. } => Code::DeadlineExceeded,
        PoolsFailure::Api { .. } => Code::Unavailable,
        PoolsFailure::Device(_) | PoolsFailure::NoDevices => Code::InvalidArgument,
    }
}

fn source_code(failure: &SourceFailure) -> Code {
    match failure {
        SourceFailure::Missing { .. } => Code::NotFound,
        SourceFailure::Io { source, .. } if source.kind() == std::io::ErrorKind::ResourceBusy => Code::Aborted,
        SourceFailure::Io { .. } => Code::Internal,
    }
}

fn exec_code(failure: &ExecFailure) -> Code {
    match failure {
        ExecFailure::Deadline { .. } => Code::DeadlineExceeded,
        ExecFailure::Start { .. }
        | ExecFailure::Follow { .. }
        | ExecFailure::Signalled { .. }
        | ExecFailure::Status { .. } => Code::Internal,
    }
}
