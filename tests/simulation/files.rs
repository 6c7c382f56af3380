//! A node's mounts, the paths that volumes are mounted on, and the files of its pool, over the world.

use std::{
    io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use coffer::{
    node::{
        block::DeviceNumber,
        failure::NodeFailure,
        mount::{Mount, Mounts, Options, Usage},
        source::files::{Files, NoFile},
        target::{Kind, Target, Targets},
    },
    volume::FsType,
};

use crate::{
    disk::Disk,
    header,
    host::{Host, error, not_found},
    world::{POOL, World},
};

#[async_trait]
impl Mounts for Host {
    async fn table(&self) -> io::Result<Vec<Mount>> {
        let act = |world: &mut World| Ok(self.machine(world).mounts.clone());
        self.effect("read the table of mounts", act, error(io::ErrorKind::InvalidData)).await
    }

    async fn mount(&self, device: &Path, target: &Path, fs_type: FsType, options: &Options) -> io::Result<()> {
        let act = |world: &mut World| {
            let machine = self.machine(world);
            let Some((_, map)) = machine.map_at(device) else { return not_found() };
            let (number, volume_key) = (DeviceNumber { major: 253, minor: map.number }, map.volume_key);
            let (disk, start) = machine.disk_below(device).expect("a mapping has a disk");
            let mut page = machine.disks[&disk].read(start, 4096).unwrap_or_default();
            header::cipher(volume_key, 0, &mut page);
            if page.get(1080..1082) != Some(&[0x53, 0xef]) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "wrong fs type, bad superblock"));
            }
            machine.mounts.push(Mount {
                number,
                root: "/".into(),
                target: target.to_owned(),
                access: options.access(),
                fs_type: fs_type.as_str().to_owned(),
                source: device.to_owned(),
                super_access: options.access(),
            });
            Ok(())
        };
        self.effect("mount", act, error(io::ErrorKind::InvalidInput)).await
    }

    async fn bind(&self, source: &Path, target: &Path, options: &Options) -> io::Result<()> {
        let act = |world: &mut World| {
            let machine = self.machine(world);
            let Some(of) = machine.mounts.iter().rev().find(|mount| mount.target == source).cloned() else {
                return not_found();
            };
            machine.mounts.push(Mount { target: target.to_owned(), access: options.access(), ..of });
            Ok(())
        };
        self.effect("bind", act, error(io::ErrorKind::Other)).await
    }

    async fn unmount(&self, target: &Path) -> io::Result<()> {
        let act = |world: &mut World| {
            let machine = self.machine(world);
            let Some(at) = machine.mounts.iter().rposition(|mount| mount.target == target) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            let gone = machine.mounts.remove(at);
            if !machine.mounts.iter().any(|mount| mount.number == gone.number) {
                // The file system writes everything back when its last mount goes.
                let device = PathBuf::from(format!("/dev/dm-{}", gone.number.minor));
                if let Some((disk, _)) = machine.disk_below(&device) {
                    machine.disks.get_mut(&disk).expect("a device has a disk").flush();
                }
            }
            Ok(())
        };
        self.effect("unmount", act, error(io::ErrorKind::ResourceBusy)).await
    }

    async fn errors(&self, _: &str) -> io::Result<u64> {
        self.effect("count errors", |_| Ok(0), error(io::ErrorKind::Other)).await
    }

    async fn usage(&self, _: &Path) -> io::Result<Usage> {
        let usage = Usage { bytes: 1, bytes_available: 1, inodes: 1, inodes_free: 1, bytes_free: 1 };
        self.effect("measure a file system", |_| Ok(usage), error(io::ErrorKind::Other)).await
    }
}

