//! The world that the flows run in: nodes with disks, loop devices, mappings and mounts, the records, and the plan of
//! what goes wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use coffer::{
    node::{
        block::{Access, Backing, DeviceNumber, Mapping},
        mount::Mount,
    },
    volume::VolumeId,
};
use tokio_util::sync::CancellationToken;

use crate::{
    disk::Disk,
    fault::{Dice, Fault, Faults},
    invariant::Ghost,
};

/// The folder of every node's pool.
pub(crate) const POOL: &str = "/pool";

/// The world, shared by everything that acts in it. It is never locked across a wait.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<World>>);

impl Shared {
    pub(crate) fn of(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) machines: Vec<Machine>,
    /// What the store holds: it has every write that it has answered.
    pub(crate) records: BTreeMap<VolumeId, Vec<u8>>,
    pub(crate) ghost: Ghost,
    pub(crate) faults: Faults,
    /// How many of a thousand effects go wrong by chance.
    pub(crate) chance: u64,
    /// Whether effects take time, so that several requests mix.
    pub(crate) takes_time: bool,
    pub(crate) dice: Dice,
    /// Effects so far.
    pub(crate) effects: usize,
    pub(crate) trace: Option<Vec<String>>,
    /// A sum over all that happened: two runs of one schedule have the same.
    pub(crate) fingerprint: u64,
    ids: u64,
    faulty: usize,
}

impl World {
    pub(crate) fn with_machines(machines: usize) -> Self {
        Self {
            machines: (0..machines).map(|_| Machine::default()).collect(),
            records: BTreeMap::new(),
            ghost: Ghost::default(),
            faults: Faults::default(),
            chance: 0,
            takes_time: false,
            dice: Dice::of(0),
            effects: 0,
            trace: None,
            fingerprint: 0,
            ids: 0,
            faulty: 0,
        }
    }

    /// The same world for another schedule.
    pub(crate) fn fresh(&self, faults: Faults, seed: u64, traced: bool) -> Self {
        let mut world = self.clone();
        (world.faults, world.dice, world.effects, world.fingerprint) = (faults, Dice::of(seed), 0, 0);
        world.trace = traced.then(Vec::new);
        for machine in &mut world.machines {
            machine.life += 1;
            machine.dead = CancellationToken::new();
        }
        world
    }

    /// What goes wrong at the next effect.
    pub(crate) fn next_fault(&mut self, what: &str, orphans: bool) -> Option<Fault> {
        let number = self.effects;
        self.effects += 1;
        let mut fault = self.faults.at.get(&number).copied();
        if self.chance > 0 && self.dice.below(1000) < self.chance {
            let of = if orphans { 7 } else { 6 };
            fault = Some(Fault::ALL[usize::try_from(self.dice.below(of)).expect("a small number")]);
        }
        // Only a program can outlive the driver.
        let fault = fault.filter(|fault| orphans || *fault != Fault::Orphan);
        self.faulty += usize::from(fault.is_some());
        self.tell(|| match fault {
            None => format!("#{number} {what}"),
            Some(fault) => format!("#{number} {what}  ** {fault} **"),
        });
        self.fingerprint = what
            .bytes()
            .fold(self.fingerprint, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3).rotate_left(5))
            ^ fault.map_or(0, |fault| fault as u64 + 1);
        fault
    }

    /// Changes with every fault.
    pub(crate) fn fault_count(&self) -> usize {
        self.faulty
    }

    pub(crate) fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// Ends a driver's process: its descriptors are closed, and nothing else happens to the kernel.
    pub(crate) fn kill(&mut self, machine: usize) {
        self.tell(|| format!("     the driver of node {machine} dies"));
        let machine = &mut self.machines[machine];
        machine.life += 1;
        machine.let_go(|owner| matches!(owner, Owner::Process));
        machine.dead.cancel();
    }

    /// Cuts a node's power: its kernel forgets everything, and its disks what was not flushed.
    pub(crate) fn cut_power(&mut self, machine: usize) {
        self.tell(|| format!("     the power of node {machine} is cut"));
        let (machine, dice) = (&mut self.machines[machine], &mut self.dice);
        machine.life += 1;
        machine.boot += 1;
        machine.loops.clear();
        machine.maps.clear();
        machine.mounts.clear();
        for disk in machine.disks.values_mut() {
            disk.cut(dice);
        }
        machine.drop_unused_disks();
        machine.dead.cancel();
    }
}

/// Who has a device open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The driver.
    Process,
    /// A program that outlives it.
    Child,
    /// A mapping above it.
    Mapping,
}

#[derive(Clone, Default)]
pub(crate) struct Machine {
    /// Counts the driver's processes and the boots.
    pub(crate) life: u64,
    pub(crate) boot: u64,
    /// Told when the driver's process has ended.
    pub(crate) dead: CancellationToken,
    pub(crate) files: BTreeMap<String, u64>,
    pub(crate) disks: BTreeMap<u64, Disk>,
    pub(crate) loops: BTreeMap<u32, Loop>,
    pub(crate) maps: BTreeMap<String, Map>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) targets: BTreeSet<PathBuf>,
}

