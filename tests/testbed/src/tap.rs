//! Coffer as two processes, and recorders of what goes between processes.
//!
//! Between two unix sockets: whoever connects to the one is led to the other, and every byte that goes either way is
//! kept, each direction of each connection apart. In front of programs: their words and their environments.

use std::{
    fmt, fs, io,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use coffer::proto::csi::ProbeRequest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::{AbortHandle, JoinSet},
};

use crate::{csi::Csi, driver::NODE};

/// A node and its key service as two processes that log all they can, with everything recorded that goes between them,
/// and between the node and its client.
pub struct Pair {
    /// The key service.
    pub keys: Process,
    /// The node.
    pub node: Process,
    /// Between node and key service.
    pub keys_tap: Tap,
    /// Between client and node.
    pub csi_tap: Tap,
    /// The client.
    pub csi: Csi,
    program: PathBuf,
    folder: PathBuf,
    state_dir: PathBuf,
    file: PathBuf,
}

impl Pair {
    /// Starts both on the cluster key and the records of a state folder, with a second provider `lab` whose key is
    /// `local.key` in the folder that also gets their logs. `program` is the program `coffer`.
    ///
    /// # Errors
    /// A file cannot be written, or the node does not become ready.
    pub async fn start(program: &str, folder: &Path, state_dir: &Path) -> Result<Self> {
        let keys = [state_dir.join("cluster-key.json"), folder.join("local.key")];
        let file = configuration(folder, state_dir, "coffer.yaml", [&keys[0], &keys[1]])?;
        Self::start_with(program, folder, state_dir, &file).await
    }

    /// Starts both with the key service of a configuration, which has to listen on `keys.sock` in the folder.
    ///
    /// # Errors
    /// A program cannot be started, or the node does not become ready.
    pub async fn start_with(program: &str, folder: &Path, state_dir: &Path, file: &Path) -> Result<Self> {
        let (program, folder, state_dir) = (PathBuf::from(program), folder.to_owned(), state_dir.to_owned());
        let (socket, tapped) = (state_dir.join("csi.sock"), folder.join("keys-tap.sock"));
        let keys_tap = Tap::open(&tapped, &folder.join("keys.sock"))?;
        let csi_tap = Tap::open(&folder.join("csi-tap.sock"), &socket)?;
        let csi = Csi::at(&folder.join("csi-tap.sock"));
        let keys = start_keys(&program, &folder, file)?;
        let (socket, tapped, pool) = (socket.display(), tapped.display(), state_dir.join("volumes"));
        let words = format!("node --provision-local --node-id {NODE} --listen unix://{socket}");
        let words = format!("{words} --pool-dir {} --key-service unix://{tapped}", pool.display());
        let node = Process::start(&program, &folder, "node", &words)?;
        let file = file.to_owned();
        let pair = Self { keys, node, keys_tap, csi_tap, csi, program, folder, state_dir, file };
        let log = || {
            let read = |name| fs::read_to_string(pair.folder.join(name)).unwrap_or_default();
            [read("keyservice.log"), read("node.log")].concat()
        };
        pair.ready(true).await.with_context(log)?;
        Ok(pair)
    }

    /// Waits until the node says that its key service is there, or that it is not.
    ///
    /// # Errors
    /// It does not say so in time.
    pub async fn ready(&self, ready: bool) -> Result<()> {
        until("the node to find its key service, or to miss it", async || {
            let probed = self.csi.identity.clone().probe(ProbeRequest {}).await;
            anyhow::Ok(probed.is_ok_and(|reply| reply.into_inner().ready == Some(ready)))
        })
        .await
    }

    /// Starts the key service again, which reads its keys again.
    ///
    /// # Errors
    /// It does not start, or the node does not find it.
    pub async fn restart_keys(&mut self) -> Result<()> {
        self.keys.kill();
        self.keys = start_keys(&self.program, &self.folder, &self.file)?;
        self.ready(true).await
    }

