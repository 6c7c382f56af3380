//! How often a node may ask: so many times a second, and twice that at once. A node that asks for all it has at its
//! start is within that; a program that went wild on a node is not, and costs the others nothing.
//!
//! What is refused here is written down once a second for each node, with the number of those that were not, so that a
//! flood of requests makes no flood of lines. The same holds for callers of whom nothing is known, all together.

use std::{
    fmt,
    num::NonZeroU32,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};

/// After so many requests those nodes are forgotten that have not asked lately.
const SWEEP: u32 = 1024;
/// A line for each refusal would let whoever is refused fill the disk.
const LINE_TIME: Duration = Duration::from_secs(1);
/// So many lines a second for callers who have not proven who they are.
const STRANGER_LINES: u32 = 100;

/// A node that asks too often.
#[derive(Debug, thiserror::Error)]
#[error("{node} asks more than {per_second} times a second; it may ask again in {} ms", .retry_after.as_millis())]
pub struct TooOften {
    /// The node.
    pub node: String,
    /// What it is allowed.
    pub per_second: NonZeroU32,
    /// When its next request is looked at.
    pub retry_after: Duration,
    /// Whether this is to be written down; then, how many were not since the last that was.
    pub told: Option<u64>,
}

/// The requests of each node.
pub struct Limit {
    per_second: NonZeroU32,
    nodes: DefaultKeyedRateLimiter<String>,
    clock: DefaultClock,
    asked: AtomicU32,
    lines: Mutex<Vec<(String, Lines)>>,
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limit").field("per_second", &self.per_second).finish_non_exhaustive()
    }
}

impl Limit {
    /// So many requests of each node a second.
    #[must_use]
    pub fn per_second(per_second: NonZeroU32) -> Self {
        let burst = per_second.saturating_mul(NonZeroU32::MIN.saturating_add(1));
        Self {
            per_second,
            nodes: RateLimiter::keyed(Quota::per_second(per_second).allow_burst(burst)),
            clock: DefaultClock::default(),
            asked: AtomicU32::new(0),
            lines: Mutex::default(),
        }
    }

    /// Counts a request of a node, which has proven to be that node, or of an address of whose caller nothing is known yet.
    ///
    /// # Errors
    /// It is one too many.
    pub fn admit(&self, node: &str) -> Result<(), TooOften> {
        if self.asked.fetch_add(1, Ordering::Relaxed) % SWEEP == SWEEP - 1 {
            self.nodes.retain_recent();
            self.nodes.shrink_to_fit();
        }
        let Err(until) = self.nodes.check_key(&node.to_owned()) else { return Ok(()) };
        let retry_after = until.wait_time_from(self.clock.now());
        Err(TooOften { node: node.to_owned(), per_second: self.per_second, retry_after, told: self.tell(node) })
    }

    fn tell(&self, node: &str) -> Option<u64> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of whom there is nothing left to tell are forgotten; few are ever refused.
        lines.retain(|(other, lines)| other == node || !lines.are_over());
        let place = lines.iter().position(|(other, _)| other == node).unwrap_or_else(|| {
            lines.push((node.to_owned(), Lines::of(1)));
            lines.len() - 1
        });
        lines.get_mut(place).and_then(|(_, lines)| lines.tell())
    }
}

/// The lines of callers of whom nothing is known.
#[derive(Debug)]
pub struct Strangers(Mutex<Lines>);

impl Default for Strangers {
    fn default() -> Self {
        Self(Mutex::new(Lines::of(STRANGER_LINES)))
    }
}

impl Strangers {
    /// Whether the next one is to be written down; then, how many were not since the last that was.
    pub fn tell(&self) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).tell()
    }
}

/// So many lines in each second, and a count of what was left out.
#[derive(Debug)]
struct Lines {
    most: u32,
    since: Option<Instant>,
    told: u32,
    untold: u64,
}

impl Lines {
    fn of(most: u32) -> Self {
        Self { most, since: None, told: 0, untold: 0 }
    }

    fn tell(&mut self) -> Option<u64> {
        let now = Instant::now();
        if self.since.is_none_or(|since| now.duration_since(since) >= LINE_TIME) {
            (self.since, self.told) = (Some(now), 0);
        }
        if self.told == self.most {
            self.untold += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.untold))
    }

    fn are_over(&self) -> bool {
        self.untold == 0 && self.since.is_none_or(|since| since.elapsed() >= LINE_TIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(per_second: u32) -> Limit {
        Limit::per_second(NonZeroU32::new(per_second).expect("not zero"))
    }

    #[test]
    fn a_node_may_ask_twice_as_often_at_once_and_costs_no_other() {
        let limit = limit(5);
        for request in 0..10 {
            limit.admit("n1").unwrap_or_else(|error| panic!("request {request}: {error}"));
        }
        let refused = limit.admit("n1").expect_err("one too many");
        assert!(refused.retry_after > Duration::ZERO && refused.retry_after <= Duration::from_millis(200), "{refused}");
        limit.admit("n2").expect("another node");
    }

    #[test]
    fn a_flood_makes_few_lines_and_all_are_counted() {
        let limit = limit(1);
        let told: Vec<_> = (0..102).filter_map(|_| limit.admit("n1").err()).map(|refused| refused.told).collect();
        assert_eq!(told.first(), Some(&Some(0)));
        let lines = told.iter().flatten().count();
        let counted: u64 = told.iter().flatten().sum();
        let left = limit.lines.lock().expect("no panic while it is held")[0].1.untold;
        assert_eq!(lines as u64 + counted + left, told.len() as u64);
        assert!(lines < told.len() / 2, "{lines} lines for {} refusals", told.len());
    }

    #[test]
    fn nodes_that_do_not_ask_any_more_are_forgotten() {
        let limit = limit(10_000);
        for node in 0..SWEEP - 1 {
            limit.admit(&format!("n{node}")).expect("its first");
        }
        assert!(limit.nodes.len() > 1);
        // A request at this rate is over after a tenth of a millisecond.
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(5) {
            std::hint::spin_loop();
        }
        limit.admit("n0").expect("its second");
        assert!(limit.nodes.len() <= 1, "{} are left", limit.nodes.len());
    }

    #[test]
    fn strangers_share_their_lines() {
        let strangers = Strangers::default();
        let told = (0..500).filter(|_| strangers.tell().is_some()).count();
        assert!((100..=300).contains(&told), "{told}");
    }
}
