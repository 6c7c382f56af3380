//! What a DEK is bound to, and the one encoding of it.
//!
//! `fields(label, f1, f2, …) = u32(len(label)) ‖ label ‖ u32(len(f1)) ‖ f1 ‖ …`, lengths in big-endian order. Every
//! field carries its length, so no two different lists of fields have one encoding.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::volume::VolumeId;

/// Label of the associated data under which a DEK is wrapped.
const AAD_LABEL: &str = "coffer/v1/dek-aad";

/// The identity of one key of one volume. A DEK wrapped or derived for it opens for nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding<'a> {
    /// The installation of Coffer.
    pub cluster_id: Uuid,
    /// The volume.
    pub volume_id: &'a VolumeId,
    /// Which of the volume id's keys this is, from 1.
    pub generation: u32,
    /// The UUID of its LUKS header.
    pub luks_uuid: Uuid,
    /// What the class adds. Not secret.
    pub context: &'a BTreeMap<String, String>,
}

impl Binding<'_> {
    /// The associated data (AAD) of every AEAD over this key.
    #[must_use]
    pub fn aad(&self) -> Vec<u8> {
        self.fields(AAD_LABEL).bytes()
    }

    /// The binding's fields behind a label.
    #[must_use]
    pub fn fields(&self, label: &str) -> Fields {
        Fields::new(label)
            .field(self.cluster_id.as_bytes())
            .field(self.volume_id.as_str())
            .field(self.generation.to_be_bytes())
            .field(self.luks_uuid.as_bytes())
            .map(self.context)
    }
}

/// A list of byte strings behind a label, each with its length.
#[derive(Clone, Debug)]
pub struct Fields(Vec<u8>);

impl Fields {
    /// A list that holds only its label.
    #[must_use]
    pub fn new(label: &str) -> Self {
        Self(Vec::new()).field(label)
    }

    /// Adds one field.
    #[must_use]
    pub fn field(mut self, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        let length = u32::try_from(bytes.len()).expect("a field is shorter than 4 GiB");
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    /// Adds a map: the number of its entries, then each key and value in the order of the keys.
    #[must_use]
    pub fn map(self, map: &BTreeMap<String, String>) -> Self {
        let count = u32::try_from(map.len()).expect("a map has fewer than 2^32 entries");
        map.iter().fold(self.field(count.to_be_bytes()), |fields, (key, value)| fields.field(key).field(value))
    }

    /// Adds a list: the number of its entries, then each.
    #[must_use]
    pub fn list(self, list: &[String]) -> Self {
        let count = u32::try_from(list.len()).expect("a list has fewer than 2^32 entries");
        list.iter().fold(self.field(count.to_be_bytes()), Self::field)
    }

    /// Adds a field that may be absent: absent and empty differ.
    #[must_use]
    pub fn optional(self, bytes: Option<impl AsRef<[u8]>>) -> Self {
        match bytes {
            None => self.field([0]),
            Some(bytes) => self.field([1]).field(bytes),
        }
    }

    /// The encoding.
    #[must_use]
    pub fn bytes(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::hex;

    #[test]
    fn the_associated_data_never_changes() {
        let volume_id = "vol-1".parse().expect("an id");
        let context = BTreeMap::from([("team".to_owned(), "blue".to_owned())]);
        let binding = Binding {
            cluster_id: Uuid::from_u128(1),
            volume_id: &volume_id,
            generation: 2,
            luks_uuid: Uuid::from_u128(3),
            context: &context,
        };
        assert_eq!(
            hex(&binding.aad()),
            [
                "00000011",
                "636f666665722f76312f64656b2d616164", // coffer/v1/dek-aad
                "00000010",
                "00000000000000000000000000000001", // the cluster
                "00000005",
                "766f6c2d31", // vol-1
                "00000004",
                "00000002", // the generation
                "00000010",
                "00000000000000000000000000000003", // the LUKS UUID
                "00000004",
                "00000001", // one entry
                "00000004",
                "7465616d", // team
                "00000004",
                "626c7565", // blue
            ]
            .concat()
        );
    }

    #[test]
    fn moving_a_byte_between_fields_changes_the_encoding() {
        let encode = |a: &str, b: &str| Fields::new("l").field(a).field(b).bytes();
        assert_ne!(encode("ab", "c"), encode("a", "bc"));
        assert_ne!(Fields::new("l").optional(None::<&str>).bytes(), Fields::new("l").optional(Some("")).bytes());
    }
}
