//! `coffer volumes …`

use std::{
    fs,
    io::{self, Write},
    time::Duration,
};

use serde::Serialize;

use crate::{
    admin::{StateDir, answer},
    exec::Deadline,
    key::{
        record::State,
        store::{DekStore, Listed, StoreFailure, filesystem::Filesystem},
    },
    node::header::Layout,
    server::rpc,
    volume::VolumeId,
};

/// Why volumes are not listed.
#[derive(Debug, thiserror::Error)]
pub enum ListFailure {
    /// The store failed.
    #[error("read the key records")]
    Store(#[from] StoreFailure),
    /// Standard output failed.
    #[error("write to standard output")]
    Output(#[from] io::Error),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    volume_id: VolumeId,
    name: String,
    state: State,
    content: String,
    /// None where the volume has no file in the pool.
    bytes: Option<u64>,
    node: Option<String>,
    provider: String,
}

/// `coffer volumes list`: prints the volumes of a state folder, as a table or as JSON.
///
/// # Errors
/// A record cannot be read.
pub async fn list(state_dir: &StateDir, json: bool, out: &mut impl Write) -> Result<(), ListFailure> {
    let rows = rows(state_dir).await?;
    if json {
        return Ok(answer::json(&rows, out)?);
    }
    let head = ["VOLUME", "STATE", "CONTENT", "BYTES", "NODE", "NAME"];
    Ok(answer::table(head, &rows.iter().map(cells).collect::<Vec<_>>(), out)?)
}

fn cells(row: &Row) -> [String; 6] {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        row.volume_id.to_string(),
        row.state.to_string(),
        row.content.clone(),
        or_none(row.bytes.map(|bytes| bytes.to_string())),
        or_none(row.node.clone()),
        row.name.clone(),
    ]
}

async fn rows(state_dir: &StateDir) -> Result<Vec<Row>, ListFailure> {
    if !Filesystem::holds_records(&state_dir.records())? {
        return Ok(Vec::new());
    }
    let store = Filesystem::open(&state_dir.records())?;
    let Listed { records, refused } = store.list(None, usize::MAX, Deadline::within(Duration::from_secs(60))).await?;
    for refused in &refused {
        tracing::error!(error = rpc::message(refused), "left out");
    }
    let live = records.into_iter().filter(|record| record.state != State::Destroyed);
    Ok(live
        .map(|record| {
            let file = record.volume_id.file_name().map(|name| state_dir.volumes().join(name));
            let size = file.and_then(|file| fs::metadata(file).ok()).map(|metadata| metadata.len());
            Row {
                bytes: size.map(|size| size.saturating_sub(Layout::of(&record.parameters).overhead_bytes())),
                content: record.parameters.content.to_string(),
                volume_id: record.volume_id,
                name: record.name,
                state: record.state,
                node: record.node,
                provider: record.provider,
            }
        })
        .collect())
}
