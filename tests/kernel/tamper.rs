//! What somebody makes of a volume's header or record, on a real kernel: the tamper corpus (`tests/vectors/headers`),
//! headers and records of another volume or another time, single bits, and a header that changes while its volume is
//! opened. Each is refused, a refusal changes nothing, and the volume opens when its own bytes are back.

use std::{ffi::OsString, fs, os::unix::fs::FileExt, time::Duration};

use anyhow::{Context, Result, ensure};
use coffer::{
    exec::Deadline,
    key::{
        derive::{header_mac_key, mac},
        envelope, keyfile,
        kms::local::Local,
        record::{Base64, Record, State},
    },
    node::header,
    proto::csi::Volume,
    secret::Dek,
    volume::Integrity,
};
use libtest_mimic::Trial;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use testbed::{
    driver::{Driver, Role},
    pause::{Pause, When},
};
use tonic::Code;
use uuid::Uuid;

use crate::{
    Bed, COFFER, MIB, expect_status, loops, mappings,
    refusal::{finished, opens, turn_back},
    run, trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("every_tampered_header_of_the_corpus_is_refused_whatever_the_record_says", corpus),
        trial("a_header_or_a_record_of_another_volume_or_another_time_is_refused", exchanged),
        trial("a_flipped_bit_of_a_record_is_refused_and_changes_nothing", flipped),
        trial("a_tampered_header_of_a_new_volume_is_not_opened_and_made_again", planted),
    ];
    // Natively nothing may stand in the way of the machine's own programs.
    if std::env::var_os("TESTBED_GUEST").is_some() {
        trials.push(trial("a_header_that_changes_while_its_volume_opens_makes_no_difference", changed_meanwhile));
    }
    trials
}

/// The start of a device: the header and the finish mark, all that lies before the data.
const HEAD_BYTES: usize = 1 << 20;
/// One copy of a header's metadata.
const COPY_BYTES: usize = 16 * 1024;
const PAGE_BYTES: usize = 4096;

/// The corpus's header, up to the end of its only keyslot; behind that it is zeros.
const BASE: &[u8] = include_bytes!("../vectors/headers/base.bin");

/// What the corpus's header was made with.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Base {
    luks_uuid: Uuid,
    dek: String,
}

/// A tampered header.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    /// What the list of metadata says; none where it lets the header pass, and the MAC alone tells.
    finding: Option<String>,
    /// What the device is said to hold, where the volume's UUID is not found in its place.
    foreign: Option<String>,
    writes: Vec<Patch>,
}

/// Bytes that are written over the header, so many times in a row.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    offset: usize,
    hex: String,
    #[serde(default = "once")]
    times: usize,
}

fn once() -> usize {
    1
}

impl Case {
    fn written_over(&self, head: &[u8]) -> Result<Vec<u8>> {
        let mut tampered = head.to_vec();
        for Patch { offset, hex, times } in &self.writes {
            let piece = bytes(hex)?.repeat(*times);
            tampered[*offset..offset + piece.len()].copy_from_slice(&piece);
        }
        ensure!(tampered != head, "{} changes nothing", self.name);
        Ok(tampered)
    }
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16);
    (0..hex.len() / 2).map(byte).collect::<Result<Vec<_>, _>>().with_context(|| format!("{hex:?} is not hexadecimal"))
}

