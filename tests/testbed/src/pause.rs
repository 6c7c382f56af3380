//! A program of the system, stopped in the middle: a script of the same name stands in its way on the search path,
//! says when it was reached, and goes on only when it is let go.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

const IN_THE_WAY: &str = "/usr/local/sbin";
/// How long it may take until a script that waits for the word to go on has heard it.
const HEARD_TIME: Duration = Duration::from_millis(150);

/// When the script stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before the program runs.
    Before,
    /// After the program has ended well.
    After,
}

/// A script in the way of a program. It is gone when this is dropped.
#[derive(Debug)]
pub struct Pause {
    script: PathBuf,
    folder: tempfile::TempDir,
}

impl Pause {
    /// Stops `program`, where its first word is `word` or none is given, the first time that it runs.
    ///
    /// # Errors
    /// The script cannot be written: this needs a guest.
    pub fn at(program: &str, word: Option<&str>, when: When) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let script = Path::new(IN_THE_WAY).join(program);
        let (state, real) = (folder.path().display(), format!("/usr/sbin/{program}"));
        let applies = word.map_or("true".to_owned(), |word| format!("[ \"$1\" = {word} ]"));
        let stop = format!("echo reached > {state}/reached; while [ ! -e {state}/go ]; do sleep 0.05; done");
        let body = match when {
            When::Before => format!("{stop}; exec {real} \"$@\""),
            When::After => format!("{real} \"$@\"; status=$?; {stop}; exit $status"),
        };
        fs::write(
            &script,
            format!("#!/bin/sh\nif {applies} && [ ! -e {state}/reached ]; then {body}; fi\nexec {real} \"$@\"\n"),
        )?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(Self { script, folder })
    }

    /// Waits until the program has come to the stop.
    ///
    /// # Errors
    /// It did not come there within 20 seconds.
    pub async fn reached(&self) -> Result<()> {
        let start = Instant::now();
        while !self.folder.path().join("reached").exists() {
            if start.elapsed() > Duration::from_secs(20) {
                bail!("{} was not reached", self.script.display());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Lets the program go on.
    ///
    /// # Errors
    /// The file that says so cannot be written.
    pub fn go(&self) -> Result<()> {
        Ok(fs::write(self.folder.path().join("go"), "")?)
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        let go = self.folder.path().join("go");
        if !go.exists() {
            let _ = self.go();
        }
        // A script that still waits for a word sees it before the folder goes.
        let told = fs::metadata(go).and_then(|go| go.modified()).ok().and_then(|told| told.elapsed().ok());
        std::thread::sleep(HEARD_TIME.saturating_sub(told.unwrap_or_default()));
        let _ = fs::remove_file(&self.script);
    }
}
