//! Marked secrets go through every flow and every refusal, with everything logged, and are then looked for wherever
//! somebody could read them: logs, errors, files, words and environments, connections, memory. `tests/matrix/secrets.rs`
//! has the other providers.
//!
//! No key passes any connection in the clear, that of its release neither (HPKE). The headers of gRPC are compressed,
//! and errors travel in them, so their texts are searched where the client has them.

mod flows;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use coffer::{
    exec::Deadline,
    key::{
        cluster::ClusterKeys,
        envelope::{self, Envelope, Kept},
        kms::local::Local,
        record::{Record, StoredKey},
    },
    proto::csi::{
        Volume, VolumeCapability,
        volume_capability::{AccessType, access_mode::Mode},
    },
    secret::{Dek, LocalKek},
    volume::hex,
};
use libtest_mimic::Trial;
use testbed::{
    csi::{block, filesystem, new_volume},
    search::{AS_IT_IS, Found, Marks, Search, memory_at_rest},
    tap::{PROGRAMS, Pair, Process, Recorders},
};
use tonic::{Code, Status};

use crate::{Bed, COFFER, MIB, expect_status, loops, mappings, refusal::dek, trial};

pub(crate) fn trials() -> Vec<Trial> {
    // Scripts stand in the way of programs, and whole folders of the machine are searched: only a guest is for that.
    if std::env::var_os("TESTBED_GUEST").is_none() {
        return Vec::new();
    }
    vec![trial("no_secret_is_where_somebody_could_read_it", secrets)]
}

const KEYS_TO_NODE: &str = "what the key service sends to the node";
const NODE_TO_KEYS: &str = "what the node sends to the key service";
const CLIENT_TO_NODE: &str = "what the client sends to the node";
const NODE_TO_CLIENT: &str = "what the node sends to the client";
const KEYS_MEMORY: &str = "memory of the key service";
const CONNECTED_MEMORY: &str = "memory of the node with its connections open";
const MEMORY: &str = "memory of the node without a client";

/// What may be found as it is, where, and why. All else is a leak.
const ALLOWED: &[(&str, &str, &str)] = &[
    (CLIENT_TO_NODE, "passphrase", "the client sends it, and each is counted"),
    (KEYS_MEMORY, "cluster key", "every DEK is derived with it"),
    (KEYS_MEMORY, "KEK", "every DEK is unwrapped with it"),
    (CONNECTED_MEMORY, "passphrase", "HTTP/2 keeps what it has read last until its connection ends"),
];

/// How long a program may take to be there.
const START_TIME: Duration = Duration::from_secs(5);
const WRITER: Mode = Mode::SingleNodeWriter;

async fn secrets(bed: Bed) -> Result<()> {
    finds_what_is_planted(&bed)?;
    let mut house = House::build(bed).await?;
    let ext4 = house.create("ext4", 64, filesystem("ext4", WRITER), None).await?;
    let local = house.create("local", 64, filesystem("ext4", WRITER), Some("lab")).await?;
    let btrfs = house.create("btrfs", 128, filesystem("btrfs", WRITER), None).await?;
    let xfs = house.create("xfs", 300, filesystem("xfs", WRITER), Some("lab")).await?;
    let raw = house.create("block", 16, block(WRITER), None).await?;
    for volume in [&ext4, &local, &btrfs, &xfs] {
        house.live(volume, filesystem("", WRITER)).await.with_context(|| format!("{volume:?}"))?;
    }
    house.live(&raw, block(WRITER)).await.context("block")?;
    house.repair(&local).await?;
    house.tamper(&ext4, &local).await?;
    house.lose_keys(&local).await?;
    house.send_secrets(&ext4).await?;
    house.break_programs(&ext4).await?;
    for volume in [&btrfs, &raw] {
        house.pair.csi.delete(&volume.volume_id).await?;
    }
    ensure!(mappings().is_empty() && loops() == 0, "{:?}, {} loop devices", mappings(), loops());
    let files = [house.bed.driver.file(&ext4.volume_id), house.bed.driver.record(&local.volume_id)];
    house.search(&files).await?;
    hardened("the node", house.pair.node.id())?;
    hardened("the key service", house.pair.keys.id())
}

