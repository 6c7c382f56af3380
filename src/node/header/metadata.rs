//! The metadata of a LUKS2 header, held against a list of what Coffer writes: one segment, one to three keyslots, one
//! digest, no tokens. What is not on the list is refused, be it harmless or not (CVE-2025-59054, CVE-2025-58356: a
//! header with an empty cipher that any key opens).

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use serde::{Deserialize, de::IgnoredAny};
use uuid::Uuid;

use crate::{
    key::record::Base64,
    node::header::{
        ITERATIONS, Layout, METADATA_BYTES,
        found::{FIRST_MAGIC, SECOND_MAGIC, is_zero, text},
    },
    volume::{Cipher, Integrity, Parameters},
};

/// How often a keyslot's key is split (LUKS2 On-Disk Format Specification, chapter 3.2).
const STRIPES: u32 = 4000;
/// Keyslots' areas are multiples of this many bytes.
const AREA_BYTES: usize = 4096;
/// Bytes of a copy before its JSON area.
const BINARY_BYTES: usize = 4096;

/// Where the keyslots that the metadata names end, in bytes from the start of the device; none where it names none that
/// Coffer could have made. Nothing of it is believed: it says how much of the header is to be authenticated.
pub(super) fn used_bytes(header: &[u8], layout: Layout) -> Option<usize> {
    let metadata: Metadata = serde_json::from_str(&text(header.get(BINARY_BYTES..METADATA_BYTES)?)).ok()?;
    let ends = metadata.keyslots.values().map(|keyslot| Some(keyslot.area.place(layout)?.end));
    ends.collect::<Option<Vec<_>>>()?.into_iter().max()
}

/// Checks both copies of the metadata against what Coffer writes. What is not on the list is refused.
pub(super) fn check(header: &[u8], luks_uuid: Uuid, parameters: &Parameters) -> Result<(), String> {
    let refuse = |finding: &str| Err(finding.to_owned());
    let (first, second) = (&header[..METADATA_BYTES], &header[METADATA_BYTES..2 * METADATA_BYTES]);
    for (copy, magic, offset) in [(first, FIRST_MAGIC, 0_u64), (second, SECOND_MAGIC, METADATA_BYTES as u64)] {
        // Big-endian numbers: version at 6, size at 8, own offset at 256 (chapter 2.1).
        if !copy.starts_with(magic) || copy[6..8] != [0, 2] {
            return refuse("a copy of it does not begin with the magic number of its place");
        }
        if copy[8..16] != (METADATA_BYTES as u64).to_be_bytes() || copy[256..264] != offset.to_be_bytes() {
            return refuse("a copy of it has another size or place");
        }
        if text(&copy[168..208]) != luks_uuid.to_string() {
            return refuse("a copy of it has another UUID");
        }
        if text(&copy[72..104]) != "sha256" {
            return refuse("its checksum is not SHA-256");
        }
        // Label at 24, subsystem at 208: Coffer gives none.
        if !is_zero(&copy[24..72]) || !is_zero(&copy[208..256]) {
            return refuse("a copy of it has a label or a subsystem");
        }
    }
    if first[BINARY_BYTES..] != second[BINARY_BYTES..] {
        return refuse("its two copies differ");
    }
    let json = text(&first[BINARY_BYTES..]);
    let metadata: Metadata = serde_json::from_str(&json).map_err(|error| error.to_string())?;
    metadata.check(parameters).or_else(refuse)
}

