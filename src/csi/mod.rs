//! The Container Storage Interface at the edge: requests become types, failures become gRPC codes, nothing else.
//!
//! Each RPC parses, takes the volume's lock, calls the work, and answers. The work runs in a task of its own, so a
//! caller that hangs up does not leave it half done; its deadline does still hold.

pub mod answers;
pub mod identity;
pub mod locks;
pub mod node;
pub mod registration;
pub mod request;
pub mod status;

#[cfg(feature = "controller")]
pub mod controller;

use std::{future::Future, sync::Arc};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Response, Status};

use crate::{csi::locks::Locks, volume::VolumeId};

/// The name of the driver, as CSIDriver and StorageClass objects give it.
pub const DRIVER_NAME: &str = "coffer.csi";

/// The topology key whose value is a node's name.
pub const TOPOLOGY_KEY: &str = "coffer.csi/node";

/// Through which every RPC goes: one at a time for a volume, none once the program ends.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    locks: Arc<Locks>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Gate {
    /// Runs an RPC's work: at once, alone for its volume, to its end.
    ///
    /// # Errors
    /// UNAVAILABLE while the program ends, ABORTED while other work on the volume runs, or what the work answers.
    pub async fn run<T, E>(
        &self,
        rpc: &'static str,
        volume_id: Option<VolumeId>,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        E: Into<Status> + Send + 'static,
    {
        if self.closing.is_cancelled() {
            return Err(Status::unavailable("the driver is shutting down; try again"));
        }
        let shown = volume_id.as_ref().map(VolumeId::to_string).unwrap_or_default();
        let lock = match volume_id {
            None => None,
            Some(volume_id) => Some(self.locks.take(&volume_id).ok_or_else(|| {
                Status::aborted(format!("another request for volume {volume_id} is being worked on; try again"))
            })?),
        };
        // Told from inside the task, because a caller that hung up takes this future with it.
        let task = self.tasks.spawn(async move {
            let _lock = lock;
            let done: Result<T, Status> = work.await.map_err(E::into);
            match &done {
                Ok(_) => tracing::debug!(rpc, volume_id = shown, "done"),
                Err(status) => {
                    let (code, error) = (status.code(), status.message());
                    tracing::error!(rpc, volume_id = shown, ?code, error, "failed");
                }
            }
            done
        });
        let done = task.await.unwrap_or_else(|_| Err(Status::internal("the work on this request broke off")));
        done.map(Response::new)
    }

    /// Refuses new work, and waits until what runs has ended.
    pub async fn close(&self) {
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_request_for_a_volume_is_aborted_and_another_volume_is_not() {
        let gate = Gate::default();
        let id = |text: &str| Some(text.parse::<VolumeId>().expect("an id"));
        let (started, wait) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
        let first = tokio::spawn({
            let (gate, id, started, wait) = (gate.clone(), id("a"), started.clone(), wait.clone());
            async move {
                let work = async move {
                    started.notify_one();
                    wait.notified().await;
                    Ok::<_, Status>(1)
                };
                gate.run("first", id, work).await
            }
        });
        started.notified().await;
        let second = gate.run("second", id("a"), async { Ok::<_, Status>(2) }).await.expect_err("the lock is taken");
        assert_eq!(second.code(), tonic::Code::Aborted);
        gate.run("other", id("b"), async { Ok::<_, Status>(3) }).await.expect("another volume");
        wait.notify_one();
        first.await.expect("no panic").expect("the first ends");
        gate.run("third", id("a"), async { Ok::<_, Status>(4) }).await.expect("the lock is free again");
    }

    #[tokio::test]
    async fn a_closed_gate_lets_work_end_and_takes_no_more() {
        let gate = Gate::default();
        let (started, wait) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
        let running = tokio::spawn({
            let (gate, started, wait) = (gate.clone(), started.clone(), wait.clone());
            async move {
                let work = async move {
                    started.notify_one();
                    wait.notified().await;
                    Ok::<_, Status>(())
                };
                gate.run("running", None, work).await
            }
        });
        started.notified().await;
        let close = tokio::spawn({
            let gate = gate.clone();
            async move { gate.close().await }
        });
        gate.closing.cancelled().await;
        let late = gate.run("late", None, async { Ok::<_, Status>(()) }).await.expect_err("closing");
        assert_eq!(late.code(), tonic::Code::Unavailable);
        wait.notify_one();
        running.await.expect("no panic").expect("what ran has ended");
        close.await.expect("closed");
    }
}
