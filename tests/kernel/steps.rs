//! A driver that is killed at every named step of its work on a volume, and at random moments, leaves nothing that a
//! retry does not put right.
//!
//! The table of flows and their steps is here; power cuts go through the same one.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use coffer::{
    key::record::{Record, State},
    proto::csi::Volume,
    step::Step,
    volume::VolumeId,
};
use libtest_mimic::{Failed, Trial};
use testbed::{csi::Csi, driver::Driver};
use tonic::{Code, Status};

use crate::{
    Bed, MIB, loops, mappings,
    power::life::{Life, Random},
    trial,
};

/// The size of every volume here, before it grows and after.
pub(crate) const BYTES: u64 = 16 * MIB;
pub(crate) const GROWN: u64 = 2 * BYTES;
/// How often a driver is killed at random moments.
const ROUNDS: usize = 20;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("every_named_step_is_in_the_table", table_is_whole),
        trial("a_create_killed_at_any_step_is_put_right", |bed| killed_at_every_step(bed, Flow::Create)),
        trial("a_first_stage_killed_at_any_step_is_put_right", |bed| killed_at_every_step(bed, Flow::FirstStage)),
        trial("an_unlock_killed_at_any_step_is_put_right", |bed| killed_at_every_step(bed, Flow::Unlock)),
        trial("an_expansion_killed_at_any_step_is_put_right", |bed| killed_at_every_step(bed, Flow::Expand)),
        trial("an_unstage_killed_at_any_step_is_put_right", |bed| killed_at_every_step(bed, Flow::Unstage)),
        trial("a_delete_killed_at_any_step_is_put_right", |bed| killed_at_every_step(bed, Flow::Delete)),
        trial("a_driver_killed_at_random_moments_loses_nothing", killed_at_random_moments),
    ]
}

/// What a container orchestrator asks for: one request, or for an expansion those that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// CreateVolume.
    Create,
    /// NodeStageVolume of a new volume.
    FirstStage,
    /// NodeStageVolume of a finished one.
    Unlock,
    /// ControllerExpandVolume and NodeExpandVolume.
    Expand,
    /// NodeUnstageVolume.
    Unstage,
    /// DeleteVolume.
    Delete,
}

impl Flow {
    const ALL: [Self; 6] = [Self::Create, Self::FirstStage, Self::Unlock, Self::Expand, Self::Unstage, Self::Delete];

    /// The steps that it comes to, in their order.
    fn steps(self) -> &'static [Step] {
        match self {
            Self::Create => &[Step::KeyCreated, Step::FileCreated],
            Self::FirstStage => &[
                Step::Staging,
                Step::Attached,
                Step::KeyReleased,
                Step::Claimed,
                Step::FormatBegun,
                Step::HeaderCleared,
                Step::HeaderBodyWritten,
                Step::HeaderWritten,
                Step::FirstOpened,
                Step::FilesystemMade,
                Step::Marked,
                Step::Ready,
                Step::Opened,
                Step::Mounted,
            ],
            Self::Unlock => &[
                Step::Staging,
                Step::Attached,
                Step::KeyReleased,
                Step::HeaderAuthenticated,
                Step::Opened,
                Step::Mounted,
            ],
            Self::Expand => &[Step::FileGrown, Step::DeviceGrown, Step::MappingGrown, Step::FilesystemGrown],
            Self::Unstage => &[Step::Unmounted, Step::Closed, Step::Detached],
            Self::Delete => &[Step::KeyDestroyed, Step::FileRemoved],
        }
    }
}

fn table_is_whole() -> Result<(), Failed> {
    let missing: Vec<_> =
        Step::ALL.iter().filter(|step| !Flow::ALL.iter().any(|flow| flow.steps().contains(step))).collect();
    if missing.is_empty() { Ok(()) } else { Err(Failed::from(format!("no flow is broken off at {missing:?}"))) }
}

async fn killed_at_every_step(mut bed: Bed, flow: Flow) -> Result<()> {
    for &step in flow.steps() {
        let case = Case::new(flow, step, bed.state.path());
        killed(&mut bed.driver, &case).await.with_context(|| case.name.clone())?;
    }
    println!("crash points: {}", flow.steps().len());
    Ok(())
}

async fn killed(driver: &mut Driver, case: &Case) -> Result<()> {
    fs::create_dir(&case.folder)?;
    case.prepare(&driver.csi).await?;
    case.stop(driver).await?;
    driver.kill();
    case.is_as_the_step_left_it(driver)?;
    driver.stop_at(None);
    driver.start_again().await?;
    case.repeat(&driver.csi).await?;
    if matches!(case.flow, Flow::Create | Flow::Unstage | Flow::Delete) {
        nothing_is_open()?;
    }
    case.check(driver).await?;
    nothing_is_open()
}

/// One step of one flow, with a volume of its own.
pub(crate) struct Case {
    /// Names the volume, too.
    pub(crate) name: String,
    /// A folder of its own, which whoever uses this makes.
    pub(crate) folder: PathBuf,
    flow: Flow,
    step: Step,
    volume: Volume,
}

