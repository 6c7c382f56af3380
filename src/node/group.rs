//! A volume's files for the group of a pod (CSI VOLUME_MOUNT_GROUP): the group owns them, may read and write them, and
//! what is made later belongs to it as well.
//!
//! The kubelet's rules hold (fsGroup): who owns a file may read and write it as well, a setuid or setgid file stays one,
//! and a link is owned by the group and not followed.
//!
//! A pod may be at work in the volume meanwhile, as root, and exchange a folder for a link to a folder of the host. So
//! nothing below the volume's own path is done by a path: each entry is opened once, without following a link and without
//! going into what is mounted inside (openat2(2)), and all that is looked at or changed is what that descriptor is of.

use std::{
    ffi::{CStr, CString},
    fs::{self, File, Metadata, Permissions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, Gid, Mode, OFlags, ResolveFlags, chownat, openat, openat2},
    io::Errno,
};

use crate::node::block::blocking;

const SET_GROUP_ID: u32 = 0o2000;
const FILE: u32 = 0o660;
const FOLDER: u32 = SET_GROUP_ID | 0o770;

/// Gives everything below a folder to a group. Where the folder itself has it already, nothing below is touched: the
/// files of a large volume are walked once and not at each stage.
///
/// # Errors
/// The file system fails, or folders are moved about while they are walked. A file system that is read-only is left as it
/// is.
pub(super) async fn give(path: &Path, group: u32) -> io::Result<()> {
    let path = path.to_owned();
    blocking(move || {
        if group == u32::MAX {
            // chown(2) takes this number for none.
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "4294967295 is no group; give another one"));
        }
        let top = File::from(openat(CWD, &path, HANDLE | OFlags::DIRECTORY, Mode::empty())?);
        let found = top.metadata()?;
        if found.gid() == group && found.mode() & FOLDER == FOLDER {
            return Ok(());
        }
        // Everything below first, so that the folder itself shows that all of it is done.
        match walk(&top, group).and_then(|()| take(&top, &found, group)) {
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
            given => given,
        }
    })
    .await
}

/// How anything is opened: for what it is and not for what it holds, a link as the link.
const HANDLE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A folder on the way down to where the walk is.
struct Level {
    /// Device and inode, by which the folder is known on the way back.
    id: (u64, u64),
    /// The folders in it that are still to be walked.
    folders: Vec<CString>,
}

/// Everything below a folder. A level that is left behind is kept by its number alone, so that depth takes neither stack
/// nor descriptors.
fn walk(top: &File, group: u32) -> io::Result<()> {
    let mut folder = top.try_clone()?;
    let mut levels = vec![Level { id: id_of(&folder)?, folders: give_entries(&folder, group)? }];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.folders.pop() else {
            levels.pop();
            if let Some(upper) = levels.last() {
                folder = File::from(openat(&folder, c"..", HANDLE | OFlags::DIRECTORY, Mode::empty())?);
                if id_of(&folder)? != upper.id {
                    let moved = "its folders are moved about while they are given to the group; try again";
                    return Err(io::Error::new(io::ErrorKind::ResourceBusy, moved));
                }
            }
            continue;
        };
        // What was a folder a moment ago may be anything by now.
        let Some(inner) = give_entry(&folder, &name, group)? else { continue };
        let (id, folders) = (id_of(&inner)?, give_entries(&inner, group)?);
        if !folders.is_empty() {
            levels.push(Level { id, folders });
            folder = inner;
        }
    }
    Ok(())
}

/// Gives what lies in a folder to the group, but for the folders in it, whose names it returns.
fn give_entries(folder: &File, group: u32) -> io::Result<Vec<CString>> {
    let listed = openat(folder, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut folders = Vec::new();
    for entry in Dir::new(listed)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Some(handle) = open(folder, name)? else { continue };
        let metadata = handle.metadata()?;
        if metadata.is_dir() {
            folders.push(name.to_owned());
        } else {
            take(&handle, &metadata, group)?;
        }
    }
    Ok(folders)
}

/// Gives one entry to the group, whatever it is, and returns it if it is a folder.
fn give_entry(folder: &File, name: &CStr, group: u32) -> io::Result<Option<File>> {
    let Some(handle) = open(folder, name)? else { return Ok(None) };
    let metadata = handle.metadata()?;
    take(&handle, &metadata, group)?;
    Ok(metadata.is_dir().then_some(handle))
}

