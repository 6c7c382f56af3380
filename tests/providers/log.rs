//! Everything that is logged, twice: as the program itself would write it at its most talkative, and with every line of
//! every library, which the program's filter keeps out.

use std::{
    io,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Layer, filter::dynamic_filter_fn, fmt, layer::SubscriberExt};

/// What the program would have written.
static OURS: LazyLock<Book> = LazyLock::new(Book::default);
/// What everybody said, while somebody listened.
static ALL: LazyLock<Book> = LazyLock::new(Book::default);
static LISTENING: AtomicBool = AtomicBool::new(false);
/// Only one test listens at a time.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[derive(Clone, Default)]
struct Book(Arc<Mutex<Vec<u8>>>);

impl Book {
    fn read(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl io::Write for Book {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Logs for the rest of the process.
pub(crate) fn start() {
    let ours = fmt::layer().with_ansi(false).with_writer(|| OURS.clone());
    let ours = ours.with_filter(coffer::telemetry::filter(LevelFilter::TRACE));
    let all = fmt::layer().with_ansi(false).with_writer(|| ALL.clone());
    let all = all.with_filter(dynamic_filter_fn(|_, _| LISTENING.load(Ordering::Relaxed)));
    let subscriber = tracing_subscriber::registry().with(ours).with(all);
    tracing::subscriber::set_global_default(subscriber).expect("nobody else logs in this process");
}

/// Listens to every library until it is dropped.
pub(crate) struct Listening {
    _turn: tokio::sync::MutexGuard<'static, ()>,
}

impl Listening {
    pub(crate) async fn start() -> Self {
        let turn = TURN.lock().await;
        ALL.clear();
        LISTENING.store(true, Ordering::Relaxed);
        Self { _turn: turn }
    }

    /// What the program would have written since it began.
    pub(crate) fn ours(&self) -> Vec<u8> {
        OURS.read()
    }

    /// What everybody said meanwhile.
    pub(crate) fn all(&self) -> Vec<u8> {
        ALL.read()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        LISTENING.store(false, Ordering::Relaxed);
        ALL.clear();
    }
}
