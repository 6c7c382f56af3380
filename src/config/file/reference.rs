//! All that can be written into a file, as the readers themselves ask for it.

use serde_json::Map;

use crate::config::file::{
    aws, azure, google, provider, read_top,
    reading::{Asked, Reading},
    section::Section,
    source::Environment,
    store,
};

/// Every key of every section, in the order in which it is asked for. A key that has another default or other variables
/// in another place is there once for each.
#[must_use]
pub fn reference() -> Vec<Asked> {
    let environment = Environment::default();
    let mut reading = Reading::of_everything(&environment);
    read_top(Section::top("The file", Map::new()), &mut reading);
    provider::TYPES.read_each(&mut reading);
    store::TYPES.read_each(&mut reading);
    aws::AUTH.read_each(&mut reading);
    azure::VAULT_AUTH.read_each(&mut reading);
    azure::BLOB_AUTH.read_each(&mut reading);
    google::AUTH.read_each(&mut reading);
    provider::TRANSIT_AUTH.read_each(&mut reading);
    let mut all: Vec<Asked> = Vec::new();
    for asked in reading.asked() {
        let is_same = |other: &Asked| Asked { at: asked.at.clone(), ..other.clone() } == *asked;
        if !all.iter().any(is_same) {
            all.push(asked.clone());
        }
    }
    all
}