/// Opens an entry of a folder. None where there is none any more, or where something else is mounted on it.
fn open(folder: &File, name: &CStr) -> io::Result<Option<File>> {
    match openat2(folder, name, HANDLE, Mode::empty(), ResolveFlags::NO_XDEV) {
        Ok(handle) => Ok(Some(File::from(handle))),
        Err(Errno::NOENT | Errno::XDEV) => Ok(None),
        Err(Errno::NOSYS) => open_older(folder, name),
        Err(errno) => Err(errno.into()),
    }
}

/// The same on Linux before 5.6, where a subvolume of Btrfs cannot be told from what is mounted inside.
fn open_older(folder: &File, name: &CStr) -> io::Result<Option<File>> {
    let handle = match openat(folder, name, HANDLE, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        handle => File::from(handle?),
    };
    Ok((handle.metadata()?.dev() == folder.metadata()?.dev()).then_some(handle))
}

/// Gives what was opened to the group. What is given already is not written again.
fn take(handle: &File, found: &Metadata, group: u32) -> io::Result<()> {
    let kind = found.file_type();
    let bits = if kind.is_dir() {
        FOLDER
    } else if kind.is_file() || kind.is_fifo() || kind.is_socket() {
        FILE
    } else {
        // A link's own mode means nothing, and a device is no file of the volume.
        0
    };
    if found.gid() == group && found.mode() & bits == bits {
        return Ok(());
    }
    chownat(handle, c"", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)?;
    if bits == 0 {
        return Ok(());
    }
    // fchmod(2) takes no descriptor of this kind. The kernel goes from this path to what the descriptor is of, wherever
    // that lies by now. The mode is the one from before: chown(2) takes setuid and setgid away.
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    fs::set_permissions(path, Permissions::from_mode(found.mode() & 0o7777 | bits))
}

