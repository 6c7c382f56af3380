//! What a power cut can leave of a first stage: the disk as of each write of one, whole or torn, on which the volume is
//! staged again.
//!
//! The writes come from dm-log-writes, which keeps them in the order in which the disk had them: what was written since
//! the last flush comes into the log with the next one (Documentation/admin-guide/device-mapper/log-writes.rst).

use std::{collections::BTreeSet, fs, io::Write as _, os::unix::fs::FileExt, path::Path};

use anyhow::{Context, Result, ensure};
use coffer::{
    key::record::State,
    proto::csi::{Volume, volume_capability::access_mode::Mode},
};
use libtest_mimic::Trial;
use testbed::{
    csi::{filesystem, new_volume},
    dm::{LoopDevice, Mapped, SECTOR_BYTES},
};

use crate::{Bed, MIB, loops, mappings, refusal::turn_back, trial};

pub(crate) fn trials() -> Vec<Trial> {
    // The module is a guest's for certain.
    if std::env::var_os("TESTBED_GUEST").is_none() {
        return Vec::new();
    }
    vec![trial("a_first_stage_may_end_at_any_write", any_write)]
}

const DISK: u64 = 12 * MIB;
const LOG: u64 = 64 * MIB;
/// Both copies of the header's metadata end here.
const METADATA_BYTES: usize = 32 * 1024;
/// A byte in the middle of the first keyslot.
const KEYSLOT_OFFSET: usize = 128 * 1024;
/// Where the finish mark lies.
const MARK_OFFSET: usize = (1 << 20) - 4096;
/// Into how many parts the writes of the header, of mkfs, and of what comes after are cut.
const PARTS: [usize; 3] = [4, 4, 6];
const KEPT: &str = "kept";
/// What is told to the log when the file is on the disk.
const SYNCED: &str = "synced";

async fn any_write(bed: Bed) -> Result<()> {
    let (volume, log) = logged(&bed).await?;
    let record = bed.driver.record(&volume.volume_id);
    let ready = fs::read(&record)?;
    let replayed = Replayed::make(&bed.path("replayed"), volume)?;
    let (finished, cuts) = (log.finished()?, log.cuts()?);
    let (mut disk, mut prefixes, mut torn) = (blank()?, 0, 0);
    for done in 0..=log.writes.len() {
        if cuts.contains(&done) {
            let told = || format!("{done} of {} writes, {finished} with the finish mark", log.writes.len());
            prefixes += 1;
            if done <= finished {
                turn_back(&bed.driver, &replayed.volume.volume_id, State::Formatting)?;
                let found = replayed.opens(&bed, &disk).await.with_context(told)?;
                ensure!(found.is_none(), "{}: a file in a new volume", told());
            }
            if done >= finished {
                fs::write(&record, &ready)?;
                let found = replayed.opens(&bed, &disk).await.with_context(told)?;
                let right = match found.as_deref() {
                    None | Some("") => done < log.synced,
                    Some(text) => text == KEPT,
                };
                ensure!(right, "{}, {} with the file: {found:?}", told(), log.synced);
            }
        }
        let Some(write) = log.writes.get(done) else { break };
        if done < finished && (write.is_of_metadata_or_mark() || write.covers(KEYSLOT_OFFSET)) {
            for bytes in [usize::try_from(SECTOR_BYTES)?, write.data.len() / 2] {
                let mut half = disk.clone();
                write.apply(&mut half, bytes)?;
                // Where the rest of a write changes nothing, it is whole.
                if write.is_on(&half) || half == disk {
                    continue;
                }
                torn += 1;
                turn_back(&bed.driver, &replayed.volume.volume_id, State::Formatting)?;
                let told = || format!("{done} writes and {bytes} bytes of one at {}", write.offset);
                replayed.opens(&bed, &half).await.with_context(told)?;
            }
        }
        write.apply(&mut disk, write.data.len())?;
    }
    println!("log-writes: {prefixes} prefixes, {torn} torn");
    ensure!(prefixes > 12 && torn > 2, "the log has too few writes: {}", log.writes.len());
    ensure!(bed.driver.log().contains("finished: it is kept"), "{}", bed.driver.log());
    Ok(())
}