/// A search that finds nothing proves something only where it can find.
fn finds_what_is_planted(bed: &Bed) -> Result<()> {
    let planted: Vec<u8> = (0..32_u8).map(|byte| byte.wrapping_mul(41).wrapping_add(160)).collect();
    let (mut marks, path) = (Marks::default(), bed.path("planted"));
    marks.add("planted", &planted);
    let text = serde_json::to_string(String::from_utf8_lossy(&planted).trim())?;
    let base64 = encoded(&[b"a".as_slice(), &planted].concat());
    let log = format!("{planted:?} {text} {base64} {}", serde_json::to_string(&planted)?);
    // The file's mark lies across two of the pieces in which files are read.
    for (content, forms) in [
        ([vec![7; (1 << 20) - 9], planted.clone()].concat(), AS_IT_IS.as_slice()),
        (log.into_bytes(), ["list", "JSON list", "JSON text", "base64"].as_slice()),
    ] {
        fs::write(&path, content)?;
        let mut search = Search::new(&marks);
        search.folder(bed.state.path(), &[])?;
        for form in forms {
            let found = search.found.iter().any(|found| found.form == *form && Path::new(&found.place) == path);
            ensure!(found, "{form} in a file: {:#?}", search.found);
        }
    }
    fs::remove_file(path)?;

    let child = Process(Command::new("sleep").arg("1000").env("PLANTED", hex(&planted)).spawn()?);
    // Starting a program comes back when the new program has taken the old one's place, a moment before its environment is there.
    let start = Instant::now();
    while fs::read(format!("/proc/{}/environ", child.id()))?.is_empty() {
        ensure!(start.elapsed() < START_TIME, "the child has no environment");
    }
    let mut search = Search::new(&marks);
    search.process(child.id())?;
    search.memory("a child", child.id())?;
    search.memory("this process", std::process::id())?;
    for place in ["/environ", "a child"] {
        let found = search.found.iter().any(|found| found.form == "hex" && found.place.contains(place));
        ensure!(found, "{place}: {:#?}", search.found);
    }
    let address = planted.as_ptr() as u64;
    ensure!(search.found.iter().any(|found| found.offset == address), "this process's memory: {:#?}", search.found);
    Ok(())
}

/// A node and its key service, with every secret known and everything recorded.
struct House {
    pair: Pair,
    recorders: Recorders,
    marks: Marks,
    /// The names of the DEKs, and the ids of their volumes.
    volumes: Vec<(String, String)>,
    passphrase: String,
    /// How often the passphrase was sent.
    sent: usize,
    /// What clients were told of errors.
    told: Vec<String>,
    bed: Bed,
}

impl House {
    async fn build(mut bed: Bed) -> Result<Self> {
        // The driver in one process has made the cluster key; it goes, and two processes take its place.
        bed.driver.kill();
        let mut marks = Marks::default();
        let cluster = ClusterKeys::load(&bed.driver.state_dir().join("cluster-key.json"))?;
        marks.add("cluster key", cluster.current().1.key.expose_secret());
        let kek = LocalKek::random();
        marks.add("KEK", kek.expose_secret());
        private(&bed.path("local.key"), &encoded(kek.expose_secret()))?;
        let passphrase = encoded(&Dek::random().expose_secret()[..24]);
        marks.add("passphrase", passphrase.as_bytes());
        let recorders = Recorders::place(bed.path("recorded"))?;
        let pair = Pair::start(COFFER, bed.state.path(), bed.driver.state_dir()).await?;
        Ok(Self { pair, recorders, marks, volumes: Vec::new(), passphrase, sent: 0, told: Vec::new(), bed })
    }

    /// Expects a refusal, and keeps what was told.
    fn refused<T>(&mut self, answer: Result<T, Status>, code: Code, text: &str) -> Result<()> {
        self.told.extend(answer.as_ref().err().map(|status| format!("{} {status:?}", status.message())));
        expect_status(answer, code, &[text])
    }

