//! In the guest: three volumes live while the power fails at any moment.
//!
//! What was acknowledged is written down in the guest's work folder, which is the host's: no power cut takes it back.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use coffer::key::record::Record;
use testbed::{driver::Driver, guest::POOL};

use crate::{
    COFFER,
    power::{BROKE_OFF, CUT, life::Life},
    steps::nothing_is_open,
};

/// A line for each operation: the volume, and how many of its operations were acknowledged. The guest's commands run in
/// the work folder.
const ACKNOWLEDGED: &str = "acknowledged";

/// Finds what was acknowledged before, and goes on until the power is cut.
pub(super) async fn work() -> Result<()> {
    let driver = start().await?;
    let [mut first, mut second, mut third] = find(&driver).await.with_context(|| driver.log())?;
    println!("{CUT}");
    let csi = &driver.csi;
    let error = tokio::select! {
        error = first.live(csi, write_down) => error,
        error = second.live(csi, write_down) => error,
        error = third.live(csi, write_down) => error,
    };
    println!("{BROKE_OFF}");
    Err(error.context(driver.log()))
}

/// Finds what was acknowledged before, and lets every volume live its life to the end.
pub(super) async fn end() -> Result<()> {
    let driver = start().await?;
    let ended = async {
        for mut life in find(&driver).await? {
            life.end(&driver).await?;
        }
        let left = fs::read_dir(driver.state_dir().join("volumes"))?.count();
        ensure!(left == 0, "{left} files of deleted volumes are left");
        nothing_is_open()
    };
    ended.await.with_context(|| driver.log())
}

async fn start() -> Result<Driver> {
    Driver::start(COFFER, &Path::new(POOL).join("state")).await
}

async fn find(driver: &Driver) -> Result<[Life; 3]> {
    for entry in fs::read_dir(driver.state_dir().join("records"))? {
        let path = entry?.path();
        Record::from_bytes(&fs::read(&path)?).with_context(|| path.display().to_string())?;
    }
    let mut lives = Life::three(Path::new(POOL));
    for life in &mut lives {
        match acknowledged(life.number)? {
            None => life.set_out(&driver.csi).await?,
            Some(operations) => {
                life.acknowledged = operations;
                life.find(driver).await?;
            }
        }
        write_down(life)?;
    }
    Ok(lives)
}

fn write_down(life: &Life) -> Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(ACKNOWLEDGED)?;
    Ok(file.write_all(format!("{} {}\n", life.number, life.acknowledged).as_bytes())?)
}

/// How many operations of a volume were acknowledged, by its last line that was written to its end.
fn acknowledged(number: usize) -> Result<Option<usize>> {
    let text = match fs::read_to_string(ACKNOWLEDGED) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let operations = |line: &str| line.strip_prefix(&format!("{number} ")).map(str::to_owned);
    let last = whole.lines().rev().find_map(operations);
    Ok(last.map(|operations| operations.parse::<usize>()).transpose()?)
}