async fn corpus(mut bed: Bed) -> Result<()> {
    let base: Base = serde_json::from_str(include_str!("../vectors/headers/base.json"))?;
    let cases: Vec<Case> = serde_json::from_str(include_str!("../vectors/headers/cases.json"))?;
    let dek = Dek::take(bytes(&base.dek)?)?;
    let volume = finished_on_the_base(&mut bed, base.luks_uuid, &dek).await?;
    let (file, path) = (bed.driver.file(&volume.volume_id), bed.driver.record(&volume.volume_id));
    let (whole, ready) = (fs::read(&file)?, fs::read(&path)?);
    let (own, record) = (&whole[..HEAD_BYTES], Record::from_bytes(&ready)?);
    let tag_of = |head: &[u8]| Some(tag(&head[..header::used_bytes(head, &record.parameters)], &dek));
    ensure!(record.header_mac == tag_of(own), "the record has another header's tag");
    let earlier = [State::Formatting, State::Prepared].map(|state| {
        let format_attempt = u32::from(state == State::Formatting);
        authentic(Record { state, format_attempt, header_mac: None, ..record.clone() }, &dek)
    });

    let (mut refusals, mut wrong) = (0, Vec::new());
    for (number, case) in cases.iter().enumerate() {
        let tampered = case.written_over(own)?;
        put(&bed, &volume, &tampered)?;
        let (once_ready, once_new) = match &case.foreign {
            Some(found) => (found.as_str(), found.as_str()),
            None => ("changed since Coffer wrote it", "finished once"),
        };
        let mut checks = vec![(ready.clone(), vec![once_ready]), (earlier[number % 2].clone(), vec![once_new])];
        if let Some(finding) = &case.finding {
            // As if somebody had the DEK: behind the MAC stands the list.
            let header_mac = tag_of(&tampered);
            let forged = authentic(Record { header_mac, ..record.clone() }, &dek);
            checks.push((forged, vec!["not what Coffer writes", finding.as_str()]));
        }
        for (record, texts) in checks {
            fs::write(&path, record)?;
            match refuses(&bed, &volume, &texts).await {
                Ok(()) => refusals += 1,
                Err(error) => {
                    wrong.push(format!("{}: {texts:?} expected: {error:#}", case.name));
                    // All cases are told at once; what was opened, or written, is put right for the next one.
                    bed.driver.csi.unstage(&volume.volume_id, &bed.path("staged")).await?;
                    put(&bed, &volume, &tampered)?;
                }
            }
        }
        put(&bed, &volume, own)?;
    }
    ensure!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));

    let mut asking = record.clone();
    asking.parameters.integrity = Integrity::HmacSha256;
    fs::write(&path, authentic(asking, &dek))?;
    refuses(&bed, &volume, &["asks for integrity hmac-sha256"]).await?;
    println!("tamper corpus: {} cases, {} refusals checked", cases.len(), refusals + 1);

    fs::write(&path, ready)?;
    ensure!(fs::read(&file)? == whole, "the device was changed");
    opens(&bed, &volume, "corpus").await
}

/// A volume that was finished on the corpus's header, with the corpus's UUID and DEK. The bed gets a driver with a KEK
/// in a file, because a DEK that is derived cannot be chosen.
async fn finished_on_the_base(bed: &mut Bed, luks_uuid: Uuid, dek: &Dek) -> Result<Volume> {
    bed.driver.kill();
    let (state, config, kek) = (bed.path("state"), bed.path("coffer.yaml"), bed.path("local.key"));
    keyfile::create(&kek, String::from(Base64::new([7_u8; 32])).as_bytes())?;
    let providers = "providers: {corpus: {type: local, keyFile: local.key, insecureLocalKey: true}}";
    fs::write(&config, format!("{providers}\nclusterId: '{}'\n", Uuid::from_u128(7)))?;
    let words: [OsString; 5] =
        ["dev".into(), "--state-dir".into(), state.clone().into(), "--config".into(), config.into()];
    bed.driver = Driver::start_as(COFFER, &state, Role::Node(words.into())).await?;

    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let volume = csi.create_filesystem("corpus", 32 * MIB, "ext4").await?;
    let path = bed.driver.record(&volume.volume_id);
    let mut record = Record::from_bytes(&fs::read(&path)?)?;
    (record.state, record.format_attempt, record.luks_uuid) = (State::Formatting, 1, luks_uuid);
    let (kms, soon) = (Local::load(&kek, None)?, Deadline::within(Duration::from_secs(30)));
    let wrapped = envelope::wrap(dek, &record.binding(), &kms, None, soon).await?;
    record.key = Some(wrapped);
    fs::write(&path, authentic(record, dek))?;
    // The attempt broke off when the header was written.
    let file = fs::OpenOptions::new().write(true).open(bed.driver.file(&volume.volume_id))?;
    file.write_all_at(BASE, 0)?;

    csi.stage_filesystem(&volume, &staged).await?;
    fs::write(staged.join("file"), "corpus")?;
    csi.unstage(&volume.volume_id, &staged).await?;
    ensure!(head(bed, &volume)?.starts_with(BASE), "the corpus's header was not kept");
    Ok(volume)
}

fn authentic(mut record: Record, dek: &Dek) -> Vec<u8> {
    record.authenticate(dek);
    record.to_bytes()
}

/// What a record says of a header.
fn tag(header: &[u8], dek: &Dek) -> Base64 {
    Base64::new(*mac(&header_mac_key(dek), header).as_bytes())
}

