//! A device that does not hold what its record says is refused, and not one byte of it changes.

use std::{fs, os::unix::fs::FileExt, path::Path};

use anyhow::{Context, Result, ensure};
use coffer::{
    key::{
        cluster::ClusterKeys,
        derive,
        record::{Record, State, StoredKey},
    },
    proto::csi::Volume,
    secret::Dek,
};
use libtest_mimic::Trial;
use testbed::driver::Driver;
use tonic::Code;

use crate::{Bed, MIB, expect_status, loops, mappings, run, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_finished_volume_on_other_bytes_is_refused_and_opens_when_they_are_back", other_bytes),
        trial("a_new_volume_takes_only_a_blank_device", not_blank),
        trial("a_finished_volume_whose_record_came_back_from_a_backup_is_kept", old_record),
        trial("an_edited_record_is_refused", edited_record),
        trial("a_volume_whose_file_is_gone_is_not_made_again", file_gone),
        trial("what_cannot_be_had_is_refused_when_a_volume_is_created", not_to_be_had),
    ]
}

/// The DEK of a volume, derived here a second time from the files of a state folder.
pub(crate) fn dek(driver: &Driver, volume_id: &str) -> Result<Dek> {
    let keys = ClusterKeys::load(&driver.state_dir().join("cluster-key.json"))?;
    let record = Record::from_bytes(&fs::read(driver.record(volume_id))?)?;
    let Some(StoredKey::Derived { cluster_key_version, salt, .. }) = &record.key else {
        anyhow::bail!("the key is not derived");
    };
    let key = &keys.version(*cluster_key_version).context("the version is there")?.key;
    Ok(derive::volume_dek(key, &salt.exactly().context("32 bytes")?, &record.binding()))
}

pub(crate) async fn finished(bed: &Bed, name: &str) -> Result<Volume> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let volume = csi.create_filesystem(name, 32 * MIB, "ext4").await?;
    csi.stage_filesystem(&volume, &staged).await?;
    fs::write(staged.join("file"), name)?;
    csi.unstage(&volume.volume_id, &staged).await?;
    Ok(volume)
}

/// Opens the volume and finds its file.
pub(crate) async fn opens(bed: &Bed, volume: &Volume, name: &str) -> Result<()> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    csi.stage_filesystem(volume, &staged).await?;
    ensure!(fs::read_to_string(staged.join("file"))? == name, "the file is another");
    Ok(csi.unstage(&volume.volume_id, &staged).await?)
}

async fn refused(bed: &Bed, volume: &Volume, texts: &[&str]) -> Result<()> {
    let file = bed.driver.file(&volume.volume_id);
    let before = fs::read(&file)?;
    let answer = bed.driver.csi.stage_filesystem(volume, &bed.path("staged")).await;
    expect_status(answer, Code::FailedPrecondition, texts)?;
    ensure!(fs::read(&file)? == before, "the device was changed");
    ensure!(mappings().is_empty() && loops() == 0, "something stays open");
    Ok(())
}

