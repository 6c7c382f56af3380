//! `coffer volumes …`

use std::{fs, io, io::Write, time::Duration};

use serde::Serialize;

use crate::{
    admin::StateDir,
    exec::Deadline,
    key::{
        record::State,
        store::{DekStore, StoreFailure, filesystem::Filesystem},
    },
    node::header::Layout,
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
        serde_json::to_writer_pretty(&mut *out, &rows).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    let line = |cells: [&str; 6]| {
        let [id, state, content, size, node, name] = cells;
        format!("{id:<36}  {state:<10}  {content:<7}  {size:>14}  {node:<16}  {name}")
    };
    writeln!(out, "{}", line(["VOLUME", "STATE", "CONTENT", "BYTES", "NODE", "NAME"]))?;
    for row in &rows {
        let (state, size) = (row.state.to_string(), row.bytes.map_or("-".to_owned(), |bytes| bytes.to_string()));
        let node = row.node.as_deref().unwrap_or("-");
        writeln!(out, "{}", line([row.volume_id.as_str(), &state, &row.content, &size, node, &row.name]))?;
    }
    Ok(())
}

async fn rows(state_dir: &StateDir) -> Result<Vec<Row>, ListFailure> {
    if !Filesystem::holds_records(&state_dir.records())? {
        return Ok(Vec::new());
    }
    let store = Filesystem::open(&state_dir.records())?;
    let records = store.list(None, usize::MAX, Deadline::within(Duration::from_secs(60))).await?;
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
