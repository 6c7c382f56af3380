//! A node: a guest with containerd, a kubelet and kube-proxy on a disk of its own (`tests/kube/node/init`).

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::time::sleep;

use super::program;

const KERNEL: &str = "linux.uml";
const GIB: u64 = 1 << 30;
const MAKING: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(50);

/// Makes the disk that all nodes begin with: the images of a folder `images` of the work folder, imported.
///
/// # Errors
/// There is no kernel to boot, or an image is none.
pub(super) async fn make_disk(work: &Path, nodes: u8) -> Result<()> {
    let disk = base(work);
    fs::File::create(&disk)?.set_len(8 * GIB)?;
    let made = Command::new("mkfs.ext4").args(["-q", "-E", "lazy_itable_init=1"]).arg(&disk).output();
    let made = made.context("start mkfs.ext4 (Debian's package e2fsprogs)")?;
    ensure!(made.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&made.stderr));
    let folder = work.join("n0");
    fs::create_dir_all(&folder)?;
    let mut guest = Guest::boot(work, None, nodes, &disk.display().to_string())?;
    let start = Instant::now();
    while guest.0.try_wait()?.is_none() {
        ensure!(start.elapsed() < MAKING, "the images were not imported in time: see {}", folder.display());
        sleep(POLL).await;
    }
    let status = fs::read_to_string(folder.join("status")).unwrap_or_default();
    ensure!(status.trim() == "made", "the images could not be imported: see {}", folder.display());
    Ok(())
}

/// A node of a cluster. Its power is cut when this is dropped.
#[derive(Debug)]
pub struct Node {
    work: PathBuf,
    number: u8,
    nodes: u8,
    guest: Option<Guest>,
}

impl Node {
    pub(super) fn new(work: &Path, number: u8, nodes: u8) -> Result<Self> {
        let mut node = Self { work: work.to_owned(), number, nodes, guest: None };
        fs::create_dir_all(node.folder())?;
        node.boot()?;
        Ok(node)
    }

    /// Its name in the cluster.
    #[must_use]
    pub fn name(&self) -> String {
        format!("n{}", self.number)
    }

    /// The folder of its logs.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.work.join(self.name())
    }

    /// Boots it, with the disk as it was left.
    ///
    /// # Errors
    /// There is no kernel to boot.
    pub fn boot(&mut self) -> Result<()> {
        let disk = format!("{},{}", self.folder().join("disk").display(), base(&self.work).display());
        self.guest = Some(Guest::boot(&self.work, Some(self.number), self.nodes, &disk)?);
        Ok(())
    }

    /// Cuts the power: the kernel and all its processes are gone at once, with what was not on the disk yet.
    pub fn cut_power(&mut self) {
        self.guest = None;
    }

    /// Runs a script on the node, beside all Pods, and returns what it said.
    ///
    /// # Errors
    /// It fails, or does not end in time.
    pub async fn run(&self, script: &str, time: Duration) -> Result<String> {
        let file = |name: &str| self.folder().join(name);
        let _ = fs::remove_file(file("status"));
        fs::write(file("script.new"), script)?;
        fs::rename(file("script.new"), file("script"))?;
        let start = Instant::now();
        while !file("status").exists() {
            ensure!(start.elapsed() < time, "{} did not end within {} s: {script}", self.name(), time.as_secs());
            sleep(POLL).await;
        }
        let said = fs::read_to_string(file("said"))?;
        let status = fs::read_to_string(file("status"))?;
        ensure!(status.trim() == "0", "on {}, status {}: {script}\n{said}", self.name(), status.trim());
        Ok(said)
    }
}

/// A guest's kernel. It and all its processes are killed when this is dropped.
#[derive(Debug)]
struct Guest(Child);

impl Guest {
    fn boot(work: &Path, number: Option<u8>, nodes: u8, disk: &str) -> Result<Self> {
        let name = format!("n{}", number.unwrap_or(0));
        let kube = crate::project().join("tests/kube");
        let tools = program("kubernetes", "kubelet")?.canonicalize()?;
        let tools = tools.parent().context("a program lies in a folder")?;
        let console = fs::OpenOptions::new().create(true).append(true).open(work.join(&name).join("console"))?;
        let mut command = Command::new(KERNEL);
        command
            .args(["rootfstype=hostfs", "rootflags=/", "ro", "mem=2G", "quiet", "con=null", "con0=fd:0,fd:1"])
            .arg(format!("ubd0={disk}"))
            .arg(format!("uml_dir={}", work.display()))
            .arg(format!("umid=uml-{name}"))
            .arg(format!("init={}", kube.join("node/init").display()))
            .args([format!("KUBE={}", kube.display()), format!("TOOLS={}", tools.display())])
            .args([format!("WORK={}", work.display()), format!("NODES={nodes}")]);
        if let Some(number) = number {
            command.arg(format!("NODE={number}")).arg(format!("vec0:transport=tap,ifname=tap{number},depth=128,gro=1"));
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {KERNEL} (Debian's package user-mode-linux)"))?;
        Ok(Self(child))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Each process of a guest is one of this machine's, in the same group.
        if let Some(group) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

fn base(work: &Path) -> PathBuf {
    work.join("base")
}
