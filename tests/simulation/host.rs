//! A node's kernel and programs, as one driver's process sees them: each joint of the real flows, over the world.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use coffer::{
    node::block::{Attached, Blocks, DeviceNumber, Hold, Mapping},
    volume::MapperName,
};

use crate::{
    fault::Fault,
    world::{Loop, Machine, Owner, Shared, World},
};

/// How long an effect takes that hangs and has no deadline: longer than any caller waits.
const HANGS: Duration = Duration::from_secs(100);

/// One driver's process on one machine. When it has died, nothing that it still does comes to an end.
#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) world: Shared,
    pub(crate) machine: usize,
    life: u64,
}

impl Host {
    pub(crate) fn of(world: &Shared, machine: usize) -> Self {
        let life = world.lock().machines[machine].life;
        Self { world: world.clone(), machine, life }
    }

    fn is_alive(&self) -> bool {
        self.world.lock().machines[self.machine].life == self.life
    }

    /// Comes to the next effect: what goes wrong there.
    pub(crate) async fn come_to(&self, what: &str, orphans: bool) -> Option<Fault> {
        let time = {
            let mut world = self.world.lock();
            if world.takes_time { world.dice.below(4) } else { 0 }
        };
        if time > 0 {
            tokio::time::sleep(Duration::from_millis(time)).await;
        }
        self.stay_alive().await;
        self.world.lock().next_fault(what, orphans)
    }

    /// Goes on only in a process that lives.
    pub(crate) async fn stay_alive(&self) {
        if !self.is_alive() {
            std::future::pending::<()>().await;
        }
    }

    /// An effect with its fault. `fail` makes an error of the words.
    pub(crate) async fn effect<T: Send>(
        &self,
        what: &str,
        act: impl FnOnce(&mut World) -> T + Send,
        fail: impl FnOnce(&'static str) -> T + Send,
    ) -> T {
        match self.come_to(what, false).await {
            Some(Fault::FailBefore) => fail("it failed before"),
            Some(Fault::FailAfter) => {
                let done = act(&mut self.world.lock());
                drop(done);
                fail("it failed after")
            }
            Some(Fault::Garbage) => fail("nonsense"),
            fault => self.take(fault, act).await,
        }
    }

    /// An effect that is done, late or as the last thing that its process does.
    pub(crate) async fn take<T: Send>(&self, fault: Option<Fault>, act: impl FnOnce(&mut World) -> T + Send) -> T {
        if fault == Some(Fault::Hang) {
            tokio::time::sleep(HANGS).await;
            self.stay_alive().await;
        }
        let done = act(&mut self.world.lock());
        match fault {
            Some(Fault::Die | Fault::Orphan) => self.world.lock().kill(self.machine),
            Some(Fault::Power) => self.world.lock().cut_power(self.machine),
            _ => return done,
        }
        drop(done);
        std::future::pending().await
    }

    pub(crate) fn machine<'a>(&self, world: &'a mut World) -> &'a mut Machine {
        &mut world.machines[self.machine]
    }

    /// A user of a device that goes when what is returned is dropped, or its process ends.
    fn hold(&self, world: &mut World, device: u32, exclusive: bool) -> Hold {
        let id = world.id();
        let guard = Guard { world: self.world.clone(), machine: self.machine, life: self.life, id };
        let device = self.machine(world).loops.get_mut(&device).expect("the device was found");
        device.users.insert(id, Owner::Process);
        if exclusive {
            device.claimed = Some(id);
        }
        Hold::of(guard)
    }
}

struct Guard {
    world: Shared,
    machine: usize,
    life: u64,
    id: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut world = self.world.lock();
        let machine = &mut world.machines[self.machine];
        // A process that has died has nothing open any more.
        if machine.life == self.life {
            machine.drop_user(self.id);
        }
    }
}

pub(crate) fn error<T>(kind: io::ErrorKind) -> impl FnOnce(&'static str) -> io::Result<T> {
    move |words| Err(io::Error::new(kind, words))
}

pub(crate) fn not_found<T>() -> io::Result<T> {
    Err(io::ErrorKind::NotFound.into())
}

#[async_trait]
impl Blocks for Host {
    async fn size(&self, device: &Path) -> io::Result<u64> {
        let act = |world: &mut World| {
            let machine = self.machine(world);
            machine.loop_at(device).map_or_else(not_found, |(_, found)| Ok(found.bytes))
        };
        self.effect("measure a device", act, error(io::ErrorKind::Other)).await
    }

    async fn read(&self, device: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let fault = self.come_to(&format!("read {length} bytes at {offset}"), false).await;
        let read = |world: &mut World| {
            let machine = &world.machines[self.machine];
            let Some((disk, start)) = machine.disk_below(device) else { return not_found() };
            let bytes = machine.disks[&disk].read(start + offset, length);
            let mut bytes = bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
            if let Some((_, map)) = machine.map_at(device) {
                for (page, bytes) in (offset / 4096..).zip(bytes.chunks_mut(4096)) {
                    crate::header::cipher(map.volume_key, page, bytes);
                }
            }
            Ok(bytes)
        };
        match fault {
            Some(Fault::Garbage) => {
                let mut world = self.world.lock();
                let volume = world.machines[self.machine].volume_on(device);
                world.ghost.lied.extend(volume);
                let noise = u8::try_from(world.dice.below(2)).expect("0 or 1") * 0xa5;
                Ok(vec![noise; length])
            }
            Some(Fault::FailBefore | Fault::FailAfter) => Err(io::Error::other("the disk failed")),
            fault => self.take(fault, read).await,
        }
    }

