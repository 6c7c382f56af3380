//! A node and a key service as two processes, with mutual TLS between them.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use coffer::proto::csi::ProbeRequest;
use libtest_mimic::Trial;
use testbed::{
    driver::{Driver, Role},
    keyservice::KeyService,
};
use tonic::Code;

use crate::{Bed, COFFER, MIB, expect_status, loops, mappings, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("a_node_gets_its_keys_from_a_key_service_over_mutual_tls", two_processes)]
}

async fn two_processes(mut bed: Bed) -> Result<()> {
    // The driver in one process has made the cluster key; it goes, and two take its place.
    bed.driver.kill();
    let (state, staged) = (bed.path("state"), bed.path("staged"));
    let mut keys = KeyService::start(COFFER, bed.state.path(), &state)?;
    let node = Driver::start_as(COFFER, &state, Role::Node(keys.words())).await?;
    let volume = node.csi.create_filesystem("remote", 32 * MIB, "ext4").await?;
    node.csi.stage_filesystem(&volume, &staged).await?;
    fs::write(staged.join("file"), "kept")?;
    node.csi.unstage(&volume.volume_id, &staged).await?;

    keys.kill();
    // Both look for it for some time before they say that it is away.
    let mut identity = node.csi.identity.clone();
    let (away, probed) = tokio::join!(node.csi.stage_without_keys(&volume, &staged), identity.probe(ProbeRequest {}));
    expect_status(away, Code::Unavailable, &["key"])?;
    ensure!(mappings().is_empty() && loops() == 0, "a stage without a key leaves something open");
    ensure!(probed?.into_inner().ready == Some(false), "ready without a key service");

    keys.start_again()?;
    let mut tries = 0;
    while let Err(status) = node.csi.stage_filesystem(&volume, &staged).await {
        ensure!(status.code() == Code::Unavailable && tries < 100, "{status:?}");
        tries += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(fs::read_to_string(staged.join("file"))? == "kept");
    node.csi.unstage(&volume.volume_id, &staged).await?;
    node.csi.delete(&volume.volume_id).await?;
    let audit = keys.audit();
    for operation in ["create", "release", "begin-format", "mark-ready", "destroy"] {
        let line = format!(r#""operation":"{operation}","result":"ok","who":"node:test-node""#);
        ensure!(audit.contains(&line), "{line} is not in\n{audit}");
    }
    Ok(())
}
