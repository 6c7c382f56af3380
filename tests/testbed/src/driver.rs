//! A running `coffer dev` on a state folder of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use coffer::{proto::csi::ProbeRequest, step::Step};
use rustix::process::{Pid, Signal, kill_process};

use crate::csi::Csi;

/// The name of every driver's node.
pub const NODE: &str = "test-node";

/// Which role of the program the driver is.
#[derive(Clone, Debug)]
pub enum Role {
    /// Driver and key service in one process.
    Dev,
    /// The driver of a node, with these words; it serves on the state folder's socket.
    Node(Vec<std::ffi::OsString>),
}

/// A driver. It is killed, and its volumes are let go of, when this is dropped.
#[derive(Debug)]
pub struct Driver {
    /// Its client.
    pub csi: Csi,
    program: PathBuf,
    state_dir: PathBuf,
    role: Role,
    stop_at: Option<Step>,
    child: Option<Child>,
}

impl Driver {
    /// Makes a key and starts a driver. `program` is the program `coffer`.
    ///
    /// # Errors
    /// The key cannot be made, or the driver does not become ready.
    pub async fn start(program: &str, state_dir: &Path) -> Result<Self> {
        if !state_dir.join("cluster-key.json").exists() {
            let init = Command::new(program).args(["keys", "init", "--state-dir"]).arg(state_dir).output()?;
            if !init.status.success() {
                bail!("keys init: {}", String::from_utf8_lossy(&init.stderr));
            }
        }
        Self::start_as(program, state_dir, Role::Dev).await
    }

    /// Starts a driver in a role.
    ///
    /// # Errors
    /// The driver does not become ready.
    pub async fn start_as(program: &str, state_dir: &Path, role: Role) -> Result<Self> {
        let csi = Csi::at(&state_dir.join("csi.sock"));
        let (program, state_dir) = (program.into(), state_dir.to_owned());
        let mut driver = Self { csi, program, state_dir, role, stop_at: None, child: None };
        driver.start_again().await?;
        Ok(driver)
    }

    /// The step at which the driver stops as a whole the next time that it is started; none for no stop.
    pub fn stop_at(&mut self, step: Option<Step>) {
        self.stop_at = step;
    }

    /// Waits until the driver has come to its step and stopped. Only [`Driver::kill`] helps it then.
    ///
    /// # Errors
    /// It did not stop within 30 seconds.
    pub async fn stopped(&self) -> Result<()> {
        let (stat, start) = (format!("/proc/{}/stat", self.pid()?), Instant::now());
        while !fs::read_to_string(&stat)?.contains(") T") {
            if start.elapsed() > Duration::from_secs(30) {
                bail!("the driver did not come to {:?}:\n{}", self.stop_at, self.log());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// The id of the driver's process.
    ///
    /// # Errors
    /// There is no driver.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("no driver runs")?.id())
    }

    /// Starts a driver again on the folder of one that has ended.
    ///
    /// # Errors
    /// It does not become ready within 20 seconds.
    pub async fn start_again(&mut self) -> Result<()> {
        let log = |name: &str| {
            fs::OpenOptions::new().append(true).create(true).open(self.state_dir.join(name)).context("open a log")
        };
        let words = match &self.role {
            Role::Dev => vec!["dev".into(), "--state-dir".into(), self.state_dir.clone().into_os_string()],
            Role::Node(words) => words.clone(),
        };
        let child = Command::new(&self.program)
            .envs(self.stop_at.map(|step| ("STOP_AT", step.as_str())))
            .args(["--log-level", "debug"])
            .args(words)
            .args(["--node-id", NODE])
            .stdin(Stdio::null())
            .stdout(log("audit.log")?)
            .stderr(log("driver.log")?)
            .spawn()?;
        self.child = Some(child);
        let start = Instant::now();
        loop {
            let probed = self.csi.identity.clone().probe(ProbeRequest {}).await;
            if probed.is_ok_and(|reply| reply.into_inner().ready == Some(true)) {
                return Ok(());
            }
            let ended = self.child.as_mut().is_none_or(|child| child.try_wait().is_ok_and(|ended| ended.is_some()));
            if ended || start.elapsed() > Duration::from_secs(20) {
                bail!("the driver did not become ready:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// `kill -9`: the driver is gone at once, and what it had started goes on.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, without waiting.
    ///
    /// # Errors
    /// There is no driver.
    pub fn terminate(&self) -> Result<()> {
        let pid = i32::try_from(self.pid()?).ok().and_then(Pid::from_raw).context("a process has an id")?;
        Ok(kill_process(pid, Signal::TERM)?)
    }

    /// Waits for the driver's end and returns its exit status.
    ///
    /// # Errors
    /// It does not end within 20 seconds.
    pub fn ended(&mut self) -> Result<Option<i32>> {
        let mut child = self.child.take().context("no driver runs")?;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            if let Some(status) = child.try_wait()? {
                return Ok(status.code());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child = Some(child);
        bail!("the driver did not end")
    }

    /// The state folder.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The file of a volume.
    #[must_use]
    pub fn file(&self, volume_id: &str) -> PathBuf {
        self.state_dir.join("volumes").join(volume_id)
    }

    /// The file of a record.
    #[must_use]
    pub fn record(&self, volume_id: &str) -> PathBuf {
        self.state_dir.join("records").join(format!("{volume_id}.json"))
    }

    /// What the driver has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.state_dir.join("driver.log")).unwrap_or_default()
    }

    /// What was written to the audit log.
    #[must_use]
    pub fn audit(&self) -> String {
        fs::read_to_string(self.state_dir.join("audit.log")).unwrap_or_default()
    }

    /// How often a key was released, by the audit log.
    #[must_use]
    pub fn releases(&self) -> usize {
        self.audit().lines().filter(|line| line.contains(r#""operation":"release","result":"ok""#)).count()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.kill();
    }
}
