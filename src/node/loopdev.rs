//! Loop devices by system call (loop(4)): starting `losetup` costs more than an unlock.
//!
//! The only unsafe code of the program is in this file: ioctl(2) has no safe form, and the crates that wrap these
//! calls need a C compiler front end to build. A device is configured with autoclear, so that it goes when its last
//! user goes: whoever attaches holds it open until the mapping above it holds it, and a crash leaves no device behind.

use std::{
    ffi::c_void,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use linux_raw_sys::loop_device::{
    _bindgen_ty_1 as Flag, LOOP_CLR_FD, LOOP_CONFIGURE, LOOP_CTL_GET_FREE, LOOP_GET_STATUS64, LOOP_SET_CAPACITY,
    loop_config, loop_info64,
};
use rustix::{
    io::Errno,
    ioctl::{self, Getter, Ioctl, IoctlOutput, NoArg, Opcode, Setter},
};

/// A loop device that stays as long as this is held, or as long as something else has it open.
#[derive(Debug)]
pub struct Loop {
    /// The device, `/dev/loopN`.
    pub path: PathBuf,
    /// Keeps it.
    pub hold: OwnedFd,
}

/// Bytes in a logical sector of the device: what direct I/O needs on disks of either sector size.
const SECTOR_BYTES: u32 = 4096;
/// How often a free device that another process took first is replaced by the next one.
const TRIES: usize = 64;

/// Attaches a file, with direct I/O where its file system has it. A device that has the file already is taken.
///
/// # Errors
/// The file cannot be opened, or the kernel gives no loop device.
pub fn attach(file: &Path) -> io::Result<Loop> {
    let wanted = fs::metadata(file)?;
    for (path, _) in find(file)? {
        let device = open(&path)?;
        // Looked at again now that it is held: a device that was found may have been let go of and given to another.
        let Ok(info) = status(&device) else { continue };
        if !is_of(&info, &wanted) {
            continue;
        }
        if !is_whole(&info) {
            let how = format!("{} has it in another way (offset, limit or read-only); detach that", path.display());
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, how));
        }
        return Ok(Loop { hold: device.into(), path });
    }
    let backing = OpenOptions::new().read(true).write(true).open(file)?;
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..TRIES {
        let path = PathBuf::from(format!("/dev/loop{}", free(&control)?));
        let device = open(&path)?;
        match configure(&device, &backing) {
            Ok(()) => return Ok(Loop { path, hold: device.into() }),
            Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "other processes took every free loop device first"))
}

/// The devices that have a file attached, told by its device and inode numbers, so that no path can mislead; and
/// whether each has it as [`attach`] gives it: from its start to its end, to be written.
///
/// # Errors
/// The file or the list of block devices cannot be read.
pub fn find(file: &Path) -> io::Result<Vec<(PathBuf, bool)>> {
    let wanted = fs::metadata(file)?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("loop") || !entry.path().join("loop").exists() {
            continue;
        }
        let path = Path::new("/dev").join(name);
        // A device that goes while we look is not one that has the file.
        let Ok(info) = File::open(&path).and_then(|device| status(&device)) else { continue };
        if is_of(&info, &wanted) {
            found.push((path, is_whole(&info)));
        }
    }
    Ok(found)
}

/// Detaches a device; one that is in use goes with its last user.
///
/// # Errors
/// The device cannot be opened, or the kernel refuses. A device that is free already is a success.
pub fn detach(path: &Path) -> io::Result<()> {
    let device = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        device => device?,
    };
    match clear(&device) {
        Err(Errno::NXIO) => Ok(()),
        done => Ok(done?),
    }
}

/// Makes a device as large as its file is now.
///
/// # Errors
/// The device cannot be opened, or the kernel refuses.
#[expect(unsafe_code, reason = "ioctl(2) has no safe form")]
pub fn refresh(path: &Path) -> io::Result<()> {
    let device = open(path)?;
    // SAFETY: LOOP_SET_CAPACITY takes no argument.
    Ok(unsafe { ioctl::ioctl(device, NoArg::<LOOP_SET_CAPACITY>::new()) }?)
}

fn is_whole(info: &loop_info64) -> bool {
    info.lo_offset == 0 && info.lo_sizelimit == 0 && info.lo_flags & Flag::LO_FLAGS_READ_ONLY as u32 == 0
}

fn is_of(info: &loop_info64, file: &fs::Metadata) -> bool {
    (info.lo_device, info.lo_inode) == (file.dev(), file.ino())
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

#[expect(unsafe_code, reason = "ioctl(2) has no safe form")]
fn configure(device: &File, backing: &File) -> Result<(), Errno> {
    let mut info = zeroed_info();
    info.lo_flags = Flag::LO_FLAGS_AUTOCLEAR as u32 | Flag::LO_FLAGS_DIRECT_IO as u32;
    let fd = backing.as_fd().as_raw_fd().unsigned_abs();
    let config = loop_config { fd, block_size: SECTOR_BYTES, info, __reserved: [0; 8] };
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config` and keeps nothing of it.
    unsafe { ioctl::ioctl(device, Setter::<LOOP_CONFIGURE, _>::new(config)) }
}

#[expect(unsafe_code, reason = "ioctl(2) has no safe form")]
fn status(device: &File) -> io::Result<loop_info64> {
    // SAFETY: LOOP_GET_STATUS64 writes one `struct loop_info64`.
    Ok(unsafe { ioctl::ioctl(device, Getter::<LOOP_GET_STATUS64, loop_info64>::new()) }?)
}

#[expect(unsafe_code, reason = "ioctl(2) has no safe form")]
fn clear(device: &File) -> Result<(), Errno> {
    // SAFETY: LOOP_CLR_FD takes no argument.
    unsafe { ioctl::ioctl(device, NoArg::<LOOP_CLR_FD>::new()) }
}

#[expect(unsafe_code, reason = "ioctl(2) has no safe form")]
fn free(control: &File) -> io::Result<i32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument; its result is what the call returns.
    Ok(unsafe { ioctl::ioctl(control, Free) }?)
}

fn zeroed_info() -> loop_info64 {
    loop_info64 {
        lo_device: 0,
        lo_inode: 0,
        lo_rdevice: 0,
        lo_offset: 0,
        lo_sizelimit: 0,
        lo_number: 0,
        lo_encrypt_type: 0,
        lo_encrypt_key_size: 0,
        lo_flags: 0,
        lo_file_name: [0; 64],
        lo_crypt_name: [0; 64],
        lo_encrypt_key: [0; 32],
        lo_init: [0; 2],
    }
}

/// LOOP_CTL_GET_FREE: the number of a free device, as the result of the call.
struct Free;

#[expect(unsafe_code, reason = "ioctl(2) has no safe form")]
// SAFETY: the call takes no argument, so there is no pointer to be wrong about.
unsafe impl Ioctl for Free {
    type Output = i32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(number: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(number)
    }
}