async fn other_bytes(bed: Bed) -> Result<()> {
    let (volume, other) = (finished(&bed, "one").await?, finished(&bed, "two").await?);
    let (file, other_file) = (bed.driver.file(&volume.volume_id), bed.driver.file(&other.volume_id));
    let whole = fs::read(&file)?;
    let id = volume.volume_id.as_str();
    let length = usize::try_from(33 * MIB)?;

    fs::write(&file, vec![0; length])?;
    refused(&bed, &volume, &[id, "nothing but zeros", "put its bytes back"]).await?;

    let noise: Vec<u8> =
        (0..length).map(|at| (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7]).collect();
    fs::write(&file, noise)?;
    refused(&bed, &volume, &[id, "bytes that are no LUKS header"]).await?;

    fs::copy(&other_file, &file)?;
    refused(&bed, &volume, &[id, "a LUKS2 header with UUID"]).await?;

    fs::write(&file, vec![0; length])?;
    run("mkfs.ext4", &["-q", "-F", &file.display().to_string()])?;
    refused(&bed, &volume, &[id, "ext4"]).await?;

    fs::write(&file, &whole[..4096])?;
    refused(&bed, &volume, &[id, "4096 bytes", "Attach the right device"]).await?;

    // One bit in the metadata, in the second copy, in a keyslot.
    for offset in [5000_usize, 20_000, 40_000, 280_000] {
        let mut changed = whole.clone();
        changed[offset] ^= 1;
        fs::write(&file, changed)?;
        refused(&bed, &volume, &[id, "changed since Coffer wrote it"]).await?;
    }

    fs::rename(&file, bed.path("away"))?;
    let gone = bed.driver.csi.stage_filesystem(&volume, &bed.path("staged")).await;
    expect_status(gone, Code::NotFound, &[id])?;
    ensure!(!file.exists(), "the file was made again");

    fs::write(&file, whole)?;
    opens(&bed, &volume, "one").await?;
    opens(&bed, &other, "two").await
}

async fn not_blank(bed: Bed) -> Result<()> {
    let check = async |name: &str, offset: u64, bytes: &[u8], texts: &[&str]| {
        let volume = bed.driver.csi.create_filesystem(name, 32 * MIB, "ext4").await?;
        let file = fs::OpenOptions::new().write(true).open(bed.driver.file(&volume.volume_id))?;
        file.write_all_at(bytes, offset)?;
        refused(&bed, &volume, texts).await.with_context(|| name.to_owned())?;
        // Blank again, it is taken.
        file.write_all_at(&vec![0; bytes.len()], offset)?;
        bed.driver.csi.stage_filesystem(&volume, &bed.path("staged")).await?;
        anyhow::Ok(bed.driver.csi.unstage(&volume.volume_id, &bed.path("staged")).await?)
    };
    check("start", 0, b"something", &["new volume", "wipe the device"]).await?;
    check("xfs", 0, b"XFSB", &["XFS"]).await?;
    check("behind the header", 3 * MIB, b"x", &["new volume"]).await?;
    check("end", 33 * MIB - 512, b"EFI PART", &["last MiB"]).await
}

/// Writes a record as it was at an earlier state, authentic in every field.
pub(crate) fn turn_back(driver: &Driver, volume_id: &str, state: State) -> Result<()> {
    let path = driver.record(volume_id);
    let mut record = Record::from_bytes(&fs::read(&path)?)?;
    record.state = state;
    record.header_mac = None;
    record.format_attempt = u32::from(state == State::Formatting);
    record.authenticate(&dek(driver, volume_id)?);
    Ok(fs::write(path, record.to_bytes())?)
}

async fn old_record(bed: Bed) -> Result<()> {
    let volume = finished(&bed, "kept").await?;
    for state in [State::Prepared, State::Formatting] {
        turn_back(&bed.driver, &volume.volume_id, state)?;
        opens(&bed, &volume, "kept").await.with_context(|| format!("{state}"))?;
        let record = Record::from_bytes(&fs::read(bed.driver.record(&volume.volume_id))?)?;
        ensure!(record.state == State::Ready, "{record:?}");
    }
    ensure!(bed.driver.log().contains("finished: it is kept"), "{}", bed.driver.log());

    // Its header damaged under such a record: neither the header nor what is inside is made again, nor the record moved.
    let (file, record) = (bed.driver.file(&volume.volume_id), bed.driver.record(&volume.volume_id));
    turn_back(&bed.driver, &volume.volume_id, State::Prepared)?;
    let (whole, before) = (fs::read(&file)?, fs::read(&record)?);
    // A byte of the metadata, all of its first copy's start, and a byte of the finish mark (4 KiB before the data).
    for range in [4200..4201, 0..4096, (1 << 20) - 4076..(1 << 20) - 4075] {
        let mut damaged = whole.clone();
        damaged[range].iter_mut().for_each(|byte| *byte = !*byte);
        fs::write(&file, damaged)?;
        refused(&bed, &volume, &[&volume.volume_id, "finished once", "damaged"]).await?;
        ensure!(fs::read(&record)? == before, "the record was moved");
    }
    fs::write(&file, whole)?;
    opens(&bed, &volume, "kept").await
}

