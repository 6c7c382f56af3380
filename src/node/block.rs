//! The joint to block devices and device-mapper, as the kernel shows them: sizes, bytes, mappings, loop devices.
//! It changes mappings through nobody but cryptsetup, which is another joint.

use std::{
    any::Any,
    fmt,
    fs::{self, File, OpenOptions},
    io,
    num::NonZero,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use rustix::fs::{Advice, OFlags};
use uuid::Uuid;

use crate::{node::loopdev, volume::MapperName};

/// The number of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// The driver.
    pub major: u32,
    /// The device.
    pub minor: u32,
}

impl DeviceNumber {
    /// From what stat(2) gives.
    #[must_use]
    pub fn from_raw(raw: u64) -> Self {
        Self { major: rustix::fs::major(raw), minor: rustix::fs::minor(raw) }
    }

    /// From `major:minor`, as sysfs and mountinfo write it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

/// Whether something may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It may.
    ReadWrite,
    /// It may not.
    ReadOnly,
}

/// An open device-mapper mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Its node, `/dev/mapper/NAME`.
    pub path: PathBuf,
    /// What the kernel calls it, `dm-N`.
    pub kernel_name: String,
    /// Its number.
    pub number: DeviceNumber,
    /// The UUID of the LUKS header it was opened with; none where cryptsetup did not make it.
    pub luks_uuid: Option<Uuid>,
    /// The devices below it that are still there.
    pub backing: Vec<Backing>,
    /// Its size in bytes; 0 while it is being opened.
    pub bytes: u64,
    /// Whether it may be written to.
    pub access: Access,
}

/// A device below a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its node.
    pub path: PathBuf,
    /// Its number.
    pub number: DeviceNumber,
}

/// A device that was attached, kept by what is held.
#[derive(Debug)]
pub struct Attached {
    /// The device.
    pub path: PathBuf,
    /// What keeps it until a mapping does; none for a device that stays by itself.
    pub hold: Option<Hold>,
}