    /// The configuration of a key service with other keys.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn configuration(&self, name: &str, cluster_key: &Path, local_key: &Path) -> Result<PathBuf> {
        configuration(&self.folder, &self.state_dir, name, [cluster_key, local_key])
    }
}

fn start_keys(program: &Path, folder: &Path, file: &Path) -> Result<Process> {
    Process::start(program, folder, "keyservice", &format!("keyservice --config {}", file.display()))
}

fn configuration(folder: &Path, state_dir: &Path, name: &str, keys: [&Path; 2]) -> Result<PathBuf> {
    let (path, socket, records) = (folder.join(name), folder.join("keys.sock"), state_dir.join("records"));
    let [cluster, local] = keys.map(Path::display);
    let (socket, records) = (socket.display(), records.display());
    let text = format!(
        "listen: {{unix: {{path: {socket}, allowedUids: [0]}}}}\n\
         providers: {{cluster: {{type: cluster-key, file: {cluster}}}, \
         lab: {{type: local, keyFile: {local}, insecureLocalKey: true}}}}\n\
         defaultProvider: cluster\nstore: {{type: filesystem, path: {records}}}\nauditLog: audit.log\n"
    );
    fs::write(&path, text)?;
    Ok(path)
}

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub struct Process(pub Child);

impl Process {
    /// The group of the processes that are started here: by it their files in `/proc` are told from root's.
    pub const GROUP: u32 = 4242;

    fn start(program: &Path, folder: &Path, name: &str, words: &str) -> Result<Self> {
        let log =
            |kind: &str| fs::OpenOptions::new().append(true).create(true).open(folder.join(name).with_extension(kind));
        let mut command = Command::new(program);
        command.args(["--log-level", "trace", "--log-format", "json"]).args(words.split(' ')).gid(Self::GROUP);
        command.stdin(Stdio::null()).stdout(log("out")?).stderr(log("log")?);
        Ok(Self(command.spawn().with_context(|| format!("start {name}"))?))
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until something is so.
///
/// # Errors
/// It cannot be looked at, or is not so within 20 seconds.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is_so().await? {
        ensure!(start.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// A recorder. It listens until it is closed, or dropped.
pub struct Tap {
    path: PathBuf,
    target: PathBuf,
    recorded: Recorded,
    listening: Option<AbortHandle>,
}

/// What went through one connection.
#[derive(Default)]
struct Connection {
    to_target: Vec<u8>,
    from_target: Vec<u8>,
}

type Recorded = Arc<Mutex<Vec<Connection>>>;

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap").field("path", &self.path).field("target", &self.target).finish_non_exhaustive()
    }
}

impl Tap {
    /// Listens on a path, and leads who connects to the target. It needs a runtime.
    ///
    /// # Errors
    /// The path is taken, or its folder cannot be written.
    pub fn open(path: &Path, target: &Path) -> io::Result<Self> {
        let (path, target) = (path.to_owned(), target.to_owned());
        let mut tap = Self { path, target, recorded: Arc::default(), listening: None };
        tap.open_again()?;
        Ok(tap)
    }

    /// Listens again where it was closed, and keeps what it has recorded.
    ///
    /// # Errors
    /// The path is taken.
    pub fn open_again(&mut self) -> io::Result<()> {
        let listener = UnixListener::bind(&self.path)?;
        let listening = tokio::spawn(listen(listener, self.target.clone(), self.recorded.clone()));
        self.listening = Some(listening.abort_handle());
        Ok(())
    }

    /// Ends all connections, and takes the socket away: whoever connects finds nothing there.
    pub fn close(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.abort();
            // A socket that is gone already is what we want.
            let _ = fs::remove_file(&self.path);
        }
    }

    /// What was sent to the target, a connection each.
    #[must_use]
    pub fn to_target(&self) -> Vec<Vec<u8>> {
        self.each(|connection| connection.to_target.clone())
    }

    /// What the target has sent, a connection each.
    #[must_use]
    pub fn from_target(&self) -> Vec<Vec<u8>> {
        self.each(|connection| connection.from_target.clone())
    }

