//! One volume's life with each provider, with everything logged, and then a search for its keys and for the provider's
//! credentials wherever somebody could read them: logs, the audit log, words and environments of every program, files,
//! connections, the kernel's log, memory. `tests/kernel/secrets` leads the keys of this machine through every flow and
//! refusal; here it is the SDKs of the clouds that could talk.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use coffer::{
    admin::Place,
    config::file::{Environment, FileConfig},
    key::{
        envelope::Kept,
        kms::Wrapped,
        providers::Provider,
        record::{Base64, Record, StoredKey},
    },
    proto::csi::Volume,
    secret::Dek,
    volume::hex,
};
use serde_json::json;
use testbed::{
    cloud::plan::{self, Side},
    conformance::soon,
    guest,
    search::{Found, Marks, Search, memory_at_rest},
    tap::{Pair, Recorders},
};

use crate::{COFFER, MARK, MIB};

const DEK: &str = "DEK";
const INNER_KEY: &str = "inner key";
const PLANTED: &str = "planted";

const KERNEL_LOG: &str = "the kernel's log";
const TOLD: &str = "what the client was told of errors";
const KEYS_MEMORY: &str = "memory of the key service";
const CONNECTED_MEMORY: &str = "memory of the node with its connections open";
const MEMORY: &str = "memory of the node without a client";

/// The key service has the inner key in its cache, and its connections to the KMS keep what they have read last; its
/// credentials it uses. A DEK it only passes on, encrypted. All else is a leak.
fn is_allowed(found: &Found) -> bool {
    found.mark == PLANTED || (found.place.starts_with(KEYS_MEMORY) && found.mark != DEK)
}

