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

impl Plan {
    fn cells(&self) -> usize {
        self.providers.len() * (self.stores.len() + 1)
    }
}

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let result = match words.first().map(String::as_str) {
        Some("--inside") => run(inside_guest(Path::new(&words[1]))),
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
    let mut disks = vec![Disk::new(8)?.with_network()?];
    if !guest::has_device_mapper() {
        // A guest has one processor: each gets every other provider.
        disks.push(Disk::new(8)?.with_network()?);
    }
    let folder = disks[0].work().to_owned();
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
    let mut shown = Shown::default();
    if guest::has_device_mapper() {
        shown = inside(&plan).await?;
    } else {
        let mut guests = Vec::new();
        for (number, disk) in disks.iter().enumerate() {
            let providers = plan.providers.iter().skip(number).step_by(disks.len()).cloned().collect();
            let file = disk.work().join("plan.json");
            fs::write(&file, serde_json::to_vec_pretty(&Plan { providers, stores: plan.stores.clone() })?)?;
            let program = std::env::current_exe()?.display().to_string();
            let guest = disk.boot(&[program, "--inside".to_owned(), file.display().to_string()])?;
            // The servers live in this program: they must be heard while the guests run.
            guests.push(tokio::task::spawn_blocking(move || guest.finish(GUEST_TIME)));
        }
        for (guest, disk) in guests.into_iter().zip(&disks) {
            ensure!(guest.await?? == 0, "a guest failed");
            shown.join(serde_json::from_slice(&fs::read(disk.work().join(SHOWN))?)?);
        }
    }
    shown.told(&plan)
}

/// What a guest has shown, for the host.
const SHOWN: &str = "shown.json";

/// What was seen: by provider and store, or by provider alone, a text, or how it failed.
#[derive(Default, Deserialize, Serialize)]
struct Shown {
    kernel: String,
    cells: BTreeMap<String, BTreeMap<String, Result<String, String>>>,
    searches: BTreeMap<String, Result<String, String>>,
}

impl Shown {
    fn join(&mut self, other: Self) {
        self.kernel = other.kernel;
        self.cells.extend(other.cells);
        self.searches.extend(other.searches);
    }

    /// Prints it, and fails where anything failed.
    fn told(&self, plan: &Plan) -> Result<()> {
        let mut failed = Vec::new();
        println!("\nA volume created, staged on Linux {}, staged again after a restart, destroyed:\n", self.kernel);
        let head: Vec<_> = plan.stores.iter().map(|store| format!("{} ({})", store.name, store.standing)).collect();
        println!("| provider | {} |", head.join(" | "));
        println!("|---|{}", "---|".repeat(head.len()));
        for provider in &plan.providers {
            let mut row = Vec::new();
            for store in &plan.stores {
                row.push(match &self.cells[&provider.name][&store.name] {
                    Ok(cell) => cell.as_str(),
                    Err(error) => {
                        failed.push(format!("{} with {}: {error}", provider.name, store.name));
                        "FAILED"
                    }
                });
            }
            println!("| {} ({}) | {} |", provider.name, provider.standing, row.join(" | "));
        }
        let servers: Vec<_> = plan.providers.iter().chain(&plan.stores).map(|side| side.server.as_str()).collect();
        println!("\nservers: {}", servers.join(", "));
        println!("\nA volume's life with each provider, with everything logged, and where its keys were not:\n");
        for provider in &plan.providers {
            match &self.searches[&provider.name] {
                Ok(told) => println!("{}: {told}", provider.name),
                Err(error) => failed.push(format!("search with {}: {error}", provider.name)),
            }
        }
        if !failed.is_empty() {
            bail!("{} of {} cells and searches failed\n{}", failed.len(), plan.cells(), failed.join("\n"));
        }
        Ok(())
    }
}

/// In a guest: what was shown goes into a file of its work folder.
async fn inside_guest(file: &Path) -> Result<()> {
    let shown = inside(&serde_json::from_slice(&fs::read(file)?)?).await?;
    Ok(fs::write(SHOWN, serde_json::to_vec(&shown)?)?)
}

async fn inside(plan: &Plan) -> Result<Shown> {
    guest::reach_host(&plan::ports(plan.providers.iter().chain(&plan.stores))).await?;
    let mut shown = Shown { kernel: kernel()?, ..Shown::default() };
    let seconds = |start: Instant| format!("{:.1} s", start.elapsed().as_secs_f64());
    for provider in &plan.providers {
        let cells = shown.cells.entry(provider.name.clone()).or_default();
        for store in &plan.stores {
            let start = Instant::now();
            let cell = cell(provider, store).await.map(|()| format!("ok {}", seconds(start)));
            cells.insert(store.name.clone(), cell.map_err(|error| format!("{error:#}")));
        }
        let start = Instant::now();
        let searched = secrets::nothing_leaves(provider).await.map(|told| format!("{told}, {}", seconds(start)));
        shown.searches.insert(provider.name.clone(), searched.map_err(|error| format!("{error:#}")));
    }
    Ok(shown)
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
