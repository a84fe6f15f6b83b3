//! What has happened to the faults of an endpoint.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The number so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Every fault reported is delivered, dropped, dealt with directly, or still waits.
#[derive(Debug, Default)]
pub struct Counters {
    /// Reported by the source.
    pub reported: Counter,
    /// Written into the event queue.
    pub delivered: Counter,
    /// Given up: the endpoint's queue was full, the guest had no buffer, or was reset.
    pub dropped: Counter,
    /// Dealt with by a direct handler.
    pub direct: Counter,
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reported, delivered, dropped, direct } = self;
        let [reported, delivered, dropped, direct] =
            [reported, delivered, dropped, direct].map(Counter::get);
        write!(f, "reported {reported}, delivered {delivered}, dropped {dropped}, direct {direct}")
    }
}
