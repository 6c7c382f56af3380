//! How far long work has come: a bar where standard error is a terminal, elsewhere a line at most once a second.

use std::{
    fmt,
    io::{self, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Where progress is told.
pub struct Progress(Shown);

enum Shown {
    Bar(ProgressBar),
    Lines { to: Box<dyn Write + Send>, told: Instant },
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Shown::Bar(_) => "Bar",
            Shown::Lines { .. } => "Lines",
        })
    }
}

const BETWEEN_LINES: Duration = Duration::from_secs(1);
const BAR: &str = "[{bar:32}] {msg}, {eta} left";
const SPINNER: &str = "{spinner} {msg}";

impl Progress {
    /// On standard error.
    #[must_use]
    pub fn on_standard_error() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        // It is hidden where it could not be seen to move: no terminal, or one that cannot.
        if bar.is_hidden() { Self::lines(io::stderr()) } else { Self(Shown::Bar(bar)) }
    }

    /// As lines, to a writer. Work that takes less than a second has none.
    #[must_use]
    pub fn lines(to: impl Write + Send + 'static) -> Self {
        Self(Shown::Lines { to: Box::new(to), told: Instant::now() })
    }

    /// Work begins: on so many things, where their number is known.
    pub(crate) fn begin(&mut self, total: Option<usize>) {
        match &mut self.0 {
            Shown::Lines { told, .. } => *told = Instant::now(),
            Shown::Bar(bar) => {
                let template = if total.is_some() { BAR } else { SPINNER };
                bar.set_style(ProgressStyle::with_template(template).expect("both templates are well formed"));
                bar.reset();
                match total {
                    Some(total) => bar.set_length(total as u64),
                    None => bar.unset_length(),
                }
            }
        }
    }

    /// So many are done.
    pub(crate) fn at(&mut self, done: usize, text: impl FnOnce() -> String) {
        match &mut self.0 {
            Shown::Bar(bar) => {
                bar.set_message(text());
                bar.set_position(done as u64);
            }
            Shown::Lines { to, told } if told.elapsed() >= BETWEEN_LINES => {
                *told = Instant::now();
                // Nobody to tell it to is no failure.
                let _ = writeln!(to, "{}", text());
            }
            Shown::Lines { .. } => {}
        }
    }

    /// The work has ended.
    pub(crate) fn done(&mut self) {
        if let Shown::Bar(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panics").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_told_at_most_once_a_second() {
        let paper = Paper::default();
        let long_ago = Instant::now().checked_sub(BETWEEN_LINES).expect("the machine is up for longer");
        let mut progress = Progress(Shown::Lines { to: Box::new(paper.clone()), told: long_ago });
        for done in 1..=3 {
            progress.at(done, || format!("{done} of 3"));
        }
        progress.begin(Some(3));
        progress.at(1, || "too soon".to_owned());
        assert_eq!(*paper.0.lock().expect("nobody panics"), b"1 of 3\n");
    }
}
