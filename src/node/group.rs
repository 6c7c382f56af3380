//! A volume's files for the group of a pod (CSI VOLUME_MOUNT_GROUP): the group owns them, may read and write them, and
//! what is made later belongs to it as well.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use crate::node::block::blocking;

const SET_GROUP_ID: u32 = 0o2000;
const GROUP_FILE: u32 = 0o060;
const GROUP_FOLDER: u32 = 0o070;

/// Gives everything below a folder to a group. Where the folder itself has it already, nothing below is touched: the
/// files of a large volume are walked once and not at each stage.
///
/// # Errors
/// The file system fails. A file system that is read-only is left as it is.
pub(super) async fn give(path: &Path, group: u32) -> io::Result<()> {
    let path = path.to_owned();
    blocking(move || {
        let top = fs::metadata(&path)?;
        if top.gid() == group && top.mode() & (SET_GROUP_ID | GROUP_FOLDER) == SET_GROUP_ID | GROUP_FOLDER {
            return Ok(());
        }
        match walk(&path, group).and_then(|()| take(&path, group)) {
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
            given => given,
        }
    })
    .await
}

/// Everything below a folder first, so that the folder itself shows that all of it is done.
fn walk(folder: &Path, group: u32) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            walk(&path, group)?;
        }
        take(&path, group)?;
    }
    Ok(())
}

fn take(path: &Path, group: u32) -> io::Result<()> {
    std::os::unix::fs::lchown(path, None, Some(group))?;
    let metadata = fs::symlink_metadata(path)?;
    let bits = match metadata.file_type() {
        kind if kind.is_dir() => SET_GROUP_ID | GROUP_FOLDER,
        kind if kind.is_file() => GROUP_FILE,
        // A link's own mode means nothing, and to follow it would leave the volume.
        _ => return Ok(()),
    };
    fs::set_permissions(path, fs::Permissions::from_mode(metadata.mode() & 0o7777 | bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn folders_and_files_get_the_group_and_links_are_not_followed() {
        let (volume, outside) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let (file, foreign) = (volume.path().join("a/file"), outside.path().join("foreign"));
        fs::create_dir(volume.path().join("a")).expect("a folder");
        fs::write(&file, "").expect("a file");
        fs::write(&foreign, "").expect("a file");
        std::os::unix::fs::symlink(&foreign, volume.path().join("link")).expect("a link");
        let before = fs::metadata(&foreign).expect("it is there").mode();
        let group = fs::metadata(volume.path()).expect("it is there").gid();
        give(volume.path(), group).await.expect("our own group");
        assert_eq!(fs::metadata(&file).expect("it is there").mode() & 0o060, 0o060);
        assert_eq!(fs::metadata(volume.path()).expect("it is there").mode() & 0o2070, 0o2070);
        assert_eq!(fs::metadata(&foreign).expect("it is there").mode(), before);
    }
}
