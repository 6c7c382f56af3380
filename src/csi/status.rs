//! Which gRPC code each failure has. The matches are whole: a new failure does not compile until it has a code.

use tonic::{Code, Status};

use crate::{
    csi::request::Invalid,
    exec::ExecFailure,
    key::service::KeyFailure,
    node::{
        failure::NodeFailure,
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
        let code = match &failure {
            PoolFailure::Full { .. } => Code::ResourceExhausted,
            PoolFailure::InUse { .. } => Code::FailedPrecondition,
            PoolFailure::Source(source) => source_code(source),
        };
        Self::new(code, rpc::message(&failure))
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
