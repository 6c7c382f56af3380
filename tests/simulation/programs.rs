//! The programs of a node: cryptsetup and the tools of ext4, as far as the flows use them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use coffer::{
    exec::{Deadline, Exec, ExecFailure, Output, Program},
    node::block::Access,
};

use crate::{
    fault::Fault,
    header,
    host::Host,
    world::{Map, Owner, World},
};

/// A program with its words and its standard input, as it was started.
struct Call {
    name: &'static str,
    words: Vec<String>,
    key: Vec<u8>,
}

impl Call {
    fn after(&self, word: &str) -> Option<&str> {
        let at = self.words.iter().position(|found| found == word)?;
        self.words.get(at + 1).map(String::as_str)
    }

    fn has(&self, word: &str) -> bool {
        self.words.iter().any(|found| found == word)
    }

    fn last(&self) -> &str {
        self.words.last().map_or("", String::as_str)
    }

    /// The words without those that differ from run to run.
    fn what(&self) -> String {
        format!(
            "run {} {}",
            self.name,
            self.words.first().map_or("", |word| if word.starts_with('/') { "" } else { word })
        )
    }

    /// The device that the program opens before it does anything.
    fn device(&self) -> PathBuf {
        match (self.name, self.words.first().map(String::as_str)) {
            ("cryptsetup", Some("open")) => PathBuf::from(&self.words[self.words.len() - 2]),
            ("cryptsetup", Some("resize")) | ("dmsetup", _) => Path::new("/dev/mapper").join(self.last()),
            _ => PathBuf::from(self.last()),
        }
    }
}

fn ended(code: i32, words: &str) -> Output {
    Output { code, stdout: String::new(), stderr: words.to_owned() }
}

#[async_trait]
impl Exec for Host {
    async fn run(&self, program: Program<'_>, deadline: Deadline) -> Result<Output, ExecFailure> {
        let words = program.words().iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let call = Call { name: program.name(), words, key: program.stdin().unwrap_or_default().to_vec() };
        self.world.lock().expect_no_key(&call.words.join(" "), "a program's words");
        let (machine, name) = (self.machine, call.name);
        match self.come_to(&call.what(), true).await {
            Some(Fault::FailBefore) => Ok(ended(1, "it failed")),
            Some(Fault::FailAfter) => {
                execute(&mut self.world.lock(), machine, &call);
                Ok(ended(1, "it failed in the end"))
            }
            Some(Fault::Hang) => {
                tokio::time::sleep(deadline.left()).await;
                self.stay_alive().await;
                Err(ExecFailure::Deadline { program: name })
            }
            Some(Fault::Garbage) => Ok(ended(77, "\u{fffd}\u{1b}[0m nonsense")),
            Some(Fault::Orphan) => {
                self.outlive(call);
                std::future::pending().await
            }
            fault => Ok(self.take(fault, |world| execute(world, machine, &call)).await),
        }
    }
}

impl Host {
    /// The driver dies, and its program goes on: it holds its device from its start to its end.
    fn outlive(&self, call: Call) {
        let (machine, world) = (self.machine, self.world.clone());
        let (id, boot, time) = {
            let mut locked = world.lock();
            let (id, boot) = (locked.id(), locked.machines[machine].boot);
            let device = call.device();
            let machine = &mut locked.machines[machine];
            let (mapper, below) =
                (machine.map_at(&device).map(|(name, _)| name.clone()), machine.loop_at(&device).map(|(n, _)| n));
            if let Some(name) = mapper.filter(|_| call.name != "dmsetup") {
                machine.maps.get_mut(&name).expect("it was found").users.insert(id, Owner::Child);
            } else if let Some(number) = below {
                machine.loops.get_mut(&number).expect("it was found").users.insert(id, Owner::Child);
            }
            locked.kill(self.machine);
            (id, boot, 20 + locked.dice.below(3000))
        };
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(time)).await;
            let mut world = world.lock();
            if world.machines[machine].boot == boot {
                world.tell(|| format!("     {} that outlived its driver takes effect", call.what()));
                if let Some(name) = world.machines[machine].map_at(&call.device()).map(|(name, _)| name.clone()) {
                    world.machines[machine].maps.get_mut(&name).expect("it was found").users.remove(&id);
                }
                execute(&mut world, machine, &call);
                world.machines[machine].drop_user(id);
            }
        });
    }
}

/// What a program does to the world, and how it ends.
fn execute(world: &mut World, machine: usize, call: &Call) -> Output {
    match (call.name, call.words.first().map(String::as_str)) {
        ("cryptsetup", Some("luksFormat")) => format(world, machine, call),
        ("cryptsetup", Some("open")) => open(world, machine, call),
        ("cryptsetup", Some("resize")) => resize(world, machine, call),
        ("dmsetup", Some("remove")) => close(world, machine, call),
        ("mkfs.ext4", _) => make(world, machine, call),
        ("e2fsck" | "resize2fs", _) => ended(0, ""),
        (name, _) => panic!("the world has no {name}"),
    }
}

