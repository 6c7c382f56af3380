//! Secrets that are looked for, and how bytes, files, folders and a process's memory are looked through.

mod marks;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

pub use marks::{AS_IT_IS, Marks};

/// A secret where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The place; of a process's memory, with the region.
    pub place: String,
    /// The secret's name.
    pub mark: String,
    /// The form.
    pub form: &'static str,
    /// Bytes from the start of the place; in memory, the address.
    pub offset: u64,
}

/// A search, with all that it has found so far.
pub struct Search<'a> {
    /// What was found.
    pub found: Vec<Found>,
    /// The places that were looked through.
    pub places: BTreeSet<String>,
    /// How many bytes those were.
    pub bytes: u64,
    marks: &'a Marks,
}

const PIECE: usize = 1 << 20;
/// How long a process may take to forget: a connection lets go of its buffers a moment after its end.
const FORGET_TIME: Duration = Duration::from_secs(5);
/// How often it is looked at least, since one look can take longer than that.
const LOOKS: usize = 3;

/// Looks through a process's memory until it has forgotten what it should, or should have.
///
/// # Errors
/// As [`Search::memory`].
pub async fn memory_at_rest<'a>(
    marks: &'a Marks,
    place: &str,
    pid: u32,
    is_allowed: impl Fn(&Found) -> bool,
) -> Result<Search<'a>> {
    let (start, mut looks) = (Instant::now(), 0);
    loop {
        looks += 1;
        let mut search = Search::new(marks);
        search.memory(place, pid)?;
        if search.found.iter().all(&is_allowed) || (looks >= LOOKS && start.elapsed() > FORGET_TIME) {
            return Ok(search);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl<'a> Search<'a> {
    /// A search for secrets that has looked nowhere yet.
    #[must_use]
    pub fn new(marks: &'a Marks) -> Self {
        Self { found: Vec::new(), places: BTreeSet::new(), bytes: 0, marks }
    }

    /// Looks through bytes that are at hand.
    pub fn bytes(&mut self, place: &str, bytes: &[u8]) {
        self.places.insert(place.to_owned());
        self.look(place, bytes, 0, 0);
        self.bytes += bytes.len() as u64;
    }

    /// Looks through a file. What was never written to it is left out.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn file(&mut self, path: &Path) -> Result<()> {
        let place = path.display().to_string();
        let mut through = || -> io::Result<()> {
            let (file, mut at) = (File::open(path)?, 0);
            loop {
                let data = match seek(&file, SeekFrom::Data(at)) {
                    // There is nothing behind.
                    Err(Errno::NXIO) => return Ok(()),
                    data => data?,
                };
                at = seek(&file, SeekFrom::Hole(data))?;
                self.pieces(&place, data..at, |buffer, at| file.read_at(buffer, at))?;
            }
        };
        through().with_context(|| format!("look through {place}"))?;
        self.places.insert(place);
        Ok(())
    }

    /// Looks through every file below a folder, but for these files and folders.
    ///
    /// # Errors
    /// Something there cannot be read.
    pub fn folder(&mut self, path: &Path, without: &[PathBuf]) -> Result<()> {
        for entry in fs::read_dir(path).with_context(|| format!("list {}", path.display()))? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if without.contains(&path) {
                continue;
            }
            if kind.is_dir() {
                self.folder(&path, without)?;
            } else if kind.is_file() {
                self.file(&path)?;
            }
        }
        Ok(())
    }

    /// Looks through what `/proc` tells of a process: its environment, its words, its regions and its state.
    ///
    /// # Errors
    /// There is no such process.
    pub fn process(&mut self, pid: u32) -> Result<()> {
        for name in ["environ", "cmdline", "maps", "status"] {
            let path = format!("/proc/{pid}/{name}");
            self.bytes(&path, &fs::read(&path).with_context(|| path.clone())?);
        }
        Ok(())
    }

    /// Looks through all of a process's memory that can be read (proc_pid_mem(5)).
    ///
    /// # Errors
    /// There is no such process, or a part of its memory that is there cannot be read.
    pub fn memory(&mut self, place: &str, pid: u32) -> Result<()> {
        let maps = || fs::read_to_string(format!("/proc/{pid}/maps"));
        let (before, memory) = (self.bytes, File::open(format!("/proc/{pid}/mem"))?);
        let mut unread = Vec::new();
        for line in maps()?.lines() {
            let mut fields = line.split_ascii_whitespace();
            let (Some(range), Some(rights)) = (fields.next(), fields.next()) else { continue };
            let name = fields.nth(3).unwrap_or("anonymous");
            // The kernel's own pages ([vvar], [vsyscall]) are not the process's.
            if !rights.starts_with('r') || name.starts_with("[v") {
                continue;
            }
            let (start, end) = range.split_once('-').context("a region has a start and an end")?;
            let region = u64::from_str_radix(start, 16)?..u64::from_str_radix(end, 16)?;
            let looked = self.pieces(&format!("{place}, {name}"), region, |buffer, at| memory.read_at(buffer, at));
            if looked.is_err() {
                unread.push(line.to_owned());
            }
        }
        // A region that has gone meanwhile is no loss.
        let now = maps()?;
        unread.retain(|line| now.lines().any(|still| still == line));
        ensure!(unread.is_empty(), "{place}: these regions cannot be read: {unread:#?}");
        ensure!(self.bytes > before, "{place}: process {pid} has no memory");
        self.places.insert(place.to_owned());
        Ok(())
    }

    /// Takes over what another search has found.
    pub fn absorb(&mut self, other: Self) {
        self.found.extend(other.found);
        self.places.extend(other.places);
        self.bytes += other.bytes;
    }

    /// Looks through what is read piece by piece, and finds what lies across two pieces.
    fn pieces(
        &mut self,
        place: &str,
        range: Range<u64>,
        read: impl Fn(&mut [u8], u64) -> io::Result<usize>,
    ) -> io::Result<()> {
        let overlap = self.marks.longest - 1;
        let (mut buffer, mut kept, mut at) = (vec![0; overlap + PIECE], 0, range.start);
        while at < range.end {
            let wanted = usize::try_from(range.end - at).map_or(PIECE, |left| left.min(PIECE));
            let length = read(&mut buffer[kept..kept + wanted], at)?;
            if length == 0 {
                break;
            }
            let filled = kept + length;
            self.look(place, &buffer[..filled], kept, at - kept as u64);
            self.bytes += length as u64;
            at += length as u64;
            kept = filled.min(overlap);
            buffer.copy_within(filled - kept..filled, 0);
        }
        Ok(())
    }

    /// Looks through bytes of which the first `before` were looked through already: what ends there was found then.
    fn look(&mut self, place: &str, bytes: &[u8], before: usize, offset: u64) {
        let marks = self.marks;
        let new = marks.find(bytes).into_iter().filter(|(at, form)| at + form.bytes.len() > before);
        self.found.extend(new.map(|(at, form)| Found {
            place: place.to_owned(),
            mark: marks.names[form.mark].clone(),
            form: form.name,
            offset: offset + at as u64,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::{marks::forms, *};

    fn marks() -> (Vec<u8>, Marks) {
        let secret: Vec<u8> = (0..32_u8).map(|byte| byte.wrapping_mul(41).wrapping_add(160)).collect();
        let mut marks = Marks::default();
        marks.add("secret", &secret);
        (secret, marks)
    }

    #[test]
    fn every_form_is_found_where_it_stands() {
        let (secret, marks) = marks();
        for (name, form) in forms(&secret) {
            assert!(form.len() >= 15, "{name} has {} bytes", form.len());
            let mut search = Search::new(&marks);
            search.bytes("text", &[b"before ".as_slice(), &form, b" behind"].concat());
            assert!(search.found.iter().any(|found| found.form == name && found.offset == 7), "{:?}", search.found);
        }
        let mut search = Search::new(&marks);
        search.bytes("text", &secret[..15]);
        assert!(search.found.is_empty(), "{:?}", search.found);
    }

    #[test]
    fn what_lies_across_two_pieces_is_found_once() {
        let (secret, marks) = marks();
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        for offset in [0, PIECE - 40, PIECE - 16, 3 * PIECE - 1] {
            file.as_file().set_len(0).expect("it can be emptied");
            file.as_file().write_all_at(&vec![1; 3 * PIECE + 64], 0).expect("it can be written");
            file.as_file().write_all_at(&secret, offset as u64).expect("it can be written");
            let mut search = Search::new(&marks);
            search.file(file.path()).expect("it can be read");
            let raw: Vec<_> = search.found.iter().filter(|found| found.form == AS_IT_IS[0]).collect();
            assert_eq!(raw.len(), 1, "{:?}", search.found);
            assert_eq!(raw[0].offset, offset as u64);
        }
    }
}
