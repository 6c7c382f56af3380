//! How a KMS or a store across a network is called: within the caller's deadline, so many calls at once, again where
//! that can help, and not at all for a moment where it never answers.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::{sync::Semaphore, time::Instant};

use crate::exec::Deadline;

/// How a provider or a store is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallSettings {
    /// How long one attempt may take.
    pub timeout: Duration,
    /// How many attempts a call has, the first included.
    pub attempts: usize,
    /// How many calls are on their way at once.
    pub concurrency: usize,
}

impl Default for CallSettings {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(10), attempts: 5, concurrency: 64 }
    }
}

/// Whether a failed call is worth another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The answer would be the same.
    Never,
    /// After a pause that grows.
    Soon,
    /// After the pause that was asked for.
    After(Duration),
}

/// A failure of a call across a network.
pub trait Transient: Sized + fmt::Display {
    /// Whether another attempt is worth it.
    fn retry(&self) -> Retry;
    /// Whether somebody answered, be it with a refusal.
    fn is_answer(&self) -> bool;
    /// The failure of a call that got no answer, or was not made because there would be none.
    fn no_answer(endpoint: &str, why: String) -> Self;
    /// The failure of a call whose caller's time was over.
    fn deadline(endpoint: &str) -> Self;
}

/// The first pause before another attempt; the next ones double, with jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// An attempt that has so long to get its answer, and gets none, shows that the server is away.
const FAIR_TIME: Duration = Duration::from_secs(1);
/// So many calls in a row without an answer open the breaker.
const BREAKS_AFTER: u32 = 5;
/// So long nobody is asked then; after it, one call tries.
const BROKEN_FOR: Duration = Duration::from_secs(5);

/// The calls to one server.
#[derive(Debug)]
pub struct Calls {
    endpoint: String,
    settings: CallSettings,
    room: Semaphore,
    breaker: Mutex<Breaker>,
}

/// Closed, counting what failed in a row; or open until a moment.
#[derive(Debug, Default)]
struct Breaker {
    failed: u32,
    last: String,
    open_until: Option<Instant>,
}

impl Calls {
    /// Calls to a server, which failures name.
    #[must_use]
    pub fn new(endpoint: impl Into<String>, settings: CallSettings) -> Self {
        let room = Semaphore::new(settings.concurrency);
        Self { endpoint: endpoint.into(), settings, room, breaker: Mutex::default() }
    }

    /// Makes a call, and makes it again where that can help, until the deadline. Each attempt gets a deadline of its own.
    ///
    /// # Errors
    /// What the last attempt failed with; no answer where the breaker is open; or the deadline.
    pub async fn make<T, E: Transient, F: Future<Output = Result<T, E>> + Send>(
        &self,
        deadline: Deadline,
        attempt: impl Fn(Deadline) -> F,
    ) -> Result<T, E> {
        let pauses = ExponentialBuilder::default()
            .with_min_delay(FIRST_PAUSE)
            .with_max_delay(LONGEST_PAUSE)
            .with_max_times(self.settings.attempts.saturating_sub(1))
            .with_jitter();
        let mut pauses = pauses.build();
        // Whoever is let in keeps its attempts: many at once that meet one broken connection must not lock each other out.
        self.expect_closed()?;
        loop {
            let result = self.once(deadline, &attempt).await;
            let Err(failure) = result else { return result };
            if failure.is_answer() && failure.retry() != Retry::Never {
                metrics::counter!("coffer_throttled_total", "endpoint" => self.endpoint.clone()).increment(1);
            }
            let pause = match (failure.retry(), pauses.next()) {
                (Retry::Never, _) | (_, None) => return Err(failure),
                (Retry::Soon, Some(pause)) => pause,
                (Retry::After(asked), Some(pause)) => asked.max(pause),
            };
            // A pause that outlasts the caller would only hide what really happened.
            if pause >= deadline.left() {
                return Err(failure);
            }
            tokio::time::sleep(pause).await;
            metrics::counter!("coffer_retries_total", "endpoint" => self.endpoint.clone()).increment(1);
        }
    }

