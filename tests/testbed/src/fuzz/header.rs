//! What a disk that others can write to may hold where a volume's header and its finish mark belong.

use std::sync::LazyLock;

use coffer::{
    key::derive::{self, Tag},
    node::header::{
        Header, HeaderFault, Layout, Mark, bears,
        found::{Found, examine},
        used_bytes,
    },
    secret::Dek,
    volume::{Content, FsType, Parameters},
};
use serde_json::Value;
use uuid::Uuid;

/// The UUID of the headers in the corpus.
const LUKS_UUID: Uuid = Uuid::from_u128(0x7a5b_5a0e_3f5c_4c0b_9a34_5d1c_2f0e_8b61);
/// Bytes of a copy of the metadata before its JSON (LUKS2 On-Disk Format Specification 1.1.3, chapter 2).
const BINARY_BYTES: usize = 4096;
const CIPHER: &str = "aes-xts-plain64";

/// The header whose mark the corpus has.
static GOOD: LazyLock<Header> = LazyLock::new(|| {
    let area = area(include_bytes!("../../../fuzz/corpus/header/good-json"));
    Header::adopt(&area, LUKS_UUID, &parameters(), &dek(0x5a)).expect("the corpus has a whole header")
});

/// The start of a device. What is accepted has the UUID that was asked for, is encrypted as it was asked for, and is
/// accepted again; a tag makes no difference but to refuse.
pub fn header(bytes: &[u8]) -> bool {
    let blank = bytes.iter().all(|byte| *byte == 0);
    // A slice of any length can be looked at.
    assert_eq!(examine(bytes) == Found::Zeros, blank, "only what is blank passes for blank");
    let area = area(bytes);
    assert!(!examine(&area).to_string().is_empty(), "what was found has a name");
    let (parameters, dek) = (parameters(), dek(0x5a));
    let ours = bears(&area, LUKS_UUID);
    // What is another's is refused before it is hashed.
    let used = area.get(..used_bytes(&area, &parameters)).expect("a header is never longer than its place");
    let tag = if ours { derive::mac(&derive::header_mac_key(&dek), used) } else { Tag::from_bytes([0; 32]) };
    let adopted = Header::adopt(&area, LUKS_UUID, &parameters, &dek);
    match (adopted, Header::authenticate(&area, LUKS_UUID, &parameters, tag, &dek)) {
        (Ok(adopted), Ok(authenticated)) => {
            assert!(ours, "an accepted header has the UUID that was asked for");
            assert!(adopted.bytes() == used && authenticated.bytes() == used, "the bytes that were checked are kept");
            assert!(adopted.tag() == tag && authenticated.tag() == tag, "the tag is that of the bytes");
            expect_encrypted(&area);
            expect_no_other(&adopted, tag);
            true
        }
        (Err(HeaderFault::Foreign(one)), Err(HeaderFault::Foreign(other))) => {
            assert!(!ours && one == other, "what is foreign has another UUID");
            false
        }
        (Err(HeaderFault::Metadata(one)), Err(HeaderFault::Metadata(other))) => {
            assert!(ours && one == other && !one.is_empty(), "metadata is refused with one reason");
            false
        }
        (adopted, authenticated) => panic!("the right tag changes {adopted:?} to {authenticated:?}"),
    }
}

/// An accepted header is accepted again from its own bytes, and with no other tag and for no other UUID.
fn expect_no_other(header: &Header, tag: Tag) {
    let (parameters, dek) = (parameters(), dek(0x5a));
    let check = |uuid, tag| Header::authenticate(header.bytes(), uuid, &parameters, tag, &dek);
    assert!(check(LUKS_UUID, tag).is_ok_and(|again| again.bytes() == header.bytes()), "it is accepted again");
    let mut other = *tag.as_bytes();
    other[31] ^= 1;
    assert!(matches!(check(LUKS_UUID, Tag::from_bytes(other)), Err(HeaderFault::Tag)), "another tag is refused");
    assert!(matches!(check(Uuid::nil(), tag), Err(HeaderFault::Foreign(_))), "another UUID is refused");
}

