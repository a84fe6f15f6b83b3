//! Whether to look at a ring again before going to sleep.
//!
//! Linux spins for each request with interrupts off, so what a wake-up costs the daemon is guest
//! CPU time. After work the ring is therefore polled for a while, with notifications left off,
//! so that a busy guest never kicks. Polling pays only on a core that nobody else wants.

use std::time::{Duration, Instant};

/// Looks at the clock only once in so many looks at the ring.
const LOOKS_PER_CLOCK: u32 = 32;

/// A gap between two looks at the clock that means somebody else ran on this core.
const PREEMPTED: Duration = Duration::from_micros(100);

/// After being preempted, so many wake-ups pass without polling.
const PENALTY: u32 = 64;

/// Decides for one ring. The window grows while polling finds work and shrinks while it does not.
pub struct Poller {
    max: Duration,
    window: Duration,
    penalty: u32,
    since: Instant,
    looked: Instant,
    looks: u32,
}

impl Poller {
    /// Polls for at most `max` after work; never when that is zero or the machine has one core.
    pub fn new(max: Duration) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let max = if cores > 1 { max } else { Duration::ZERO };
        let now = Instant::now();
        Self { max, window: max, penalty: 0, since: now, looked: now, looks: 0 }
    }

    /// The ring gave work: the window starts anew.
    pub fn found_work(&mut self) {
        self.looks = 0;
        self.since = Instant::now();
        self.looked = self.since;
        self.window = (self.window * 2).clamp(self.max / 16, self.max);
    }

    /// The ring is empty. Whether to look again at once.
    pub fn keep_polling(&mut self) -> bool {
        if self.max.is_zero() || self.penalty > 0 {
            return false;
        }
        self.looks += 1;
        if !self.looks.is_multiple_of(LOOKS_PER_CLOCK) {
            std::hint::spin_loop();
            return true;
        }
        let now = Instant::now();
        if now.duration_since(self.looked) > PREEMPTED {
            self.penalty = PENALTY;
            return false;
        }
        self.looked = now;
        let polling = now.duration_since(self.since) < self.window;
        if !polling {
            self.window = (self.window / 2).max(self.max / 16);
        }
        polling
    }

    /// The worker woke up for a kick.
    pub fn woke_up(&mut self) {
        self.penalty = self.penalty.saturating_sub(1);
    }
}