impl Case {
    /// Every step of every flow, each in a folder of its own below this one.
    pub(crate) fn all(below: &Path) -> Vec<Self> {
        let of = |flow: Flow| flow.steps().iter().map(move |step| Self::new(flow, *step, below));
        Flow::ALL.into_iter().flat_map(of).collect()
    }

    fn new(flow: Flow, step: Step, below: &Path) -> Self {
        let name = format!("{flow:?}-{step:?}");
        Self { folder: below.join(&name), flow, step, volume: volume(&name), name }
    }

    fn staged(&self) -> PathBuf {
        self.folder.join("staged")
    }

    fn file(&self) -> PathBuf {
        self.staged().join("file")
    }

    /// Brings the new volume to where the flow begins.
    pub(crate) async fn prepare(&self, csi: &Csi) -> Result<()> {
        if self.flow == Flow::Create {
            return Ok(());
        }
        csi.create_filesystem(&self.name, BYTES, "ext4").await?;
        if self.flow == Flow::FirstStage {
            return Ok(());
        }
        csi.stage_filesystem(&self.volume, &self.staged()).await?;
        fs::write(self.file(), &self.name)?;
        if matches!(self.flow, Flow::Unlock | Flow::Delete) {
            csi.unstage(&self.volume.volume_id, &self.staged()).await?;
        } else if self.step != Step::Detached {
            // Before the volume is detached, what its user does not flush need not outlast a power cut.
            flush(&self.file())?;
        }
        Ok(())
    }

    /// Runs the flow on a driver that stops at the step, and leaves it stopped.
    pub(crate) async fn stop(&self, driver: &mut Driver) -> Result<()> {
        driver.kill();
        driver.stop_at(Some(self.step));
        driver.start_again().await?;
        let csi = driver.csi.clone();
        tokio::select! {
            answer = self.run(&csi) => bail!("it was answered before it came to its step: {answer:?}"),
            stopped = driver.stopped() => stopped?,
        }
        let log = driver.log();
        let last = log.lines().next_back().unwrap_or_default();
        ensure!(last.contains(self.step.as_str()), "it went on beyond its step: {last}");
        Ok(())
    }

    /// Finds record and file as the step says: what a step stands for is on the disk when it is reached.
    pub(crate) fn is_as_the_step_left_it(&self, driver: &Driver) -> Result<()> {
        let file = driver.file(&self.volume.volume_id);
        let state = state(driver, &self.volume)?;
        ensure!(state == self.state(), "the record says {state} and not {}", self.state());
        let bytes = fs::metadata(&file).ok().map(|metadata| metadata.len());
        ensure!(bytes == self.file_bytes(), "the file has {bytes:?} bytes and not {:?}", self.file_bytes());
        if self.flow == Flow::FirstStage {
            let mut start = [0; 4];
            File::open(&file)?.read_exact(&mut start)?;
            ensure!((start == *b"LUKS") == self.has(Step::HeaderWritten), "the file begins with {start:?}");
        }
        Ok(())
    }

    fn state(&self) -> State {
        match self.flow {
            Flow::Create => State::Prepared,
            Flow::FirstStage if self.has(Step::Ready) => State::Ready,
            Flow::FirstStage if self.has(Step::FormatBegun) => State::Formatting,
            Flow::FirstStage => State::Prepared,
            Flow::Unlock | Flow::Expand | Flow::Unstage => State::Ready,
            Flow::Delete => State::Destroyed,
        }
    }

    /// The header takes a MiB of its own.
    fn file_bytes(&self) -> Option<u64> {
        match (self.flow, self.step) {
            (Flow::Create, Step::KeyCreated) | (Flow::Delete, Step::FileRemoved) => None,
            (Flow::Expand, _) => Some(GROWN + MIB),
            _ => Some(BYTES + MIB),
        }
    }

    /// Whether a step of the flow is behind the one at which it was broken off, or is that one.
    fn has(&self, step: Step) -> bool {
        let place = |step: Step| self.flow.steps().iter().position(|other| *other == step);
        place(step) <= place(self.step)
    }

    /// Repeats the flow until it succeeds.
    pub(crate) async fn repeat(&self, csi: &Csi) -> Result<()> {
        if self.flow == Flow::Delete {
            // A destroyed key opens nothing, also where the file is still there.
            is_refused(csi, &self.volume, &self.staged()).await?;
        }
        repeated(async || self.run(csi).await).await
    }

    async fn run(&self, csi: &Csi) -> Result<(), Status> {
        let id = &self.volume.volume_id;
        match self.flow {
            Flow::Create => csi.create_filesystem(&self.name, BYTES, "ext4").await.map(drop),
            Flow::FirstStage | Flow::Unlock => csi.stage_filesystem(&self.volume, &self.staged()).await,
            Flow::Expand => {
                // Staged already, unless the power was cut.
                csi.stage_filesystem(&self.volume, &self.staged()).await?;
                csi.expand_file(id, GROWN).await?;
                csi.expand(id, &self.staged(), GROWN).await.map(drop)
            }
            Flow::Unstage => csi.unstage(id, &self.staged()).await,
            Flow::Delete => csi.delete(id).await,
        }
    }