async fn exchanged(bed: Bed) -> Result<()> {
    let found = |uuid: Uuid| format!("a LUKS2 header with UUID {uuid}");
    let record_of = |volume: &Volume| anyhow::Ok(fs::read_to_string(bed.driver.record(&volume.volume_id))?);

    // Another time: a volume of the same name, and so of the same id, that was deleted.
    let earlier = finished(&bed, "two").await?;
    let (earlier_head, earlier_record) = (head(&bed, &earlier)?, record_of(&earlier)?);
    let earlier_uuid = Record::from_bytes(earlier_record.as_bytes())?.luks_uuid;
    bed.driver.csi.delete(&earlier.volume_id).await?;
    let two = finished(&bed, "two").await?;
    ensure!(two.volume_id == earlier.volume_id, "another id: {two:?}");
    let (own, record, path) = (head(&bed, &two)?, record_of(&two)?, bed.driver.record(&two.volume_id));
    let uuid = Record::from_bytes(record.as_bytes())?.luks_uuid;
    let foreign = found(earlier_uuid);
    let disguised = with_uuid(&earlier_head, uuid);
    for (head, once_ready, once_new) in [
        (&earlier_head, foreign.as_str(), foreign.as_str()),
        (&disguised, "changed since Coffer wrote it", "finished once"),
    ] {
        put(&bed, &two, head)?;
        refuses(&bed, &two, &[once_ready]).await?;
        turn_back(&bed.driver, &two.volume_id, State::Formatting)?;
        refuses(&bed, &two, &[once_new]).await?;
        fs::write(&path, &record)?;
    }
    put(&bed, &two, &own)?;
    fs::write(&path, &earlier_record)?;
    refuses(&bed, &two, &[&found(uuid)]).await.context("the record of an earlier generation")?;
    fs::write(&path, &record)?;

    // Another volume: headers in each other's place, then records, then records that name the volume of their place.
    let one = finished(&bed, "one").await?;
    let (heads, records) = ([head(&bed, &one)?, own], [record_of(&one)?, record]);
    let uuids = [Record::from_bytes(records[0].as_bytes())?.luks_uuid, uuid];
    let volumes = [&one, &two];
    for (at, volume) in volumes.iter().enumerate() {
        put(&bed, volume, &heads[1 - at])?;
        refuses(&bed, volume, &[&found(uuids[1 - at])]).await.context("headers in each other's place")?;
    }
    for (at, volume) in volumes.iter().enumerate() {
        put(&bed, volume, &heads[at])?;
        let (path, other) = (bed.driver.record(&volume.volume_id), volumes[1 - at].volume_id.as_str());
        fs::write(&path, &records[1 - at])?;
        let told = format!("it is the record of volume {other}");
        refuses(&bed, volume, &[&told]).await.context("records in each other's place")?;
        ensure!(records[1 - at].contains(other), "the id is not in its record");
        fs::write(&path, records[1 - at].replace(other, &volume.volume_id))?;
        refuses(&bed, volume, &["do not match its MAC"]).await.context("a record with the id of its place")?;
    }
    for (at, volume) in volumes.iter().enumerate() {
        fs::write(bed.driver.record(&volume.volume_id), &records[at])?;
    }
    opens(&bed, &one, "one").await?;
    opens(&bed, &two, "two").await
}

async fn flipped(bed: Bed) -> Result<()> {
    const SAMPLE: usize = 24;
    let volume = finished(&bed, "flipped").await?;
    let path = bed.driver.record(&volume.volume_id);
    let whole = fs::read(&path)?;
    for number in 0..SAMPLE {
        // From the first byte to the last one, and each bit of a byte three times.
        let (at, bit) = (number * (whole.len() - 1) / (SAMPLE - 1), number % 8);
        let mut changed = whole.clone();
        changed[at] ^= 1 << bit;
        fs::write(&path, changed)?;
        refuses(&bed, &volume, &[]).await.with_context(|| format!("bit {bit} of byte {at}"))?;
    }
    fs::write(&path, whole)?;
    opens(&bed, &volume, "flipped").await
}

async fn planted(bed: Bed) -> Result<()> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let volume = csi.create_filesystem("planted", 32 * MIB, "ext4").await?;
    let record = Record::from_bytes(&fs::read(bed.driver.record(&volume.volume_id))?)?;
    let null = with_null_cipher(&with_uuid(BASE, record.luks_uuid))?;
    put(&bed, &volume, &null)?;
    csi.stage_filesystem(&volume, &staged).await?;
    expect_encrypted()?;
    fs::write(staged.join("file"), "planted")?;
    csi.unstage(&volume.volume_id, &staged).await?;
    ensure!(!head(&bed, &volume)?.starts_with(&null[..2 * COPY_BYTES]), "the header stays");
    opens(&bed, &volume, "planted").await
}

