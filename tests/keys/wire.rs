//! The key service's wire: what a version has written is read by every later one, and written in the same bytes.
//!
//! `tests/vectors/wire` has a file for each version that added something: its messages as JSON, field by field, and their
//! bytes. What says nothing is not described, as proto3 does not send it: a field that comes later changes none of them.

mod live;
mod raw;
mod scripted;

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
};

use coffer::{
    key::service::KeyInfo,
    proto::keyservice::{self as message, State},
    volume::hex,
};
use message::{
    BeginFormatRequest, BeginFormatResponse, CreateKeyRequest, CreateKeyResponse, DescribeKeyRequest,
    DescribeKeyResponse, DestroyKeyRequest, DestroyKeyResponse, GetKeyRequest, GetKeyResponse, ListKeysRequest,
    ListKeysResponse, MarkReadyRequest, MarkReadyResponse,
};
use prost::Message;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::vectors;

const PROTOCOL: &str = include_str!("../../proto/keyservice/v1/keyservice.proto");

/// A message as some version wrote it.
#[derive(Deserialize, Serialize)]
struct Golden {
    /// What the tests call it.
    name: String,
    /// Which of the protocol's messages it is.
    message: String,
    /// What it says.
    value: Value,
    /// The same on the wire, in hexadecimal digits.
    bytes: String,
}

