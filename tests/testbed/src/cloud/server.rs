//! Servers that are not ours: where their programs are, and running them. Each is a process group of its own, which
//! ends with its handle.

use std::{
    env, fs, iter,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio, id},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{net::TcpStream, time::sleep};

/// How long a server may take to start.
const START: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// Below the ports that the kernel gives to clients, which could have one before a server takes it.
const PORTS: std::ops::Range<u32> = 20_000..32_000;

/// Finds an installed program: what `tests/install cloud` installed, else one on the search path.
///
/// # Errors
/// There is none.
pub fn tool(name: &str) -> Result<PathBuf> {
    let tools = crate::project().join("target/tools");
    let installed = [tools.clone(), python(), tools.join("node/node_modules/.bin")];
    let path = env::var_os("PATH").unwrap_or_default();
    let mut programs = installed.into_iter().chain(env::split_paths(&path)).map(|folder| folder.join(name));
    let found = programs.find(|program| program.is_file());
    found.with_context(|| format!("there is no {name}; install it: tests/install cloud"))
}

/// A port of 127.0.0.1 that nobody listens on, as on the few behind it: some servers take the next one as well
/// (OpenBao's cluster port).
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16> {
    // Programs that run at the same time begin at different ports.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let count = PORTS.end - PORTS.start;
    let begin = id().wrapping_mul(101);
    for _ in 0..count {
        let port = PORTS.start + begin.wrapping_add(NEXT.fetch_add(4, Ordering::Relaxed)) % count;
        let port = u16::try_from(port).context("a port has 16 bits")?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port from {} to {} is free", PORTS.start, PORTS.end)
}

/// A server's process. It is killed when this is dropped.
#[derive(Debug)]
pub struct Server {
    name: String,
    command: Command,
    address: SocketAddr,
    log: PathBuf,
    child: Option<Child>,
}

impl Server {
    /// Starts a server, its output in the folder's `NAME.log`, and waits until its port takes connections.
    ///
    /// # Errors
    /// The program cannot be started, ends, or does not listen in time.
    pub async fn start(name: &str, mut command: Command, port: u16, folder: &Path) -> Result<Self> {
        // Where the system has no Node.js, a program finds the one that was installed.
        let path = env::var_os("PATH").unwrap_or_default();
        command.env("PATH", env::join_paths(iter::once(python()).chain(env::split_paths(&path)))?);
        command.process_group(0).stdin(Stdio::null());
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let log = folder.join(format!("{name}.log"));
        let mut server = Self { name: name.to_owned(), command, address, log, child: None };
        server.start_again().await?;
        Ok(server)
    }

    /// `kill -9`, for the whole group.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = child.wait();
    }

    /// Starts it again as it was started, and waits in the same way.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub async fn start_again(&mut self) -> Result<()> {
        self.stop();
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        self.command.stdout(log.try_clone()?).stderr(log);
        let child = self.command.spawn().with_context(|| format!("start {}", self.name))?;
        let child = self.child.insert(child);
        let start = Instant::now();
        while TcpStream::connect(self.address).await.is_err() {
            let ended = child.try_wait()?;
            if ended.is_some() || start.elapsed() > START {
                let how = ended.map_or_else(|| "does not listen".to_owned(), |status| format!("ended: {status}"));
                let log = fs::read(&self.log).unwrap_or_default();
                let end = String::from_utf8_lossy(&log[log.len().saturating_sub(4096)..]).into_owned();
                bail!("{} {how}; it wrote:\n{end}", self.name);
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where `tests/install` puts programs from PyPI.
fn python() -> PathBuf {
    crate::project().join("target/tools/python/bin")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_starts_stops_and_starts_again() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let port = free_port()?;
        let mut command = Command::new(tool("python3")?);
        command.args(["-m", "http.server", "--bind", "127.0.0.1"]).arg(port.to_string()).current_dir(folder.path());
        let mut server = Server::start("files", command, port, folder.path()).await?;
        let ask = || reqwest::get(format!("http://{}/files.log", server.address));
        assert!(ask().await?.status().is_success());
        let address = server.address();
        server.stop();
        assert!(TcpStream::connect(address).await.is_err());
        server.start_again().await?;
        assert!(TcpStream::connect(address).await.is_ok());
        drop(server);
        assert!(TcpStream::connect(address).await.is_err());
        Ok(())
    }

    #[tokio::test]
    async fn a_server_that_ends_says_what_it_wrote() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such option >&2; exit 3"]);
        let error = Server::start("wrong", command, free_port()?, folder.path()).await.expect_err("it ended");
        let error = error.to_string();
        assert!(error.contains("wrong ended: exit status: 3") && error.contains("no such option"), "{error}");
        Ok(())
    }

    #[test]
    fn a_missing_program_is_said_with_what_installs_it() {
        let error = tool("no-such-program").expect_err("there is none").to_string();
        assert_eq!(error, "there is no no-such-program; install it: tests/install cloud");
    }

    #[test]
    fn two_free_ports_are_two() -> Result<()> {
        assert_ne!(free_port()?, free_port()?);
        Ok(())
    }
}
