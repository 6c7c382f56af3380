//! What a KMS costs behind the key service: unwraps per second without its cache and from it, beside the same OpenBao
//! asked directly for the same keys in the same run; and how often the KMS is asked for 1,000 stages. It runs on this
//! machine itself and needs no root.

#![allow(clippy::print_stdout, reason = "it tells its figures")]

mod service;
mod volume;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use coffer::{exec::Deadline, key::service::KeyService};
use serde_json::{Value, json};
use testbed::{
    cloud::{KmsBed, Variant, transit::OpenBao},
    figures::{self, Process},
};
use tokio::task::JoinSet;

use service::Service;
use volume::{Direct, Volume, decrypt_path, prepare};

const COFFER: &str = env!("CARGO_BIN_EXE_coffer");

/// Volumes with a key.
const VOLUMES: usize = 100;
/// Stages whose calls of the KMS are counted: each asks for its key once.
const STAGES: usize = 1000;
/// How many ask at the same time.
const CALLERS: [usize; 2] = [1, 16];
/// How often each way takes its turn, so that what changes on the machine meanwhile hits all.
const ROUNDS: usize = 3;
/// How long a turn is.
const ROUND_TIME: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let run = || tokio::runtime::Runtime::new()?.block_on(providers());
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// A missed aim is told; only a wrong key or a wrong number of calls fails.
async fn providers() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (folder, server_folder) = (folder.path(), folder.path().join("openbao"));
    fs::create_dir(&server_folder)?;
    fs::create_dir(records(folder))?;
    let bed = OpenBao::start(&server_folder).await?;
    println!("{}, {}\n", figures::machine(&[(COFFER, "--version")]), bed.server());

    let behind_proxy = bed.config(Variant::Good).await?.context("OpenBao has a good configuration")?;
    // What is measured goes straight to the server; only what is counted goes through the proxy.
    let straight = with(&behind_proxy, "address", json!(bed.direct()));
    let server = Direct::new(&straight)?;
    let cached = Service::start(folder, "cached", &straight).await?;
    let idle = cached.process()?;
    let uncached = Service::start(folder, "uncached", &without_cache(&straight)).await?;
    let volumes = prepare(cached.remote.as_ref(), &server, &records(folder)).await?;

    let sides = [
        Side { what: "OpenBao, asked directly", way: Arc::new(Way::Server(server)), aim: None },
        Side { what: "key service, cache off", way: uncached.way(), aim: Some(0.8) },
        Side { what: "key service, from its cache", way: cached.way(), aim: Some(1.0) },
    ];
    rates(&sides, &volumes).await?;
    memory(&[
        ("key service, just started", idle),
        ("key service, cache off, after that", uncached.process()?),
        ("key service, with its cache, after that", cached.process()?),
    ]);
    drop((cached, uncached));
    calls(folder, &bed, &behind_proxy, &volumes).await
}

/// A configuration with another value.
fn with(config: &Value, key: &str, value: Value) -> Value {
    let mut config = config.clone();
    config[key] = value;
    config
}

fn without_cache(config: &Value) -> Value {
    with(config, "cache", json!({ "expiryAny": 0 }))
}

fn records(folder: &Path) -> PathBuf {
    folder.join("records")
}

fn soon() -> Deadline {
    Deadline::within(Duration::from_secs(10))
}

/// Who is asked for a key.
enum Way {
    /// The server itself, for the inner key.
    Server(Direct),
    /// The key service, for the DEK.
    Service(Arc<dyn KeyService>),
}

impl Way {
    async fn ask(&self, volume: &Volume) -> Result<()> {
        let is_right = match self {
            Self::Server(server) => {
                let inner_key = server.decrypt(&volume.ciphertext, &volume.bound).await?;
                inner_key.expose_secret() == volume.inner_key.expose_secret()
            }
            Self::Service(service) => {
                let key = service.get(&volume.id, soon()).await?;
                key.dek.expose_secret() == volume.dek.expose_secret()
            }
        };
        ensure!(is_right, "the key of volume {} is wrong", volume.id);
        Ok(())
    }
}

/// A way, and the least of the server's own rate that it is to have.
struct Side {
    what: &'static str,
    way: Arc<Way>,
    aim: Option<f64>,
}