    fn each(&self, part: impl Fn(&Connection) -> Vec<u8>) -> Vec<Vec<u8>> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner).iter().map(part).collect()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.close();
    }
}

/// The connections end with this, because their tasks belong to it.
async fn listen(listener: UnixListener, target: PathBuf, recorded: Recorded) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(lead(client, target.clone(), recorded.clone()));
    }
}

async fn lead(client: UnixStream, target: PathBuf, recorded: Recorded) {
    // To a target that does not listen no connection is made; this one ends.
    let Ok(service) = UnixStream::connect(target).await else { return };
    let number = with(&recorded, |connections| {
        connections.push(Connection::default());
        connections.len() - 1
    });
    let ((from_client, to_client), (from_service, to_service)) = (client.into_split(), service.into_split());
    let there = copy(from_client, to_service, |bytes| {
        with(&recorded, |connections| connections[number].to_target.extend_from_slice(bytes));
    });
    let back = copy(from_service, to_client, |bytes| {
        with(&recorded, |connections| connections[number].from_target.extend_from_slice(bytes));
    });
    tokio::join!(there, back);
}

fn with<T>(recorded: &Recorded, change: impl FnOnce(&mut Vec<Connection>) -> T) -> T {
    change(&mut recorded.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Copies until there is no more, and says so to the other end.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, keep: impl Fn(&[u8])) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        keep(&buffer[..length]);
        if to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    // Whoever is gone does not need to be told.
    let _ = to.shutdown().await;
}

/// The programs that the driver starts.
pub const PROGRAMS: [&str; 8] =
    ["cryptsetup", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "e2fsck", "resize2fs", "xfs_growfs", "btrfs"];

const IN_THE_WAY: &str = "/usr/local/sbin";

/// A script in the way of each of the programs, which writes its words and its environment to a file of the program's
/// name in a folder, and then is the program. The scripts are gone when this is dropped.
#[derive(Debug)]
pub struct Recorders {
    folder: PathBuf,
}

impl Recorders {
    /// Makes the folder and the scripts.
    ///
    /// # Errors
    /// A program is not there, or a file cannot be written: this needs a guest.
    pub fn place(folder: PathBuf) -> Result<Self> {
        fs::create_dir(&folder)?;
        // From here on, what was placed is taken away again in any case.
        let recorders = Self { folder };
        for name in PROGRAMS {
            let places = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(|place| Path::new(place).join(name));
            let real = places.iter().find(|path| path.exists()).with_context(|| format!("there is no {name}"))?;
            let (real, folder, script) = (real.display(), recorders.folder.display(), Path::new(IN_THE_WAY).join(name));
            // The shell does all of it by itself: each further program takes its time. It leaves out NULs.
            let text = format!(
                "#!/bin/sh\n{{\nprintf '%s ' {name} \"$@\"\necho\n\
                 while IFS= read -r line || [ -n \"$line\" ]; do printf '%s\\n' \"$line\"; done < /proc/self/environ\n\
                 }} >> {folder}/{name}\n\
                 if [ {name} = cryptsetup ] && [ -e {folder}/instead ]; then . {folder}/instead; fi\n\
                 exec {real} \"$@\"\n"
            );
            fs::write(&script, text)?;
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        }
        Ok(recorders)
    }

    /// What a program was started with, each time that it was.
    #[must_use]
    pub fn file(&self, program: &str) -> PathBuf {
        self.folder.join(program)
    }

    /// The folder of these files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Lets `cryptsetup` do something else from now on: a piece of a shell script.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn instead(&self, script: &str) -> io::Result<()> {
        fs::write(self.file("instead"), script)
    }

    /// Lets `cryptsetup` be itself again.
    ///
    /// # Errors
    /// It is itself.
    pub fn as_usual(&self) -> io::Result<()> {
        fs::remove_file(self.file("instead"))
    }
}

impl Drop for Recorders {
    fn drop(&mut self) {
        for name in PROGRAMS {
            let _ = fs::remove_file(Path::new(IN_THE_WAY).join(name));
        }
    }
}
