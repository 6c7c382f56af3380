//! A disk: its bytes as programs see them, and as they would be after a power cut. Only pages that are not zero take
//! memory, and a copy of a disk shares them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::fault::Dice;

const PAGE: usize = 4096;
const SECTOR: usize = 512;
const ZEROS: [u8; PAGE] = [0; PAGE];

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) bytes: u64,
    now: BTreeMap<u64, Arc<[u8; PAGE]>>,
    flushed: BTreeMap<u64, Arc<[u8; PAGE]>>,
    dirty: BTreeSet<u64>,
    /// Counts the writes, so that one sees whether anything was written.
    pub(crate) writes: u64,
}

impl Disk {
    pub(crate) fn of(bytes: u64) -> Self {
        Self { bytes, ..Self::default() }
    }

    /// Bytes at an offset; none where the disk ends before.
    pub(crate) fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        let end = offset + length as u64;
        if end > self.bytes {
            return None;
        }
        let mut bytes = vec![0; length];
        let first = offset / PAGE as u64;
        for (number, page) in self.now.range(first..end.div_ceil(PAGE as u64)) {
            let start = number * PAGE as u64;
            let (from, to) = (start.max(offset), (start + PAGE as u64).min(end));
            bytes[at(from, offset)..at(to, offset)].copy_from_slice(&page[at(from, start)..at(to, start)]);
        }
        Some(bytes)
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.writes += 1;
        let (mut done, mut place) = (0, offset);
        while done < bytes.len() {
            let (number, inside) = (place / PAGE as u64, at(place, place / PAGE as u64 * PAGE as u64));
            let length = (PAGE - inside).min(bytes.len() - done);
            let old = self.now.get(&number).map_or(&ZEROS, |page| page.as_ref());
            let new = &bytes[done..done + length];
            if old[inside..inside + length] != *new {
                let mut page = *old;
                page[inside..inside + length].copy_from_slice(new);
                set(&mut self.now, number, page);
                self.dirty.insert(number);
            }
            done += length;
            place += length as u64;
        }
    }

    pub(crate) fn flush(&mut self) {
        for number in std::mem::take(&mut self.dirty) {
            match self.now.get(&number) {
                Some(page) => self.flushed.insert(number, page.clone()),
                None => self.flushed.remove(&number),
            };
        }
    }

    /// What is left after a power cut: of each page that was not flushed all, nothing, or the first sectors.
    pub(crate) fn cut(&mut self, dice: &mut Dice) {
        for number in std::mem::take(&mut self.dirty) {
            let page = |pages: &BTreeMap<u64, Arc<[u8; PAGE]>>| pages.get(&number).map_or(ZEROS, |page| **page);
            let (old, new) = (page(&self.flushed), page(&self.now));
            let sectors = match dice.below(3) {
                0 => 0,
                1 => PAGE / SECTOR,
                _ => usize::try_from(dice.below((PAGE / SECTOR) as u64)).expect("a small number"),
            };
            let mut left = old;
            left[..sectors * SECTOR].copy_from_slice(&new[..sectors * SECTOR]);
            set(&mut self.now, number, left);
            set(&mut self.flushed, number, left);
        }
    }
}

fn at(place: u64, start: u64) -> usize {
    usize::try_from(place - start).expect("a test's disk is small")
}

fn set(pages: &mut BTreeMap<u64, Arc<[u8; PAGE]>>, number: u64, page: [u8; PAGE]) {
    if page == ZEROS {
        pages.remove(&number);
    } else {
        pages.insert(number, Arc::new(page));
    }
}