    async fn once<T, E: Transient, F: Future<Output = Result<T, E>> + Send>(
        &self,
        deadline: Deadline,
        attempt: &impl Fn(Deadline) -> F,
    ) -> Result<T, E> {
        let late = || E::deadline(&self.endpoint);
        let room = tokio::time::timeout(deadline.left(), self.room.acquire()).await;
        let _place = room.map_err(|_| late())?.expect("the semaphore is never closed");
        let time = self.settings.timeout.min(deadline.left());
        if time.is_zero() {
            return Err(late());
        }
        // A caller in a hurry says nothing of the server.
        let is_fair = time >= FAIR_TIME.min(self.settings.timeout);
        let answer = tokio::time::timeout(time, attempt(Deadline::within(time))).await;
        let result = answer.unwrap_or_else(|_| {
            Err(if is_fair { E::no_answer(&self.endpoint, format!("no answer within {time:?}")) } else { late() })
        });
        if is_fair || result.is_ok() {
            self.note(&result);
        }
        result
    }

    fn breaker(&self) -> std::sync::MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect_closed<E: Transient>(&self) -> Result<(), E> {
        let mut breaker = self.breaker();
        match breaker.open_until {
            Some(until) if until > Instant::now() => {
                let left = until.saturating_duration_since(Instant::now());
                let (failed, last) = (breaker.failed, breaker.last.clone());
                drop(breaker);
                let why = format!("{failed} calls in a row got no answer ({last}); it is asked again in {left:.1?}");
                Err(E::no_answer(&self.endpoint, why))
            }
            Some(_) => {
                // This call tries; others wait until it is known how that went.
                breaker.open_until = Some(Instant::now() + BROKEN_FOR);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// An answer, also a refusal, closes the breaker.
    fn note<T, E: Transient>(&self, result: &Result<T, E>) {
        let mut breaker = self.breaker();
        match result {
            Err(failure) if !failure.is_answer() => {
                breaker.failed = breaker.failed.saturating_add(1);
                breaker.last = failure.to_string();
                if breaker.failed >= BREAKS_AFTER {
                    breaker.open_until = Some(Instant::now() + BROKEN_FOR);
                    self.tell_breaker(1.0);
                }
            }
            Ok(_) | Err(_) => {
                if breaker.open_until.is_some() {
                    self.tell_breaker(0.0);
                }
                *breaker = Breaker::default();
            }
        }
    }

    fn tell_breaker(&self, open: f64) {
        metrics::gauge!("coffer_breaker_open", "endpoint" => self.endpoint.clone()).set(open);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Clone, Debug, PartialEq, thiserror::Error)]
    enum Failed {
        #[error("refused")]
        Refused,
        #[error("asked too often")]
        Often(Duration),
        #[error("{0}")]
        NoAnswer(String),
        #[error("late")]
        Late,
    }

    impl Transient for Failed {
        fn retry(&self) -> Retry {
            match self {
                Self::Refused | Self::Late => Retry::Never,
                Self::Often(time) => Retry::After(*time),
                Self::NoAnswer(_) => Retry::Soon,
            }
        }

        fn is_answer(&self) -> bool {
            matches!(self, Self::Refused | Self::Often(_))
        }

        fn no_answer(_: &str, why: String) -> Self {
            Self::NoAnswer(why)
        }

        fn deadline(_: &str) -> Self {
            Self::Late
        }
    }

    fn gone() -> Failed {
        Failed::NoAnswer("gone".to_owned())
    }

    /// The result of calls that fail so often, and how many there were.
    async fn after(failures: usize, failure: Failed, seconds: u64) -> (Result<(), Failed>, usize) {
        let (calls, made) = (Calls::new("there", CallSettings::default()), AtomicUsize::new(0));
        let attempt = |_| {
            let number = made.fetch_add(1, Ordering::Relaxed);
            let failure = failure.clone();
            async move { if number < failures { Err(failure) } else { Ok(()) } }
        };
        let result = calls.make(Deadline::within(Duration::from_secs(seconds)), attempt).await;
        (result, made.load(Ordering::Relaxed))
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_an_answer_is_made_again_and_a_refused_one_is_not() {
        assert_eq!(after(0, gone(), 60).await, (Ok(()), 1));
        assert_eq!(after(3, gone(), 60).await, (Ok(()), 4));
        assert_eq!(after(1, Failed::Refused, 60).await, (Err(Failed::Refused), 1));
        let (result, made) = after(9, gone(), 60).await;
        assert_eq!((result, made), (Err(gone()), 5), "so many attempts has a call");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_that_is_asked_for_is_made_unless_it_outlasts_the_caller() {
        let often = Failed::Often(Duration::from_secs(7));
        let start = Instant::now();
        assert_eq!(after(2, often.clone(), 60).await, (Ok(()), 3));
        assert!(start.elapsed() >= Duration::from_secs(14), "{:?}", start.elapsed());
        assert_eq!(after(2, often.clone(), 5).await, (Err(often), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_hangs_is_given_up_and_the_caller_never_waits_longer_than_it_said() {
        let calls = Calls::new("there", CallSettings { timeout: Duration::from_secs(3), ..CallSettings::default() });
        let (made, start) = (AtomicUsize::new(0), Instant::now());
        let hang = |_| {
            made.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<Result<(), Failed>>()
        };
        let result = calls.make(Deadline::within(Duration::from_secs(5)), hang).await;
        assert!(matches!(result, Err(Failed::NoAnswer(_))), "{result:?}");
        assert_eq!((made.load(Ordering::Relaxed), start.elapsed().as_secs()), (2, 5));
        for _ in 0..9 {
            let hurried = calls.make(Deadline::within(Duration::from_millis(1)), hang).await;
            assert_eq!(hurried, Err(Failed::Late), "who is in a hurry says nothing of the server");
        }
        assert_eq!(calls.make(Deadline::within(Duration::from_secs(5)), |_| async { Ok::<_, Failed>(1) }).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn where_nobody_ever_answers_nobody_is_asked_for_a_moment_and_then_once() {
        let calls = Calls::new("there", CallSettings { attempts: 1, ..CallSettings::default() });
        let made = AtomicUsize::new(0);
        let soon = || Deadline::within(Duration::from_secs(60));
        let fail = |_| {
            made.fetch_add(1, Ordering::Relaxed);
            async { Err::<(), _>(gone()) }
        };
        for _ in 0..9 {
            assert!(calls.make(soon(), fail).await.is_err());
        }
        assert_eq!(made.load(Ordering::Relaxed), 5, "the breaker is open");
        let told = calls.make(soon(), fail).await.expect_err("open").to_string();
        assert!(told.contains("5 calls in a row got no answer (gone)"), "{told}");
        tokio::time::sleep(BROKEN_FOR).await;
        assert!(calls.make(soon(), fail).await.is_err());
        assert!(calls.make(soon(), fail).await.is_err());
        assert_eq!(made.load(Ordering::Relaxed), 6, "one call tries");
        tokio::time::sleep(BROKEN_FOR).await;
        assert_eq!(calls.make(soon(), |_| async { Ok::<_, Failed>(1) }).await, Ok(1));
        assert_eq!(calls.make(soon(), |_| async { Ok::<_, Failed>(2) }).await, Ok(2), "it is closed again");
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_calls_are_on_their_way_at_once() {
        let calls = Calls::new("there", CallSettings { concurrency: 3, ..CallSettings::default() });
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = |_| async {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(10)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, Failed>(())
        };
        let all = (0..20).map(|_| calls.make(Deadline::within(Duration::from_secs(60)), work));
        assert!(futures::future::join_all(all).await.into_iter().all(|made| made.is_ok()));
        assert_eq!(most.into_inner(), 3);
    }
}