/// A loop device, gone when nobody has it open (autoclear).
#[derive(Clone)]
pub(crate) struct Loop {
    pub(crate) disk: u64,
    /// The size that the kernel knows.
    pub(crate) bytes: u64,
    pub(crate) users: BTreeMap<u64, Owner>,
    /// Who has it for nobody else (O_EXCL).
    pub(crate) claimed: Option<u64>,
}

/// A mapping.
#[derive(Clone)]
pub(crate) struct Map {
    pub(crate) uuid: String,
    pub(crate) number: u32,
    pub(crate) device: u32,
    /// Its own user id at the device below.
    pub(crate) user: u64,
    pub(crate) volume_key: u64,
    pub(crate) bytes: u64,
    pub(crate) access: Access,
    pub(crate) users: BTreeMap<u64, Owner>,
}

impl Machine {
    /// The loop device behind `/dev/loopN`.
    pub(crate) fn loop_at(&self, device: &Path) -> Option<(u32, &Loop)> {
        let number = device.to_str()?.strip_prefix("/dev/loop")?.parse().ok()?;
        Some((number, self.loops.get(&number)?))
    }

    /// The mapping behind `/dev/dm-N` or `/dev/mapper/NAME`.
    pub(crate) fn map_at(&self, device: &Path) -> Option<(&String, &Map)> {
        let text = device.to_str()?;
        self.maps.iter().find(|(name, map)| {
            text == format!("/dev/dm-{}", map.number) || text.strip_prefix("/dev/mapper/") == Some(name.as_str())
        })
    }

    /// The disk below a device, and where the device begins on it, in bytes.
    pub(crate) fn disk_below(&self, device: &Path) -> Option<(u64, u64)> {
        match self.map_at(device) {
            Some((_, map)) => Some((self.loops.get(&map.device)?.disk, crate::header::DATA_OFFSET)),
            None => Some((self.loop_at(device)?.1.disk, 0)),
        }
    }

    /// The volume whose file a device's disk is: a local volume's file bears its id.
    pub(crate) fn volume_on(&self, device: &Path) -> Option<String> {
        let (disk, _) = self.disk_below(device)?;
        self.files.iter().find(|(_, id)| **id == disk).map(|(name, _)| name.clone())
    }

    pub(crate) fn mapping(&self, name: &str) -> Option<Mapping> {
        let map = self.maps.get(name)?;
        let backing = self.loops.contains_key(&map.device).then(|| Backing {
            path: PathBuf::from(format!("/dev/loop{}", map.device)),
            number: DeviceNumber { major: 7, minor: map.device },
        });
        Some(Mapping {
            path: Path::new("/dev/mapper").join(name),
            kernel_name: format!("dm-{}", map.number),
            number: DeviceNumber { major: 253, minor: map.number },
            luks_uuid: map.uuid.parse().ok(),
            backing: backing.into_iter().collect(),
            bytes: map.bytes,
            access: map.access,
        })
    }

    /// Whether a mapping is mounted, or a program has it open.
    pub(crate) fn is_busy(&self, name: &str) -> bool {
        self.maps.get(name).is_some_and(|map| {
            !map.users.is_empty() || self.mounts.iter().any(|mount| mount.number.minor == map.number)
        })
    }

    /// Closes a mapping, and with it its hold of the device below.
    pub(crate) fn close(&mut self, name: &str) {
        if let Some(map) = self.maps.remove(name) {
            self.drop_user(map.user);
        }
    }

    pub(crate) fn drop_user(&mut self, id: u64) {
        for device in self.loops.values_mut() {
            device.users.remove(&id);
            device.claimed = device.claimed.filter(|claimed| *claimed != id);
        }
        for map in self.maps.values_mut() {
            map.users.remove(&id);
        }
        self.clear_loops();
    }

    fn let_go(&mut self, whose: impl Fn(&Owner) -> bool) {
        let users = |users: &BTreeMap<u64, Owner>| {
            users.iter().filter(|(_, owner)| whose(owner)).map(|(id, _)| *id).collect::<Vec<_>>()
        };
        let ids: Vec<_> = (self.loops.values().flat_map(|device| users(&device.users)))
            .chain(self.maps.values().flat_map(|map| users(&map.users)))
            .collect();
        ids.into_iter().for_each(|id| self.drop_user(id));
    }

    fn clear_loops(&mut self) {
        self.loops.retain(|_, device| !device.users.is_empty());
        self.drop_unused_disks();
    }

    /// A file that was removed takes its place until nobody has it open.
    pub(crate) fn drop_unused_disks(&mut self) {
        let named: BTreeSet<_> = self.files.values().chain(self.loops.values().map(|device| &device.disk)).collect();
        let unused: Vec<_> = self.disks.keys().filter(|disk| !named.contains(disk)).copied().collect();
        unused.iter().for_each(|disk| {
            self.disks.remove(disk);
        });
    }

    /// What of a volume is open, mounted or attached, in words.
    pub(crate) fn left_open(&self, volume: &str, mapper: &str) -> Option<String> {
        if self.maps.contains_key(mapper) {
            return Some(format!("mapping {mapper} is open"));
        }
        let disk = self.files.get(volume)?;
        let (number, _) = self.loops.iter().find(|(_, device)| device.disk == *disk)?;
        Some(format!("loop{number} is attached"))
    }
}
