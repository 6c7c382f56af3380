//! LUKS2 through cryptsetup: make a header, open a verified one, grow a mapping; open one without a header, for ephemeral
//! volumes; and close it through dmsetup.
//!
//! Two words that are easily mixed up: the *DEK* is what our key service gives out, and to LUKS it is the passphrase
//! of a keyslot; the LUKS *volume key*, which encrypts the sectors, lies inside the header and we never see it.
//!
//! A header is made and opened in memory only: cryptsetup is given `/proc/PID/fd/N`, a memfd of ours, for its header
//! device, and the DEK on its standard input. The device itself gives nothing but data sectors.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use uuid::Uuid;

use crate::{
    exec::{Deadline, Exec, ExecFailure, Program},
    node::{
        block::Access,
        header::{Header, ITERATIONS, Layout},
    },
    secret::{Dek, KEY_BYTES, THROW_AWAY_KEY_BYTES, ThrowAwayKey},
    volume::{Cipher, Discard, Integrity, MapperName, Parameters, SectorSize},
};

const CRYPTSETUP: &str = "cryptsetup";
const DMSETUP: &str = "dmsetup";
/// A header's file is as large as a header with its room for the data's start: a multiple of this.
const DEVICE_BYTES: usize = 2 << 20;
/// cryptsetup(8), return codes: no permission, which for us is a DEK that opens no keyslot.
const WRONG_KEY: i32 = 2;
/// The device exists already, or is busy.
const BUSY: i32 = 5;

/// Why LUKS did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LuksFailure {
    /// The header's copy in memory could not be made.
    #[error("keep a LUKS header in memory")]
    Memory(#[source] io::Error),
    /// The DEK opens no keyslot.
    #[error("the DEK opens no keyslot of the LUKS header")]
    WrongKey,
    /// The mapping is in use, or there is one already.
    #[error("mapping {0} is in use")]
    Busy(MapperName),
    /// cryptsetup failed.
    #[error(transparent)]
    Program(#[from] ExecFailure),
}

/// Makes a header in memory, with the DEK in its first keyslot. Nothing is written to any device; `device` is only
/// asked for its sector size.
///
/// # Errors
/// cryptsetup fails, or there is no memory.
pub async fn format(
    exec: &dyn Exec,
    device: &Path,
    luks_uuid: Uuid,
    parameters: &Parameters,
    dek: &Dek,
    deadline: Deadline,
) -> Result<Vec<u8>, LuksFailure> {
    let layout = Layout::of(parameters);
    let mut memory = Memory::zeros(layout.data_offset)?;
    let kib = |bytes: usize| format!("{}k", bytes / 1024);
    let mut program = Program::new(CRYPTSETUP)
        .args(["luksFormat", "--batch-mode", "--type", "luks2", "--hash", "sha256"])
        .args(["--uuid", &luks_uuid.to_string(), "--cipher", parameters.cipher.as_str()])
        .args(["--sector-size", &parameters.sector_size.bytes().to_string()])
        .args(["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", &ITERATIONS.to_string()])
        .args(["--luks2-metadata-size", &kib(layout.metadata_bytes)])
        .args(["--luks2-keyslots-size", &kib(layout.keyslots_bytes)])
        .args(["--offset", &(layout.data_offset / 512).to_string()]);
    program = match parameters.integrity {
        Integrity::None => program.args(["--key-size", "512"]),
        Integrity::HmacSha256 => {
            program.args(["--key-size", "768", "--integrity", "hmac-sha256", "--integrity-no-wipe"])
        }
    };
    let program = header_and_key(program, &memory, dek).arg(device);
    exec.run(program, deadline).await?.success(CRYPTSETUP)?;
    memory.read(layout.header_bytes())
}

/// A mapping to be opened.
#[derive(Clone, Copy, Debug)]
pub struct Open<'a> {
    /// The device that holds the encrypted sectors.
    pub device: &'a Path,
    /// What the mapping is called.
    pub mapper: &'a MapperName,
    /// Whether it may be written to.
    pub access: Access,
    /// Whether freed blocks are given back to the device.
    pub discard: Discard,
}

