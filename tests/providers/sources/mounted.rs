//! A Secret, a ConfigMap or a projected token as the kubelet mounts it: each file is a link into a folder that is
//! itself a link, `..data`, and a change swaps that one link for all files at once.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

const DATA: &str = "..data";

pub(super) struct Mounted(PathBuf);

impl Mounted {
    /// Mounts these files in a new folder.
    pub(super) fn at(folder: PathBuf, files: &[(&str, &str)]) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        let mounted = Self(folder);
        mounted.swap(files)?;
        Ok(mounted)
    }

    /// The path that a configuration names.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Puts these files in the place of all that there were. A name that is not among them leads nowhere.
    pub(super) fn swap(&self, files: &[(&str, &str)]) -> Result<()> {
        let (data, next) = (self.0.join(DATA), self.0.join("..data_tmp"));
        let before = fs::read_link(&data).ok();
        let generation = tempfile::Builder::new().prefix("..").tempdir_in(&self.0)?.keep();
        for (name, content) in files {
            fs::write(generation.join(name), content)?;
            let link = self.0.join(name);
            if fs::symlink_metadata(&link).is_err() {
                symlink(Path::new(DATA).join(name), &link)?;
            }
        }
        symlink(generation.file_name().context("a folder has a name")?, &next)?;
        fs::rename(&next, &data)?;
        if let Some(before) = before {
            fs::remove_dir_all(self.0.join(before))?;
        }
        Ok(())
    }
}
