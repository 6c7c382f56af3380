//! What keys cost: one derivation of a DEK beside OpenSSL's HMAC-SHA256, and the key service over mutual TLS beside its
//! cheapest call and beside the same work in one process. It runs on this machine itself and needs no root.

#![allow(clippy::print_stdout, reason = "it tells its figures")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    hint::black_box,
    process::{Command, ExitCode},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use coffer::{
    exec::Deadline,
    key::{
        binding::Binding,
        cluster::ClusterKeys,
        derive,
        embedded::Embedded,
        providers::{Provider, Providers},
        service::{KeyService, NewKey},
        store::filesystem::Filesystem,
    },
    keyservice::{
        audit::Audit,
        auth::{Caller, Guarded},
    },
    secret::ClusterKey,
    volume::{Content, FsType, Parameters, VolumeId},
};
use testbed::{driver::NODE, figures, keyservice};
use tokio::task::JoinSet;
use uuid::Uuid;

const COFFER: &str = env!("CARGO_BIN_EXE_coffer");

/// How long derivations are counted.
const DERIVE_TIME: Duration = Duration::from_secs(2);
/// Derivations between two looks at the clock.
const BATCH: u32 = 1000;
/// Records in the store.
const VOLUMES: usize = 100;
/// How long each kind of call is repeated.
const CALL_TIME: Duration = Duration::from_secs(5);
/// How many ask at the same time, on one connection.
const CALLERS: [usize; 2] = [1, 64];
/// How long the service may take to start.
const START_TIME: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let run = || -> Result<()> {
        println!("{}\n", figures::machine(&[(COFFER, "--version"), ("openssl", "version")]));
        derivation();
        tokio::runtime::Runtime::new()?.block_on(service())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// One derivation beside what it is made of.
fn derivation() {
    let (volume_id, context) = (VolumeId::for_name("bench"), BTreeMap::new());
    let (cluster_id, luks_uuid) = (Uuid::from_u128(9), Uuid::from_u128(7));
    let binding = Binding { cluster_id, volume_id: &volume_id, generation: 1, luks_uuid, context: &context };
    let cluster_key = ClusterKey::born(|key| key.fill(1));
    let derive_for = |time: Duration| {
        let (start, mut derived) = (Instant::now(), 0);
        while start.elapsed() < time {
            for _ in 0..BATCH {
                black_box(derive::volume_dek(black_box(&cluster_key), black_box(&[2; 32]), black_box(&binding)));
            }
            derived += BATCH;
        }
        start.elapsed().as_secs_f64() / f64::from(derived)
    };
    derive_for(DERIVE_TIME / 10);
    let one = derive_for(DERIVE_TIME);

    let row = |what: &str, seconds: f64| {
        println!("{what:<58} {:>7.0} ns {:>12.0} /s {:>6.1}", seconds * 1e9, 1.0 / seconds, one / seconds);
    };
    println!("{:<58} {:>10} {:>15} {:>6}", "", "each", "on one core", "ratio");
    row("one DEK (HKDF-SHA256: extract, then expand)", one);
    let (short, long) = (64, 16384);
    let (Some(hmac), Some(hmacs)) = (openssl(short), openssl(long)) else {
        println!("  openssl is absent or has no `speed -hmac`: there is nothing to compare with\n");
        return;
    };
    row("openssl speed: one HMAC-SHA256 of 64 bytes", hmac);
    row("openssl speed: one block of SHA-256 (HMAC of 16 KiB / 258)", hmacs / (blocks(long) - KEY_BLOCKS) as f64);
    // As the derivation encodes it: here only the length counts.
    let info = binding.fields("coffer/v1/volume-dek").bytes().len();
    let (extract, expand) = (blocks(32), blocks(info + 1));
    let total = extract + expand;
    println!(
        "  A DEK hashes {total} blocks: {extract} to extract, {expand} to expand ({info} bytes of binding). OpenSSL's HMAC \
         hashes\n  {} for 64 bytes: it keeps those of its key. What a DEK takes above {total} blocks is its binding, \
         encoded, and its memory.\n",
        blocks(short) - KEY_BLOCKS,
    );
}

/// Blocks that HMAC hashes before the message: the key, for the inner and the outer hash.
const KEY_BLOCKS: usize = 2;

/// Blocks of 64 bytes that HMAC-SHA256 (RFC 2104) hashes for a message: the key's, the message with 9 or more bytes of
/// padding, and the outer hash.
fn blocks(message: usize) -> usize {
    KEY_BLOCKS + (message + 9).div_ceil(64) + 1
}

/// Seconds that OpenSSL takes for the HMAC-SHA256 of a message, where it can say.
fn openssl(message: usize) -> Option<f64> {
    let bytes = message.to_string();
    let words = ["speed", "-elapsed", "-mr", "-seconds", "1", "-hmac", "sha256", "-bytes", &bytes];
    let output = Command::new("openssl").args(words).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // +F:NUMBER:hmac(sha256):BYTES PER SECOND
    let rate = text.lines().find_map(|line| line.strip_prefix("+F:")?.rsplit(':').next()?.parse::<f64>().ok())?;
    (rate > 0.0).then_some(message as f64 / rate)
}

/// What is asked of a key service again and again.
#[derive(Clone, Copy)]
enum Call {
    /// The key of a volume.
    Get,
    /// The record of a volume.
    Describe,
    /// The record of a volume that there is not.
    DescribeNothing,
}

impl Call {
    async fn ask(self, service: &dyn KeyService, volume_id: &VolumeId) -> Result<()> {
        let info = match self {
            Self::Get => Some(service.get(volume_id, soon()).await?.info),
            Self::Describe | Self::DescribeNothing => service.describe(volume_id, soon()).await?,
        };
        let is_right = match self {
            Self::Get | Self::Describe => info.is_some_and(|info| info.volume_id == *volume_id),
            Self::DescribeNothing => info.is_none(),
        };
        ensure!(is_right, "the answer for volume {volume_id} is another's");
        Ok(())
    }
}

/// The key service over the wire and without one.
async fn service() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (folder, state) = (folder.path(), folder.path().join("state"));
    fs::create_dir(&state)?;
    let cluster_key = state.join("cluster-key.json");
    ClusterKeys::generate().save_new(&cluster_key)?;
    let server = keyservice::KeyService::start(COFFER, folder, &state)?;
    let remote: Arc<dyn KeyService> = Arc::new(server.client()?);
    let volumes = prepare(remote.as_ref()).await?;
    let nothing: Arc<[VolumeId]> = [VolumeId::for_name("nothing")].into();

    let keys = ClusterKeys::load(&cluster_key)?;
    let (cluster_id, provider) = (keys.cluster_id(), "cluster".to_owned());
    let by_name = [(provider.clone(), Provider::Cluster(keys))].into();
    let store = Arc::new(Filesystem::open(&state.join("records"))?);
    let embedded: Arc<dyn KeyService> =
        Arc::new(Embedded::new(cluster_id, Providers { by_name, default: provider }, store));
    let audit = Arc::new(Audit::to(File::create(folder.join("audit.log"))?));
    let guarded: Arc<dyn KeyService> = Arc::new(Guarded::new(embedded.clone(), audit, Caller::Node(NODE.to_owned())));

    println!("{:<58} {:>7} {:>9} {:>9} {:>9}", "", "callers", "calls/s", "p50", "p99");
    let rows = [
        ("mutual TLS: DescribeKey of no volume (the floor)", &remote, Call::DescribeNothing, &nothing),
        ("mutual TLS: DescribeKey (a record is read)", &remote, Call::Describe, &volumes),
        ("mutual TLS: GetKey", &remote, Call::Get, &volumes),
        ("one process: GetKey, node checked and audit written", &guarded, Call::Get, &volumes),
        ("one process: GetKey, store and derivation alone", &embedded, Call::Get, &volumes),
    ];
    for callers in CALLERS {
        for (what, service, call, volumes) in rows {
            let load = load(service, call, volumes, callers).await.context(what)?;
            let micros = |percent| figures::percentile(&load.times, percent).as_secs_f64() * 1e6;
            let rate = load.times.len() as f64 / load.took.as_secs_f64();
            println!("{what:<58} {callers:>7} {rate:>9.0} {:>6.0} µs {:>6.0} µs", micros(50), micros(99));
        }
    }
    println!(
        "  {VOLUMES} records in a folder, one connection, callers and service on the same processors. GetKey of a node \
         reads\n  its record twice (may it, then the key). TLS and gRPC are what GetKey takes more than in one process."
    );
    Ok(())
}

