//! A node's driver, put together as the program does it, over the world.

use std::sync::{Arc, Mutex, PoisonError};

use coffer::{
    csi::{Gate, controller::Controller, node::Node as NodeService},
    node::{Node, source::local::Local, turns::Turns},
};
use tokio_util::sync::CancellationToken;

use crate::{host::Host, invariant::node_id, keys::Wire, world::Shared};

/// A driver's process on a node.
pub(crate) struct Process {
    pub(crate) node: NodeService,
    pub(crate) controller: Controller,
    pub(crate) dead: CancellationToken,
}

/// The node's driver, started again whenever it has died.
#[derive(Clone)]
pub(crate) struct Driver {
    world: Shared,
    pub(crate) machine: usize,
    process: Arc<Mutex<Arc<Process>>>,
}

impl Driver {
    pub(crate) fn on(world: &Shared, machine: usize) -> Self {
        let process = Arc::new(Mutex::new(Arc::new(start(world, machine))));
        Self { world: world.clone(), machine, process }
    }

    /// The living process.
    pub(crate) fn process(&self) -> Arc<Process> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if process.dead.is_cancelled() {
            self.world.lock().machines[self.machine].dead = CancellationToken::new();
            *process = Arc::new(start(&self.world, self.machine));
        }
        process.clone()
    }
}

/// Puts a driver together as the program does, over the world.
fn start(world: &Shared, machine: usize) -> Process {
    let host = Arc::new(Host::of(world, machine));
    let node = Arc::new(Node {
        exec: host.clone(),
        mounts: host.clone(),
        targets: host.clone(),
        blocks: host.clone(),
        keys: Arc::new(Wire::of(world, machine)),
        pool: Local::of(host.clone(), host),
        turns: Turns::at_once(2),
    });
    let (gate, id) = (Gate::default(), node_id(machine));
    Process {
        node: NodeService::new(node.clone(), id.clone(), gate.clone()),
        controller: Controller::new(node, id, gate),
        dead: world.lock().machines[machine].dead.clone(),
    }
}