    async fn write(&self, device: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let fault = self.come_to(&format!("write {} bytes at {offset}", bytes.len()), false).await;
        let write = |world: &mut World, part: usize, flushed: bool| {
            let Some((disk, start)) = world.machines[self.machine].disk_below(device) else { return not_found() };
            if let Some(volume) = world.machines[self.machine].volume_on(device) {
                world.expect_writable(&volume, disk, self.machine, offset);
            }
            let disk = self.machine(world).disks.get_mut(&disk).expect("a device has a disk");
            disk.write(start + offset, &bytes[..part]);
            if flushed {
                disk.flush();
            }
            Ok(())
        };
        match fault {
            Some(Fault::Garbage) => {
                // Torn: the first half is written and may be lost, too.
                let torn = write(&mut self.world.lock(), bytes.len() / 2, false);
                torn.and(Err(io::Error::other("the disk failed in the middle of a write")))
            }
            Some(Fault::FailBefore) => Err(io::Error::other("the disk failed")),
            // The flush fails, so that a power cut still can take it back.
            Some(Fault::FailAfter) => {
                write(&mut self.world.lock(), bytes.len(), false).and(Err(io::Error::other("the flush failed")))
            }
            // The power fails before the flush has ended.
            Some(Fault::Power) => self.take(fault, |world| write(world, bytes.len(), false)).await,
            fault => self.take(fault, |world| write(world, bytes.len(), true)).await,
        }
    }

    async fn flush(&self, device: &Path) -> io::Result<()> {
        let act = |world: &mut World| {
            let machine = self.machine(world);
            let Some((disk, _)) = machine.disk_below(device) else { return not_found() };
            machine.disks.get_mut(&disk).expect("a device has a disk").flush();
            Ok(())
        };
        self.effect("flush a device", act, error(io::ErrorKind::Other)).await
    }

    async fn claim(&self, device: &Path) -> io::Result<Hold> {
        let act = |world: &mut World| {
            let Some((number, found)) = self.machine(world).loop_at(device) else { return not_found() };
            let mapped = found.users.values().any(|owner| *owner == Owner::Mapping);
            if found.claimed.is_some() || mapped {
                return Err(io::ErrorKind::ResourceBusy.into());
            }
            Ok(self.hold(world, number, true))
        };
        self.effect("claim a device", act, error(io::ErrorKind::Other)).await
    }

    async fn number(&self, device: &Path) -> io::Result<DeviceNumber> {
        let act = |world: &mut World| match self.machine(world).loop_at(device) {
            Some((minor, _)) => Ok(DeviceNumber { major: 7, minor }),
            None => not_found(),
        };
        self.effect("look at a device", act, error(io::ErrorKind::Other)).await
    }

    async fn mapping(&self, name: &MapperName) -> io::Result<Option<Mapping>> {
        let act = |world: &mut World| Ok(self.machine(world).mapping(name.as_str()));
        self.effect("look for a mapping", act, error(io::ErrorKind::InvalidData)).await
    }

    async fn attach_file(&self, file: &Path) -> io::Result<Attached> {
        let act = |world: &mut World| {
            let machine = self.machine(world);
            let Some(disk) = machine.files.get(name_of(file)).copied() else { return not_found() };
            let found = machine.loops.iter().find(|(_, device)| device.disk == disk).map(|(number, _)| *number);
            let number = found.unwrap_or_else(|| (0..).find(|n| !machine.loops.contains_key(n)).expect("a free one"));
            let bytes = machine.disks[&disk].bytes;
            machine.loops.entry(number).or_insert_with(|| Loop {
                disk,
                bytes,
                users: Default::default(),
                claimed: None,
            });
            let path = PathBuf::from(format!("/dev/loop{number}"));
            Ok(Attached { path, hold: Some(self.hold(world, number, false)) })
        };
        self.effect("attach a file", act, error(io::ErrorKind::Other)).await
    }

    async fn attached(&self, file: &Path) -> io::Result<Vec<(PathBuf, bool)>> {
        let act = |world: &mut World| {
            let machine = self.machine(world);
            let Some(disk) = machine.files.get(name_of(file)).copied() else { return not_found() };
            let has = machine.loops.iter().filter(|(_, device)| device.disk == disk);
            Ok(has.map(|(number, _)| (PathBuf::from(format!("/dev/loop{number}")), true)).collect())
        };
        self.effect("look for loop devices", act, error(io::ErrorKind::InvalidData)).await
    }

    async fn detach(&self, device: &Path) -> io::Result<()> {
        // One that is in use goes with its last user; one that nobody uses is gone already (autoclear).
        self.effect("detach a device", |_| Ok(()), error(io::ErrorKind::Other))
            .await
            .map_err(|error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", device.display())))
    }

    async fn refresh(&self, device: &Path) -> io::Result<()> {
        let act = |world: &mut World| {
            let machine = self.machine(world);
            let Some((number, found)) = machine.loop_at(device) else { return not_found() };
            let bytes = machine.disks[&found.disk].bytes;
            machine.loops.get_mut(&number).expect("it was found").bytes = bytes;
            Ok(())
        };
        self.effect("refresh a device", act, error(io::ErrorKind::Other)).await
    }
}

fn name_of(file: &Path) -> &str {
    file.file_name().and_then(|name| name.to_str()).expect("a file of the pool has a name")
}
