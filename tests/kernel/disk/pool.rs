//! Pools, and the system's own folders, that are full or read-only.

use anyhow::{Context, Result};
use testbed::dm::{FullTmpfs, SmallFilesystem};
use tonic::Code;

use super::{LONG, closed, read, within, write};
use crate::{Bed, MIB, expect_status};

pub(super) async fn full(mut bed: Bed) -> Result<()> {
    let pool = own_pool(&mut bed).await?;
    let volume = bed.driver.csi.create_filesystem("full", 32 * MIB, "ext4").await?;
    pool.fill(0)?;
    expect_status(within(&bed, &volume, LONG).await, Code::Internal, &["write the header to", "/dev/loop"])?;
    let more = bed.driver.csi.create_filesystem("more", 8 * MIB, "ext4").await;
    expect_status(more, Code::ResourceExhausted, &["available"])?;
    closed(1)?;
    // Room for the header, and not for a file system.
    pool.fill(MIB)?;
    let texts = ["make the file system of", volume.volume_id.as_str(), "mkfs.ext4 ended with status"];
    expect_status(within(&bed, &volume, LONG).await, Code::Internal, &texts)?;
    closed(1)?;
    pool.free()?;
    write(&bed, &volume).await?;
    read(&bed, &volume).await
}

pub(super) async fn read_only(mut bed: Bed) -> Result<()> {
    let pool = own_pool(&mut bed).await?;
    let (csi, staged, fault) = (&bed.driver.csi, bed.path("staged"), "Read-only file system");
    let volume = csi.create_filesystem("kept", 16 * MIB, "ext4").await?;
    let id = volume.volume_id.as_str();
    write(&bed, &volume).await?;
    pool.remount("ro")?;
    expect_status(within(&bed, &volume, LONG).await, Code::Internal, &["attach volume", id, fault])?;
    expect_status(csi.create_filesystem("more", 8 * MIB, "ext4").await, Code::Internal, &["make room for", fault])?;
    expect_status(csi.expand_file(id, 20 * MIB).await, Code::Internal, &["make room for", id, fault])?;
    csi.unstage(id, &staged).await.context("nothing is staged")?;
    closed(1)?;
    pool.remount("rw")?;
    read(&bed, &volume).await?;
    let more = csi.create_filesystem("more", 8 * MIB, "ext4").await?;
    csi.delete(&more.volume_id).await?;
    Ok(csi.delete(id).await?)
}

pub(super) async fn full_tmp_and_run(bed: Bed) -> Result<()> {
    let volume = bed.driver.csi.create_filesystem("elsewhere", 16 * MIB, "ext4").await?;
    let _full = [FullTmpfs::at("/tmp")?, FullTmpfs::at("/run")?];
    write(&bed, &volume).await?;
    read(&bed, &volume).await
}

/// Starts the driver again with its pool on a file system of its own.
async fn own_pool(bed: &mut Bed) -> Result<SmallFilesystem> {
    bed.driver.kill();
    let pool = SmallFilesystem::mount(&bed.path("pool"), 64 * MIB, &bed.path("state/volumes"))?;
    bed.driver.start_again().await?;
    Ok(pool)
}