async fn changed_meanwhile(bed: Bed) -> Result<()> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let volume = finished(&bed, "meanwhile").await?;
    let own = head(&bed, &volume)?;
    let null = with_null_cipher(&own)?;
    // The header was read and checked when cryptsetup starts.
    let pause = Pause::at("cryptsetup", Some("open"), When::Before)?;
    let running = tokio::spawn({
        let (csi, volume, staged) = (csi.clone(), volume.clone(), staged.clone());
        async move { csi.stage_filesystem(&volume, &staged).await }
    });
    pause.reached().await?;
    put(&bed, &volume, &null)?;
    pause.go()?;
    running.await??;
    expect_encrypted()?;
    ensure!(fs::read_to_string(staged.join("file"))? == "meanwhile", "the file is another");
    csi.unstage(&volume.volume_id, &staged).await?;
    ensure!(head(&bed, &volume)? == null, "somebody else wrote to the header");
    refuses(&bed, &volume, &["changed since Coffer wrote it"]).await?;
    put(&bed, &volume, &own)?;
    opens(&bed, &volume, "meanwhile").await
}

/// A stage is refused with these texts and the volume's id. Neither device nor record change, and nothing stays open.
async fn refuses(bed: &Bed, volume: &Volume, texts: &[&str]) -> Result<()> {
    let path = bed.driver.record(&volume.volume_id);
    let before = (head(bed, volume)?, fs::read(&path)?);
    let answer = bed.driver.csi.stage_filesystem(volume, &bed.path("staged")).await;
    let texts: Vec<_> = texts.iter().copied().chain([volume.volume_id.as_str()]).collect();
    expect_status(answer, Code::FailedPrecondition, &texts)?;
    let after = (head(bed, volume)?, fs::read(&path)?);
    ensure!(after.0 == before.0, "the device was changed");
    ensure!(after.1 == before.1, "the record was changed");
    ensure!(mappings().is_empty() && loops() == 0, "something stays open");
    Ok(())
}

/// The kernel says of the only open mapping that its sectors are encrypted.
fn expect_encrypted() -> Result<()> {
    let names = mappings();
    let [mapping] = names.as_slice() else { anyhow::bail!("open are {names:?}") };
    let table = run("dmsetup", &["table", mapping.as_str()])?;
    ensure!(table.contains(" crypt aes-xts-plain64 ") && !table.contains("cipher_null"), "{table}");
    Ok(())
}

/// The start of a volume's device.
fn head(bed: &Bed, volume: &Volume) -> Result<Vec<u8>> {
    let mut head = vec![0; HEAD_BYTES];
    fs::File::open(bed.driver.file(&volume.volume_id))?.read_exact_at(&mut head, 0)?;
    Ok(head)
}

/// Writes the start of a volume's device, where it differs.
fn put(bed: &Bed, volume: &Volume, wanted: &[u8]) -> Result<()> {
    let now = head(bed, volume)?;
    let file = fs::OpenOptions::new().write(true).open(bed.driver.file(&volume.volume_id))?;
    for (number, (wanted, now)) in wanted.chunks(PAGE_BYTES).zip(now.chunks(PAGE_BYTES)).enumerate() {
        if wanted != now {
            file.write_all_at(wanted, (number * PAGE_BYTES) as u64)?;
        }
    }
    Ok(())
}

/// A header under another UUID, whole.
fn with_uuid(head: &[u8], luks_uuid: Uuid) -> Vec<u8> {
    let mut changed = head.to_vec();
    for copy in changed[..2 * COPY_BYTES].chunks_exact_mut(COPY_BYTES) {
        copy[168..204].copy_from_slice(luks_uuid.to_string().as_bytes());
    }
    sealed(changed)
}

/// A header whose data has an empty cipher, whole.
fn with_null_cipher(head: &[u8]) -> Result<Vec<u8>> {
    const OURS: &[u8] = br#""encryption":"aes-xts-plain64","sector_size""#;
    const NULL: &[u8] = br#""encryption":"cipher_null-ecb","sector_size""#;
    let mut changed = head.to_vec();
    let places: Vec<_> = (0..2 * COPY_BYTES).filter(|at| changed[*at..].starts_with(OURS)).collect();
    ensure!(places.len() == 2, "the segment is described {} times", places.len());
    for at in places {
        changed[at..at + NULL.len()].copy_from_slice(NULL);
    }
    Ok(sealed(changed))
}

/// Makes the checksums of both copies right again (LUKS2 On-Disk Format Specification 1.1.3, chapter 2.1): SHA-256 over
/// the copy, the checksum's own 64 bytes being zeros.
fn sealed(mut head: Vec<u8>) -> Vec<u8> {
    for copy in head[..2 * COPY_BYTES].chunks_exact_mut(COPY_BYTES) {
        copy[448..512].fill(0);
        let checksum = Sha256::digest(&*copy);
        copy[448..480].copy_from_slice(&checksum);
    }
    head
}