/// The first stage of a volume, a file in it that is synced, and the end of its use, on a disk whose writes are logged.
async fn logged(bed: &Bed) -> Result<(Volume, Log)> {
    let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
    let (image, log) = (bed.path("image"), bed.path("log"));
    fs::File::create_new(&image)?.set_len(DISK)?;
    fs::File::create_new(&log)?.set_len(LOG)?;
    let (below, beside) = (LoopDevice::attach(&image)?, LoopDevice::attach(&log)?);
    let devices = format!("{} {}", below.path().display(), beside.path().display());
    let mapped = Mapped::create("test-logged", &format!("0 {} log-writes {devices}", DISK / SECTOR_BYTES))?;
    let mut request = new_volume("logged", 8 * MIB, filesystem("ext4", Mode::SingleNodeWriter));
    request.parameters.insert("device".to_owned(), mapped.path().display().to_string());
    let volume = csi.create(request).await?;
    csi.stage_filesystem(&volume, &staged).await?;
    let mut file = fs::File::create(staged.join("file"))?;
    file.write_all(KEPT.as_bytes())?;
    file.sync_all()?;
    fs::File::open(&staged)?.sync_all()?;
    drop(file);
    mapped.mark(SYNCED)?;
    csi.unstage(&volume.volume_id, &staged).await?;
    // The log is whole when its device is gone.
    mapped.remove()?;
    Ok((volume, Log::parse(&fs::read(&log)?)?))
}

/// A disk that is as the log says.
struct Replayed {
    volume: Volume,
    file: fs::File,
    _device: LoopDevice,
}

impl Replayed {
    /// A disk for a volume that was on another one.
    fn make(path: &Path, mut volume: Volume) -> Result<Self> {
        let file = fs::File::create_new(path)?;
        file.set_len(DISK)?;
        let device = LoopDevice::attach(path)?;
        volume.volume_context.insert("device".to_owned(), device.path().display().to_string());
        Ok(Self { volume, file, _device: device })
    }

    /// Stages the volume on a disk that holds these bytes, writes to it, and unstages it. What its file held is
    /// returned, where there was one.
    async fn opens(&self, bed: &Bed, disk: &[u8]) -> Result<Option<String>> {
        let (csi, staged) = (&bed.driver.csi, bed.path("staged"));
        self.file.write_all_at(disk, 0)?;
        csi.stage_filesystem(&self.volume, &staged).await?;
        let found = held(&staged.join("file"))?;
        let written = fs::File::create(staged.join("written"))?;
        written.write_all_at(KEPT.as_bytes(), 0)?;
        written.sync_all()?;
        drop(written);
        ensure!(held(&staged.join("written"))?.as_deref() == Some(KEPT), "what was written cannot be read");
        csi.unstage(&self.volume.volume_id, &staged).await?;
        ensure!(mappings().is_empty() && loops() == 1, "{:?} and {} loop devices stay", mappings(), loops());
        Ok(found)
    }
}

fn held(file: &Path) -> Result<Option<String>> {
    Ok(if file.exists() { Some(fs::read_to_string(file)?) } else { None })
}

fn blank() -> Result<Vec<u8>> {
    Ok(vec![0; usize::try_from(DISK)?])
}

/// A write that changed the disk.
struct Write {
    /// In bytes.
    offset: usize,
    data: Vec<u8>,
}

impl Write {
    /// Does the first bytes of the write.
    fn apply(&self, disk: &mut [u8], bytes: usize) -> Result<()> {
        let place = disk.get_mut(self.offset..self.offset + bytes).context("a write beyond the disk's end")?;
        place.copy_from_slice(&self.data[..bytes]);
        Ok(())
    }

