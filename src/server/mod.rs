//! Listening and ending: private unix sockets, TLS with certificates that are read again, health and metrics, signals.

pub mod http;
pub mod measured;
pub mod rpc;
pub mod tls;

#[cfg(feature = "keyservice")]
mod expiry;

use std::{
    fs, io,
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::Path,
};

use rustix::{
    fs::Mode,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
};

/// Who can connect to a unix socket, by its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Its owner, and root.
    Owner,
    /// Everybody whom its folder lets through: who they are is asked of the kernel at each call.
    Everybody,
}

/// Listens on a unix socket whose mode is set before it has a name. The socket of a process that is gone is replaced.
///
/// # Errors
/// Another process listens there, something else lies there, or the folder cannot be written.
pub fn listen_unix(path: &Path, reach: Reach) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket lies there"));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
        }
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // bind(2) takes the socket's own mode less the umask, so the name is opened further afterwards and never before.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    if reach == Reach::Everybody {
        rustix::fs::chmod(path, Mode::from_raw_mode(0o666))?;
    }
    rustix::net::listen(&socket, 1024)?;
    UnixListener::from_std(socket.into())
}

/// Waits for SIGTERM or SIGINT.
///
/// # Errors
/// The signals cannot be waited for.
pub async fn told_to_end() -> io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_socket_is_private_and_only_a_dead_one_is_replaced() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("csi.sock");
        let listener = listen_unix(&path, Reach::Owner).expect("a new socket");
        let mode = fs::metadata(&path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{mode:o}");
        assert_eq!(listen_unix(&path, Reach::Owner).expect_err("in use").kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        listen_unix(&path, Reach::Owner).expect("the old one is dead");
        let file = folder.path().join("file");
        fs::write(&file, "kept").expect("a file");
        assert_eq!(listen_unix(&file, Reach::Owner).expect_err("a file").kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&file).expect("still there"), b"kept");
    }
}
