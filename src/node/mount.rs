//! The joint to mounts: mount(2), umount(2), and the table of what is mounted.

use std::{
    ffi::CString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::{
    node::block::{Access, DeviceNumber, blocking},
    volume::FsType,
};

/// One line of the table of mounts (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The device of the file system.
    pub number: DeviceNumber,
    /// What of the file system is mounted: `/` for all of it, the path of the file for a bound file.
    pub root: PathBuf,
    /// Where.
    pub target: PathBuf,
    /// Whether this mount may be written to.
    pub access: Access,
    /// The file system's type, as the kernel names it.
    pub fs_type: String,
    /// The device it was mounted from, as the file system names it.
    pub source: PathBuf,
    /// Whether the file system itself may be written to.
    pub super_access: Access,
}

/// Options of a mount: the kernel's flags, and words for the file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    flags: Vec<String>,
    data: Vec<String>,
}

/// A mount option that cannot be given, by its kind: its own words may be secret (CSI, `mount_flags`).
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a mount option is not allowed: {0}")]
pub struct ForbiddenOption(&'static str);

/// What would make another kind of mount than the one that is asked for.
const FORBIDDEN: &[&str] =
    &["bind", "rbind", "move", "remount", "loop", "shared", "rshared", "private", "slave", "unbindable"];

impl Options {
    /// Reads options as a claim writes them: one or several, separated by commas, in each text.
    ///
    /// # Errors
    /// An option that would make another kind of mount, or that cannot be text for the kernel.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, ForbiddenOption> {
        let mut options = Self::default();
        for option in texts.into_iter().flat_map(|text| text.split(',')).filter(|option| !option.is_empty()) {
            if let Some(kind) = FORBIDDEN.iter().find(|kind| option.split('=').next() == Some(**kind)) {
                return Err(ForbiddenOption(kind));
            }
            if option.chars().any(char::is_control) {
                return Err(ForbiddenOption("one that holds a control character"));
            }
            if option == "defaults" || option == "rw" {
                continue;
            }
            if flag(option).is_some() { &mut options.flags } else { &mut options.data }.push(option.to_owned());
        }
        Ok(options)
    }

    /// Adds one word for the file system.
    pub fn add(&mut self, word: &str) {
        self.data.push(word.to_owned());
    }

    /// Makes the mount one that is not written to.
    pub fn read_only(&mut self) {
        if self.access() == Access::ReadWrite {
            self.flags.push("ro".to_owned());
        }
    }

    /// Whether the options ask for a mount that is not written to.
    #[must_use]
    pub fn access(&self) -> Access {
        if self.flags.iter().any(|flag| flag == "ro") { Access::ReadOnly } else { Access::ReadWrite }
    }

    fn flags(&self) -> MountFlags {
        self.flags.iter().filter_map(|name| flag(name)).fold(MountFlags::empty(), MountFlags::union)
    }
}

/// The options that are flags of mount(2) and not words for a file system.
fn flag(option: &str) -> Option<MountFlags> {
    Some(match option {
        "ro" => MountFlags::RDONLY,
        "nosuid" => MountFlags::NOSUID,
        "nodev" => MountFlags::NODEV,
        "noexec" => MountFlags::NOEXEC,
        "sync" => MountFlags::SYNCHRONOUS,
        "dirsync" => MountFlags::DIRSYNC,
        "noatime" => MountFlags::NOATIME,
        "nodiratime" => MountFlags::NODIRATIME,
        "relatime" => MountFlags::RELATIME,
        "strictatime" => MountFlags::STRICTATIME,
        "lazytime" => MountFlags::LAZYTIME,
        "nosymfollow" => MountFlags::NOSYMFOLLOW,
        _ => return None,
    })
}

/// How full a file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes that a user can still have.
    pub bytes_available: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
    /// Bytes that are free, those kept for root as well.
    pub bytes_free: u64,
}

/// What the kernel knows of mounts.
#[async_trait]
pub trait Mounts: Send + Sync {
    /// All mounts that this process sees.
    ///
    /// # Errors
    /// The table cannot be read.
    async fn table(&self) -> io::Result<Vec<Mount>>;

    /// Mounts a device's file system.
    ///
    /// # Errors
    /// The kernel refuses.
    async fn mount(&self, device: &Path, target: &Path, fs_type: FsType, options: &Options) -> io::Result<()>;

    /// Mounts a folder or a file at a second place, with the flags among the options.
    ///
    /// # Errors
    /// The kernel refuses; then nothing is mounted.
    async fn bind(&self, source: &Path, target: &Path, options: &Options) -> io::Result<()>;

    /// Unmounts what was mounted last at a place.
    ///
    /// # Errors
    /// It is in use, or nothing is mounted there.
    async fn unmount(&self, target: &Path) -> io::Result<()>;

    /// How many errors the kernel has noted in the file system of a device, by the device's kernel name. Only ext4
    /// counts them (Documentation/ABI/testing/sysfs-fs-ext4).
    ///
    /// # Errors
    /// The count cannot be read.
    async fn errors(&self, kernel_name: &str) -> io::Result<u64>;