fn soon() -> Deadline {
    Deadline::within(Duration::from_secs(10))
}

/// Records of volumes that nobody has staged yet, once the service answers.
async fn prepare(service: &dyn KeyService) -> Result<Arc<[VolumeId]>> {
    let (start, nobody) = (Instant::now(), VolumeId::for_name("nobody"));
    while let Err(failure) = service.describe(&nobody, soon()).await {
        ensure!(start.elapsed() < START_TIME, "the key service does not answer: {failure}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut volumes = Vec::new();
    for number in 0..VOLUMES {
        let name = format!("volume {number}");
        let new = NewKey {
            volume_id: VolumeId::for_name(&name),
            name,
            parameters: Parameters::of(Content::Filesystem(FsType::Ext4)),
            node: Some(NODE.to_owned()),
            tenant: None,
            storage_class: None,
            claim: None,
            key_id: None,
            provider: None,
            context: BTreeMap::new(),
        };
        volumes.push(service.create(new, soon()).await?.volume_id);
    }
    Ok(volumes.into())
}

struct Load {
    took: Duration,
    times: Vec<Duration>,
}

/// Callers that each ask again as soon as they have an answer. One call that fails ends it all.
async fn load(service: &Arc<dyn KeyService>, call: Call, volumes: &Arc<[VolumeId]>, callers: usize) -> Result<Load> {
    for volume_id in volumes.iter() {
        // What is only slow the first time is not measured.
        call.ask(service.as_ref(), volume_id).await?;
    }
    let (start, mut asking) = (Instant::now(), JoinSet::new());
    for caller in 0..callers {
        let (service, volumes) = (service.clone(), volumes.clone());
        asking.spawn(async move {
            let mut times = Vec::new();
            // Each begins with another volume.
            for volume_id in volumes.iter().cycle().skip(caller) {
                if start.elapsed() > CALL_TIME {
                    break;
                }
                let asked = Instant::now();
                call.ask(service.as_ref(), volume_id).await?;
                times.push(asked.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(answered) = asking.join_next().await {
        times.extend(answered??);
    }
    Ok(Load { took: start.elapsed(), times })
}
