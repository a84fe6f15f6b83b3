//! Counts the errors that the crate logs, in tests that use it without the daemon.

use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};

static ERRORS: AtomicUsize = AtomicUsize::new(0);

struct Counter;

impl Log for Counter {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record) {
        println!("{}: {}", record.level(), record.args());
        ERRORS.fetch_add(usize::from(record.level() == Level::Error), Ordering::SeqCst);
    }

    fn flush(&self) {}
}

/// Starts counting, from zero.
pub fn count_from_now() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Counter).unwrap();
        log::set_max_level(LevelFilter::Warn);
    });
    ERRORS.store(0, Ordering::SeqCst);
}

pub fn count() -> usize {
    ERRORS.load(Ordering::SeqCst)
}
