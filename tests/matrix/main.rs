//! Every provider with every store, on a real kernel: a volume is created, staged, written to, staged again by a driver
//! that was killed and started anew, read, and destroyed. It ends in a table that says what each cell stood on. Then a
//! volume lives with each provider while all is logged, and its keys are searched for (`secrets.rs`).
//!
//! Servers run on this machine. Where it has no device-mapper, the drivers run in a guest that reaches them.

#![allow(clippy::print_stdout, reason = "a test program without a harness tells its results itself")]

mod secrets;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use coffer::{
    admin::{Place, StateDir},
    config::file::{Environment, FileConfig},
    key::{embedded::Embedded, store::memory::Memory},
    keyservice::{audit::Audit, server::Server},
    proto::keyservice::key_service_server::KeyServiceServer,
    server::{Reach, listen_unix},
};
use serde::{Deserialize, Serialize};
use testbed::{
    cloud::plan::{self, Side},
    driver::{Driver, Role},
    guest::{self, Disk},
};
use tokio_stream::wrappers::UnixListenerStream;

const COFFER: &str = env!("CARGO_BIN_EXE_coffer");
const MIB: u64 = 1 << 20;
const MARK: &str = "only the owner of this volume reads this line";
const GUEST_TIME: Duration = Duration::from_secs(1500);

