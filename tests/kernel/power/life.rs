//! A volume that is made, used, grown and deleted, over and over, while drivers are killed and the power fails.
//!
//! The number of operations that were acknowledged says all that must hold: the next one may have been done or not,
//! wholly or in part.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use coffer::{key::record::State, proto::csi::Volume};
use testbed::{csi::Csi, driver::Driver};

use crate::steps::{BYTES, GROWN, flush, is_gone, is_grown, repeated, state, volume};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Create,
    Stage,
    Write,
    Unstage,
    Check,
    Expand,
    Delete,
}

/// The operations of one life.
const LIFE: [Operation; 9] = [
    Operation::Create,
    Operation::Stage,
    Operation::Write,
    Operation::Unstage,
    Operation::Stage,
    Operation::Check,
    Operation::Expand,
    Operation::Unstage,
    Operation::Delete,
];
/// How many of them are acknowledged when the volume is staged for the first time, its file is written, it is unstaged,
/// and it has grown.
const STAGED: usize = 2;
const WRITTEN: usize = 3;
const UNSTAGED: usize = 4;
const GROWN_UP: usize = 7;

/// A volume's lives.
pub(crate) struct Life {
    /// Which of the volumes.
    pub(crate) number: usize,
    /// How many operations were acknowledged, in all lives.
    pub(crate) acknowledged: usize,
    name: String,
    volume: Volume,
    staged: PathBuf,
}

impl Life {
    /// Three volumes that are not there yet, and are staged in a folder.
    pub(crate) fn three(folder: &Path) -> [Self; 3] {
        [0, 1, 2].map(|number| {
            let name = format!("life-{number}");
            let (volume, staged) = (volume(&name), folder.join(&name));
            Self { number, acknowledged: 0, name, volume, staged }
        })
    }

    /// Goes ahead, each volume to another place in its first life.
    pub(crate) async fn set_out(&mut self, csi: &Csi) -> Result<()> {
        for _ in 0..3 * self.number {
            self.go_on(csi).await?;
        }
        Ok(())
    }

    /// Goes on for ever; what is returned is why not. `told` hears of each operation that was acknowledged.
    pub(crate) async fn live(&mut self, csi: &Csi, told: impl Fn(&Self) -> Result<()>) -> anyhow::Error {
        loop {
            let done = self.go_on(csi).await;
            if let Err(error) = done.and_then(|()| told(self)) {
                return error;
            }
        }
    }

    /// Goes on to the end of a life.
    pub(crate) async fn end(&mut self, driver: &Driver) -> Result<()> {
        loop {
            self.go_on(&driver.csi).await?;
            if self.place() == 0 {
                return is_gone(driver, &self.volume, &self.staged).await;
            }
        }
    }

    /// After a power cut: finds what was acknowledged, and goes back to where a volume that is not staged can go on.
    pub(crate) async fn find(&mut self, driver: &Driver) -> Result<()> {
        self.expect_what_was_acknowledged(driver).await.with_context(|| self.told())?;
        while !matches!(self.next(), Operation::Create | Operation::Stage | Operation::Delete) {
            self.acknowledged -= 1;
        }
        Ok(())
    }

    async fn expect_what_was_acknowledged(&self, driver: &Driver) -> Result<()> {
        let file = driver.file(&self.volume.volume_id);
        if self.acknowledged == 0 {
            return Ok(());
        }
        let state = state(driver, &self.volume)?;
        match (self.next(), state) {
            (Operation::Create, State::Prepared) | (Operation::Delete, State::Destroyed) => return Ok(()),
            (Operation::Create, State::Destroyed) => {
                ensure!(!file.exists(), "the file of a deleted volume is back");
                return Ok(());
            }
            (Operation::Create, _) => bail!("the record of a deleted volume says {state}"),
            (_, state) if self.place() >= STAGED && state != State::Ready => bail!("the record says {state}"),
            _ => {}
        }
        self.act(Operation::Stage, &driver.csi).await?;
        if self.place() >= UNSTAGED || (self.place() >= WRITTEN && self.flushes()) {
            self.act(Operation::Check, &driver.csi).await?;
        }
        if self.place() >= GROWN_UP {
            is_grown(driver, &self.volume, &self.staged).await?;
        }
        self.act(Operation::Unstage, &driver.csi).await
    }

    /// Does what comes next, until it is acknowledged.
    pub(crate) async fn go_on(&mut self, csi: &Csi) -> Result<()> {
        self.act(self.next(), csi).await.with_context(|| self.told())?;
        self.acknowledged += 1;
        Ok(())
    }

    async fn act(&self, operation: Operation, csi: &Csi) -> Result<()> {
        let (id, staged, file) = (&self.volume.volume_id, &self.staged, self.staged.join("file"));
        match operation {
            Operation::Create => {
                repeated(async || csi.create_filesystem(&self.name, BYTES, "ext4").await).await.map(drop)
            }
            Operation::Stage => repeated(async || csi.stage_filesystem(&self.volume, staged).await).await,
            Operation::Write => {
                fs::write(&file, self.text())?;
                if self.flushes() { flush(&file) } else { Ok(()) }
            }
            Operation::Check => {
                let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
                ensure!(text == self.text(), "the file holds {text:?}");
                Ok(())
            }
            Operation::Expand => {
                repeated(async || csi.expand_file(id, GROWN).await).await?;
                repeated(async || csi.expand(id, staged, GROWN).await).await.map(drop)
            }
            Operation::Unstage => repeated(async || csi.unstage(id, staged).await).await,
            Operation::Delete => repeated(async || csi.delete(id).await).await,
        }
    }

    /// The operation that was not acknowledged yet.
    fn next(&self) -> Operation {
        LIFE[self.place()]
    }

    fn place(&self) -> usize {
        self.acknowledged % LIFE.len()
    }

    /// Which life of the volume it is, from 0.
    fn life(&self) -> usize {
        self.acknowledged / LIFE.len()
    }

    fn text(&self) -> String {
        format!("volume {}, life {}", self.number, self.life())
    }

    /// Whether the file is flushed in this life, or the unstage is relied on for it.
    fn flushes(&self) -> bool {
        (self.number + self.life()).is_multiple_of(2)
    }

    fn told(&self) -> String {
        format!("volume {}, life {}, place {}: {:?}", self.number, self.life(), self.place(), self.next())
    }
}

/// Numbers that nobody foresees, and that come again with their seed.
pub(crate) struct Random(u64);

impl Random {
    /// With the seed in the variable `TEST_SEED`, or else always the same. It is told.
    pub(crate) fn seeded() -> Result<Self> {
        let seed = match std::env::var("TEST_SEED") {
            Ok(text) if !text.is_empty() => text.parse::<u64>().context("TEST_SEED is no number")?,
            _ => 20_261_124,
        };
        println!("TEST_SEED={seed}");
        Ok(Self(seed))
    }

    /// A time between so many milliseconds.
    pub(crate) fn time(&mut self, milliseconds: Range<u64>) -> Duration {
        // A linear congruential generator, whose upper half is the better one.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Duration::from_millis(milliseconds.start + (self.0 >> 32) % (milliseconds.end - milliseconds.start))
    }
}
