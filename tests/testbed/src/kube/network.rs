//! A network of a test's own, with nothing of this machine's in it. The program starts itself again as the first
//! process of new namespaces: when it ends, in whatever way, the kernel ends all that it had started.

use std::{
    env,
    net::{Ipv4Addr, SocketAddrV4},
    process::{Command, ExitStatus},
};

use anyhow::{Context, Result, ensure};
use tokio::net::{TcpListener, TcpStream};

/// The address of this machine, in the network of its nodes.
pub const MACHINE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);

const INSIDE: &str = "TESTBED_NETWORK";

/// Whether this process is in such a network.
#[must_use]
pub fn is_inside() -> bool {
    env::var_os(INSIDE).is_some()
}

/// Starts this very program again, with words, in a network of its own, and waits for its end. If this process ends
/// before, so does the other one.
///
/// # Errors
/// It cannot be started: only root may make namespaces.
pub fn run_inside(words: &[String]) -> Result<ExitStatus> {
    ensure!(rustix::process::geteuid().is_root(), "only root may make a network of its own: please run it as root");
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--net", "--pid", "--mount", "--mount-proc"])
        .args(["--fork", "--kill-child"])
        .arg(env::current_exe()?)
        .args(words)
        .env(INSIDE, "1")
        .status()
        .context("start setpriv and unshare (Debian's package util-linux)")
}

/// Makes the bridge that joins this machine and its nodes, a line to each, and the ways to their Pods.
///
/// # Errors
/// A command of iproute2 fails.
pub(super) fn make(nodes: u8) -> Result<()> {
    ensure!(is_inside(), "a network is made only in a namespace of its own");
    ip("link set lo up")?;
    ip("link add br0 type bridge")?;
    ip(&format!("addr add {MACHINE}/24 dev br0"))?;
    ip("link set br0 up")?;
    for node in 1..=nodes {
        ip(&format!("tuntap add tap{node} mode tap"))?;
        ip(&format!("link set tap{node} master br0 up"))?;
        ip(&format!("route add 10.244.{node}.0/24 via 192.168.77.{}", 10 + node))?;
    }
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("let packets pass from node to node")
}

/// Passes connections to these ports of [`MACHINE`] on to the same ports of loopback, where servers of a test listen.
/// It goes on until the program ends.
///
/// # Errors
/// A port is taken.
pub async fn show_servers(ports: &[u16]) -> Result<()> {
    for &port in ports {
        let listener = TcpListener::bind(SocketAddrV4::new(MACHINE, port)).await?;
        tokio::spawn(async move {
            while let Ok((mut outer, _)) = listener.accept().await {
                tokio::spawn(async move {
                    // Either end may break off; the other one sees it then.
                    if let Ok(mut inner) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
                        let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
                    }
                });
            }
        });
    }
    Ok(())
}

fn ip(words: &str) -> Result<()> {
    let done = Command::new("ip").args(words.split(' ')).output().context("start ip (Debian's package iproute2)")?;
    ensure!(done.status.success(), "ip {words}: {}", String::from_utf8_lossy(&done.stderr).trim());
    Ok(())
}