/// The JSON area (chapter 3), with the fields that Coffer's headers have and no others.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    keyslots: BTreeMap<u8, Keyslot>,
    tokens: BTreeMap<String, IgnoredAny>,
    segments: BTreeMap<u8, Segment>,
    digests: BTreeMap<u8, Digest>,
    config: Config,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keyslot {
    r#type: String,
    key_size: u32,
    af: AntiForensic,
    area: Area,
    kdf: Kdf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AntiForensic {
    r#type: String,
    stripes: u32,
    hash: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Area {
    r#type: String,
    offset: String,
    size: String,
    encryption: String,
    key_size: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kdf {
    r#type: String,
    hash: String,
    iterations: u32,
    salt: Base64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Segment {
    r#type: String,
    offset: String,
    size: String,
    iv_tweak: String,
    encryption: String,
    sector_size: u32,
    integrity: Option<SegmentIntegrity>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SegmentIntegrity {
    r#type: String,
    journal_encryption: String,
    journal_integrity: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Digest {
    r#type: String,
    keyslots: Vec<String>,
    segments: Vec<String>,
    hash: String,
    iterations: u32,
    salt: Base64,
    digest: Base64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    json_size: String,
    keyslots_size: String,
}

impl Metadata {
    fn check(&self, parameters: &Parameters) -> Result<(), &'static str> {
        let layout = Layout::of(parameters);
        let cipher = match parameters.cipher {
            Cipher::AesXtsPlain64 => "aes-xts-plain64",
        };
        let key_bytes = match parameters.integrity {
            Integrity::None => 64,
            Integrity::HmacSha256 => 96,
        };
        if self.config.json_size != (layout.metadata_bytes - BINARY_BYTES).to_string()
            || self.config.keyslots_size != layout.keyslots_bytes.to_string()
        {
            return Err("its areas have other sizes");
        }
        if !self.tokens.is_empty() {
            return Err("it holds a token");
        }
        let [(0, segment)] = self.segments.iter().collect::<Vec<_>>()[..] else {
            return Err("it does not have exactly one segment");
        };
        if segment.r#type != "crypt" || segment.encryption != cipher || segment.iv_tweak != "0" {
            return Err("its segment is encrypted in another way");
        }
        if segment.offset != layout.data_offset.to_string() || segment.size != "dynamic" {
            return Err("its segment lies elsewhere");
        }
        if segment.sector_size != parameters.sector_size.bytes() {
            return Err("its segment has another sector size");
        }
        match (parameters.integrity, &segment.integrity) {
            (Integrity::None, None) => {}
            (Integrity::HmacSha256, Some(integrity))
                if integrity.r#type == "hmac(sha256)"
                    && integrity.journal_encryption == "none"
                    && integrity.journal_integrity == "none" => {}
            (Integrity::None, Some(_)) => return Err("it has integrity that the record does not ask for"),
            (Integrity::HmacSha256, _) => return Err("it lacks the integrity that the record asks for"),
        }
        if self.keyslots.is_empty() || self.keyslots.len() > 3 {
            return Err("it does not have one to three keyslots");
        }
        self.keyslots.values().try_for_each(|keyslot| keyslot.check(layout, key_bytes))?;
        let places: BTreeSet<_> = self.keyslots.values().map(|keyslot| keyslot.area.offset.as_str()).collect();
        if places.len() != self.keyslots.len() {
            return Err("two keyslots lie at one place");
        }
        let [(0, digest)] = self.digests.iter().collect::<Vec<_>>()[..] else {
            return Err("it does not have exactly one digest");
        };
        let keyslots: Vec<_> = self.keyslots.keys().map(u8::to_string).collect();
        if digest.r#type != "pbkdf2" || digest.hash != "sha256" || digest.iterations != ITERATIONS {
            return Err("its digest is of another kind");
        }
        // cryptsetup takes a digest of another length for one that matches every key.
        if digest.salt.exactly::<32>().is_none() || digest.digest.exactly::<32>().is_none() {
            return Err("its digest is of another length");
        }
        if digest.keyslots != keyslots || digest.segments != ["0"] {
            return Err("its digest is for other keyslots or segments");
        }
        Ok(())
    }
}

impl Area {
    /// Where it lies on the device, if that is where keyslots lie.
    fn place(&self, layout: Layout) -> Option<Range<usize>> {
        // In digits alone: "+1" is a number to Rust.
        let number = |text: &str| text.parse::<usize>().ok().filter(|number| number.to_string() == text);
        let (start, size) = (number(&self.offset)?, number(&self.size)?);
        let place = start..start.checked_add(size)?;
        (place.start >= 2 * layout.metadata_bytes && place.end <= layout.header_bytes()).then_some(place)
    }
}

impl Keyslot {
    fn check(&self, layout: Layout, key_bytes: u32) -> Result<(), &'static str> {
        if self.r#type != "luks2" || self.key_size != key_bytes {
            return Err("a keyslot is of another kind or size");
        }
        if self.af.r#type != "luks1" || self.af.stripes != STRIPES || self.af.hash != "sha256" {
            return Err("a keyslot is split in another way");
        }
        if self.area.r#type != "raw" || self.area.encryption != "aes-xts-plain64" || self.area.key_size != 64 {
            return Err("a keyslot is encrypted in another way");
        }
        let Some(place) = self.area.place(layout) else { return Err("a keyslot lies outside the header") };
        // Keyslots of one size, side by side: no two can lie on each other without lying at one place.
        let bytes = (key_bytes as usize * STRIPES as usize).next_multiple_of(AREA_BYTES);
        if place.len() != bytes || !(place.start - 2 * layout.metadata_bytes).is_multiple_of(bytes) {
            return Err("a keyslot has another size or place");
        }
        if self.kdf.r#type != "pbkdf2" || self.kdf.hash != "sha256" || self.kdf.iterations != ITERATIONS {
            return Err("a keyslot has another key derivation");
        }
        if self.kdf.salt.exactly::<32>().is_none() {
            return Err("a keyslot has a salt of another length");
        }
        Ok(())
    }
}
