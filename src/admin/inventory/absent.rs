//! What stands in for the reader of pools in a build without node: it reads none, and says so.

use std::path::Path;

use crate::{
    admin::{
        Place,
        inventory::lists::{Looked, Named, PoolFile},
        progress::Progress,
    },
    key::record::Record,
};

/// The files of a pool: nobody looks.
pub(super) async fn list(_: Option<&Path>) -> Looked<Vec<Named>> {
    Looked::Passed("this build has no node, and reads no pool".to_owned())
}

/// What they begin with: nobody knows.
pub(super) async fn look(
    _: &Place,
    names: Looked<Vec<Named>>,
    _: &[Record],
    _: &mut Progress,
) -> Looked<Vec<PoolFile>> {
    match names {
        Looked::At(_) => Looked::At(Vec::new()),
        Looked::Passed(why) => Looked::Passed(why),
        Looked::Failed(why) => Looked::Failed(why),
    }
}