fn header_of(call: &Call) -> &Path {
    Path::new(call.after("--header").expect("a header is given in memory"))
}

/// Makes a header in memory; of the device only the sector size is asked.
fn format(world: &mut World, machine: usize, call: &Call) -> Output {
    let Some(volume) = world.machines[machine].volume_on(&call.device()) else { return ended(4, "no device") };
    world.used(machine, &volume, &call.key, false);
    let (uuid, sector) = (call.after("--uuid").expect("a UUID"), call.after("--sector-size").expect("a sector size"));
    let volume_key = world.id();
    match header::make(header_of(call), uuid, sector, &call.key, volume_key) {
        Ok(()) => ended(0, ""),
        Err(error) => ended(1, &error.to_string()),
    }
}

fn open(world: &mut World, machine: usize, call: &Call) -> Output {
    let (device, name) = (call.device(), call.last().to_owned());
    let Some(volume) = world.machines[machine].volume_on(&device) else { return ended(4, "no device") };
    let (Ok(slot), Ok(uuid)) = (header::slot_of_file(header_of(call)), header::uuid_of_file(header_of(call))) else {
        return ended(1, "no header");
    };
    let volume_key = header::open(&slot, &call.key);
    world.used(machine, &volume, &call.key, volume_key.is_some());
    let Some(volume_key) = volume_key else { return ended(2, "no key available with this passphrase") };
    let user = world.id();
    let machine = &mut world.machines[machine];
    let Some((number, below)) = machine.loop_at(&device) else { return ended(4, "no device") };
    let taken = below.claimed.is_some() || below.users.values().any(|owner| *owner == Owner::Mapping);
    if machine.maps.contains_key(&name) || taken {
        return ended(5, "it exists, or the device is in use");
    }
    let bytes = below.bytes - header::DATA_OFFSET;
    machine.loops.get_mut(&number).expect("it was found").users.insert(user, Owner::Mapping);
    let minor = (0..).find(|minor| machine.maps.values().all(|map| map.number != *minor)).expect("a free one");
    let access = if call.has("--readonly") { Access::ReadOnly } else { Access::ReadWrite };
    let map = Map { uuid, number: minor, device: number, user, volume_key, bytes, access, users: Default::default() };
    machine.maps.insert(name, map);
    ended(0, "")
}

fn resize(world: &mut World, machine: usize, call: &Call) -> Output {
    let Some(volume) = world.machines[machine].volume_on(&call.device()) else { return ended(4, "not open") };
    let opens = header::slot_of_file(header_of(call)).ok().and_then(|slot| header::open(&slot, &call.key)).is_some();
    world.used(machine, &volume, &call.key, opens);
    if !opens {
        return ended(2, "no key available with this passphrase");
    }
    let machine = &mut world.machines[machine];
    let below = machine.maps.get(call.last()).and_then(|map| machine.loops.get(&map.device)).map(|below| below.bytes);
    match (below, machine.maps.get_mut(call.last())) {
        (Some(bytes), Some(map)) => {
            map.bytes = bytes - header::DATA_OFFSET;
            ended(0, "")
        }
        _ => ended(4, "not open"),
    }
}

fn close(world: &mut World, machine: usize, call: &Call) -> Output {
    let machine = &mut world.machines[machine];
    if !machine.maps.contains_key(call.last()) {
        return ended(1, "not open");
    }
    if machine.is_busy(call.last()) {
        return ended(i32::from(!call.has("--deferred")), "it is in use");
    }
    machine.close(call.last());
    ended(0, "")
}

fn make(world: &mut World, machine: usize, call: &Call) -> Output {
    let device = call.device();
    let found = world.machines[machine].map_at(&device).map(|(name, map)| (name.clone(), map.volume_key));
    let Some((name, volume_key)) = found else { return ended(1, "no device") };
    if world.machines[machine].is_busy(&name) {
        return ended(1, "it is in use");
    }
    let (disk, start) = world.machines[machine].disk_below(&device).expect("a mapping has a disk");
    let volume = world.machines[machine].volume_on(&device).unwrap_or_default();
    world.expect_makeable(&volume, disk, machine);
    let mut page = [0; 4096];
    page[1080..1083].copy_from_slice(&[0x53, 0xef, 1]);
    header::cipher(volume_key, 0, &mut page);
    world.machines[machine].disks.get_mut(&disk).expect("a device has a disk").write(start, &page);
    ended(0, "")
}