async fn edited_record(bed: Bed) -> Result<()> {
    let volume = finished(&bed, "edited").await?;
    let path = bed.driver.record(&volume.volume_id);
    let whole = fs::read_to_string(&path)?;
    let stage = async || bed.driver.csi.stage_filesystem(&volume, &bed.path("staged")).await;
    for (from, to) in [
        (r#""state": "ready""#, r#""state": "formatting""#),
        (r#""sectorSize": 4096"#, r#""sectorSize": 512"#),
        (r#""generation": 1"#, r#""generation": 2"#),
        (r#""node": "test-node""#, r#""node": "other-node""#),
        ("\n}\n", "\n}"),
        ("{", "["),
    ] {
        ensure!(whole.contains(from), "{from} is not in {whole}");
        fs::write(&path, whole.replacen(from, to, 1))?;
        expect_status(stage().await, Code::FailedPrecondition, &[&volume.volume_id, "refused"])
            .with_context(|| format!("{from} → {to}"))?;
    }
    fs::write(&path, "")?;
    expect_status(stage().await, Code::FailedPrecondition, &["no whole record"])?;
    fs::write(&path, whole)?;
    opens(&bed, &volume, "edited").await
}

async fn file_gone(bed: Bed) -> Result<()> {
    let volume = finished(&bed, "gone").await?;
    fs::remove_file(bed.driver.file(&volume.volume_id))?;
    let again = bed.driver.csi.create_filesystem("gone", 32 * MIB, "ext4").await;
    expect_status(again, Code::FailedPrecondition, &["its file in the pool is gone"])?;
    ensure!(!bed.driver.file(&volume.volume_id).exists());
    Ok(())
}

async fn not_to_be_had(bed: Bed) -> Result<()> {
    let csi = &bed.driver.csi;
    let with = async |key: &str, value: &str| {
        let capability = testbed::csi::filesystem("", Default::default());
        let mut request = testbed::csi::new_volume("refused", 32 * MIB, capability);
        request.volume_capabilities[0].access_mode.as_mut().expect("it has one").mode = 1;
        request.parameters.insert(key.to_owned(), value.to_owned());
        csi.create(request).await
    };
    expect_status(with("integrity", "hmac-sha256").await, Code::InvalidArgument, &["written full"])?;
    expect_status(with("encryption", "none").await, Code::InvalidArgument, &["policy"])?;
    expect_status(with("sectorsize", "512").await, Code::InvalidArgument, &["did you mean sectorSize"])?;
    expect_status(with("provider", "aws").await, Code::InvalidArgument, &["not configured", "cluster"])?;
    expect_status(csi.create_filesystem("huge", 1 << 50, "ext4").await, Code::ResourceExhausted, &["available"])?;
    let small = csi.create_filesystem("small", 1, "xfs").await?;
    ensure!(small.capacity_bytes.unsigned_abs() == 300 * MIB, "{small:?}");
    expect_status(csi.expand_file(&small.volume_id, 1 << 50).await, Code::OutOfRange, &["available"])?;
    expect_status(csi.create_filesystem("small", 400 * MIB, "xfs").await, Code::AlreadyExists, &["not the size"])?;
    expect_status(csi.create_filesystem("small", 1, "ext4").await, Code::AlreadyExists, &["content"])?;
    let records = fs::read_dir(bed.driver.state_dir().join("records"))?.count();
    ensure!(records == 1 && Path::new(&bed.driver.record(&small.volume_id)).exists(), "{records} records");
    Ok(())
}
