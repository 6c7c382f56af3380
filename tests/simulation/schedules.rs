//! The schedules: each flow with every single fault, with every pair of faults, and many volumes at random.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::task::JoinSet;

use crate::{
    actor::{Actor, Goal},
    driver::Driver,
    fault::{Dice, Fault, Faults},
    world::{Shared, World},
};

/// A flow: what leads to it without a fault, and the flow itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) name: &'static str,
    before: &'static [Goal],
    record: Record,
    goals: &'static [Goal],
}

/// Which record a flow finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Record {
    /// The one that the way to the flow has left.
    Last,
    /// One from a backup, from before the volume was finished. A disk that lies under it is more than Coffer promises to
    /// notice, so the disk tells the truth.
    Older,
}

use Goal::{Create, Delete, Expand, Publish, Stage, Stats, Unpublish, Unstage, Write};

pub(crate) const FLOWS: &[Flow] = &[
    Flow { name: "create", before: &[], record: Record::Last, goals: &[Create] },
    Flow { name: "first-stage", before: &[Create], record: Record::Last, goals: &[Stage] },
    Flow { name: "publish", before: &[Create, Stage], record: Record::Last, goals: &[Publish, Write, Unpublish] },
    Flow {
        name: "unstage",
        before: &[Create, Stage, Publish, Write, Unpublish],
        record: Record::Last,
        goals: &[Unstage],
    },
    Flow {
        name: "unlock",
        before: &[Create, Stage, Publish, Write, Unpublish, Unstage],
        record: Record::Last,
        goals: &[Stage],
    },
    Flow {
        name: "kept",
        before: &[Create, Stage, Publish, Write, Unpublish, Unstage],
        record: Record::Older,
        goals: &[Stage],
    },
    Flow { name: "expand", before: &[Create, Stage, Publish, Write], record: Record::Last, goals: &[Expand, Stats] },
    Flow {
        name: "delete",
        before: &[Create, Stage, Publish, Write, Unpublish, Unstage],
        record: Record::Last,
        goals: &[Delete],
    },
    Flow { name: "again", before: &[Create, Stage, Unstage, Delete], record: Record::Last, goals: &[Create] },
];

/// One way through the world, which its text leads to again.
#[derive(Clone, Debug)]
pub(crate) enum Schedule {
    /// A flow with faults.
    Flow(&'static Flow, Faults),
    /// Volumes, nodes and faults by chance, from a seed.
    Random(u64),
}

impl std::fmt::Display for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flow(flow, faults) => write!(f, "{}:{faults}", flow.name),
            Self::Random(seed) => write!(f, "random:{seed}"),
        }
    }
}

impl std::str::FromStr for Schedule {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, rest) = text.split_once(':').context("a schedule is FLOW:NUMBER=FAULT,… or random:SEED")?;
        if name == "random" {
            return Ok(Self::Random(rest.parse()?));
        }
        let Some(flow) = FLOWS.iter().find(|flow| flow.name == name) else { bail!("there is no flow {name:?}") };
        Ok(Self::Flow(flow, rest.parse()?))
    }
}

/// How a schedule ended.
pub(crate) struct Outcome {
    /// Effects in all.
    pub(crate) effects: usize,
    /// Effects until the flow's goals were reached.
    pub(crate) until_reached: usize,
    pub(crate) violation: Option<String>,
    pub(crate) trace: Vec<String>,
    pub(crate) fingerprint: u64,
}

/// A world in which a flow can begin, and its actor.
pub(crate) struct Start {
    world: World,
    actor: Actor,
}

impl Flow {
    /// Goes the way to the flow, without a fault.
    pub(crate) fn start(&self) -> Result<Start> {
        runtime(async {
            let world = Shared::of(World::with_machines(1));
            let driver = Driver::on(&world, 0);
            let mut actor = Actor::of(&world, &driver, "volume");
            for goal in self.before {
                actor.try_once(*goal).await?;
            }
            if let Some(violation) = &world.lock().ghost.violation {
                bail!("without a fault: {violation}");
            }
            let mut world = world.lock().clone();
            if self.record == Record::Older {
                world.turn_back(actor.id());
            }
            Ok(Start { world, actor })
        })
    }

    /// Runs the flow with faults, and looks whether the volume is what it should be in the end.
    pub(crate) fn run(&self, start: &Start, faults: &Faults, traced: bool) -> Outcome {
        let place = |seed: u64, (at, fault): (&usize, &Fault)| seed * 31 + *at as u64 * 7 + *fault as u64;
        let seed = faults.at.iter().fold(1 + faults.dice, place);
        let world = Shared::of(start.world.fresh(faults.clone(), seed, traced));
        runtime(async {
            let driver = Driver::on(&world, 0);
            let mut actor = start.actor.moved(&world, &driver);
            for goal in self.goals {
                actor.reach(*goal).await;
            }
            let until_reached = world.lock().effects;
            // A program or a request that outlived its caller has its effect, and changes nothing that matters.
            tokio::time::sleep(Duration::from_secs(600)).await;
            settle(&mut actor, self.goals.last() == Some(&Delete)).await;
            end(&world, until_reached)
        })
    }
}