/// Leads a volume through its life with a provider, searches, and says how much was looked through.
pub(crate) async fn nothing_leaves(provider: &Side) -> Result<String> {
    let bed = guest::folder()?;
    let (folder, state) = (bed.path(), bed.path().join("state"));
    for name in ["records", "volumes"] {
        fs::create_dir_all(state.join(name))?;
    }
    let file = configuration(provider, folder, &state)?;
    // Scripts stand in the way of programs: only a guest is for that.
    let recorders = is_guest().then(|| Recorders::place(folder.join("recorded"))).transpose()?;
    let mut pair = Pair::start_with(COFFER, folder, &state, &file).await?;
    let volume = pair.csi.create_filesystem("secrets", 32 * MIB, "ext4").await.context("create")?;
    let mut marks = Marks::default();
    mark_keys(&file, &volume.volume_id, &mut marks).await.context("unwrap the key a second time")?;
    marks.add_files(&provider.config);
    let planted = Dek::random();
    marks.add(PLANTED, planted.expose_secret());

    let told = live(&mut pair, &volume, folder, &state).await?;
    let planted_in = folder.join("planted.log");
    fs::write(&planted_in, serde_json::to_string(planted.expose_secret().as_slice())?)?;
    // Without its end a line is not in the log yet.
    fs::write("/dev/kmsg", hex(planted.expose_secret()) + "\n").context("write to the kernel's log")?;
    let search = search(&mut pair, &marks, folder, &told).await?;

    let expected = ["node.log", "keyservice.log", "audit.log"].map(|name| folder.join(name));
    let recorded = recorders.iter().flat_map(|recorders| ["cryptsetup", "mkfs.ext4"].map(|name| recorders.file(name)));
    for path in expected.into_iter().chain(recorded) {
        ensure!(search.places.contains(&path.display().to_string()), "{} was not searched", path.display());
        ensure!(fs::metadata(&path)?.len() > 100, "{} is empty", path.display());
    }
    let audit = fs::read_to_string(folder.join("audit.log"))?;
    let release = |line: &&str| line.contains(r#""operation":"release","result":"ok""#);
    let releases = audit.lines().filter(release).filter(|line| line.contains(&volume.volume_id)).count();
    ensure!(releases > 1, "the key was released {releases} times:\n{audit}");
    // A search that finds nothing proves something only where it can find.
    for place in [planted_in.display().to_string().as_str(), KERNEL_LOG] {
        let is_found = search.found.iter().any(|found| found.mark == PLANTED && found.place == place);
        ensure!(is_found, "what was planted in {place} was not found");
    }
    let leaks: Vec<_> = search.found.iter().filter(|found| !is_allowed(found)).collect();
    ensure!(leaks.is_empty(), "{} times a secret was found, first:\n{:#?}", leaks.len(), &leaks[..leaks.len().min(20)]);
    let words = if recorders.is_some() { "" } else { "; not the words of programs, which only a guest can record" };
    let (places, bytes, marks) = (search.places.len(), search.bytes, marks.count() - 1);
    Ok(format!("{bytes} bytes in {places} places searched for {marks} secrets{words}"))
}

fn is_guest() -> bool {
    std::env::var_os("TESTBED_GUEST").is_some()
}

fn configuration(provider: &Side, folder: &Path, state: &Path) -> Result<PathBuf> {
    let file = folder.join("coffer.yaml");
    let config = json!({
        "clusterId": plan::CLUSTER,
        "providers": { "main": provider.config },
        "store": { "type": "filesystem", "path": state.join("records") },
        "listen": { "unix": { "path": folder.join("keys.sock"), "allowedUids": [0] } },
        "auditLog": folder.join("audit.log"),
    });
    fs::write(&file, serde_json::to_vec(&config)?)?;
    Ok(file)
}

/// Learns the keys of a volume as nobody else does: by its record, and the provider.
async fn mark_keys(file: &Path, volume_id: &str, marks: &mut Marks) -> Result<()> {
    let config = FileConfig::load(file, &Environment::default())?;
    let place = Place::of_config(&config, None).await?;
    let stored = place.store.get(&volume_id.parse()?, soon()).await?;
    let record = stored.context("the volume has no record")?.record;
    let dek = place.providers.open(&record, Kept::New, soon()).await?;
    record.verify(&dek)?;
    marks.add(DEK, dek.expose_secret());
    let (Some(StoredKey::Wrapped { kek_id, kek_mechanism, wrapped_inner_key, .. }), Some(Provider::Kms(provider))) =
        (&record.key, place.providers.by_name.get(&record.provider))
    else {
        bail!("the key is not wrapped by a KMS");
    };
    let bytes = wrapped_inner_key.as_bytes().to_vec();
    let wrapped = Wrapped { kek_id: kek_id.clone(), mechanism: *kek_mechanism, bytes };
    let inner_key = provider.kms.unwrap(&wrapped, &record.binding(), soon()).await?;
    marks.add(INNER_KEY, inner_key.expose_secret());
    Ok(())
}

/// A first stage, one by a key service that knows nothing yet, and two refusals. Returns what was told of them.
async fn live(pair: &mut Pair, volume: &Volume, folder: &Path, state: &Path) -> Result<Vec<String>> {
    let (id, staged) = (&volume.volume_id, folder.join("staged"));
    for round in ["stage", "stage again"] {
        pair.csi.stage_filesystem(volume, &staged).await.context(round)?;
        fs::write(staged.join("mark"), MARK)?;
        pair.csi.unstage(id, &staged).await.context("unstage")?;
        pair.restart_keys().await?;
    }
    let path = state.join("records").join(format!("{id}.json"));
    let whole = fs::read(&path)?;
    let record = Record::from_bytes(&whole)?;
    let mut other_key = record.clone();
    if let Some(StoredKey::Wrapped { wrapped_inner_key, .. }) = &mut other_key.key {
        let mut bytes = wrapped_inner_key.as_bytes().to_vec();
        *bytes.last_mut().context("a wrapped key of no bytes")? ^= 1;
        *wrapped_inner_key = Base64::new(bytes);
    }
    let other_name = Record { name: "another".to_owned(), ..record };
    let mut told = Vec::new();
    for wrong in [other_key, other_name] {
        fs::write(&path, wrong.to_bytes())?;
        let answer = pair.csi.stage_filesystem(volume, &staged).await;
        let status = answer.err().context("a record that was changed led to a key")?;
        told.push(format!("{} {status:?}", status.message()));
    }
    fs::write(&path, whole)?;
    // The inner key has gone through this key service, too, when its memory is looked at.
    pair.csi.stage_filesystem(volume, &staged).await.context("stage once more")?;
    pair.csi.unstage(id, &staged).await.context("unstage")?;
    Ok(told)
}

async fn search<'a>(pair: &mut Pair, marks: &'a Marks, folder: &Path, told: &[String]) -> Result<Search<'a>> {
    let (node, keys) = (pair.node.id(), pair.keys.id());
    let mut search = memory_at_rest(marks, CONNECTED_MEMORY, node, is_allowed).await?;
    search.absorb(memory_at_rest(marks, KEYS_MEMORY, keys, is_allowed).await?);
    pair.csi_tap.close();
    search.absorb(memory_at_rest(marks, MEMORY, node, is_allowed).await?);
    for (place, connections) in [
        ("what the key service sends to the node", pair.keys_tap.from_target()),
        ("what the node sends to the key service", pair.keys_tap.to_target()),
        ("what the client sends to the node", pair.csi_tap.to_target()),
        ("what the node sends to the client", pair.csi_tap.from_target()),
    ] {
        ensure!(connections.iter().any(|bytes| bytes.len() > 1000), "{place} was not recorded");
        connections.iter().for_each(|bytes| search.bytes(place, bytes));
    }
    search.bytes(TOLD, told.join("\n").as_bytes());
    search.process(node)?;
    search.process(keys)?;
    let kernel = Command::new("dmesg").output().context("start dmesg")?;
    ensure!(kernel.status.success(), "dmesg: {}", String::from_utf8_lossy(&kernel.stderr));
    search.bytes(KERNEL_LOG, &kernel.stdout);
    if !is_guest() {
        search.folder(folder, &[])?;
        return Ok(search);
    }
    // What lies on the host, the files with the credentials among it, is no place of the guest's.
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let hosts = mounts.lines().filter(|line| line.contains(" - hostfs "));
    let without: Vec<_> = hosts.filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect();
    for place in ["/run", "/tmp", "/var/lib", "/mnt", "/dev/shm"] {
        search.folder(Path::new(place), &without)?;
    }
    Ok(search)
}