/// Opens a mapping with a verified header, and returns its path.
///
/// # Errors
/// The DEK does not open the header, the mapping exists already, or cryptsetup fails.
pub async fn open(
    exec: &dyn Exec,
    open: Open<'_>,
    header: &Header,
    dek: &Dek,
    deadline: Deadline,
) -> Result<PathBuf, LuksFailure> {
    let Open { device, mapper, access, discard } = open;
    let memory = Memory::sealed(header.bytes())?;
    let program = |speed: &[&str]| {
        let mut program = Program::new(CRYPTSETUP).args(["open", "--type", "luks2"]).args(speed);
        if discard == Discard::On {
            program = program.arg("--allow-discards");
        }
        if access == Access::ReadOnly {
            program = program.arg("--readonly");
        }
        header_and_key(program, &memory, dek).arg(device).arg(mapper.as_str())
    };
    opened(exec, [program(FAST), program(&[])], mapper, deadline).await
}

/// Opens a mapping under a throw-away key, and returns its path: dm-crypt's plain mode, without a header. Nothing is read
/// from the device and nothing written to it, so what it decrypts to is noise until it is written.
///
/// # Errors
/// The mapping exists already, or cryptsetup fails.
pub async fn open_plain(
    exec: &dyn Exec,
    device: &Path,
    mapper: &MapperName,
    key: &ThrowAwayKey,
    deadline: Deadline,
) -> Result<PathBuf, LuksFailure> {
    // cryptsetup(8), plain mode: what it reads from standard input it would hash, unless the hash is called plain.
    let program = |speed: &[&str]| {
        Program::new(CRYPTSETUP)
            .args(["open", "--type", "plain", "--batch-mode"])
            .args(speed)
            .args(["--cipher", Cipher::AesXtsPlain64.as_str(), "--hash", "plain"])
            .args(["--key-size", &(8 * THROW_AWAY_KEY_BYTES).to_string()])
            .args(["--sector-size", &SectorSize::DEFAULT.bytes().to_string()])
            .args(["--key-file", "-", "--keyfile-size", &THROW_AWAY_KEY_BYTES.to_string()])
            .secret(key.expose_secret())
            .arg(device)
            .arg(mapper.as_str())
    };
    opened(exec, [program(FAST), program(&[])], mapper, deadline).await
}

/// Without dm-crypt's work queues a sector is encrypted where it is submitted, which on fast disks is faster.
const FAST: &[&str] = &["--perf-no_read_workqueue", "--perf-no_write_workqueue"];