    /// How full the file system at a path is.
    ///
    /// # Errors
    /// The path is not there, or the file system fails.
    async fn usage(&self, path: &Path) -> io::Result<Usage>;
}

/// The mounts of this machine.
#[derive(Clone, Copy, Debug)]
pub struct LinuxMounts;

#[async_trait]
impl Mounts for LinuxMounts {
    async fn table(&self) -> io::Result<Vec<Mount>> {
        blocking(|| Ok(fs::read_to_string("/proc/self/mountinfo")?.lines().filter_map(parse).collect())).await
    }

    async fn mount(&self, device: &Path, target: &Path, fs_type: FsType, options: &Options) -> io::Result<()> {
        let (device, target, flags) = (device.to_owned(), target.to_owned(), options.flags());
        let data = CString::new(options.data.join(",")).expect("options hold no control character");
        blocking(move || Ok(rustix::mount::mount(device, target, fs_type.as_str(), flags, data.as_c_str())?)).await
    }

    async fn bind(&self, source: &Path, target: &Path, options: &Options) -> io::Result<()> {
        let (source, target, flags) = (source.to_owned(), target.to_owned(), options.flags());
        blocking(move || {
            rustix::mount::mount_bind(source, &target)?;
            if !flags.is_empty() {
                // A new bind mount takes its flags in a second step (mount(2)).
                if let Err(errno) = rustix::mount::mount_remount(&target, MountFlags::BIND | flags, c"") {
                    // A mount that was to be read-only does not stay writable.
                    rustix::mount::unmount(&target, UnmountFlags::DETACH)?;
                    return Err(errno.into());
                }
            }
            Ok(())
        })
        .await
    }

    async fn unmount(&self, target: &Path) -> io::Result<()> {
        let target = target.to_owned();
        blocking(move || Ok(rustix::mount::unmount(target, UnmountFlags::NOFOLLOW)?)).await
    }

    async fn errors(&self, kernel_name: &str) -> io::Result<u64> {
        let file = format!("/sys/fs/ext4/{kernel_name}/errors_count");
        blocking(move || match fs::read_to_string(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            count => Ok(count?.trim().parse().unwrap_or(0)),
        })
        .await
    }

    async fn usage(&self, path: &Path) -> io::Result<Usage> {
        let path = path.to_owned();
        blocking(move || {
            let stat = rustix::fs::statvfs(path)?;
            Ok(Usage {
                bytes: stat.f_blocks * stat.f_frsize,
                bytes_available: stat.f_bavail * stat.f_frsize,
                inodes: stat.f_files,
                inodes_free: stat.f_ffree,
                bytes_free: stat.f_bfree * stat.f_frsize,
            })
        })
        .await
    }
}

/// `36 35 98:0 /root /target rw,noatime master:1 - ext4 /dev/x rw,errors=continue`
fn parse(line: &str) -> Option<Mount> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(2);
    let number = DeviceNumber::parse(fields.next()?)?;
    let (root, target) = (unescape(fields.next()?), unescape(fields.next()?));
    let access = access(fields.next()?);
    let mut fields = file_system.split(' ');
    let (fs_type, source) = (fields.next()?.to_owned(), unescape(fields.next()?));
    let super_access = self::access(fields.next()?);
    Some(Mount { number, root, target, access, fs_type, source, super_access })
}

fn access(options: &str) -> Access {
    if options.split(',').any(|option| option == "ro") { Access::ReadOnly } else { Access::ReadWrite }
}

/// Space, tab, line break and backslash are written as a backslash and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let (bytes, mut unescaped, mut at) = (text.as_bytes(), Vec::new(), 0);
    while let Some(&byte) = bytes.get(at) {
        let code = bytes.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) if byte == b'\\' => {
                unescaped.push(code);
                at += 4;
            }
            _ => {
                unescaped.push(byte);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(unescaped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read_with_its_escapes() {
        let line =
            r"36 35 253:2 / /var/a\040b\134c rw,noatime shared:1 - ext4 /dev/mapper/coffer-1 ro,errors=remount-ro";
        assert_eq!(
            parse(line),
            Some(Mount {
                number: DeviceNumber { major: 253, minor: 2 },
                root: "/".into(),
                target: r"/var/a b\c".into(),
                access: Access::ReadWrite,
                fs_type: "ext4".into(),
                source: "/dev/mapper/coffer-1".into(),
                super_access: Access::ReadOnly,
            })
        );
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn options_are_flags_or_words_and_never_another_kind_of_mount() {
        let options = Options::parse(["noatime,data=ordered", "ro"]).expect("allowed");
        assert_eq!(options.flags(), MountFlags::NOATIME | MountFlags::RDONLY);
        assert_eq!(options.data, ["data=ordered"]);
        assert_eq!(options.access(), Access::ReadOnly);
        assert_eq!(Options::parse(["rw", "defaults", ""]), Ok(Options::default()));
        for forbidden in ["bind", "noatime,remount", "a\0b", "loop=/dev/x"] {
            assert!(Options::parse([forbidden]).is_err(), "{forbidden:?}");
        }
    }
}