/// What an accepted header must say, read in another way than Coffer reads it: the data lies where it should, and both
/// it and the keyslots are encrypted.
fn expect_encrypted(area: &[u8]) {
    let json = &area[BINARY_BYTES..Layout::of(&parameters()).metadata_bytes];
    let end = json.iter().position(|byte| *byte == 0).unwrap_or(json.len());
    let metadata: Value = serde_json::from_str(&String::from_utf8_lossy(&json[..end])).expect("it is JSON");
    let values = |of: &str| -> Vec<Value> {
        metadata[of].as_object().map(|map| map.values().cloned().collect()).unwrap_or_default()
    };
    let (segments, keyslots) = (values("segments"), values("keyslots"));
    assert_eq!(segments.len(), 1);
    assert_eq!(segments[0]["type"], "crypt");
    assert_eq!(segments[0]["encryption"], CIPHER);
    assert_eq!(segments[0]["offset"], "1048576");
    assert_eq!(segments[0]["sector_size"], 4096);
    assert!(segments[0]["integrity"].is_null());
    assert!((1..=3).contains(&keyslots.len()));
    for keyslot in keyslots {
        assert_eq!(keyslot["area"]["encryption"], CIPHER);
        assert_eq!(keyslot["key_size"], 64);
        assert!(keyslot["kdf"]["iterations"].as_u64().is_some_and(|iterations| iterations >= 1000));
    }
    assert_eq!(values("digests").len(), 1);
    assert!(values("tokens").is_empty());
}

/// What lies where the finish mark belongs. Anything but zeros is something, and only the header's own mark under its
/// own key says that a volume is finished.
pub fn mark(bytes: &[u8]) -> bool {
    let (parameters, header) = (parameters(), &*GOOD);
    let layout = Layout::of(&parameters);
    let mut area = vec![0; layout.data_offset];
    let place = &mut area[layout.mark_offset()..];
    let length = bytes.len().min(place.len());
    place[..length].copy_from_slice(&bytes[..length]);
    let mark = Mark::of(&area, &parameters);
    let blank = bytes[..length].iter().all(|byte| *byte == 0);
    assert!(!blank || mark == Mark::Absent, "zeros are no mark");
    assert_eq!(Mark::of(&area[..layout.data_offset - 1], &parameters), Mark::Absent, "half a place holds no mark");
    assert!(!header.is_finished(&mark, &dek(0xa5)), "no mark is that of another key");
    let finished = header.is_finished(&mark, &dek(0x5a));
    assert!(!(finished && blank), "zeros finish nothing");
    finished
}

/// A header's area made of an input: the input and zeros behind it; or, where it begins with `{`, whole metadata around
/// that JSON, so that a change of it reaches both copies.
fn area(bytes: &[u8]) -> Vec<u8> {
    let layout = Layout::of(&parameters());
    let mut area = vec![0; layout.header_bytes()];
    if bytes.first() == Some(&b'{') {
        let json = &bytes[..bytes.len().min(layout.metadata_bytes - BINARY_BYTES)];
        for (magic, offset) in [(b"LUKS\xba\xbe", 0), (b"SKUL\xba\xbe", layout.metadata_bytes)] {
            let copy = &mut area[offset..offset + layout.metadata_bytes];
            copy[..6].copy_from_slice(magic);
            copy[6..8].copy_from_slice(&[0, 2]);
            copy[8..16].copy_from_slice(&(layout.metadata_bytes as u64).to_be_bytes());
            copy[72..78].copy_from_slice(b"sha256");
            copy[168..204].copy_from_slice(LUKS_UUID.to_string().as_bytes());
            copy[256..264].copy_from_slice(&(offset as u64).to_be_bytes());
            copy[BINARY_BYTES..BINARY_BYTES + json.len()].copy_from_slice(json);
        }
    } else {
        let length = bytes.len().min(area.len());
        area[..length].copy_from_slice(&bytes[..length]);
    }
    area
}

fn parameters() -> Parameters {
    Parameters::of(Content::Filesystem(FsType::Ext4))
}

fn dek(byte: u8) -> Dek {
    Dek::born(|dek| dek.fill(byte))
}
