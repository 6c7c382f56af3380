//! Steps: each is one line with its seconds, has its time, and when it fails, what Kubernetes says about it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::time::timeout;

use crate::world::World;

/// A step that takes longer hangs.
const STEP: Duration = Duration::from_secs(300);

/// The steps so far.
#[derive(Default)]
pub(crate) struct Steps(usize);

impl Steps {
    /// The step that makes the world.
    pub(crate) async fn first(&mut self, what: &str, world: impl Future<Output = Result<World>>) -> Result<World> {
        let start = Instant::now();
        let ended = timeout(STEP, world).await.context("it did not end in time").flatten();
        self.tell(what, start, ended.as_ref().err());
        ended
    }

    /// A step in it.
    pub(crate) async fn run<T>(
        &mut self,
        world: &mut World,
        what: &str,
        work: impl AsyncFnOnce(&mut World) -> Result<T>,
    ) -> Result<T> {
        let start = Instant::now();
        let ended = timeout(STEP, work(world)).await.context("it did not end in time").flatten();
        self.tell(what, start, ended.as_ref().err());
        if ended.is_err() {
            world.tell_why().await;
        }
        ended
    }

    /// How many there were.
    pub(crate) fn count(&self) -> usize {
        self.0
    }

    fn tell(&mut self, what: &str, start: Instant, error: Option<&anyhow::Error>) {
        self.0 += 1;
        let seconds = start.elapsed().as_secs_f64();
        match error {
            None => println!("{:>2}. {what}  [{seconds:.1} s]", self.0),
            Some(error) => println!("{:>2}. {what}: FAILED after {seconds:.1} s: {error:#}", self.0),
        }
    }
}