#[async_trait]
impl Targets for Host {
    async fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        let act = |world: &mut World| {
            let there = self.machine(world).targets.contains(path) || path == Path::new("/kubelet");
            if there { Ok(path.to_owned()) } else { not_found() }
        };
        self.effect("resolve a path", act, error(io::ErrorKind::Other)).await
    }

    async fn look(&self, path: &Path, kind: Kind) -> Result<Target, NodeFailure> {
        let target = Target { path: path.to_owned(), kind };
        self.effect("look at a path", |_| Ok(target), failed(path)).await
    }

    async fn make(&self, target: &Target) -> Result<(), NodeFailure> {
        let act = |world: &mut World| {
            self.machine(world).targets.insert(target.path.clone());
            Ok(())
        };
        self.effect("make a path", act, failed(&target.path)).await
    }

    async fn remove(&self, path: &Path) -> Result<(), NodeFailure> {
        let act = |world: &mut World| {
            self.machine(world).targets.remove(path);
            Ok(())
        };
        self.effect("remove a path", act, failed(path)).await
    }

    async fn give(&self, path: &Path, _: u32) -> io::Result<()> {
        let path = path.to_owned();
        let act = |world: &mut World| if self.machine(world).targets.contains(&path) { Ok(()) } else { not_found() };
        self.effect("give to a group", act, error(io::ErrorKind::Other)).await
    }
}

fn failed<T>(path: &Path) -> impl FnOnce(&'static str) -> Result<T, NodeFailure> {
    let path = path.to_owned();
    move |words| Err(NodeFailure::Io { step: "look at", path, source: io::Error::other(words) })
}

#[async_trait]
impl Files for Host {
    fn folder(&self) -> &Path {
        Path::new(POOL)
    }

    async fn size(&self, name: &str) -> io::Result<Option<u64>> {
        let act = |world: &mut World| {
            let machine = self.machine(world);
            Ok(machine.files.get(name).map(|disk| machine.disks[disk].bytes))
        };
        self.effect("measure a file", act, error(io::ErrorKind::Other)).await
    }

    async fn create(&self, name: &str, bytes: u64) -> Result<(), NoFile> {
        let act = |world: &mut World| {
            let id = world.id();
            let machine = self.machine(world);
            if !machine.files.contains_key(name) {
                machine.files.insert(name.to_owned(), id);
                machine.disks.insert(id, Disk::of(bytes));
            }
            Ok(())
        };
        self.effect("create a file", act, no_file).await
    }

    async fn grow(&self, name: &str, bytes: u64) -> Result<(), NoFile> {
        let act = |world: &mut World| {
            let machine = self.machine(world);
            let Some(disk) = machine.files.get(name) else { return Err(NoFile::Io(io::ErrorKind::NotFound.into())) };
            let disk = machine.disks.get_mut(disk).expect("a file has its bytes");
            disk.bytes = disk.bytes.max(bytes);
            Ok(())
        };
        self.effect("grow a file", act, no_file).await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let act = |world: &mut World| {
            let machine = self.machine(world);
            machine.files.remove(name);
            machine.drop_unused_disks();
            Ok(())
        };
        self.effect("remove a file", act, error(io::ErrorKind::Other)).await
    }

    async fn flush(&self, name: &str) -> io::Result<()> {
        let act = |world: &mut World| {
            let machine = self.machine(world);
            if let Some(disk) = machine.files.get(name) {
                machine.disks.get_mut(disk).expect("a file has its bytes").flush();
            }
            Ok(())
        };
        self.effect("flush a file", act, error(io::ErrorKind::Other)).await
    }

    async fn available(&self) -> io::Result<u64> {
        self.effect("measure the pool", |_| Ok(1 << 40), error(io::ErrorKind::Other)).await
    }

    async fn names(&self) -> io::Result<Vec<String>> {
        let act = |world: &mut World| Ok(self.machine(world).files.keys().cloned().collect());
        self.effect("list the pool", act, error(io::ErrorKind::Other)).await
    }
}

fn no_file(words: &'static str) -> Result<(), NoFile> {
    Err(NoFile::Io(io::Error::other(words)))
}