    fn is_on(&self, disk: &[u8]) -> bool {
        disk.get(self.offset..self.offset + self.data.len()) == Some(self.data.as_slice())
    }

    fn covers(&self, offset: usize) -> bool {
        (self.offset..self.offset + self.data.len()).contains(&offset)
    }

    fn is_of_metadata_or_mark(&self) -> bool {
        self.offset < METADATA_BYTES || self.offset == MARK_OFFSET
    }
}

/// What was written to a blank disk, in order.
struct Log {
    writes: Vec<Write>,
    /// How many writes were done when the file was said to be on the disk.
    synced: usize,
}

impl Log {
    /// Reads a log: numbers are little-endian, and each entry begins at a sector. The first sector holds the magic
    /// number, the version, how many entries there are, and (in 4 bytes) the size of a sector. An entry's first sector
    /// holds where it was written and how long, both in sectors, its flags, and the length of a mark's text, which
    /// follows at once; what was written follows in the sectors behind it.
    fn parse(log: &[u8]) -> Result<Self> {
        const MAGIC: u64 = 0x006a_7366_7773_6872;
        const DISCARD: u64 = 4;
        const MARK: u64 = 8;
        const ENTRY_BYTES: usize = 32;
        let slice = |at: usize, length: usize| log.get(at..at + length).context("the log ends too early");
        let number = |at: usize| -> Result<u64> { Ok(u64::from_le_bytes(<[u8; 8]>::try_from(slice(at, 8)?)?)) };
        let size = |at: usize| -> Result<usize> { Ok(usize::try_from(number(at)?)?) };
        ensure!(number(0)? == MAGIC && number(8)? == 1, "this is no log of version 1");
        let sector = size(24)? & 0xffff_ffff;
        let (mut disk, mut writes, mut synced) = (blank()?, Vec::new(), None);
        let mut at = sector;
        for _ in 0..number(16)? {
            let (start, sectors, flags, length) = (size(at)?, size(at + 8)?, number(at + 16)?, size(at + 24)?);
            // Nobody asked for discards, and their entries would hold no data.
            ensure!(flags & DISCARD == 0, "a discard of {sectors} sectors at {start}");
            if flags & MARK != 0 && slice(at + ENTRY_BYTES, length)? == SYNCED.as_bytes() {
                synced = Some(writes.len());
            }
            let data = slice(at + sector, sectors * sector)?.to_vec();
            at += sector + data.len();
            let write = Write { offset: start * sector, data };
            // A flush alone, or zeros on zeros.
            if !write.data.is_empty() && !write.is_on(&disk) {
                write.apply(&mut disk, write.data.len())?;
                writes.push(write);
            }
        }
        Ok(Self { writes, synced: synced.context("the file was never on the disk")? })
    }

    /// How many writes were done when the header was whole: its start is written last.
    fn headed(&self) -> Result<usize> {
        let start = self.writes.iter().rposition(|write| write.offset == 0);
        Ok(start.context("no header was written")? + 1)
    }

    /// How many writes were done when the finish mark was there.
    fn finished(&self) -> Result<usize> {
        let mark = self.writes.iter().position(|write| write.offset == MARK_OFFSET);
        Ok(mark.context("no finish mark was written")? + 1)
    }

    /// After how many writes the disk is tried: around each write of metadata and mark, and now and then between them.
    fn cuts(&self) -> Result<BTreeSet<usize>> {
        let around = self.writes.iter().enumerate().filter(|(_, write)| write.is_of_metadata_or_mark());
        let mut cuts: BTreeSet<_> = around.flat_map(|(index, _)| [index, index + 1]).collect();
        let (whole, finished, all) = (self.headed()?, self.finished()?, self.writes.len());
        for ((from, to), parts) in [(0, whole), (whole, finished), (finished, all)].into_iter().zip(PARTS) {
            cuts.extend((0..=parts).map(|part| from + (to - from) * part / parts));
        }
        Ok(cuts)
    }
}