impl Golden {
    fn bytes(&self) -> Vec<u8> {
        bytes(&self.bytes)
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits");
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// All golden messages, of every version.
fn all() -> Vec<Golden> {
    let read = |entry: io::Result<fs::DirEntry>| -> Vec<Golden> {
        let text = fs::read(entry.expect("an entry").path()).expect("a file");
        serde_json::from_slice(&text).expect("golden messages")
    };
    fs::read_dir(vectors().join("wire")).expect("golden messages").flat_map(read).collect()
}

fn golden(name: &str) -> Golden {
    all().into_iter().find(|golden| golden.name == name).unwrap_or_else(|| panic!("there is no golden {name}"))
}

/// What can be said of a message, or of a field of one, in JSON.
trait Told {
    fn told(self) -> Value;
}

/// Describes messages field by field. All fields are named, so that a new one does not compile before it is described.
macro_rules! told {
    ($($message:ty { $($field:ident),* }),+ $(,)?) => {
        $(impl Told for $message {
            fn told(self) -> Value {
                let Self { $($field),* } = self;
                fields([$((stringify!($field), $field.told())),*])
            }
        })+
    };
}

told! {
    message::KeyInfo {
        volume_id, generation, state, luks_uuid, parameters_json, header_mac, format_attempt, node, name, provider, kek_id
    },
    CreateKeyRequest {
        volume_id, name, parameters_json, node, tenant, provider, context, storage_class, claim, key_id
    },
    CreateKeyResponse { info },
    GetKeyRequest { volume_id, public_key },
    GetKeyResponse { info, encapsulated_key, sealed_dek },
    DescribeKeyRequest { volume_id },
    DescribeKeyResponse { info },
    BeginFormatRequest { volume_id, generation },
    BeginFormatResponse { info },
    MarkReadyRequest { volume_id, generation, format_attempt, header_mac },
    MarkReadyResponse { info },
    DestroyKeyRequest { volume_id, generation },
    DestroyKeyResponse {},
    ListKeysRequest { after, limit },
    ListKeysResponse { infos, next },
}

/// The fields of a message that say something.
fn fields<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let nothing = [Value::Null, json!(""), json!(0), json!([]), json!({})];
    fields.into_iter().filter(|(_, value)| !nothing.contains(value)).collect()
}

impl Told for String {
    fn told(self) -> Value {
        json!(self)
    }
}

impl Told for u32 {
    fn told(self) -> Value {
        json!(self)
    }
}

/// The protocol's only enumeration.
impl Told for i32 {
    fn told(self) -> Value {
        match State::try_from(self) {
            Ok(State::Unspecified) => json!(0),
            Ok(state) => json!(state.as_str_name()),
            Err(_) => json!(self),
        }
    }
}

impl Told for Vec<u8> {
    fn told(self) -> Value {
        json!(hex(&self))
    }
}

impl Told for HashMap<String, String> {
    fn told(self) -> Value {
        json!(self)
    }
}

impl Told for Option<message::KeyInfo> {
    fn told(self) -> Value {
        self.map_or(Value::Null, Told::told)
    }
}

impl Told for Vec<message::KeyInfo> {
    fn told(self) -> Value {
        self.into_iter().map(Told::told).collect()
    }
}

/// What a message says, and its bytes as this version writes them.
fn read(name: &str, bytes: &[u8]) -> (Value, Vec<u8>) {
    match name {
        "CreateKeyRequest" => reread::<CreateKeyRequest>(bytes),
        "CreateKeyResponse" => reread::<CreateKeyResponse>(bytes),
        "GetKeyRequest" => reread::<GetKeyRequest>(bytes),
        "GetKeyResponse" => reread::<GetKeyResponse>(bytes),
        "DescribeKeyRequest" => reread::<DescribeKeyRequest>(bytes),
        "DescribeKeyResponse" => reread::<DescribeKeyResponse>(bytes),
        "BeginFormatRequest" => reread::<BeginFormatRequest>(bytes),
        "BeginFormatResponse" => reread::<BeginFormatResponse>(bytes),
        "MarkReadyRequest" => reread::<MarkReadyRequest>(bytes),
        "MarkReadyResponse" => reread::<MarkReadyResponse>(bytes),
        "DestroyKeyRequest" => reread::<DestroyKeyRequest>(bytes),
        "DestroyKeyResponse" => reread::<DestroyKeyResponse>(bytes),
        "ListKeysRequest" => reread::<ListKeysRequest>(bytes),
        "ListKeysResponse" => reread::<ListKeysResponse>(bytes),
        other => panic!("the protocol has no {other}"),
    }
}

fn reread<M: Message + Default + Told>(bytes: &[u8]) -> (Value, Vec<u8>) {
    let message = M::decode(bytes).expect("it is a message");
    let written = message.encode_to_vec();
    (message.told(), written)
}

/// Fields 1000 to 1003, which no version has yet, one of each wire type.
const LATER: &[u8] = b"\xc0\x3e\x07\xca\x3e\x05later\xd1\x3e12345678\xdd\x3e1234";

/// A message as a later version may send it: with more fields, also in the first `KeyInfo` of an answer, which is the
/// first field of every answer that has one.
fn newer(name: &str, bytes: &[u8]) -> Vec<u8> {
    // The key of field 1, whose length follows.
    const INFO: u8 = 0x0a;
    let (mut rest, mut newer) = (bytes, Vec::new());
    if name.ends_with("Response") && rest.first() == Some(&INFO) {
        rest = &rest[1..];
        let length = prost::decode_length_delimiter(&mut rest).expect("a length");
        let (info, behind) = rest.split_at(length);
        newer.push(INFO);
        prost::encode_length_delimiter(length + LATER.len(), &mut newer).expect("there is room");
        newer.extend([info, LATER].concat());
        rest = behind;
    }
    newer.extend([rest, LATER].concat());
    newer
}

/// A message as it is.
fn same(_: &str, bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

#[test]
fn golden_messages_are_read_and_written_as_they_were() {
    let (mut names, mut messages) = (BTreeSet::new(), BTreeSet::new());
    for golden in all() {
        let (value, written) = read(&golden.message, &golden.bytes());
        assert_eq!(value, golden.value, "{}", golden.name);
        assert_eq!(hex(&written), golden.bytes, "{}", golden.name);
        let (value, _) = read(&golden.message, &newer(&golden.message, &golden.bytes()));
        assert_eq!(value, golden.value, "{} with fields of a later version", golden.name);
        assert!(names.insert(golden.name.clone()), "{} is there twice", golden.name);
        messages.insert(golden.message);
    }
    let declared = |keyword: &'static str| {
        PROTOCOL.lines().filter_map(move |line| line.trim().strip_prefix(keyword)?.split(' ').next())
    };
    for message in declared("message ").filter(|message| *message != "KeyInfo") {
        assert!(messages.contains(message), "there is no golden {message}: tests/keys/wire/live.rs makes them");
    }
    let values: Vec<_> = all().into_iter().map(|golden| golden.value.to_string()).collect();
    for state in declared("STATE_").filter(|state| *state != "UNSPECIFIED") {
        let state = format!("STATE_{state}");
        assert!(values.iter().any(|value| value.contains(&state)), "no golden message has {state}");
    }
}

/// What a finished volume's record says.
fn ready() -> message::KeyInfo {
    let answer = MarkReadyResponse::decode(golden("mark-ready-response").bytes().as_slice()).expect("golden");
    answer.info.expect("it has one")
}

/// A change to what a record says.
type Change = fn(&mut message::KeyInfo);

#[test]
fn what_only_a_later_version_knows_is_refused_in_words() {
    let (state, parameters) =
        ("state is none that this version knows", "parameters_json says what this version does not");
    let changes: [(&str, Change); 7] = [
        (state, |info| info.state = 5),
        (state, |info| info.state = -1),
        (parameters, |info| info.parameters_json = info.parameters_json.replace("aes-xts", "aes-gcm")),
        (parameters, |info| info.parameters_json = info.parameters_json.replace("ext4", "bcachefs")),
        (parameters, |info| info.parameters_json = info.parameters_json.replace('}', r#","later":1}"#)),
        ("luks_uuid is no UUID", |info| info.luks_uuid = "later".to_owned()),
        ("header_mac is not 32 bytes", |info| info.header_mac.push(0)),
    ];
    KeyInfo::try_from(ready()).expect("well formed");
    for (words, change) in changes {
        let mut info = ready();
        change(&mut info);
        let refused = KeyInfo::try_from(info).expect_err(words).to_string();
        assert!(refused.starts_with(words), "{refused:?} is not {words:?}");
    }
}

#[test]
fn what_an_earlier_version_does_not_send_is_none_or_is_asked_for() {
    let needless: [(&str, Change); 5] = [
        ("node", |info| info.node.clear()),
        ("name", |info| info.name.clear()),
        ("provider", |info| info.provider.clear()),
        ("kek_id", |info| info.kek_id.clear()),
        ("header_mac", |info| info.header_mac.clear()),
    ];
    for (field, change) in needless {
        let mut info = ready();
        change(&mut info);
        let read = KeyInfo::try_from(info).expect(field);
        let is_none = match field {
            "node" => read.node.is_none(),
            "header_mac" => read.header_tag.is_none(),
            _ => [read.name, read.provider, read.kek_id].iter().any(String::is_empty),
        };
        assert!(is_none, "{field} was made up");
    }
    let needed: [(&str, Change); 4] = [
        ("volume_id", |info| info.volume_id.clear()),
        ("state", |info| info.state = 0),
        ("luks_uuid", |info| info.luks_uuid.clear()),
        ("parameters_json", |info| info.parameters_json.clear()),
    ];
    for (field, change) in needed {
        let mut info = ready();
        change(&mut info);
        let refused = KeyInfo::try_from(info).expect_err(field).to_string();
        assert!(refused.contains(field), "{refused:?} does not name {field}");
    }
}