/// The volume opens with its data, and leaves nothing behind; a deleted one can be made again.
async fn settle(actor: &mut Actor, deleted: bool) {
    let goals: &[Goal] = if deleted {
        &[Delete, Create, Stage, Unstage, Delete]
    } else {
        // What was made already is found again.
        &[Unpublish, Unstage, Create, Stage, Publish, Unpublish, Unstage]
    };
    for goal in goals {
        actor.reach(*goal).await;
    }
}

fn end(world: &Shared, until_reached: usize) -> Outcome {
    let mut world = world.lock();
    Outcome {
        effects: world.effects,
        until_reached,
        violation: world.ghost.violation.clone(),
        trace: world.trace.take().unwrap_or_default(),
        fingerprint: world.fingerprint,
    }
}

const NODES: usize = 2;
const VOLUMES: usize = 3;

/// Several volumes on two nodes, with faults by chance; then calm, and everything is put right.
fn random(seed: u64, traced: bool) -> Outcome {
    let mut world = World::with_machines(NODES).fresh(Faults::default(), seed, traced);
    world.takes_time = true;
    world.chance = 5 + Dice::of(seed).below(60);
    let world = Shared::of(world);
    runtime(async {
        let drivers: Vec<_> = (0..NODES).map(|machine| Driver::on(&world, machine)).collect();
        let mut actors = JoinSet::new();
        for number in 0..VOLUMES {
            let driver = &drivers[number % NODES];
            let actor = Actor::of(&world, driver, &format!("volume-{number}"));
            let other = drivers[(number + 1) % NODES].clone();
            actors.spawn(wander(actor, other, world.clone()));
        }
        let actors = actors.join_all().await;
        {
            let mut world = world.lock();
            world.chance = 0;
            world.tell(|| "     from here on nothing goes wrong".to_owned());
        }
        tokio::time::sleep(Duration::from_secs(600)).await;
        for mut actor in actors {
            let deleted = world
                .lock()
                .records
                .get(&actor.id().parse().expect("an id"))
                .is_none_or(|record| String::from_utf8_lossy(record).contains("\"destroyed\""));
            settle(&mut actor, deleted).await;
        }
        end(&world, 0)
    })
}

/// An orchestrator that changes its mind: a walk through the goals that make sense, some asked for twice at once.
async fn wander(mut actor: Actor, other: Driver, world: Shared) -> Actor {
    let roll = |limit: u64| world.lock().dice.below(limit);
    let rounds = 1 + roll(3);
    for _ in 0..rounds {
        actor.reach(Create).await;
        for _ in 0..=roll(3) {
            twice_at_times(&mut actor, Stage, roll(4) == 0).await;
            if roll(4) == 0 {
                // A request for the volume that comes to the wrong node must find nothing there.
                let _ = actor.misdirected(&other).try_once(Stage).await;
            }
            for _ in 0..roll(3) {
                twice_at_times(&mut actor, Publish, roll(4) == 0).await;
                actor.reach(Write).await;
                if roll(3) == 0 {
                    actor.reach(Expand).await;
                }
                let _ = actor.try_once(Stats).await;
                actor.reach(Unpublish).await;
            }
            twice_at_times(&mut actor, Unpublish, false).await;
            twice_at_times(&mut actor, Unstage, roll(4) == 0).await;
        }
        if roll(2) == 0 {
            twice_at_times(&mut actor, Delete, roll(4) == 0).await;
        }
        if actor.is_violated() {
            break;
        }
    }
    actor
}

async fn twice_at_times(actor: &mut Actor, goal: Goal, twice: bool) {
    if twice {
        let (mut one, mut two) = (actor.clone(), actor.clone());
        let _ = tokio::join!(one.try_once(goal), two.try_once(goal));
    }
    actor.reach(goal).await;
}

impl Schedule {
    /// Runs it from its beginning.
    pub(crate) fn run(&self, traced: bool) -> Result<Outcome> {
        match self {
            Self::Flow(flow, faults) => Ok(flow.run(&flow.start()?, faults, traced)),
            Self::Random(seed) => Ok(random(*seed, traced)),
        }
    }
}

/// How often a single fault is tried, with other dice each time: what a power cut takes is a matter of luck.
pub(crate) fn rolls(fault: Fault) -> u64 {
    if fault == Fault::Power { 8 } else { 1 }
}

impl Flow {
    /// Every fault at every effect, or at every one that comes after another, until the goals are reached: all of it is
    /// put right before the volume is looked at.
    pub(crate) fn faults(&self, first: Option<usize>, outcome: &Outcome) -> Vec<(usize, Fault)> {
        let from = first.map_or(0, |first| first + 1);
        let can_be = |fault: &Fault| self.record == Record::Last || *fault != Fault::Garbage;
        let at = |at| Fault::ALL.into_iter().filter(can_be).map(move |fault| (at, fault));
        (from..outcome.until_reached).flat_map(at).collect()
    }
}

fn runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime needs nothing").block_on(work)
}