/// Runs what opens a mapping, and returns the mapping's path. A kernel that does not know the flags of the fast one refuses
/// the whole table, so it is asked again with the other.
async fn opened(
    exec: &dyn Exec,
    [fast, other]: [Program<'_>; 2],
    mapper: &MapperName,
    deadline: Deadline,
) -> Result<PathBuf, LuksFailure> {
    let output = exec.run(fast, deadline).await?;
    let output = match output.code {
        0 | WRONG_KEY | BUSY => output,
        _ => exec.run(other, deadline).await?,
    };
    match output.code {
        WRONG_KEY => Err(LuksFailure::WrongKey),
        BUSY => Err(LuksFailure::Busy(mapper.clone())),
        _ => {
            output.success(CRYPTSETUP)?;
            Ok(Path::new("/dev/mapper").join(mapper.as_str()))
        }
    }
}

/// Makes a mapping as large as its device is now.
///
/// # Errors
/// The DEK does not open the header, or cryptsetup fails.
pub async fn resize(
    exec: &dyn Exec,
    header: &Header,
    mapper: &MapperName,
    dek: &Dek,
    deadline: Deadline,
) -> Result<(), LuksFailure> {
    let memory = Memory::sealed(header.bytes())?;
    let program = header_and_key(Program::new(CRYPTSETUP).arg("resize"), &memory, dek).arg(mapper.as_str());
    let output = exec.run(program, deadline).await?;
    if output.code == WRONG_KEY {
        return Err(LuksFailure::WrongKey);
    }
    output.success(CRYPTSETUP)?;
    Ok(())
}

/// Removes a mapping. It is device-mapper's tool and not cryptsetup that does it: `cryptsetup close` would read the
/// header that lies on the device, which nobody has authenticated, and mend a copy of it that it takes for damaged.
///
/// # Errors
/// The mapping is in use or not there, which whoever asks can see, or dmsetup fails.
pub async fn close(exec: &dyn Exec, mapper: &MapperName, deadline: Deadline) -> Result<(), ExecFailure> {
    exec.run(Program::new(DMSETUP).args(["remove", mapper.as_str()]), deadline).await?.success(DMSETUP)?;
    Ok(())
}

/// Removes a mapping when its last user lets go of it. Until then its name is taken.
///
/// # Errors
/// The mapping is not there, or dmsetup fails.
pub async fn close_deferred(exec: &dyn Exec, mapper: &MapperName, deadline: Deadline) -> Result<(), ExecFailure> {
    exec.run(Program::new(DMSETUP).args(["remove", "--deferred", mapper.as_str()]), deadline)
        .await?
        .success(DMSETUP)?;
    Ok(())
}

fn header_and_key<'a>(program: Program<'a>, header: &Memory, dek: &'a Dek) -> Program<'a> {
    program
        .arg("--header")
        .arg(header.path())
        .args(["--key-file", "-", "--keyfile-size", &KEY_BYTES.to_string()])
        .secret(dek.expose_secret())
}

/// A header as a file that has no name and no disk below it (memfd_create(2)).
struct Memory(File);

impl Memory {
    fn make(fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<Self, LuksFailure> {
        let make = || {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let mut file = File::from(memfd_create("luks-header", flags)?);
            fill(&mut file)?;
            Ok(Self(file))
        };
        make().map_err(LuksFailure::Memory)
    }

    /// A file of zeros, which take no memory until they are written over.
    fn zeros(bytes: usize) -> Result<Self, LuksFailure> {
        Self::make(|file| file.set_len(bytes as u64))
    }

    /// A file that nobody can change any more: what was verified is what is opened.
    fn sealed(bytes: &[u8]) -> Result<Self, LuksFailure> {
        let memory = Self::make(|file| {
            file.write_all(bytes)?;
            // cryptsetup looks whether all keyslots that the metadata has room for would fit.
            file.set_len(bytes.len().next_multiple_of(DEVICE_BYTES) as u64)
        })?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        fcntl_add_seals(&memory.0, seals).map_err(|errno| LuksFailure::Memory(errno.into()))?;
        Ok(memory)
    }

    /// The path by which a child opens it. It is closed on exec, so that no other child inherits it.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }

    fn read(&mut self, length: usize) -> Result<Vec<u8>, LuksFailure> {
        let mut read = || {
            let mut bytes = vec![0; length];
            self.0.seek(SeekFrom::Start(0))?;
            self.0.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(LuksFailure::Memory)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Mutex, PoisonError},
        time::Duration,
    };

    use async_trait::async_trait;

    use super::*;
    use crate::exec::Output;

    /// Programs that end as a script says, and the words that they were given.
    #[derive(Default)]
    struct Scripted {
        codes: Mutex<Vec<i32>>,
        seen: Mutex<Vec<(String, Option<Vec<u8>>)>>,
    }

    impl Scripted {
        fn ending(codes: &[i32]) -> Self {
            Self { codes: Mutex::new(codes.iter().rev().copied().collect()), seen: Mutex::default() }
        }

        fn seen(&self) -> Vec<(String, Option<Vec<u8>>)> {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
        }
    }

    #[async_trait]
    impl Exec for Scripted {
        async fn run(&self, program: Program<'_>, _: Deadline) -> Result<Output, ExecFailure> {
            let words: Vec<_> = program.words().iter().map(|word| word.to_string_lossy().into_owned()).collect();
            let stdin = program.stdin().map(<[u8]>::to_vec);
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).push((words.join(" "), stdin));
            let code = self.codes.lock().unwrap_or_else(PoisonError::into_inner).pop();
            Ok(Output { code: code.expect("the script is long enough"), ..Output::default() })
        }
    }

    async fn opened(exec: &Scripted, access: Access, discard: Discard) -> Result<PathBuf, LuksFailure> {
        let mapper = MapperName::of(&"vol-1".parse().expect("an id"));
        let open_what = Open { device: Path::new("/dev/x"), mapper: &mapper, access, discard };
        let (header, dek) = (Header::unchecked(b"header"), Dek::born(|dek| dek.fill(7)));
        open(exec, open_what, &header, &dek, Deadline::within(Duration::from_secs(1))).await
    }

    #[tokio::test]
    async fn a_kernel_without_the_performance_flags_is_asked_again_without_them() {
        let exec = Scripted::ending(&[1, 0]);
        opened(&exec, Access::ReadWrite, Discard::Off).await.expect("the second time");
        let seen = exec.seen();
        assert!(seen[0].0.contains("--perf-no_read_workqueue") && !seen[1].0.contains("--perf"), "{seen:?}");
    }

    #[tokio::test]
    async fn a_wrong_key_and_a_busy_mapping_are_not_tried_again() {
        let wrong = Scripted::ending(&[WRONG_KEY]);
        assert!(matches!(opened(&wrong, Access::ReadWrite, Discard::Off).await, Err(LuksFailure::WrongKey)));
        let busy = Scripted::ending(&[BUSY]);
        assert!(matches!(opened(&busy, Access::ReadWrite, Discard::Off).await, Err(LuksFailure::Busy(_))));
        assert_eq!((wrong.seen().len(), busy.seen().len()), (1, 1));
    }

    #[tokio::test]
    async fn the_key_goes_to_standard_input_and_into_no_word() {
        let exec = Scripted::ending(&[0]);
        opened(&exec, Access::ReadOnly, Discard::On).await.expect("opened");
        let (words, stdin) = &exec.seen()[0];
        assert_eq!(stdin.as_deref(), Some([7; 32].as_slice()));
        assert!(words.contains("--readonly") && words.contains("--allow-discards"), "{words}");
        assert!(words.contains("--key-file - --keyfile-size 32") && words.contains("--header /proc/"), "{words}");
        assert!(!words.contains("\u{7}\u{7}") && !words.contains("07070707"), "{words}");
    }

    #[tokio::test]
    async fn a_throw_away_key_is_used_as_it_is_and_is_in_no_word() {
        let exec = Scripted::ending(&[1, 0]);
        let (key, mapper) = (ThrowAwayKey::random(), MapperName::of(&"eph-1".parse().expect("an id")));
        let deadline = Deadline::within(Duration::from_secs(1));
        open_plain(&exec, Path::new("/dev/x"), &mapper, &key, deadline).await.expect("the second time");
        let seen = exec.seen();
        assert!(seen[0].0.contains("--perf-no_read_workqueue") && !seen[1].0.contains("--perf"), "{seen:?}");
        let (words, stdin) = &seen[1];
        assert_eq!(stdin.as_deref(), Some(key.expose_secret().as_slice()));
        let expected = format!(
            "open --type plain --batch-mode --cipher aes-xts-plain64 --hash plain --key-size 512 --sector-size 4096 \
             --key-file - --keyfile-size 64 /dev/x {mapper}"
        );
        assert_eq!(*words, expected);
    }
}
