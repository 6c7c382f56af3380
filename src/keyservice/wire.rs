//! The key service's types as messages, and back. What a peer sends is parsed like any other input.

use tonic::{Code, Status};

use crate::{
    key::{
        derive::Tag,
        record::State,
        service::{KeyFailure, KeyInfo, Refusal},
    },
    proto::keyservice as message,
};

const STATE: &str = "state is none that this version knows; where the other end is a later one, update this one";
/// Why a volume's parameters cannot be read.
pub const PARAMETERS: &str =
    "parameters_json says what this version does not know; where the other end is a later one, update this one";

/// A message that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(&'static str);

impl From<KeyInfo> for message::KeyInfo {
    fn from(info: KeyInfo) -> Self {
        let state = match info.state {
            State::Prepared => message::State::Prepared,
            State::Formatting => message::State::Formatting,
            State::Ready => message::State::Ready,
            State::Destroyed => message::State::Destroyed,
        };
        Self {
            volume_id: info.volume_id.to_string(),
            generation: info.generation,
            state: state.into(),
            luks_uuid: info.luks_uuid.to_string(),
            parameters_json: serde_json::to_string(&info.parameters).expect("parameters have string keys only"),
            header_mac: info.header_tag.map(|tag| tag.as_bytes().to_vec()).unwrap_or_default(),
            format_attempt: info.format_attempt,
            node: info.node.unwrap_or_default(),
            name: info.name,
            provider: info.provider,
            kek_id: info.kek_id,
        }
    }
}

impl TryFrom<message::KeyInfo> for KeyInfo {
    type Error = Malformed;

    fn try_from(info: message::KeyInfo) -> Result<Self, Malformed> {
        let state = match message::State::try_from(info.state) {
            Ok(message::State::Prepared) => State::Prepared,
            Ok(message::State::Formatting) => State::Formatting,
            Ok(message::State::Ready) => State::Ready,
            Ok(message::State::Destroyed) => State::Destroyed,
            Ok(message::State::Unspecified) | Err(_) => return Err(Malformed(STATE)),
        };
        let header_tag = if info.header_mac.is_empty() { None } else { Some(tag(&info.header_mac)?) };
        Ok(Self {
            volume_id: info.volume_id.parse().map_err(|_| Malformed("volume_id is none"))?,
            name: info.name,
            node: some(info.node),
            generation: info.generation,
            state,
            luks_uuid: info.luks_uuid.parse().map_err(|_| Malformed("luks_uuid is no UUID"))?,
            parameters: serde_json::from_str(&info.parameters_json).map_err(|_| Malformed(PARAMETERS))?,
            format_attempt: info.format_attempt,
            header_tag,
            provider: info.provider,
            kek_id: info.kek_id,
        })
    }
}

/// A tag of 32 bytes.
///
/// # Errors
/// It has another length.
pub fn tag(bytes: &[u8]) -> Result<Tag, Malformed> {
    bytes.try_into().map(Tag::from_bytes).map_err(|_| Malformed("header_mac is not 32 bytes"))
}

/// Empty text means none.
#[must_use]
pub fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

impl From<Status> for KeyFailure {
    fn from(status: Status) -> Self {
        let refusal = match status.code() {
            Code::NotFound => Refusal::Missing,
            Code::AlreadyExists => Refusal::Exists,
            Code::FailedPrecondition => Refusal::State,
            Code::Aborted => Refusal::Busy,
            Code::PermissionDenied | Code::Unauthenticated => Refusal::Denied,
            Code::InvalidArgument => Refusal::Invalid,
            Code::Unavailable | Code::ResourceExhausted => Refusal::Unavailable,
            Code::DeadlineExceeded | Code::Cancelled => Refusal::Deadline,
            // What the transport itself reports: a connection that broke, or could not be made.
            Code::Unknown if std::error::Error::source(&status).is_some() => Refusal::Unavailable,
            Code::Ok | Code::Unknown | Code::OutOfRange | Code::Unimplemented | Code::Internal | Code::DataLoss => {
                Refusal::Fault
            }
        };
        Self::Remote { refusal, message: status.message().to_owned() }
    }
}

impl From<Malformed> for KeyFailure {
    fn from(malformed: Malformed) -> Self {
        Self::Remote { refusal: Refusal::Fault, message: format!("a reply makes no sense: {malformed}") }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::volume::{Content, Parameters};

    #[test]
    fn what_is_sent_is_what_arrives() {
        for (state, header_tag) in [(State::Prepared, None), (State::Ready, Some(Tag::from_bytes([7; 32])))] {
            let info = KeyInfo {
                volume_id: "vol-1".parse().expect("an id"),
                name: "pvc-1".into(),
                node: Some("n1".into()),
                generation: 3,
                state,
                luks_uuid: Uuid::from_u128(5),
                parameters: Parameters::of(Content::Block),
                format_attempt: 2,
                header_tag,
                provider: "cluster".into(),
                kek_id: "cluster-key:v1".into(),
            };
            let sent = message::KeyInfo::from(info.clone());
            assert_eq!(KeyInfo::try_from(sent).expect("well formed"), info);
        }
    }

    #[test]
    fn a_reply_that_makes_no_sense_is_refused() {
        assert!(KeyInfo::try_from(message::KeyInfo::default()).is_err());
    }
}