    /// Expects that a volume is not staged.
    async fn not_staged(&mut self, volume: &Volume, code: Code, text: &str) -> Result<()> {
        let answer = self.pair.csi.stage_filesystem(volume, &self.bed.path("staged")).await;
        self.refused(answer, code, text)
    }

    /// Expects that a volume is unlocked as ever.
    async fn opens(&self, volume: &Volume) -> Result<()> {
        let staged = self.bed.path("staged");
        self.pair.csi.stage_filesystem(volume, &staged).await?;
        Ok(self.pair.csi.unstage(&volume.volume_id, &staged).await?)
    }

    async fn create(
        &mut self,
        name: &str,
        mib: u64,
        capability: VolumeCapability,
        provider: Option<&str>,
    ) -> Result<Volume> {
        let mut request = new_volume(name, mib * MIB, capability);
        request.parameters.extend(provider.map(|provider| ("provider".to_owned(), provider.to_owned())));
        let volume = self.pair.csi.create(request).await?;
        let dek = match provider {
            None => dek(&self.bed.driver, &volume.volume_id)?,
            Some(_) => unwrapped(&self.bed, &volume.volume_id).await?,
        };
        self.volumes.push((format!("DEK of {name}"), volume.volume_id.clone()));
        self.marks.add(&format!("DEK of {name}"), dek.expose_secret());
        Ok(volume)
    }

    /// All that goes well: a first stage, a publish, growth in use, an unlock.
    async fn live(&self, volume: &Volume, capability: VolumeCapability) -> Result<()> {
        let (csi, id, staged, target) =
            (&self.pair.csi, &volume.volume_id, self.bed.path("staged"), self.bed.path("target"));
        let bytes = 2 * volume.capacity_bytes.unsigned_abs();
        let is_block = matches!(capability.access_type, Some(AccessType::Block(_)));
        csi.stage(volume, &staged, capability.clone()).await?;
        csi.publish(volume, &staged, &target, capability.clone()).await?;
        csi.stats(id, &target).await?;
        csi.expand_file(id, bytes).await?;
        csi.expand(id, if is_block { &target } else { &staged }, bytes).await?;
        csi.unpublish(id, &target).await?;
        csi.unstage(id, &staged).await?;
        csi.stage(volume, &staged, capability).await?;
        Ok(csi.unstage(id, &staged).await?)
    }

    /// Looks everywhere. These files are among what is looked through.
    async fn search(&mut self, files: &[PathBuf]) -> Result<()> {
        let (node, keys) = (self.pair.node.id(), self.pair.keys.id());
        let mut search = memory_at_rest(&self.marks, CONNECTED_MEMORY, node, is_allowed).await?;
        search.absorb(memory_at_rest(&self.marks, KEYS_MEMORY, keys, is_allowed).await?);
        self.pair.csi_tap.close();
        search.absorb(memory_at_rest(&self.marks, MEMORY, node, is_allowed).await?);
        for (place, connections) in [
            (KEYS_TO_NODE, self.pair.keys_tap.from_target()),
            (NODE_TO_KEYS, self.pair.keys_tap.to_target()),
            (CLIENT_TO_NODE, self.pair.csi_tap.to_target()),
            (NODE_TO_CLIENT, self.pair.csi_tap.from_target()),
        ] {
            ensure!(connections.iter().any(|bytes| bytes.len() > 1000), "{place} was not recorded");
            connections.iter().for_each(|bytes| search.bytes(place, bytes));
        }
        ensure!(self.told.len() > 15, "only {} errors were told", self.told.len());
        search.bytes("what clients were told of errors", self.told.join("\n").as_bytes());
        search.process(node)?;
        search.process(keys)?;
        for program in PROGRAMS {
            search.file(&self.recorders.file(program)).with_context(|| format!("{program} never ran"))?;
        }

        let keys = [self.bed.path("local.key"), self.bed.driver.state_dir().join("cluster-key.json")];
        let mut without = [keys.as_slice(), &[self.recorders.folder().to_owned()]].concat();
        // What lies on the host is no place of the guest's.
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let hosts = mounts.lines().filter(|line| line.contains(" - hostfs "));
        without.extend(hosts.filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from));
        for folder in ["/run", "/tmp", "/var/lib", "/mnt", "/dev/shm"] {
            search.folder(Path::new(folder), &without)?;
        }
        let logs = ["node.log", "keyservice.log", "audit.log"].map(|name| self.bed.path(name));
        for path in files.iter().chain(&logs) {
            ensure!(search.places.contains(&path.display().to_string()), "{} was not searched", path.display());
            ensure!(fs::metadata(path)?.len() > 100, "{} is empty", path.display());
        }
        let Search { found, places, bytes, .. } = search;
        println!("secrets: searched {bytes} bytes in {} places for {} marks", places.len(), self.marks.count());

