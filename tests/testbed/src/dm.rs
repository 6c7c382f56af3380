//! Disks and file systems that fail or run full on request: device-mapper devices over a loop device on a file, changed
//! while they are in use, and small file systems.
//!
//! The loop device goes through the page cache of its file, so what a disk holds is what its file reads. Whatever is
//! still in use when it is dropped here goes with its last user.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{fs::FallocateFlags, io::Errno};

/// Bytes in a sector, as device-mapper's tables count them.
pub const SECTOR_BYTES: u64 = 512;
/// Room in a disk's file behind its end, for bytes that are to be read in place of the disk's own.
pub const SPARE_BYTES: u64 = 2 << 20;

/// What is wrong with a disk. Ranges are in bytes and begin and end at sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Reads and writes of a range fail.
    Unreadable(Range<u64>),
    /// A range reads as what lies as far behind the disk's end in its file, at most [`SPARE_BYTES`].
    Swapped(Range<u64>),
    /// Writes fail.
    WritesFail,
    /// Writes are said to be done, and are not.
    WritesDropped,
    /// Writes are done, each with a byte changed.
    WritesChanged,
    /// Each read and each write takes this much longer.
    Slow(Duration),
    /// Everything fails.
    Gone,
}

/// A disk that can be made to fail.
#[derive(Debug)]
pub struct FaultyDisk {
    // In this order they go.
    mapped: Mapped,
    below: LoopDevice,
    file: PathBuf,
    bytes: u64,
}

impl FaultyDisk {
    /// Makes a disk full of zeros on a new file.
    ///
    /// # Errors
    /// The file is there already, or a device cannot be had.
    pub fn make(name: &str, file: &Path, bytes: u64) -> Result<Self> {
        fs::File::create_new(file)?.set_len(bytes + SPARE_BYTES)?;
        let below = LoopDevice::attach(file)?;
        let mapped = Mapped::create(name, &table(below.path(), bytes, &Fault::None))?;
        Ok(Self { mapped, below, file: file.to_owned(), bytes })
    }

    /// Its device.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.mapped.path()
    }

    /// Its file: the disk, and the room behind it.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Gives it a fault in place of the one that it has.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set(&self, fault: &Fault) -> Result<()> {
        self.mapped.load(&table(self.below.path(), self.bytes, fault))
    }
}

/// The table of a disk on a device (Documentation/admin-guide/device-mapper).
fn table(below: &Path, bytes: u64, fault: &Fault) -> String {
    let (below, sectors) = (below.display(), bytes / SECTOR_BYTES);
    let around = |range: &Range<u64>, target: &str| {
        let line = |range: Range<u64>, target: &str| {
            let (start, sectors) = (range.start / SECTOR_BYTES, (range.end - range.start) / SECTOR_BYTES);
            (sectors > 0).then(|| format!("{start} {sectors} {target}"))
        };
        let own = |start: u64| format!("linear {below} {}", start / SECTOR_BYTES);
        let lines =
            [line(0..range.start, &own(0)), line(range.clone(), target), line(range.end..bytes, &own(range.end))];
        lines.into_iter().flatten().collect::<Vec<_>>().join("\n")
    };
    // Flakey: good for 0 seconds, bad for an hour, and so on.
    let flakey = |features: &str| format!("0 {sectors} flakey {below} 0 0 3600 {features}");
    match fault {
        Fault::None => format!("0 {sectors} linear {below} 0"),
        Fault::Unreadable(range) => around(range, "error"),
        Fault::Swapped(range) => around(range, &format!("linear {below} {}", (bytes + range.start) / SECTOR_BYTES)),
        Fault::WritesFail => flakey("1 error_writes"),
        Fault::WritesDropped => flakey("1 drop_writes"),
        Fault::WritesChanged => flakey("5 corrupt_bio_byte 32 w 1 0"),
        Fault::Slow(time) => format!("0 {sectors} delay {below} 0 {}", time.as_millis()),
        Fault::Gone => format!("0 {sectors} error"),
    }
}

/// A device-mapper device.
#[derive(Debug)]
pub struct Mapped {
    name: String,
}

impl Mapped {
    /// Makes a device. The kernel loads the modules that its table needs.
    ///
    /// # Errors
    /// There is one of that name, or the kernel refuses the table.
    pub fn create(name: &str, table: &str) -> Result<Self> {
        system("dmsetup", &["create", name, "--table", table])?;
        Ok(Self { name: name.to_owned() })
    }

    /// Its node.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }

    /// Gives it another table; its users see nothing but what that does.
    ///
    /// # Errors
    /// The kernel refuses the table.
    pub fn load(&self, table: &str) -> Result<()> {
        system("dmsetup", &["reload", &self.name, "--table", table])?;
        system("dmsetup", &["resume", &self.name])?;
        Ok(())
    }