/// What keeps a device, attached or from others, until it is dropped: an open descriptor.
pub struct Hold(#[expect(dead_code, reason = "it is held, and not looked at")] Box<dyn Any + Send + Sync>);

impl Hold {
    /// Keeps what lives as long as this.
    #[must_use]
    pub fn of(descriptor: impl Any + Send + Sync) -> Self {
        Self(Box::new(descriptor))
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hold")
    }
}

/// What the kernel knows of block devices.
#[async_trait]
pub trait Blocks: Send + Sync {
    /// The size of a block device in bytes.
    ///
    /// # Errors
    /// It is not there, or no block device.
    async fn size(&self, device: &Path) -> io::Result<u64>;

    /// Reads `length` bytes from the disk itself.
    ///
    /// # Errors
    /// The device is not there, fails, or ends before.
    async fn read(&self, device: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>>;

    /// Writes bytes and waits until the disk has them.
    ///
    /// # Errors
    /// The device is not there, fails, or ends before.
    async fn write(&self, device: &Path, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Waits until the disk has everything that was written through a device.
    ///
    /// # Errors
    /// The device is not there, or fails.
    async fn flush(&self, device: &Path) -> io::Result<()>;

    /// Opens a device for nobody else: no file system, mapping or other claim can have it meanwhile (open(2), O_EXCL).
    ///
    /// # Errors
    /// Somebody has it ([`io::ErrorKind::ResourceBusy`]), or it is not there.
    async fn claim(&self, device: &Path) -> io::Result<Hold>;

    /// The number of a block device.
    ///
    /// # Errors
    /// It is not there, or no block device.
    async fn number(&self, device: &Path) -> io::Result<DeviceNumber>;

    /// The open mapping of a name.
    ///
    /// # Errors
    /// sysfs cannot be read.
    async fn mapping(&self, name: &MapperName) -> io::Result<Option<Mapping>>;

    /// Attaches a file to a loop device.
    ///
    /// # Errors
    /// The file cannot be opened, or the kernel gives no device.
    async fn attach_file(&self, file: &Path) -> io::Result<Attached>;

    /// The loop devices that have a file attached, and whether each has it as [`Blocks::attach_file`] gives it: another
    /// one is somebody else's.
    ///
    /// # Errors
    /// The file is not there, or sysfs cannot be read.
    async fn attached(&self, file: &Path) -> io::Result<Vec<(PathBuf, bool)>>;

    /// Detaches a loop device.
    ///
    /// # Errors
    /// The kernel refuses.
    async fn detach(&self, device: &Path) -> io::Result<()>;

    /// Makes a loop device as large as its file.
    ///
    /// # Errors
    /// The kernel refuses.
    async fn refresh(&self, device: &Path) -> io::Result<()>;
}

/// The block devices of this machine.
#[derive(Clone, Copy, Debug)]
pub struct LinuxBlocks;

#[async_trait]
impl Blocks for LinuxBlocks {
    async fn size(&self, device: &Path) -> io::Result<u64> {
        let device = device.to_owned();
        blocking(move || size(&open(&device)?)).await
    }

    async fn read(&self, device: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let device = device.to_owned();
        blocking(move || {
            let (file, mut bytes) = (open(&device)?, vec![0; length]);
            // What the kernel remembers of a device is what was written to it, and not what its disk has kept.
            rustix::fs::fadvise(&file, offset, NonZero::new(length as u64), Advice::DontNeed)?;
            file.read_exact_at(&mut bytes, offset)?;
            Ok(bytes)
        })
        .await
    }

    async fn write(&self, device: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (device, bytes) = (device.to_owned(), bytes.to_owned());
        blocking(move || {
            let file = OpenOptions::new().read(true).write(true).open(&device)?;
            file.write_all_at(&bytes, offset)?;
            file.sync_all()
        })
        .await
    }

    async fn flush(&self, device: &Path) -> io::Result<()> {
        let device = device.to_owned();
        blocking(move || open(&device)?.sync_all()).await
    }

    async fn claim(&self, device: &Path) -> io::Result<Hold> {
        let device = device.to_owned();
        blocking(move || {
            let flags = i32::try_from(OFlags::EXCL.bits()).unwrap_or_default();
            Ok(Hold::of(OpenOptions::new().read(true).write(true).custom_flags(flags).open(device)?))
        })
        .await
    }

    async fn number(&self, device: &Path) -> io::Result<DeviceNumber> {
        let device = device.to_owned();
        blocking(move || Ok(DeviceNumber::from_raw(open(&device)?.metadata()?.rdev()))).await
    }

    async fn mapping(&self, name: &MapperName) -> io::Result<Option<Mapping>> {
        let name = name.clone();
        blocking(move || mapping(&name)).await
    }

    async fn attach_file(&self, file: &Path) -> io::Result<Attached> {
        let file = file.to_owned();
        let loop_device = blocking(move || loopdev::attach(&file)).await?;
        Ok(Attached { path: loop_device.path, hold: Some(Hold::of(loop_device.hold)) })
    }

    async fn attached(&self, file: &Path) -> io::Result<Vec<(PathBuf, bool)>> {
        let file = file.to_owned();
        blocking(move || loopdev::find(&file)).await
    }

    async fn detach(&self, device: &Path) -> io::Result<()> {
        let device = device.to_owned();
        blocking(move || loopdev::detach(&device)).await
    }

    async fn refresh(&self, device: &Path) -> io::Result<()> {
        let device = device.to_owned();
        blocking(move || loopdev::refresh(&device)).await
    }
}

/// Runs system calls that wait for a disk where they hold up nobody else.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(io::Error::other("the program is shutting down")))
}

fn open(device: &Path) -> io::Result<File> {
    let file = File::open(device)?;
    if file.metadata()?.file_type().is_block_device() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a block device"))
    }
}

fn size(device: &File) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    let mut device = device;
    device.seek(SeekFrom::End(0))
}

