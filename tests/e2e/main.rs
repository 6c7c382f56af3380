//! Coffer end to end, a line a step: a real control plane and two real kubelets in guest kernels, images made from the
//! release programs, the chart installed by Helm, and volumes used by Pods while drivers, the key service and a node
//! fail. `make e2e` runs it, once with a cluster key and once with OpenBao's transit and an S3 server:
//!
//!     cargo test --test e2e [-- --providers cluster-key|transit-s3]

#![allow(clippy::print_stdout, reason = "it shows what happens")]

mod ending;
mod install;
mod step;
mod trouble;
mod volumes;
mod world;

use std::{
    fs,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use testbed::kube::network;

use install::Providers;
use step::Steps;
use world::World;

/// All of it, however slow the machine is.
const TIME: Duration = Duration::from_secs(3000);

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let providers = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["--nocapture"] | ["--providers", "cluster-key"] => Providers::ClusterKey,
        ["--providers", "transit-s3"] => Providers::TransitS3,
        // A filter for other tests, or a list, is not for us.
        _ => return ExitCode::SUCCESS,
    };
    match run(providers, &words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(providers: Providers, words: &[String]) -> Result<()> {
    if !network::is_inside() {
        if network::run_inside(words)?.success() {
            return Ok(());
        }
        bail!("see above");
    }
    let start = Instant::now();
    let work = testbed::project().join("target/e2e").join(providers.name());
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).with_context(|| format!("make {}", work.display()))?;
    println!("Coffer in Kubernetes with {}; logs in {}", providers.words(), work.display());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ended = runtime.block_on(async { tokio::time::timeout(TIME, story(providers, &work)).await });
    runtime.shutdown_timeout(Duration::from_secs(2));
    remove_disks(&work);
    let steps = ended.context("it did not end in time").flatten()?;
    println!("Done in {:.0} s.\n{steps} passed, 0 failed", start.elapsed().as_secs_f64());
    Ok(())
}

/// Each step, in order. How many there were.
async fn story(providers: Providers, work: &Path) -> Result<usize> {
    let mut steps = Steps::default();
    let mut world = steps.first("two nodes are ready, with all images", World::start(providers, work)).await?;
    let world = &mut world;
    steps.run(world, "`helm install` makes key service, controller and drivers ready", install::install).await?;
    steps.run(world, "`helm test` makes a volume, writes it and reads it", install::test).await?;

    let written = "a claim of a StorageClass without parameters is Bound, and a Pod writes to it and completes";
    let volume = steps.run(world, written, volumes::written).await?;
    steps
        .run(world, "the raw files of the node hold LUKS2 and not what was written", async |world: &mut World| {
            volumes::holds_no_marker(world, &volume).await
        })
        .await?;
    steps.run(world, "a second Pod reads it", async |world: &mut World| volumes::read(world, "reader").await).await?;
    let set = "a StatefulSet of two without root has its volumes, by fsGroup, on both nodes";
    steps.run(world, set, volumes::stateful_set).await?;
    let block = steps.run(world, "a raw block volume is written and read", volumes::block).await?;
    steps.run(world, "a volume grows while its Pod runs, and the Pod sees it", volumes::expanded).await?;
    steps.run(world, "a Pod has an inline volume of its own, and takes it along when it goes", volumes::inline).await?;
    steps
        .run(world, "the token of a tenant's own Pod opens nothing", async |world: &mut World| {
            volumes::refused(world, &volume).await
        })
        .await?;
    steps.run(world, "a claim that a policy forbids says so in an Event", volumes::forbidden).await?;

    steps
        .run(
            world,
            "a driver is killed: its volumes stay mounted, and the next one works",
            async |world: &mut World| trouble::driver_killed(world, &volume).await,
        )
        .await?;
    steps.run(world, "`helm upgrade` replaces the drivers under mounted volumes", trouble::upgraded).await?;
    steps.run(world, "the key service is rolled while a Pod starts", trouble::key_service_rolled).await?;
    steps.run(world, "a node's power is cut: its Pod is back with its data", trouble::power_cut).await?;

    if providers == Providers::ClusterKey {
        steps
            .run(world, "`kubectl delete volumekey` of a key in use waits", async |world: &mut World| {
                ending::waits(world, &block).await
            })
            .await?;
    }
    steps
        .run(world, "Pods and claim are deleted: the key is destroyed, with a receipt", async |world: &mut World| {
            ending::destroyed(world, &volume).await
        })
        .await?;
    let at_once = "a claim whose namespace is deleted at once: its volume goes, and its key is destroyed";
    steps.run(world, at_once, ending::namespace_deleted).await?;
    steps.run(world, "`helm uninstall` is refused while there are volumes", ending::uninstall_refused).await?;
    let uninstalled = "`helm uninstall` takes all away when there are none, but for keys and tombstones";
    steps.run(world, uninstalled, async |world: &mut World| ending::uninstalled(world, &volume).await).await?;
    let again = "`helm install` again is ready, with the keys and tombstones that were kept";
    steps.run(world, again, async |world: &mut World| ending::installed_again(world, &volume).await).await?;
    let removed = "`helm uninstall` takes it away once more";
    steps.run(world, removed, async |world: &mut World| ending::removed(world, &volume).await).await?;
    Ok(steps.count())
}

/// What is large and tells nothing.
fn remove_disks(work: &Path) {
    for disk in ["base", "n1/disk", "n2/disk"] {
        let _ = fs::remove_file(work.join(disk));
    }
    for folder in ["images", "etcd"] {
        let _ = fs::remove_dir_all(work.join(folder));
    }
}
