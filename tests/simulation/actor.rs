//! A container orchestrator that wants something of one volume: it asks until it has it, restarts drivers that died,
//! and looks at the invariants after every answer.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use coffer::{
    key::record::{Record, State},
    proto::csi::{
        CapacityRange, ControllerExpandVolumeRequest, DeleteVolumeRequest, NodeExpandVolumeRequest,
        NodeGetVolumeStatsRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, Volume,
        controller_server::Controller as _, node_server::Node as _, volume_capability::access_mode::Mode,
    },
    volume::{MapperName, VolumeId},
};
use testbed::csi;
use tonic::{Code, Request, Status};

use crate::{
    driver::{Driver, Process},
    invariant::{self, untouched},
    world::{Shared, World},
};

/// The size that every volume is made with, in bytes.
pub(crate) const BYTES: u64 = 8 << 20;
/// How long a caller waits for an answer.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often something is asked for before it counts as never to be had.
const TRIES: usize = 60;

/// Something that is wanted of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    Create,
    Stage,
    Publish,
    /// The user writes, and waits until the disk has it.
    Write,
    Stats,
    Expand,
    Unpublish,
    Unstage,
    Delete,
}

/// One volume, and who wants something of it.
#[derive(Clone)]
pub(crate) struct Actor {
    world: Shared,
    driver: Driver,
    machine: usize,
    name: String,
    id: VolumeId,
    mapper: String,
    volume: Volume,
    /// The boot in which the volume was staged last.
    staged: Option<u64>,
}

impl Actor {
    pub(crate) fn of(world: &Shared, driver: &Driver, name: &str) -> Self {
        let id = VolumeId::for_name(name);
        Self {
            world: world.clone(),
            driver: driver.clone(),
            machine: driver.machine,
            name: name.to_owned(),
            mapper: MapperName::of(&id).to_string(),
            volume: Volume { volume_id: id.to_string(), ..Volume::default() },
            id,
            staged: None,
        }
    }

    /// An actor in another world that goes on where this one was.
    pub(crate) fn moved(&self, world: &Shared, driver: &Driver) -> Self {
        Self { world: world.clone(), driver: driver.clone(), ..self.clone() }
    }

    pub(crate) fn id(&self) -> &str {
        self.id.as_str()
    }

    /// The same volume, as another node's driver would be asked for it.
    pub(crate) fn misdirected(&self, driver: &Driver) -> Self {
        Self { driver: driver.clone(), machine: driver.machine, ..self.clone() }
    }

    fn staging_path(&self) -> PathBuf {
        Path::new("/kubelet").join(format!("{}-staged", self.name))
    }

    fn target_path(&self) -> PathBuf {
        Path::new("/kubelet").join(format!("{}-pod", self.name))
    }

    fn boot(&self) -> u64 {
        self.world.lock().machines[self.machine].boot
    }

    /// Asks until it has what it wants.
    pub(crate) async fn reach(&mut self, goal: Goal) {
        for _ in 0..TRIES {
            if self.is_violated() {
                return;
            }
            if self.try_once(goal).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        let (id, mut world) = (self.id.clone(), self.world.lock());
        // As long as things go wrong by chance, nothing has to be reached.
        if world.chance == 0 {
            world.violated(invariant::RETRIES_REACH_THE_GOAL, || format!("{goal:?} of {id}"));
        }
    }

    pub(crate) fn is_violated(&self) -> bool {
        self.world.lock().ghost.violation.is_some()
    }

    /// Asks once. A node that was booted since the volume was staged has forgotten it, so it is staged first.
    pub(crate) async fn try_once(&mut self, goal: Goal) -> Result<(), Status> {
        let needs_stage = matches!(goal, Goal::Publish | Goal::Write | Goal::Stats | Goal::Expand);
        if needs_stage && self.staged != Some(self.boot()) {
            self.ask(Goal::Stage).await?;
        }
        if goal == Goal::Write && !self.is_mounted(&self.target_path()) {
            self.ask(Goal::Publish).await?;
        }
        self.ask(goal).await
    }

    async fn ask(&mut self, goal: Goal) -> Result<(), Status> {
        let (before, effects) = {
            let mut world = self.world.lock();
            world.ghost.lied.remove(self.id.as_str());
            let id = self.id.clone();
            world.tell(|| format!("{goal:?} {id}"));
            let before = untouched(&world, &world.machines[self.machine], self.id.as_str(), &self.mapper);
            (before, world.fault_count())
        };
        let process = self.driver.process();
        let (boot, mut asked) = (self.boot(), self.clone());
        let task = tokio::spawn({
            let process = process.clone();
            async move { asked.call(goal, &process).await }
        });
        let answer = tokio::select! {
            biased;
            () = process.dead.cancelled() => Err(Status::unavailable("the driver died")),
            answered = tokio::time::timeout(DEADLINE, task) => match answered {
                Ok(answer) => answer.unwrap_or_else(|_| Err(Status::internal("it panicked"))),
                Err(_) => Err(Status::deadline_exceeded("no answer")),
            },
        };
        let mut world = self.world.lock();
        world.tell(|| match &answer {
            Ok(_) => format!("     {goal:?}: OK"),
            Err(status) => format!("     {goal:?}: {:?} {}", status.code(), status.message()),
        });
        match answer {
            Ok(volume) => {
                drop(world);
                self.succeeded(goal, volume, boot);
                Ok(())
            }
            Err(status) => {
                world.expect_no_key(status.message(), "a status");
                if status.message() == "it panicked" {
                    world.violated(invariant::RETRIES_REACH_THE_GOAL, || format!("{goal:?} panicked"));
                }
                // A refusal with which no fault of the world has to do.
                let refused =
                    matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument | Code::PermissionDenied);
                if refused && world.fault_count() == effects && !world.takes_time {
                    let after = untouched(&world, &world.machines[self.machine], self.id.as_str(), &self.mapper);
                    if after != before {
                        world.violated(invariant::REFUSAL_CHANGES_NOTHING, || status.message().to_owned());
                    }
                }
                Err(status)
            }
        }
    }

