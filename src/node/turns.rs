//! How many volumes are worked on at once: after a reboot a container orchestrator asks for all volumes of a node in
//! the same moment.
//!
//! Work on a volume has at most one program running and one request to the key service open, so a bound on the volumes
//! bounds these as well, and the memory that headers take. Turns are given in the order in which they were asked for;
//! who gives up waiting leaves the line.

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{exec::Deadline, node::NodeFailure, volume::VolumeId};

/// What a turn is for. Each kind has a line of its own, so that no close waits for a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// From the device to its open mapping: a key, a header in memory, a program.
    Open,
    /// From the mounts to nothing: a program.
    Close,
    /// A check of a file system, which takes long and much memory.
    Repair,
}

/// Turns for work on volumes.
#[derive(Debug)]
pub struct Turns {
    open: Semaphore,
    close: Semaphore,
    repair: Semaphore,
}

/// A turn. The next one in line has it when this is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a>(#[expect(dead_code, reason = "it is held, and not looked at")] SemaphorePermit<'a>);

impl Turns {
    /// This many volumes are opened at once, as many closed, and one repaired.
    #[must_use]
    pub fn at_once(volumes: usize) -> Self {
        Self { open: Semaphore::new(volumes), close: Semaphore::new(volumes), repair: Semaphore::new(1) }
    }

    /// Waits for a turn, at most until the deadline.
    pub(super) async fn take(
        &self,
        work: Work,
        volume_id: &VolumeId,
        deadline: Deadline,
    ) -> Result<Turn<'_>, NodeFailure> {
        let line = match work {
            Work::Open => &self.open,
            Work::Close => &self.close,
            Work::Repair => &self.repair,
        };
        let waited = || NodeFailure::Waited(volume_id.clone());
        let turn = tokio::time::timeout(deadline.left(), line.acquire()).await.map_err(|_| waited())?;
        Ok(Turn(turn.map_err(|_| waited())?))
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;

    fn id(text: &str) -> VolumeId {
        text.parse().expect("an id")
    }

    #[tokio::test(start_paused = true)]
    async fn turns_come_in_the_order_of_asking_and_a_caller_that_gave_up_takes_none() {
        let turns = Arc::new(Turns::at_once(1));
        let (first, order) = (
            turns.take(Work::Open, &id("first"), soon()).await.expect("free"),
            Arc::new(std::sync::Mutex::new(Vec::new())),
        );
        let waits = |name: &'static str| {
            let (turns, order) = (turns.clone(), order.clone());
            tokio::spawn(async move {
                let _turn = turns.take(Work::Open, &id(name), soon()).await.expect("in time");
                order.lock().expect("no panic").push(name);
            })
        };
        let (second, gave_up, third) = (waits("second"), waits("gave up"), waits("third"));
        tokio::task::yield_now().await;
        gave_up.abort();
        drop(first);
        second.await.expect("it had its turn");
        third.await.expect("it had its turn");
        assert_eq!(*order.lock().expect("no panic"), ["second", "third"]);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_beyond_the_deadline() {
        let turns = Turns::at_once(1);
        let _first = turns.take(Work::Open, &id("first"), soon()).await.expect("free");
        let late = turns.take(Work::Open, &id("late"), soon()).await.expect_err("taken");
        assert!(late.to_string().contains("late"), "{late}");
    }

    fn soon() -> Deadline {
        Deadline::within(Duration::from_secs(30))
    }
}