        let count = |place: &str, mark: &str| {
            AS_IT_IS.map(|form| {
                let same = |found: &&Found| found.place == place && found.mark == mark && found.form == form;
                found.iter().filter(same).count()
            })
        };
        let audit = fs::read_to_string(self.bed.path("audit.log"))?;
        for (mark, id) in &self.volumes {
            let release = |line: &&str| line.contains(r#""operation":"release","result":"ok""#) && line.contains(id);
            let releases = audit.lines().filter(release).count();
            ensure!(releases > 0, "{mark} was never released:\n{audit}");
        }
        let passed = count(CLIENT_TO_NODE, "passphrase");
        ensure!(passed == [self.sent; 3], "the passphrase was sent {} times and passed {passed:?} times", self.sent);
        let leaks: Vec<_> = found.iter().filter(|found| !is_allowed(found)).collect();
        ensure!(
            leaks.is_empty(),
            "{} times a secret was found, first:\n{:#?}",
            leaks.len(),
            &leaks[..leaks.len().min(30)]
        );
        Ok(())
    }
}

fn is_allowed(found: &Found) -> bool {
    let fits = |(place, mark, _): &(&str, &str, &str)| found.place.starts_with(place) && found.mark.starts_with(mark);
    AS_IT_IS.contains(&found.form) && ALLOWED.iter().any(fits)
}

/// Whether a process keeps its memory from disks and from others.
fn hardened(name: &str, pid: u32) -> Result<()> {
    let proc = |file: &str| PathBuf::from(format!("/proc/{pid}/{file}"));
    let limits = fs::read_to_string(proc("limits"))?;
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap_or_default();
    ensure!(core.split_whitespace().take(2).eq(["0", "0"]), "{name} can leave a core dump: {core}");

    let status = fs::read_to_string(proc("status"))?;
    let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next());
    // LOCKED MEMORY (mlockall).
    let locked = value("VmLck:").and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
    ensure!(locked > 0, "the memory of {name} can be swapped out");
    // NOT DUMPABLE (PR_SET_DUMPABLE): its files in /proc belong to root's group in place of its own (proc(5)).
    ensure!(
        value("Gid:") == Some(Process::GROUP.to_string().as_str()),
        "{name} is not in the group that it was started in:\n{status}"
    );
    ensure!(fs::metadata(proc("environ"))?.gid() == 0, "{name} can be dumped and traced");
    Ok(())
}

/// Writes a file that only its owner can read, as key files have to be.
fn private(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o600))?)
}

fn encoded(bytes: &[u8]) -> String {
    base64::Engine::encode(&base64::prelude::BASE64_STANDARD, bytes)
}

/// The DEK of a volume, unwrapped here a second time.
async fn unwrapped(bed: &Bed, volume_id: &str) -> Result<Dek> {
    let record = Record::from_bytes(&fs::read(bed.driver.record(volume_id))?)?;
    let Some(StoredKey::Wrapped { kek_id, kek_mechanism, nonce, wrapped_dek, wrapped_inner_key, .. }) = &record.key
    else {
        bail!("the key is not wrapped");
    };
    let kms = Local::load(&bed.path("local.key"), None)?;
    let parts = Envelope { kek_id, kek_mechanism: *kek_mechanism, nonce, wrapped_dek, wrapped_inner_key };
    Ok(envelope::unwrap(parts, &record.binding(), Kept::Stored, &kms, Deadline::within(Duration::from_secs(20)))
        .await?)
}