/// What the drivers are to be tried with.
#[derive(Deserialize, Serialize)]
struct Plan {
    providers: Vec<Side>,
    stores: Vec<Side>,
}

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let result = match words.first().map(String::as_str) {
        Some("--inside") => run(inside(Path::new(&words[1]))),
        // A filter for other tests, or a list, is not for us.
        Some(word) if word != "--nocapture" => return ExitCode::SUCCESS,
        _ => run(outside()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(work)
}

async fn outside() -> Result<()> {
    let disk = Disk::new(8)?.with_network()?;
    let folder = disk.work().to_owned();
    let (mut plan, mut running) = (Plan { providers: Vec::new(), stores: Vec::new() }, Vec::new());
    for name in plan::PROVIDERS {
        let (side, server) = plan::provider(name, &folder).await?;
        plan.providers.push(side);
        running.push(server);
    }
    for name in plan::STORES {
        let (side, server) = plan::store(name, &folder).await?;
        plan.stores.push(side);
        running.push(server);
    }
    let file = folder.join("plan.json");
    fs::write(&file, serde_json::to_vec_pretty(&plan)?)?;

    if guest::has_device_mapper() {
        return inside(&file).await;
    }
    let command = [std::env::current_exe()?.display().to_string(), "--inside".to_owned(), file.display().to_string()];
    let guest = disk.boot(&command)?;
    // The servers live in this program: they must be heard while the guest runs.
    let status = tokio::task::spawn_blocking(move || guest.finish(GUEST_TIME)).await??;
    ensure!(status == 0, "a cell failed");
    Ok(())
}

async fn inside(file: &Path) -> Result<()> {
    let plan: Plan = serde_json::from_slice(&fs::read(file)?)?;
    guest::reach_host(&plan::ports(plan.providers.iter().chain(&plan.stores))).await?;
    let (mut cells, mut failed) = (BTreeMap::new(), 0);
    for provider in &plan.providers {
        for store in &plan.stores {
            let start = Instant::now();
            let cell = match cell(provider, store).await {
                Ok(()) => format!("ok {:.1} s", start.elapsed().as_secs_f64()),
                Err(error) => {
                    failed += 1;
                    println!("{} with {}: {error:#}", provider.name, store.name);
                    "FAILED".to_owned()
                }
            };
            cells.insert((&provider.name, &store.name), cell);
        }
    }
    println!("\nA volume created, staged on Linux {}, staged again after a restart, destroyed:\n", kernel()?);
    let head: Vec<_> = plan.stores.iter().map(|store| format!("{} ({})", store.name, store.standing)).collect();
    println!("| provider | {} |", head.join(" | "));
    println!("|---|{}", "---|".repeat(head.len()));
    for provider in &plan.providers {
        let row: Vec<_> = plan.stores.iter().map(|store| cells[&(&provider.name, &store.name)].as_str()).collect();
        println!("| {} ({}) | {} |", provider.name, provider.standing, row.join(" | "));
    }
    let servers: Vec<_> = plan.providers.iter().chain(&plan.stores).map(|side| side.server.as_str()).collect();
    println!("\nservers: {}", servers.join(", "));
    println!("\nA volume's life with each provider, with everything logged, and where its keys were not:\n");
    for provider in &plan.providers {
        let start = Instant::now();
        match secrets::nothing_leaves(provider).await {
            Ok(told) => println!("{}: {told}, {:.1} s", provider.name, start.elapsed().as_secs_f64()),
            Err(error) => {
                failed += 1;
                println!("{}: {error:#}", provider.name);
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {} cells and {} searches failed", cells.len(), plan.providers.len());
    }
    Ok(())
}

fn kernel() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned())
}

/// One provider with one store.
async fn cell(provider: &Side, store: &Side) -> Result<()> {
    let folder = guest::folder()?;
    let (state, staged) = (folder.path().join("state"), folder.path().join("staged"));
    fs::create_dir_all(&state)?;
    let file = folder.path().join("coffer.yaml");
    fs::write(&file, serde_json::to_vec(&plan::configuration(provider, store))?)?;
    let (words, _service) = if store.name == plan::MEMORY {
        let socket = folder.path().join("keys.sock");
        let service = serve(&file, &state, &socket).await?;
        let mut words: Vec<OsString> = ["node", "--provision-local"].map(Into::into).into();
        for (flag, value) in [
            ("--listen", format!("unix://{}", state.join("csi.sock").display())),
            ("--pool-dir", state.join("volumes").display().to_string()),
            ("--key-service", format!("unix://{}", socket.display())),
        ] {
            words.extend([flag.into(), value.into()]);
        }
        (words, Some(service))
    } else {
        let words = ["dev".into(), "--state-dir".into(), state.clone().into(), "--config".into(), file.into()];
        (words.into(), None)
    };
    let mut driver = Driver::start_as(COFFER, &state, Role::Node(words)).await?;

    let volume = driver.csi.create_filesystem(&format!("{}-{}", provider.name, store.name), 32 * MIB, "ext4").await?;
    driver.csi.stage_filesystem(&volume, &staged).await.context("stage")?;
    fs::write(staged.join("mark"), MARK)?;
    driver.csi.unstage(&volume.volume_id, &staged).await.context("unstage")?;
    let raw = fs::read(driver.file(&volume.volume_id))?;
    ensure!(!raw.windows(MARK.len()).any(|window| window == MARK.as_bytes()), "the text is in the raw file");

    driver.kill();
    driver.start_again().await?;
    driver.csi.stage_filesystem(&volume, &staged).await.context("stage after a restart")?;
    ensure!(fs::read_to_string(staged.join("mark"))? == MARK, "the text is another");
    driver.csi.unstage(&volume.volume_id, &staged).await.context("unstage")?;
    driver.csi.delete(&volume.volume_id).await.context("delete")?;
    ensure!(driver.csi.stage_filesystem(&volume, &staged).await.is_err(), "a destroyed volume was staged");
    Ok(())
}

/// A key service over a store in this program's memory. It ends when it is dropped.
async fn serve(config: &Path, state: &Path, socket: &Path) -> Result<tokio::task::JoinSet<()>> {
    let config = FileConfig::load(config, &Environment::default())?;
    let Place { cluster_id, providers, .. } = Place::of_config(&config, Some(&StateDir::at(state))).await?;
    let inner = Arc::new(Embedded::new(cluster_id, providers, Arc::new(Memory::default())));
    let server = Server::new(inner, Arc::new(Audit::to(std::io::sink())), vec![0]);
    let listener = UnixListenerStream::new(listen_unix(socket, Reach::Everybody)?);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let served = tonic::transport::Server::builder().add_service(KeyServiceServer::new(server));
        served.serve_with_incoming(listener).await.expect("a socket of our own is served");
    });
    Ok(tasks)
}