fn mapping(name: &MapperName) -> io::Result<Option<Mapping>> {
    for entry in fs::read_dir("/sys/block")? {
        let folder = entry?.path();
        if read(&folder, "dm/name").is_none_or(|found| found.trim() != name.as_str()) {
            continue;
        }
        if let Some(mapping) = mapping_in(&folder, name)? {
            return Ok(Some(mapping));
        }
    }
    Ok(None)
}

/// All open mappings whose names could be ours.
///
/// # Errors
/// sysfs cannot be read.
pub async fn mappings() -> io::Result<Vec<(MapperName, Mapping)>> {
    blocking(|| {
        let mut found = Vec::new();
        for entry in fs::read_dir("/sys/block")? {
            let folder = entry?.path();
            let Some(name) = read(&folder, "dm/name").and_then(|name| MapperName::read(name.trim())) else { continue };
            if let Some(mapping) = mapping_in(&folder, &name)? {
                found.push((name, mapping));
            }
        }
        Ok(found)
    })
    .await
}

/// A mapping that goes while we look is not open.
fn read(folder: &Path, file: &str) -> Option<String> {
    fs::read_to_string(folder.join(file)).ok()
}

fn mapping_in(folder: &Path, name: &MapperName) -> io::Result<Option<Mapping>> {
    let (Some(number), Some(sectors)) = (read(folder, "dev"), read(folder, "size")) else { return Ok(None) };
    let Some(number) = DeviceNumber::parse(&number) else { return Ok(None) };
    Ok(Some(Mapping {
        path: Path::new("/dev/mapper").join(name.as_str()),
        kernel_name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        number,
        luks_uuid: read(folder, "dm/uuid").and_then(|uuid| luks_uuid(uuid.trim())),
        backing: backing(folder)?,
        bytes: 512 * sectors.trim().parse::<u64>().unwrap_or(0),
        access: if read(folder, "ro").is_some_and(|ro| ro.trim() != "0") {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        },
    }))
}

/// `CRYPT-LUKS2-<UUID without hyphens>-<name>`, as cryptsetup names its mappings.
fn luks_uuid(dm_uuid: &str) -> Option<Uuid> {
    Uuid::try_parse(dm_uuid.strip_prefix("CRYPT-LUKS2-")?.split('-').next()?).ok()
}

fn backing(folder: &Path) -> io::Result<Vec<Backing>> {
    let mut devices = Vec::new();
    for slave in fs::read_dir(folder.join("slaves"))? {
        let slave = slave?;
        // The entry of a device that was pulled out is a link to nowhere.
        let number = fs::read_to_string(slave.path().join("dev")).ok();
        if let Some(number) = number.and_then(|number| DeviceNumber::parse(&number)) {
            // sysfs writes a slash in a device's name as an exclamation mark.
            let name = slave.file_name().to_string_lossy().replace('!', "/");
            devices.push(Backing { path: Path::new("/dev").join(name), number });
        }
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_ours_only_by_a_luks_uuid() {
        let uuid = Uuid::from_u128(0x2069_9b82_1c72_4164_aa67_26f6_9dfd_4083);
        assert_eq!(luks_uuid("CRYPT-LUKS2-20699b821c724164aa6726f69dfd4083-coffer-1"), Some(uuid));
        assert_eq!(luks_uuid("CRYPT-PLAIN-coffer-1"), None);
        assert_eq!(luks_uuid("LVM-abc"), None);
        assert_eq!(luks_uuid(""), None);
    }

    #[test]
    fn device_numbers_read_as_sysfs_writes_them() {
        assert_eq!(DeviceNumber::parse("253:7\n"), Some(DeviceNumber { major: 253, minor: 7 }));
        assert_eq!(DeviceNumber::parse("253"), None);
    }
}