    /// What must hold when something was answered by success.
    fn succeeded(&mut self, goal: Goal, volume: Option<Volume>, boot: u64) {
        let (staging, target) = (self.staging_path(), self.target_path());
        let mut world = self.world.lock();
        let id = self.id.as_str();
        let now = world.machines[self.machine].boot;
        match goal {
            Goal::Create => {
                self.volume = volume.unwrap_or_default();
                if !world.machines[self.machine].files.contains_key(id) {
                    world.violated(invariant::RETRIES_REACH_THE_GOAL, || format!("{id} has no file"));
                }
            }
            Goal::Stage => {
                self.staged = Some(boot);
                if now == boot {
                    self.expect_data(&mut world, &staging);
                }
            }
            Goal::Publish | Goal::Write | Goal::Stats | Goal::Expand if now == boot => {
                let bytes = world.machines[self.machine].maps.get(&self.mapper).map_or(0, |map| map.bytes);
                if goal == Goal::Expand && bytes < 2 * BYTES {
                    world.violated(invariant::RETRIES_REACH_THE_GOAL, || format!("{id} has {bytes} bytes"));
                }
                let at = if goal == Goal::Expand || goal == Goal::Stats { &staging } else { &target };
                self.expect_data(&mut world, at);
            }
            Goal::Publish | Goal::Write | Goal::Stats | Goal::Expand => {}
            Goal::Unpublish => {
                if world.machines[self.machine].mounts.iter().any(|mount| mount.target == target) {
                    world.violated(invariant::NOTHING_LEFT_OPEN, || format!("{id} is still published"));
                }
            }
            Goal::Unstage => {
                self.staged = None;
                if let Some(left) = world.machines[self.machine].left_open(id, &self.mapper) {
                    world.violated(invariant::NOTHING_LEFT_OPEN, || format!("{id}: {left}"));
                }
            }
            Goal::Delete => {
                let record = world.records.get(&self.id).and_then(|bytes| Record::from_bytes(bytes).ok());
                if record.is_some_and(|record| record.state != State::Destroyed) {
                    world.violated(invariant::DESTROYED_IS_GONE, || format!("{id} is deleted, and its key is there"));
                }
                if world.machines[self.machine].files.contains_key(id) {
                    world.violated(invariant::RETRIES_REACH_THE_GOAL, || format!("{id} still has its file"));
                }
            }
        }
    }

    /// The volume is mounted at a path, from its own mapping, with what its user has written.
    fn expect_data(&self, world: &mut World, path: &Path) {
        let id = self.id.as_str();
        let machine = &world.machines[self.machine];
        let mounted = machine.mounts.iter().rev().find(|mount| mount.target == path).cloned();
        let mapping = machine.maps.get(&self.mapper).map(|map| map.number);
        if mounted.is_none_or(|mount| Some(mount.number.minor) != mapping) {
            return world
                .violated(invariant::OPENS_WITH_ITS_DATA, || format!("{id} is not mounted at {}", path.display()));
        }
        let (read, written) = (user_data(world, self.machine, &self.mapper), world.ghost.acknowledged.get(id).copied());
        if written.is_some() && read != written {
            world.violated(invariant::OPENS_WITH_ITS_DATA, || format!("{id} holds {read:?} and not {written:?}"));
        }
    }

