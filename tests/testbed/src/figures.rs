//! What benchmarks measure and tell: the machine, a process, what the kernel holds, and the middle of many times.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context, Result};

/// The machine, and programs by the word that asks each for its version, in one line: figures of different machines
/// are not to be compared.
#[must_use]
pub fn machine(programs: &[(&str, &str)]) -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processor.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("", |model| model.trim_start_matches([' ', '\t', ':']));
    let mut line = format!("Linux {}, {processors} × {model}", kernel.trim());
    for (program, word) in programs {
        let version = version(program, word).unwrap_or_else(|| format!("no {program}"));
        line = format!("{line}, {version}");
    }
    line
}

fn version(program: &str, word: &str) -> Option<String> {
    let output = Command::new(program).arg(word).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(|line| line.trim().to_owned())
}

/// The time within which this many percent of all were done; nothing where there is none.
#[must_use]
pub fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(place).copied().unwrap_or_default()
}

/// The time in the middle.
#[must_use]
pub fn median(times: &[Duration]) -> Duration {
    percentile(times, 50)
}

/// What a process has at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its memory (VmRSS), in KiB.
    pub resident: u64,
    /// The most that this ever was (VmHWM), in KiB.
    pub most_resident: u64,
    /// The part of it that is in no file (RssAnon), in KiB.
    pub anonymous: u64,
    /// Threads.
    pub threads: usize,
    /// Open descriptors.
    pub descriptors: usize,
    /// Processes that it started and that run, or that it did not ask about after their end.
    pub children: usize,
}

impl Process {
    /// Looks at a process.
    ///
    /// # Errors
    /// It is not there, or has ended.
    pub fn of(pid: u32) -> Result<Self> {
        let look = || format!("look at process {pid}");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(look)?;
        let number = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let value = value.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
            value.with_context(|| format!("process {pid} has no {name}"))
        };
        Ok(Self {
            resident: number("VmRSS")?,
            most_resident: number("VmHWM")?,
            anonymous: number("RssAnon")?,
            threads: usize::try_from(number("Threads")?)?,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).with_context(look)?.count(),
            children: children(pid)?,
        })
    }
}

fn children(pid: u32) -> Result<usize> {
    let parent = format!("\nPPid:\t{pid}\n");
    let mut count = 0;
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().parse::<u32>().is_err() {
            continue;
        }
        // A process that ends while we look is not there.
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        count += usize::from(status.contains(&parent));
    }
    Ok(count)
}

/// The open mappings of volumes, by name.
///
/// # Errors
/// sysfs cannot be read.
pub fn mappings() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        // What is no mapping has no name, and a mapping that goes while we look has none any more.
        let name = fs::read_to_string(entry?.path().join("dm/name")).unwrap_or_default();
        if name.starts_with("coffer-") {
            names.push(name.trim().to_owned());
        }
    }
    Ok(names)
}

/// How many loop devices are in use.
///
/// # Errors
/// sysfs cannot be read.
pub fn loops() -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir("/sys/block")? {
        count += usize::from(entry?.path().join("loop/backing_file").exists());
    }
    Ok(count)
}

/// Where something is mounted.
///
/// # Errors
/// The table of mounts cannot be read.
pub fn mounts() -> Result<Vec<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_times_and_nothing_where_there_is_none() {
        let times: Vec<_> = (1..=10).rev().map(Duration::from_secs).collect();
        for (percent, second) in [(0, 1), (50, 6), (99, 10), (100, 10)] {
            assert_eq!(percentile(&times, percent), Duration::from_secs(second), "{percent} percent");
        }
        assert_eq!(median(&[]), Duration::ZERO);
    }

    #[test]
    fn a_process_that_runs_has_memory_threads_and_descriptors() {
        let own = Process::of(std::process::id()).expect("this process runs");
        assert!(own.resident > 0 && own.most_resident >= own.anonymous, "{own:?}");
        assert!(own.threads > 0 && own.descriptors > 0, "{own:?}");
        assert!(Process::of(u32::MAX).is_err());
    }
}
