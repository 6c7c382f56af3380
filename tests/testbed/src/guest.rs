//! A kernel for tests that need device-mapper: this machine's own where it has one, else user-mode Linux, a whole
//! Linux as an ordinary process on this machine's own files.
//!
//! In a guest the root is read-only, `/run`, `/tmp`, `/var/lib` and `/mnt` are empty and forgotten at its end, the
//! work folder is shared with the host, and [`POOL`] is an ext4 on a disk of its own, so that direct I/O, flushes and
//! power cuts are as on a machine.

use std::{
    fs,
    io::{Read, Seek, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

/// Where a guest's disk is mounted.
pub const POOL: &str = "/run/pool";

const KERNEL: &str = "linux.uml";
const INSIDE: &str = "TESTBED_GUEST";
/// One command installs all that a guest needs.
pub const INSTALL: &str =
    "apt-get install user-mode-linux kmod cryptsetup-bin e2fsprogs xfsprogs btrfs-progs iproute2 util-linux";

/// Whether this process runs on a kernel with device-mapper: in a guest, or natively.
#[must_use]
pub fn has_device_mapper() -> bool {
    // The node alone says nothing: a tool makes it where the kernel has nothing behind it.
    let natively = fs::File::open("/dev/mapper/control").is_ok() && rustix::process::geteuid().is_root();
    std::env::var_os(INSIDE).is_some() || natively
}

/// A folder for a test's files on the disk that a guest has, or on this machine's.
///
/// # Errors
/// The folder cannot be made.
pub fn folder() -> Result<tempfile::TempDir> {
    let base = if std::env::var_os(INSIDE).is_some() { PathBuf::from(POOL) } else { std::env::temp_dir() };
    Ok(tempfile::Builder::new().prefix("coffer-").tempdir_in(base)?)
}

/// A disk that a guest can be booted on again and again.
#[derive(Debug)]
pub struct Disk {
    work: tempfile::TempDir,
    network: bool,
}

/// What carries a guest's packets to this machine's loopback, as an ordinary process (Debian's package slirp).
const SLIRP: &str = "/usr/bin/slirp-fullbolt";
/// This machine's loopback as such a guest sees it (slirp(1)).
const HOST: &str = "10.0.2.2";

/// A running guest. It is killed, as by a power cut, when this is dropped.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    work: PathBuf,
    output: fs::File,
    seen: String,
}

impl Disk {
    /// A new, empty disk, sparse, of this many GiB.
    ///
    /// # Errors
    /// There is no kernel to boot, or no room.
    pub fn new(gib: u64) -> Result<Self> {
        let missing = format!("there is no {KERNEL} for the kernel tests; install it: {INSTALL}");
        let found = Command::new(KERNEL).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.ok().filter(ExitStatus::success).context(missing)?;
        let base = crate::project().join("target/guest");
        fs::create_dir_all(&base)?;
        let work = tempfile::Builder::new().prefix("g").tempdir_in(base)?;
        fs::File::create(work.path().join("disk"))?.set_len(gib << 30)?;
        Ok(Self { work, network: false })
    }

    /// Lets its guests reach what listens on this machine's loopback ([`reach_host`]).
    ///
    /// # Errors
    /// The program that carries the packets is not installed.
    pub fn with_network(self) -> Result<Self> {
        anyhow::ensure!(Path::new(SLIRP).exists(), "there is no {SLIRP}; install it: apt-get install slirp");
        Ok(Self { network: true, ..self })
    }

    /// The folder that its guests share with this machine, under the same path.
    #[must_use]
    pub fn work(&self) -> &Path {
        self.work.path()
    }

    /// Boots a guest that runs a command and then ends. What the command writes is in the guest's output.
    ///
    /// # Errors
    /// The guest cannot be started.
    pub fn boot(&self, command: &[String]) -> Result<Guest> {
        let work = self.work.path();
        for old in ["status", "output"] {
            let _ = fs::remove_file(work.join(old));
        }
        let output = fs::File::create_new(work.join("output"))?;
        drop(output);
        let init = work.join("init");
        fs::write(&init, script(work, command)?)?;
        fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let console = fs::File::create(work.join("console"))?;
        let child = Command::new(KERNEL)
            .args(["rootfstype=hostfs", "rootflags=/", "ro", "mem=2G", "quiet", "con=null", "con0=fd:0,fd:1"])
            .arg(format!("init={}", init.display()))
            .arg(format!("ubd0={}", work.join("disk").display()))
            .args(self.network.then(|| format!("eth0=slirp,,{SLIRP}")))
            .current_dir(work)
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {KERNEL}"))?;
        let output = fs::File::open(work.join("output"))?;
        Ok(Guest { child, work: work.to_owned(), output, seen: String::new() })
    }
}

impl Guest {
    /// Waits until the command has ended, copying what it writes to standard output, and returns its status.
    ///
    /// # Errors
    /// The guest ended before the command did, or not within the time.
    pub fn finish(self, time: Duration) -> Result<i32> {
        self.finish_to(&mut std::io::stdout(), time)
    }

    /// As [`Self::finish`], to anything else than standard output.
    ///
    /// # Errors
    /// As there.
    pub fn finish_to(mut self, told_to: &mut dyn Write, time: Duration) -> Result<i32> {
        let start = Instant::now();
        let mut told = 0;
        loop {
            let ended = self.child.try_wait()?.is_some();
            self.read()?;
            told_to.write_all(&self.seen.as_bytes()[told..])?;
            told_to.flush()?;
            told = self.seen.len();
            if ended {
                let status = fs::read_to_string(self.work.join("status")).unwrap_or_default();
                let console = fs::read_to_string(self.work.join("console")).unwrap_or_default();
                return status.trim().parse().with_context(|| format!("the guest broke off:\n{console}"));
            }
            if start.elapsed() > time {
                bail!("the guest did not end within {} s", time.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the command has written a text.
    ///
    /// # Errors
    /// The guest ended, or did not write it within the time.
    pub fn wait_for(&mut self, text: &str, time: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            let ended = self.child.try_wait()?.is_some();
            self.read()?;
            if self.seen.contains(text) {
                return Ok(());
            }
            if ended || start.elapsed() > time {
                let console = fs::read_to_string(self.work.join("console")).unwrap_or_default();
                bail!("the guest did not write {text:?}, but:\n{}\n{console}", self.seen);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Cuts the power: the kernel and all its processes are gone at once, with what was not on the disk yet.
    pub fn cut_power(self) {
        drop(self);
    }

    fn read(&mut self) -> Result<()> {
        self.output.seek(std::io::SeekFrom::Start(self.seen.len() as u64))?;
        let mut bytes = Vec::new();
        self.output.read_to_end(&mut bytes)?;
        self.seen.push_str(&String::from_utf8_lossy(&bytes));
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// In a guest with a network: passes connections to these ports of its loopback on to the same ports of the machine's,
/// so that one configuration holds on both. Natively there is nothing to do. It goes on until the program ends.
///
/// # Errors
/// A port is taken.
pub async fn reach_host(ports: &[u16]) -> Result<()> {
    if std::env::var_os(INSIDE).is_none() {
        return Ok(());
    }
    for &port in ports {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
        tokio::spawn(async move {
            while let Ok((mut inner, _)) = listener.accept().await {
                tokio::spawn(async move {
                    // Either end may break off; the other one sees it then.
                    if let Ok(mut outer) = tokio::net::TcpStream::connect((HOST, port)).await {
                        let _ = inner.set_nodelay(true);
                        let _ = outer.set_nodelay(true);
                        let _ = tokio::io::copy_bidirectional(&mut inner, &mut outer).await;
                    }
                });
            }
        });
    }
    Ok(())
}

/// Runs this very program again in a guest, with words, and returns its exit status.
///
/// # Errors
/// The guest cannot be started, or breaks off.
pub fn run_inside(words: &[String], time: Duration) -> Result<i32> {
    let program = std::env::current_exe()?.display().to_string();
    let command: Vec<_> = [program].into_iter().chain(words.iter().cloned()).collect();
    Disk::new(8)?.boot(&command)?.finish(time)
}

/// A part of all tests: a guest has one processor, and a machine has more.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    number: usize,
    of: usize,
}

impl Part {
    const WORD: &str = "--part=";

    /// The part that a word of the command line stands for, if it is such a word.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        let (number, of) = word.strip_prefix(Self::WORD)?.split_once('/')?;
        Some(Self { number: number.parse().ok()?, of: of.parse().ok()? })
    }

    /// Every so many of what is there, so that neighbours, which often take alike long, are in different parts.
    #[must_use]
    pub fn take<T>(self, all: Vec<T>) -> Vec<T> {
        all.into_iter().skip(self.number).step_by(self.of).collect()
    }
}

/// Runs this very program again in two guests at once, each of which has its own kernel and disk and gets a [`Part`] as
/// its word. What the second one writes comes after the first one's. 0, or the status of one that failed.
///
/// # Errors
/// A guest cannot be started, or breaks off.
pub fn run_in_parts(time: Duration) -> Result<i32> {
    const PARTS: usize = 2;
    let program = std::env::current_exe()?.display().to_string();
    let start = |number: usize| {
        let disk = Disk::new(8)?;
        let guest = disk.boot(&[program.clone(), format!("{}{number}/{PARTS}", Part::WORD)])?;
        anyhow::Ok((disk, guest))
    };
    let ((_disk, first), (_other_disk, second)) = (start(0)?, start(1)?);
    let second = std::thread::spawn(move || {
        let mut told = Vec::new();
        let status = second.finish_to(&mut told, time);
        (told, status)
    });
    let first = first.finish(time);
    let (told, second) = second.join().map_err(|_| anyhow::anyhow!("who waited for the second guest panicked"))?;
    std::io::stdout().write_all(&told)?;
    Ok(match first? {
        0 => second?,
        failed => failed,
    })
}

/// The first process of a guest.
fn script(work: &Path, command: &[String]) -> Result<String> {
    let quote = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let folder = |path: &Path| quote(&path.display().to_string());
    let (project, work) = (folder(&crate::project()), folder(work));
    let programs = std::env::current_exe()?;
    let programs = folder(programs.parent().context("a program lies in a folder")?);
    let command: Vec<_> = command.iter().map(|word| quote(word)).collect();
    let seed = quote(&std::env::var("TEST_SEED").unwrap_or_default());
    Ok(format!(
        r#"#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run/home LANG=C.UTF-8 {INSIDE}=1 TEST_SEED={seed} RUST_BACKTRACE=0
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
for folder in /run /tmp /var/lib /mnt; do mount -t tmpfs tmpfs $folder; done
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p /run/home /run/modules/lib/modules
ln -s /usr/lib/uml/modules/$(uname -r) /run/modules/lib/modules/$(uname -r)
printf '#!/bin/sh\nexec /sbin/modprobe -d /run/modules "$@"\n' > /run/modprobe
chmod 755 /run/modprobe
echo /run/modprobe > /proc/sys/kernel/modprobe
# What lies under a folder that is empty here is brought back.
for folder in {project} {programs}; do
    [ -e "$folder" ] || {{ mkdir -p "$folder" && mount -t hostfs none "$folder" -o "$folder"; }}
done
mkdir -p {work}
mount -t hostfs none {work} -o {work}
for module in dm-mod dm-crypt dm-integrity loop ext4 xfs btrfs xts aes_generic essiv authenc algif_skcipher; do
    /run/modprobe -q $module
done
# Programs that a test puts in the way of the system's own.
mount -t tmpfs tmpfs /usr/local/sbin
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up && ip route add default dev eth0
fi
hostname guest
mkdir -p {POOL}
blkid -p /dev/ubda > /dev/null || mkfs.ext4 -q -E lazy_itable_init=1 /dev/ubda
mount /dev/ubda {POOL}
cd {work}
{command} >> output 2>&1 < /dev/null
echo $? > status
sync
echo o > /proc/sysrq-trigger
sleep 5
"#,
        command = command.join(" ")
    ))
}