/// All ways in turns, by the number of callers. The first is what the others are compared with.
async fn rates(sides: &[Side], volumes: &Arc<[Volume]>) -> Result<()> {
    println!("{:<48} {:>7} {:>10} {:>9} {:>9} {:>6}", "", "callers", "unwraps/s", "p50", "p99", "ratio");
    let mut aims = Vec::new();
    for callers in CALLERS {
        let mut loads: Vec<_> = sides.iter().map(|_| Load::default()).collect();
        for _ in 0..ROUNDS {
            for (load, side) in loads.iter_mut().zip(sides) {
                load.add(turn(&side.way, volumes, callers).await.context(side.what)?);
            }
        }
        let own = loads.first().map_or(0.0, Load::rate);
        for (load, Side { what, aim, .. }) in loads.iter().zip(sides) {
            let (rate, micros) = (load.rate(), |percent| figures::percentile(&load.times, percent).as_secs_f64() * 1e6);
            let ratio = rate / own;
            println!("{what:<48} {callers:>7} {rate:>10.0} {:>6.0} µs {:>6.0} µs {ratio:>6.2}", micros(50), micros(99));
            if let Some(aim) = aim {
                let told = format!("{what}, callers {callers}: {ratio:.2} of the server's own rate, aim {aim:.1}");
                aims.push((ratio >= *aim, told));
            }
        }
    }
    println!(
        "  {ROUNDS} turns of {} s each; {VOLUMES} keys; callers, key service and OpenBao on the same processors. A key \
         of the\n  service is a record read, an unwrap, a DEK decrypted, a line in the audit log, and HPKE on both sides.",
        ROUND_TIME.as_secs()
    );
    for (is_met, told) in aims {
        tell(is_met, &told);
    }
    println!();
    Ok(())
}

fn tell(is_met: bool, what: &str) {
    println!("{}: {what}", if is_met { "aim met" } else { "aim missed" });
}

#[derive(Default)]
struct Load {
    took: Duration,
    times: Vec<Duration>,
}

impl Load {
    fn add(&mut self, Self { took, times }: Self) {
        self.took += took;
        self.times.extend(times);
    }

    fn rate(&self) -> f64 {
        self.times.len() as f64 / self.took.as_secs_f64()
    }
}

/// Callers that each ask again as soon as they have an answer. One call that fails ends it all.
async fn turn(way: &Arc<Way>, volumes: &Arc<[Volume]>, callers: usize) -> Result<Load> {
    for volume in volumes.iter() {
        // What is only slow the first time is not measured.
        way.ask(volume).await?;
    }
    let (start, mut asking) = (Instant::now(), JoinSet::new());
    for caller in 0..callers {
        let (way, volumes) = (way.clone(), volumes.clone());
        asking.spawn(async move {
            let mut times = Vec::new();
            // Each begins with another volume.
            for volume in volumes.iter().cycle().skip(caller) {
                if start.elapsed() > ROUND_TIME {
                    break;
                }
                let asked = Instant::now();
                way.ask(volume).await?;
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

fn memory(rows: &[(&str, Process)]) {
    println!("{:<48} {:>12} {:>12} {:>12}", "", "RSS", "RssAnon", "most RSS");
    for (what, process) in rows {
        let Process { resident, anonymous, most_resident, .. } = process;
        println!("{what:<48} {resident:>8} KiB {anonymous:>8} KiB {most_resident:>8} KiB");
    }
    println!();
}

/// What the KMS is asked for a number of stages, by services that were just started, through a proxy that counts.
async fn calls(folder: &Path, bed: &OpenBao, provider: &Value, volumes: &Arc<[Volume]>) -> Result<()> {
    // The trial of the KEK is over before anything is served, and is not counted.
    let provider = with(provider, "validate", json!("startup"));
    let unwrap = format!("POST {}", decrypt_path(&provider)?);
    let title = format!("{STAGES} stages of {VOLUMES} volumes");
    println!("{title:<48} {:>12} {:>12}", "to unwrap", "other calls");
    let mut counts = Vec::new();
    for (what, name, provider, most) in [
        ("key service with a cache", "counted-cached", provider.clone(), VOLUMES),
        ("key service, cache off", "counted-uncached", without_cache(&provider), STAGES),
    ] {
        let service = Service::start(folder, name, &provider).await?;
        bed.forecast().forget();
        stages(&service.way(), volumes).await.context(what)?;
        let requests = bed.forecast().requests();
        let unwraps = requests.iter().filter(|request| **request == unwrap).count();
        println!("{what:<48} {unwraps:>12} {:>12}", requests.len() - unwraps);
        counts.push((what, unwraps, most));
    }
    for (what, unwraps, most) in counts {
        tell(unwraps <= most, &format!("{what}: {unwraps} requests to unwrap for {STAGES} stages, aim {most} at most"));
        ensure!(unwraps <= most, "{what}: the KMS was asked {unwraps} times in place of {most} at most");
    }
    Ok(())
}

/// The keys of so many stages, each volume's in its turn, by many callers at once.
async fn stages(way: &Arc<Way>, volumes: &Arc<[Volume]>) -> Result<()> {
    let [.., callers] = CALLERS;
    let mut asking = JoinSet::new();
    for caller in 0..callers {
        let (way, volumes) = (way.clone(), volumes.clone());
        asking.spawn(async move {
            for stage in (caller..STAGES).step_by(callers) {
                way.ask(&volumes[stage % VOLUMES]).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(answered) = asking.join_next().await {
        answered??;
    }
    Ok(())
}