    fn is_mounted(&self, path: &Path) -> bool {
        self.world.lock().machines[self.machine].mounts.iter().any(|mount| mount.target == path)
    }

    async fn call(&mut self, goal: Goal, process: &Process) -> Result<Option<Volume>, Status> {
        let (node, controller) = (&process.node, &process.controller);
        let capability = || csi::filesystem("", Mode::SingleNodeMultiWriter);
        let (volume_id, staging) = (self.volume.volume_id.clone(), self.staging_path());
        let (staging_text, target_text) = (staging.display().to_string(), self.target_path().display().to_string());
        let required_bytes = 2 * i64::try_from(BYTES).expect("a small number");
        let capacity_range = Some(CapacityRange { required_bytes, limit_bytes: 0 });
        match goal {
            Goal::Create => {
                let request = within(csi::new_volume(&self.name, BYTES, capability()));
                return Ok(controller.create_volume(request).await?.into_inner().volume);
            }
            Goal::Stage => {
                node.node_stage_volume(within(csi::stage(&self.volume, &staging, capability()))).await?;
            }
            Goal::Publish => {
                let request = csi::publish(&self.volume, &staging, &self.target_path(), capability());
                node.node_publish_volume(within(request)).await?;
            }
            Goal::Write => write_user_data(&self.world, self.machine, self.id.as_str(), &self.mapper)?,
            Goal::Stats => {
                let request = NodeGetVolumeStatsRequest { volume_id, volume_path: staging_text, ..Default::default() };
                node.node_get_volume_stats(within(request)).await?;
            }
            Goal::Expand => {
                let request = ControllerExpandVolumeRequest {
                    volume_id: volume_id.clone(),
                    capacity_range,
                    ..Default::default()
                };
                controller.controller_expand_volume(within(request)).await?;
                let request = NodeExpandVolumeRequest {
                    volume_id,
                    volume_path: staging_text,
                    capacity_range,
                    ..Default::default()
                };
                node.node_expand_volume(within(request)).await?;
            }
            Goal::Unpublish => {
                let request = NodeUnpublishVolumeRequest { volume_id, target_path: target_text };
                node.node_unpublish_volume(within(request)).await?;
            }
            Goal::Unstage => {
                let request = NodeUnstageVolumeRequest { volume_id, staging_target_path: staging_text };
                node.node_unstage_volume(within(request)).await?;
            }
            Goal::Delete => {
                let request = DeleteVolumeRequest { volume_id, ..Default::default() };
                controller.delete_volume(within(request)).await?;
            }
        }
        Ok(None)
    }
}

fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

/// Where a user's data lies inside a volume, in bytes.
const USER_DATA: u64 = 64 * 1024;

fn user_data(world: &World, machine: usize, mapper: &str) -> Option<u64> {
    let machine = &world.machines[machine];
    let map = machine.maps.get(mapper)?;
    let (disk, start) = machine.disk_below(&Path::new("/dev/mapper").join(mapper))?;
    let mut bytes = machine.disks.get(&disk)?.read(start + USER_DATA, 8)?;
    crate::header::cipher(map.volume_key, USER_DATA / 4096, &mut bytes);
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// The user writes a number that was never written before, and waits until the disk has it.
fn write_user_data(world: &Shared, machine: usize, id: &str, mapper: &str) -> Result<(), Status> {
    let mut world = world.lock();
    let number = world.id();
    let (map, below) = {
        let machine = &world.machines[machine];
        (machine.maps.get(mapper).cloned(), machine.disk_below(&Path::new("/dev/mapper").join(mapper)))
    };
    let (Some(map), Some((disk, start))) = (map, below) else { return Err(Status::internal("it is not open")) };
    let mut bytes = number.to_be_bytes();
    crate::header::cipher(map.volume_key, USER_DATA / 4096, &mut bytes);
    let disk = world.machines[machine].disks.get_mut(&disk).expect("a device has a disk");
    disk.write(start + USER_DATA, &bytes);
    disk.flush();
    world.ghost.acknowledged.insert(id.to_owned(), number);
    Ok(())
}
