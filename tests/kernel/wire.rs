//! A node and a key service as two processes, with mutual TLS between them.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
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
    let mut request = tonic::Request::new(testbed::csi::stage(
        &volume,
        &staged,
        testbed::csi::filesystem("", coffer::proto::csi::volume_capability::access_mode::Mode::SingleNodeWriter),
    ));
    request.set_timeout(Duration::from_secs(20));
    let away = node.csi.node.clone().node_stage_volume(request).await;
    expect_status(away, Code::Unavailable, &["key"])?;
    ensure!(mappings().is_empty() && loops() == 0, "a stage without a key leaves something open");
    let probed = node.csi.identity.clone().probe(coffer::proto::csi::ProbeRequest {}).await?.into_inner();
    ensure!(probed.ready == Some(false), "ready without a key service");

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