fn id_of(folder: &File) -> io::Result<(u64, u64)> {
    let metadata = folder.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::symlink,
        path::PathBuf,
        sync::atomic::{AtomicBool, Ordering},
        thread,
        time::{Duration, Instant},
    };

    use rustix::fs::{RenameFlags, mkdirat, renameat_with, unlinkat};
    use tempfile::TempDir;

    use super::*;

    fn folder() -> TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    /// A handle of a folder, as `give` has one.
    fn handle(path: &Path) -> File {
        File::from(openat(CWD, path, HANDLE | OFlags::DIRECTORY, Mode::empty()).expect("a folder"))
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("it is there").mode() & 0o7777
    }

    /// A file that its owner alone may read and write, in a folder of which the same is true.
    fn private(folder: &Path) -> PathBuf {
        fs::create_dir_all(folder).expect("a folder");
        let file = folder.join("file");
        fs::write(&file, "").expect("a file");
        fs::set_permissions(folder, Permissions::from_mode(0o700)).expect("chmod");
        fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("chmod");
        file
    }

    /// A group that we may give files to: for anybody but root, our own.
    fn group(folder: &TempDir) -> u32 {
        let own = fs::metadata(folder).expect("it is there").gid();
        if rustix::process::geteuid().is_root() { 4321 } else { own }
    }

    #[tokio::test]
    async fn folders_and_files_get_the_group_and_links_are_not_followed() {
        let (volume, outside) = (folder(), folder());
        fs::set_permissions(volume.path(), Permissions::from_mode(0o700)).expect("chmod");
        let (file, program) = (private(&volume.path().join("a/b")), private(&volume.path().join("a")));
        fs::set_permissions(&program, Permissions::from_mode(0o4711)).expect("chmod");
        let foreign = private(&outside.path().join("foreign"));
        let (link, folder_link) = (volume.path().join("link"), volume.path().join("a/link"));
        symlink(&foreign, &link).expect("a link");
        symlink(outside.path().join("foreign"), &folder_link).expect("a link");
        let group = group(&volume);
        give(volume.path(), group).await.expect("a group that we may give to");
        for (path, expected) in [
            (volume.path().to_owned(), 0o2770),
            (volume.path().join("a/b"), 0o2770),
            (file.clone(), 0o660),
            (program.clone(), 0o4771),
            (outside.path().join("foreign"), 0o700),
            (foreign, 0o600),
        ] {
            assert_eq!(mode(&path), expected, "{}", path.display());
        }
        for path in [volume.path().join("a"), file.clone(), program, link, folder_link] {
            assert_eq!(fs::symlink_metadata(&path).expect("it is there").gid(), group, "{}", path.display());
        }
        // What a pod has changed since is its own affair.
        fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("chmod");
        give(volume.path(), group).await.expect("given already");
        assert_eq!(mode(&file), 0o600, "a volume that was given is walked again");
    }

    #[tokio::test]
    async fn no_group_is_refused_and_not_taken_for_any_group() {
        let volume = folder();
        let refused = give(volume.path(), u32::MAX).await.expect_err("it is no group");
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn what_is_mounted_inside_is_left_alone() {
        let (root, proc) = (handle(Path::new("/")), handle(Path::new("/proc")));
        for open in [open, open_older] {
            let is_there = |folder: &File, name: &CStr| open(folder, name).expect("it answers").is_some();
            assert!(!is_there(&root, c"proc"), "/proc is another file system");
            assert!(!is_there(&root, c"no such entry"));
            assert!(is_there(&proc, c"self"), "a link is an entry");
        }
    }

    #[test]
    fn a_tree_of_2000_levels_takes_no_more_stack_than_a_flat_one() {
        const LEVELS: usize = 2000;
        let volume = folder();
        let group = group(&volume);
        let mut at = handle(volume.path());
        for _ in 0..LEVELS {
            mkdirat(&at, c"d", Mode::RWXU).expect("a folder");
            at = File::from(openat(&at, c"d", HANDLE, Mode::empty()).expect("it is there"));
        }
        openat(&at, c"file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).expect("a file");
        let top = handle(volume.path());
        let walker = thread::Builder::new().stack_size(128 << 10).spawn(move || walk(&top, group));
        walker.expect("a thread").join().expect("no panic").expect("it is walked");
        let file = File::from(openat(&at, c"file", HANDLE, Mode::empty()).expect("it is there"));
        let (file, inmost) = (file.metadata().expect("it is there"), at.metadata().expect("it is there"));
        assert_eq!((file.mode() & 0o7777, file.gid()), (0o660, group));
        assert_eq!((inmost.mode() & 0o7777, inmost.gid()), (0o2770, group));

        // A tree as deep as this is not removed by those who hold a descriptor a level.
        unlinkat(&at, c"file", AtFlags::empty()).expect("removed");
        for _ in 0..LEVELS {
            at = File::from(openat(&at, c"..", HANDLE, Mode::empty()).expect("it is there"));
            unlinkat(&at, c"d", AtFlags::REMOVEDIR).expect("removed");
        }
    }

    #[test]
    fn a_folder_that_is_exchanged_for_a_link_meanwhile_leads_nowhere() {
        let (volume, host) = (folder(), folder());
        let (inner, link) = (volume.path().join("inner"), volume.path().join("link"));
        let files = [private(&inner.join("sub/deep")), private(&inner)].map(|path| File::open(path).expect("a file"));
        let victims = [private(&host.path().join("sub/deep")), private(&host.path().join("sub")), private(host.path())];
        symlink(host.path(), &link).expect("a link");
        let (top, group, stop) = (handle(volume.path()), group(&volume), AtomicBool::new(false));
        let give_back = || files.iter().try_for_each(|file| file.set_permissions(Permissions::from_mode(0o600)));
        let walked = thread::scope(|scope| {
            let exchanging = scope.spawn(|| {
                let mut times = 0;
                while !stop.load(Ordering::Relaxed) {
                    renameat_with(CWD, &inner, CWD, &link, RenameFlags::EXCHANGE)?;
                    times += 1;
                }
                Ok::<u32, io::Error>(times)
            });
            let start = Instant::now();
            let mut walked = Ok(());
            while walked.is_ok() && start.elapsed() < Duration::from_secs(1) {
                walked = give_back().and_then(|()| walk(&top, group));
            }
            stop.store(true, Ordering::Relaxed);
            let times = exchanging.join().expect("no panic").expect("both are there");
            assert!(times > 100, "they were exchanged {times} times");
            walked
        });
        walked.expect("an exchange is no fault");
        let folders = [host.path().to_owned(), host.path().join("sub"), host.path().join("sub/deep")];
        for (path, expected) in folders.iter().map(|path| (path, 0o700)).chain(victims.iter().map(|path| (path, 0o600)))
        {
            let found = fs::metadata(path).expect("it is there");
            assert_eq!(found.mode() & 0o7777, expected, "{} was changed", path.display());
            assert!(found.gid() != 4321, "{} was given away", path.display());
        }
        // The walk is one that changes what it reaches.
        walk(&top, group).expect("nobody is at work");
        for file in &files {
            assert_eq!(file.metadata().expect("it is there").mode() & 0o7777, 0o660);
        }
    }
}