    /// What must hold when the flow has succeeded in the end; the volume is deleted with it.
    pub(crate) async fn check(&self, driver: &Driver) -> Result<()> {
        let (csi, id, staged) = (&driver.csi, &self.volume.volume_id, self.staged());
        if matches!(self.flow, Flow::Create | Flow::FirstStage) {
            // Nobody could write to the volume before.
            csi.stage_filesystem(&self.volume, &staged).await?;
            fs::write(self.file(), &self.name)?;
            csi.unstage(id, &staged).await?;
        }
        if self.flow != Flow::Delete {
            csi.stage_filesystem(&self.volume, &staged).await?;
            ensure!(fs::read_to_string(self.file())? == self.name, "the file is another");
            if self.flow == Flow::Expand {
                is_grown(driver, &self.volume, &staged).await?;
            }
            csi.unstage(id, &staged).await?;
            csi.delete(id).await?;
        }
        is_gone(driver, &self.volume, &staged).await
    }
}

async fn killed_at_random_moments(mut bed: Bed) -> Result<()> {
    let mut random = Random::seeded()?;
    let mut lives = Life::three(bed.state.path());
    for life in &mut lives {
        life.set_out(&bed.driver.csi).await?;
    }
    let csi = bed.driver.csi.clone();
    for _ in 0..ROUNDS {
        let [first, second, third] = &mut lives;
        let nothing = |_: &Life| anyhow::Ok(());
        tokio::select! {
            error = first.live(&csi, nothing) => return Err(error),
            error = second.live(&csi, nothing) => return Err(error),
            error = third.live(&csi, nothing) => return Err(error),
            // Any moment will do: nothing is waited for.
            () = tokio::time::sleep(random.time(20..700)) => {}
        }
        bed.driver.kill();
        bed.driver.start_again().await?;
        // What was broken off is repeated, and succeeds.
        tokio::try_join!(first.go_on(&csi), second.go_on(&csi), third.go_on(&csi))?;
    }
    for life in &mut lives {
        life.end(&bed.driver).await?;
    }
    println!("crash points: {ROUNDS}");
    nothing_is_open()
}

/// The volume of a name, before and after it is there.
pub(crate) fn volume(name: &str) -> Volume {
    Volume { volume_id: VolumeId::for_name(name).to_string(), ..Volume::default() }
}

/// Asks until nobody else is at work on the volume. Every failure but ABORTED is one.
pub(crate) async fn repeated<T>(ask: impl AsyncFn() -> Result<T, Status>) -> Result<T> {
    for _ in 0..200 {
        match ask().await {
            // What a killed driver had started still runs.
            Err(busy) if busy.code() == Code::Aborted => tokio::time::sleep(Duration::from_millis(50)).await,
            answer => return Ok(answer?),
        }
    }
    bail!("the volume stays busy")
}

/// Flushes a file, and the folder that names it.
pub(crate) fn flush(file: &Path) -> Result<()> {
    File::open(file)?.sync_all()?;
    Ok(File::open(file.parent().context("a file lies in a folder")?)?.sync_all()?)
}

/// What the record of a volume says, where it is one.
pub(crate) fn state(driver: &Driver, volume: &Volume) -> Result<State> {
    let path = driver.record(&volume.volume_id);
    let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    Ok(Record::from_bytes(&bytes).with_context(|| path.display().to_string())?.state)
}

/// A volume that has grown below is larger inside as well.
pub(crate) async fn is_grown(driver: &Driver, volume: &Volume, staged: &Path) -> Result<()> {
    let file = fs::metadata(driver.file(&volume.volume_id))?.len();
    let inside = driver.csi.stats(&volume.volume_id, staged).await?.usage[0].total.unsigned_abs();
    ensure!(file == GROWN + MIB && inside > BYTES, "the file has {file} bytes, and inside there are {inside}");
    Ok(())
}

/// A deleted volume has a tombstone and no file, and is not staged.
pub(crate) async fn is_gone(driver: &Driver, volume: &Volume, staged: &Path) -> Result<()> {
    let state = state(driver, volume)?;
    ensure!(state == State::Destroyed, "the record of a deleted volume says {state}");
    ensure!(!driver.file(&volume.volume_id).exists(), "the file of a deleted volume is still there");
    is_refused(&driver.csi, volume, staged).await
}

async fn is_refused(csi: &Csi, volume: &Volume, staged: &Path) -> Result<()> {
    let answer = csi.stage_filesystem(volume, staged).await;
    let code = answer.as_ref().err().map(Status::code);
    ensure!(matches!(code, Some(Code::NotFound | Code::FailedPrecondition)), "a deleted volume's stage: {answer:?}");
    Ok(())
}

/// No mapping and no loop device is left.
pub(crate) fn nothing_is_open() -> Result<()> {
    ensure!(mappings().is_empty() && loops() == 0, "{:?} and {} loop devices stay", mappings(), loops());
    Ok(())
}
