//! The only place that starts programs.
//!
//! A program gets its words as a vector, never through a shell; a secret only on its standard input, by a pipe; an
//! environment of its own, not ours; and a deadline, at which its whole process group is killed. What comes back is
//! the exit code and the trimmed output, for the caller to judge.

use std::{
    ffi::{OsStr, OsString},
    fmt, io,
    process::Stdio,
    time::Duration,
};

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::Instant,
};
use zeroize::Zeroizing;

use crate::volume::hex;

/// The moment by which a piece of work must have ended, as its caller asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(Instant);

impl Deadline {
    /// A deadline `time` from now.
    #[must_use]
    pub fn within(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// The time that is left; zero when it has passed.
    #[must_use]
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// A program to run: what it is called, its words, and what it may read on its standard input.
pub struct Program<'a> {
    name: &'static str,
    args: Vec<OsString>,
    secret: Option<&'a [u8]>,
}

impl<'a> Program<'a> {
    /// A program found on the search path, without words yet.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self { name, args: Vec::new(), secret: None }
    }

    /// Adds one word.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds words.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Gives a secret on standard input, through a pipe that is closed behind it.
    #[must_use]
    pub fn secret(mut self, secret: &'a [u8]) -> Self {
        self.secret = Some(secret);
        self
    }

    /// What the program is called.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its words.
    #[must_use]
    pub fn words(&self) -> &[OsString] {
        &self.args
    }

    /// What it will read on its standard input: a scripted `Exec` checks a key with it.
    #[must_use]
    pub fn stdin(&self) -> Option<&[u8]> {
        self.secret
    }
}

impl fmt::Debug for Program<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("name", &self.name).field("args", &self.args).finish_non_exhaustive()
    }
}

/// What a program that ended by itself left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to standard output, trimmed, at most 64 KiB.
    pub stdout: String,
    /// What it wrote to standard error, trimmed, at most 64 KiB.
    pub stderr: String,
}

