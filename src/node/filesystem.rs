//! File systems through their own tools: make, repair where the superblock asks for it, grow.

use std::path::Path;

use crate::{
    exec::{Deadline, Exec, ExecFailure, Program},
    volume::{Discard, FsType, Parameters},
};

/// Makes a file system on a mapping that no user has written to.
///
/// # Errors
/// mkfs fails.
pub async fn make(
    exec: &dyn Exec,
    fs_type: FsType,
    parameters: &Parameters,
    mapping: &Path,
    deadline: Deadline,
) -> Result<(), ExecFailure> {
    // Discards are left out: the mapping is new, and where they are off they would only take time.
    let (name, words): (_, &[&str]) = match fs_type {
        FsType::Ext4 => ("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "nodiscard"]),
        FsType::Xfs => ("mkfs.xfs", &["-q", "-f", "-K"]),
        FsType::Btrfs => ("mkfs.btrfs", &["-q", "-f", "-K"]),
    };
    let program = Program::new(name).args(words).args(parameters.mkfs_options.words()).arg(mapping);
    exec.run(program, deadline).await?.success(name)?;
    Ok(())
}

/// Bytes from the start of a mapping in which [`wants_repair`] finds all it looks at.
pub const SUPERBLOCK_BYTES: usize = 4096;

/// Whether the superblock asks for a check before the next mount. Only ext4 has such a wish: it keeps a note of
/// errors that the kernel found (`s_state`, Documentation/filesystems/ext4/super.rst). XFS and Btrfs mend what a
/// power cut left behind when they are mounted, as ext4's journal does.
#[must_use]
pub fn wants_repair(fs_type: FsType, start: &[u8]) -> bool {
    const SUPERBLOCK: usize = 1024;
    const MAGIC: usize = SUPERBLOCK + 0x38;
    const STATE: usize = SUPERBLOCK + 0x3a;
    const CLEANLY_UNMOUNTED: u8 = 1;
    const ERRORS_FOUND: u8 = 2;
    fs_type == FsType::Ext4
        && start.get(MAGIC..MAGIC + 2) == Some(&[0x53, 0xef])
        && start.get(STATE).is_some_and(|state| state & ERRORS_FOUND != 0 || state & CLEANLY_UNMOUNTED == 0)
}

/// Repairs what can be repaired without a decision (`e2fsck -p`).
///
/// # Errors
/// e2fsck fails, or finds what only a person can decide.
pub async fn repair(exec: &dyn Exec, mapping: &Path, deadline: Deadline) -> Result<(), ExecFailure> {
    const NAME: &str = "e2fsck";
    let mut output = exec.run(Program::new(NAME).arg("-p").arg(mapping), deadline).await?;
    // e2fsck(8): 0 nothing to do, 1 repaired, 2 repaired and a restart advised, which is for a mounted root only.
    if matches!(output.code, 1 | 2) {
        output.code = 0;
    }
    output.success(NAME)?;
    Ok(())
}

/// Grows a mounted file system to the size of its mapping. One that has it already is a success.
///
/// # Errors
/// The grower fails.
pub async fn grow(
    exec: &dyn Exec,
    fs_type: FsType,
    mapping: &Path,
    mounted_at: &Path,
    deadline: Deadline,
) -> Result<(), ExecFailure> {
    let program = match fs_type {
        FsType::Ext4 => Program::new("resize2fs").arg(mapping),
        FsType::Xfs => Program::new("xfs_growfs").arg(mounted_at),
        FsType::Btrfs => Program::new("btrfs").args(["filesystem", "resize", "max"]).arg(mounted_at),
    };
    let name = program.name();
    exec.run(program, deadline).await?.success(name)?;
    Ok(())
}

/// The mount option by which a file system gives freed blocks back, where it is to do so.
#[must_use]
pub fn discard_option(parameters: &Parameters) -> Option<&'static str> {
    match parameters.discard {
        Discard::Off => None,
        Discard::On => Some("discard"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_superblock_with_errors_asks_for_a_repair() {
        let start = |state: u8| {
            let mut start = vec![0; SUPERBLOCK_BYTES];
            start[1080..1082].copy_from_slice(&[0x53, 0xef]);
            start[1082] = state;
            start
        };
        assert!(!wants_repair(FsType::Ext4, &start(1)));
        assert!(wants_repair(FsType::Ext4, &start(3)));
        assert!(wants_repair(FsType::Ext4, &start(0)));
        assert!(!wants_repair(FsType::Xfs, &start(3)));
        assert!(!wants_repair(FsType::Ext4, &[0; 16]));
    }
}