    /// Writes a word between the writes in the log of dm-log-writes.
    ///
    /// # Errors
    /// It is another target.
    pub fn mark(&self, word: &str) -> Result<()> {
        system("dmsetup", &["message", &self.name, "0", "mark", word])?;
        Ok(())
    }

    /// Removes it now.
    ///
    /// # Errors
    /// It is in use; then it goes with its last user.
    pub fn remove(self) -> Result<()> {
        system("dmsetup", &["remove", &self.name])?;
        Ok(())
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if self.path().exists() {
            let _ = system("dmsetup", &["remove", "--deferred", &self.name]);
        }
    }
}

/// A file as a block device.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches a file.
    ///
    /// # Errors
    /// The file is not there, or there is no device.
    pub fn attach(file: &Path) -> Result<Self> {
        let path = system("losetup", &["--find", "--show", &file.display().to_string()])?;
        Ok(Self { path: path.into() })
    }

    /// Its node.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = system("losetup", &["--detach", &self.path.display().to_string()]);
    }
}

/// The loop device that somebody else has attached a file to.
///
/// # Errors
/// There is none.
pub fn loop_device_of(file: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(backing.trim_end()) == file {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    bail!("{} is attached to no loop device", file.display())
}

/// An ext4 of its own that is mounted on a folder.
#[derive(Debug)]
pub struct SmallFilesystem {
    folder: PathBuf,
}

impl SmallFilesystem {
    /// Makes one on a new file and mounts it.
    ///
    /// # Errors
    /// The file is there already, or the folder is not.
    pub fn mount(file: &Path, bytes: u64, folder: &Path) -> Result<Self> {
        let (file_text, folder_text) = (file.display().to_string(), folder.display().to_string());
        fs::File::create_new(file)?.set_len(bytes)?;
        system("mkfs.ext4", &["-q", "-m", "0", &file_text])?;
        system("mount", &["-o", "loop", &file_text, &folder_text])?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Takes all that is free, but for so many bytes.
    ///
    /// # Errors
    /// The file system fails.
    pub fn fill(&self, leave: u64) -> Result<()> {
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(self.filler())?;
        let (mut end, mut piece) = (0, 8 << 20);
        while piece >= 1024 {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), end, piece) {
                Ok(()) => end += piece,
                Err(Errno::NOSPC) => piece /= 2,
                Err(errno) => return Err(errno.into()),
            }
        }
        file.set_len(end - leave)?;
        // Blocks that were let go of are free when the journal says so.
        Ok(file.sync_all()?)
    }

    /// Gives back what was taken.
    ///
    /// # Errors
    /// Nothing was taken.
    pub fn free(&self) -> Result<()> {
        fs::remove_file(self.filler())?;
        Ok(fs::File::open(&self.folder)?.sync_all()?)
    }

    /// Mounts it again, `ro` or `rw`.
    ///
    /// # Errors
    /// Somebody writes to it.
    pub fn remount(&self, access: &str) -> Result<()> {
        system("mount", &["-o", &format!("remount,{access}"), &self.folder.display().to_string()])?;
        Ok(())
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }
}

impl Drop for SmallFilesystem {
    fn drop(&mut self) {
        let _ = system("umount", &["--lazy", &self.folder.display().to_string()]);
    }
}

/// A tmpfs without room for one more byte or name, until this is dropped.
#[derive(Debug)]
pub struct FullTmpfs {
    folder: &'static str,
    inodes: u64,
}

impl FullTmpfs {
    /// Bounds what is mounted on a folder to what it holds.
    ///
    /// # Errors
    /// It is no tmpfs, or still has room.
    pub fn at(folder: &'static str) -> Result<Self> {
        let stat = rustix::fs::statvfs(folder)?;
        let (bytes, inodes) = ((stat.f_blocks - stat.f_bfree) * stat.f_frsize, stat.f_files - stat.f_ffree);
        // A size of zero would mean no bound.
        let options = format!("remount,size={},nr_inodes={inodes}", bytes.max(4096));
        system("mount", &["-o", &options, folder])?;
        let full = Self { folder, inodes: stat.f_files };
        ensure!(fs::write(Path::new(folder).join("one more"), "x").is_err(), "{folder} has room");
        Ok(full)
    }
}

impl Drop for FullTmpfs {
    fn drop(&mut self) {
        let options = format!("remount,size=50%,nr_inodes={}", self.inodes);
        let _ = system("mount", &["-o", &options, self.folder]);
    }
}

/// Runs a program of the system and returns what it wrote.
fn system(program: &str, words: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    if !Path::new("/run/udev/control").exists() {
        // Nobody else makes the nodes in /dev/mapper.
        command.env("DM_DISABLE_UDEV", "1");
    }
    let output = command.args(words).output().with_context(|| format!("start {program}"))?;
    ensure!(output.status.success(), "{program} {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
