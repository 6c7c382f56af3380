//! In the guest: one driver for every step, all stopped at theirs when the power is cut, and put right afterwards.
//!
//! Each driver has a file system of its own. On a shared one, fsync(2) by one driver takes the journal of all to the
//! disk, so that a flush which one of them forgets is made good by the next one's. The file systems lie in files of the
//! guest's disk, behind loop devices without direct I/O, and nothing is written back by itself: what a driver did not
//! flush is lost with the guest's memory, from its file system's journal and from the loop device, which stands for a
//! disk with a volatile cache. So no driver helps another, and one cut is enough for all of them.

use std::{
    fs::{self, File},
    path::Path,
};

use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, unmount};
use testbed::{driver::Driver, guest::POOL};

use crate::{
    COFFER, MIB,
    power::CUT,
    run,
    steps::{Case, nothing_is_open},
};

/// Where the file systems are mounted: a folder that the guest forgets.
const MOUNTED: &str = "/mnt";
/// Room for a volume that has grown.
const FILESYSTEM_BYTES: u64 = 64 * MIB;

/// Brings every flow to every one of its steps.
pub(super) async fn stop() -> Result<()> {
    let mut stopped = Vec::new();
    for case in Case::all(Path::new(MOUNTED)) {
        stopped.push(stopped_driver(&case).await.with_context(|| case.name.clone())?);
    }
    println!("{CUT}");
    std::future::pending().await
}

async fn stopped_driver(case: &Case) -> Result<Driver> {
    let image = image(case);
    File::create_new(&image)?.set_len(FILESYSTEM_BYTES)?;
    run("mkfs.ext4", &["-q", "-F", "-b", "4096", "-m", "0", "-E", "lazy_itable_init=1", &image])?;
    mount(case)?;
    let mut driver = Driver::start(COFFER, &case.folder.join("state")).await?;
    case.prepare(&driver.csi).await?;
    case.stop(&mut driver).await?;
    Ok(driver)
}

/// Repeats every flow, and looks at what comes of it.
pub(super) async fn put_right() -> Result<()> {
    let cases = Case::all(Path::new(MOUNTED));
    for case in &cases {
        mount(case)?;
        let driver = Driver::start(COFFER, &case.folder.join("state")).await.with_context(|| case.name.clone())?;
        let checked = async {
            case.is_as_the_step_left_it(&driver)?;
            case.repeat(&driver.csi).await?;
            case.check(&driver).await
        };
        checked.await.with_context(|| format!("{}\n{}", case.name, driver.log()))?;
        drop(driver);
        unmount(&case.folder, UnmountFlags::empty()).with_context(|| case.name.clone())?;
        nothing_is_open()?;
    }
    println!("crash points: {}", cases.len());
    Ok(())
}

fn image(case: &Case) -> String {
    format!("{POOL}/{}", case.name)
}

fn mount(case: &Case) -> Result<()> {
    fs::create_dir(&case.folder)?;
    let (image, folder) = (image(case), case.folder.display().to_string());
    run("mount", &["-t", "ext4", "-o", "loop,commit=3600", &image, &folder]).map(drop)
}