/// Why there is no success of a program.
#[derive(Debug, thiserror::Error)]
pub enum ExecFailure {
    /// It is not installed, or could not be started.
    #[error("start {program} (is it installed and on the search path?)")]
    Start {
        /// The program.
        program: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It was started, but its pipes or its end could not be followed.
    #[error("follow {program}")]
    Follow {
        /// The program.
        program: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Its deadline passed: it was killed with everything it had started.
    #[error("{program} did not end before the deadline and was killed")]
    Deadline {
        /// The program.
        program: &'static str,
    },
    /// A signal ended it.
    #[error("{program} was ended by a signal")]
    Signalled {
        /// The program.
        program: &'static str,
    },
    /// It ended with a code that means failure.
    #[error("{program} ended with status {code}: {stderr}")]
    Status {
        /// The program.
        program: &'static str,
        /// Its exit code.
        code: i32,
        /// What it said.
        stderr: String,
    },
}

impl Output {
    /// The output, where the code is 0.
    ///
    /// # Errors
    /// The program ended with another code.
    pub fn success(self, program: &'static str) -> Result<Self, ExecFailure> {
        match self.code {
            0 => Ok(self),
            code => Err(ExecFailure::Status { program, code, stderr: self.stderr }),
        }
    }
}

/// Runs programs: the system's own, or a script's.
#[async_trait]
pub trait Exec: Send + Sync {
    /// Runs a program to its end.
    ///
    /// # Errors
    /// It could not be started or followed, a signal ended it, or the deadline passed. An exit code is no error here.
    async fn run(&self, program: Program<'_>, deadline: Deadline) -> Result<Output, ExecFailure>;
}

/// Whether a udev daemon answers on this machine. Without one libdevmapper must make the device nodes by itself,
/// or it waits for ever for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Udev {
    /// It answers.
    Running,
    /// There is none.
    Absent,
}

impl Udev {
    /// Looks for the daemon's control socket, `/run/udev/control`.
    #[must_use]
    pub fn detect() -> Self {
        if std::path::Path::new("/run/udev/control").exists() { Self::Running } else { Self::Absent }
    }
}

/// The programs of this machine.
#[derive(Debug)]
pub struct System {
    udev: Udev,
}

impl System {
    /// Programs of a machine with or without udev.
    #[must_use]
    pub fn new(udev: Udev) -> Self {
        Self { udev }
    }
}

const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long the end of a killed program is waited for.
const KILLED_TIME: Duration = Duration::from_secs(5);
const OUTPUT_BYTES: u64 = 64 * 1024;

#[async_trait]
impl Exec for System {
    async fn run(&self, program: Program<'_>, deadline: Deadline) -> Result<Output, ExecFailure> {
        let name = program.name;
        let mut command = Command::new(name);
        command
            .args(&program.args)
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(if program.secret.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if self.udev == Udev::Absent {
            command.env("DM_DISABLE_UDEV", "1");
        }
        if deadline.left().is_zero() {
            return Err(ExecFailure::Deadline { program: name });
        }
        let started = Instant::now();
        let mut child = command.spawn().map_err(|source| ExecFailure::Start { program: name, source })?;
        let group = Group::of(&child);
        let ended = tokio::time::timeout(deadline.left(), follow(&mut child, program.secret)).await;
        let Ok(followed) = ended else {
            drop(group);
            // Killed, so this wait is short, unless a disk hangs; the runtime reaps what ends later.
            let _ = tokio::time::timeout(KILLED_TIME, child.wait()).await;
            return Err(ExecFailure::Deadline { program: name });
        };
        let (status, stdout, stderr) = followed.map_err(|source| ExecFailure::Follow { program: name, source })?;
        let Some(code) = status.code() else { return Err(ExecFailure::Signalled { program: name }) };
        group.ended();
        tracing::debug!(program = name, code, took = ?started.elapsed(), stderr, "program ended");
        Ok(Output { code, stdout, stderr })
    }
}

async fn follow(child: &mut Child, secret: Option<&[u8]>) -> io::Result<(std::process::ExitStatus, String, String)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let (Some(mut pipe), Some(secret)) = (stdin, secret) {
            // A program that fails early closes its end; its exit code says why, so the broken pipe does not.
            let _ = pipe.write_all(secret).await;
        }
        Ok(())
    };
    let ((), stdout, stderr) = tokio::try_join!(feed, bytes(stdout), bytes(stderr))?;
    Ok((child.wait().await?, text(&stdout, secret), text(&stderr, secret)))
}

async fn bytes(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Zeroizing<Vec<u8>>> {
    let Some(mut pipe) = pipe else { return Ok(Zeroizing::default()) };
    let mut bytes = Zeroizing::new(Vec::new());
    (&mut pipe).take(OUTPUT_BYTES).read_to_end(&mut bytes).await?;
    tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    Ok(bytes)
}

/// What a program wrote, for errors and logs: not a word of it where it repeats the secret that it was given.
fn text(bytes: &[u8], secret: Option<&[u8]>) -> String {
    if secret.is_some_and(|secret| repeats(bytes, secret)) {
        return "(not shown: it repeats the secret that the program was given)".to_owned();
    }
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// Whether a part of a secret that is worth something is in a text: 8 of its bytes, as they are or in hexadecimal digits,
/// or 12 digits of its base64.
fn repeats(bytes: &[u8], secret: &[u8]) -> bool {
    let holds = |text: &[u8], part: &[u8]| text.windows(part.len()).any(|window| window == part);
    let plain: Vec<u8> =
        bytes.iter().filter(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(byte)).copied().collect();
    let plain = Zeroizing::new(plain);
    let lower = Zeroizing::new(plain.to_ascii_lowercase());
    let base64 = (0..3.min(secret.len())).map(|shift| {
        Zeroizing::new(base64::Engine::encode(&base64::prelude::BASE64_STANDARD_NO_PAD, &secret[shift..]).into_bytes())
    });
    secret.windows(8).any(|part| holds(bytes, part) || holds(&lower, Zeroizing::new(hex(part)).as_bytes()))
        || base64.into_iter().any(|text| text.chunks_exact(12).any(|part| holds(&plain, part)))
}

/// A started process group, killed when this is dropped before the program has ended: at a deadline, or when the
/// caller itself is dropped.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }

    fn ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // A group that is gone already is what we want.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(program: Program<'_>, time: Duration) -> Result<Output, ExecFailure> {
        System::new(Udev::Absent).run(program, Deadline::within(time)).await
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_secret_goes_through_standard_input_and_an_exit_code_comes_back() {
        let output = run(Program::new("sh").args(["-c", "cat; echo no >&2; exit 3"]).secret(b"marked"), LONG).await;
        let output = output.expect("sh runs");
        assert_eq!(output, Output { code: 3, stdout: "marked".into(), stderr: "no".into() });
        let failed = output.success("sh").expect_err("status 3").to_string();
        assert_eq!(failed, "sh ended with status 3: no");
    }

    #[tokio::test]
    async fn what_repeats_the_secret_is_not_shown() {
        let secret: Vec<u8> = (0..32_u8).map(|byte| byte.wrapping_mul(7).wrapping_add(130)).collect();
        for echo in
            ["cat >&2", "od -An -tx1 >&2", "od -An -tx1 | tr a-f A-F >&2", "base64 >&2", "tail -c +2 | base64 >&2"]
        {
            let script = format!("echo before; {echo}; exit 1");
            let output = run(Program::new("sh").args(["-c", &script]).secret(&secret), LONG).await.expect("sh runs");
            assert!(output.stderr.starts_with("(not shown"), "{echo}: {:?}", output.stderr);
            assert_eq!(output.stdout, "before");
        }
    }

    #[tokio::test]
    async fn the_environment_of_the_caller_is_not_passed_on() {
        let output = run(Program::new("env"), LONG).await.expect("env runs");
        let mut names: Vec<_> = output.stdout.lines().filter_map(|line| line.split('=').next()).collect();
        names.sort_unstable();
        assert_eq!(names, ["DM_DISABLE_UDEV", "LC_ALL", "PATH"]);
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let failed = run(Program::new("coffer-no-such-program"), LONG).await.expect_err("not installed");
        assert!(failed.to_string().contains("coffer-no-such-program"), "{failed}");
    }

    #[tokio::test]
    async fn at_the_deadline_the_whole_group_is_killed() {
        let pids = tempfile::NamedTempFile::new().expect("a temporary file");
        let script = format!("sleep 1000 & echo $! > {}; wait", pids.path().display());
        let failed = run(Program::new("sh").args(["-c", &script]), Duration::from_millis(500)).await;
        assert!(matches!(failed, Err(ExecFailure::Deadline { program: "sh" })), "{failed:?}");
        let grandchild = std::fs::read_to_string(pids.path()).expect("the pid was written");
        let stat = format!("/proc/{}/stat", grandchild.trim());
        // A signal was sent; the kernel ends the process when it next gets to run.
        let waited = Deadline::within(LONG);
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z")) {
            assert!(!waited.left().is_zero(), "the grandchild still runs");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        assert!(!format!("{:?}", Program::new("cat").secret(b"marked")).contains("marked"));
    }
}
