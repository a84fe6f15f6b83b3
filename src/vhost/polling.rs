//! The decision whether to poll a virtqueue again or to sleep.
//!
//! Linux busy-waits for each request with interrupts off, so the time that a wake-up of the daemon
//! takes is CPU time of the guest. After a request the available ring is therefore polled with
//! kicks disabled, but only while requests have recently followed each other closely enough for
//! that to be worthwhile.
//!
//! If no core is idle, a thread that polls for long is preempted sooner or later, and the guest
//! waits with it; a thread that sleeps often gets a core soon after it wakes up. In this case only
//! closely spaced requests are polled for.

use std::time::{Duration, Instant};

/// Interval between two readings of the clock from which the thread is assumed to have been
/// preempted.
const PREEMPTED: Duration = Duration::from_micros(100);

/// Number of batches after a preemption for which cores are assumed to be scarce.
const SCARCE_BATCHES: u32 = 16;

/// Divisor of the polling window while cores are scarce.
const SCARCE_DIVISOR: u32 = 16;

/// The polling decision for one virtqueue.
pub struct Poller {
    max: Duration,
    /// Moving average of the time for which the virtqueue was empty between batches.
    expected: Duration,
    /// Remaining number of batches for which cores are assumed to be scarce.
    scarce: u32,
    /// End of the last batch.
    idle_since: Instant,
    last_reading: Instant,
}

impl Poller {
    /// Creates a poller that polls for at most `max` after a batch, and never if that is zero.
    pub fn new(max: Duration, now: Instant) -> Self {
        Self { max, expected: max, scarce: 0, idle_since: now, last_reading: now }
    }

    /// Notes that the thread has woken up.
    pub fn wake_up(&mut self, now: Instant) {
        self.last_reading = now;
    }

    /// Notes that a batch of requests has been handled.
    pub fn finish_batch(&mut self, now: Instant) {
        // A long pause must not affect the average for more than a few batches.
        let gap = now.duration_since(self.idle_since).min(self.max * 2);
        self.expected = (self.expected * 3 + gap) / 4;
        self.scarce = self.scarce.saturating_sub(1);
        self.idle_since = now;
        self.last_reading = now;
    }

    /// Returns whether to poll again after a poll has found the virtqueue empty.
    pub fn keep_polling(&mut self, now: Instant) -> bool {
        if now.duration_since(self.last_reading) > PREEMPTED {
            self.scarce = SCARCE_BATCHES;
        }
        self.last_reading = now;
        let window = if self.scarce > 0 { self.max / SCARCE_DIVISOR } else { self.max };
        self.expected <= window && now.duration_since(self.idle_since) < window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_micros(160);
    const STEP: Duration = Duration::from_micros(1);

    /// Polls until the poller stops. Returns the elapsed time in microseconds.
    fn poll(poller: &mut Poller, now: &mut Instant) -> u128 {
        let start = *now;
        while poller.keep_polling(*now) {
            *now += STEP;
        }
        (*now - start).as_micros()
    }

    /// Handles `count` batches that are `gap` microseconds apart.
    fn batches(poller: &mut Poller, now: &mut Instant, count: u32, gap: u64) {
        for _ in 0..count {
            *now += Duration::from_micros(gap);
            poller.wake_up(*now);
            poller.finish_batch(*now);
        }
    }

    fn new_poller() -> (Poller, Instant) {
        let now = Instant::now();
        (Poller::new(MAX, now), now)
    }

    #[test]
    fn frequent_requests_are_polled_for() {
        let (mut poller, mut now) = new_poller();
        batches(&mut poller, &mut now, 8, 100);
        assert_eq!(poll(&mut poller, &mut now), 160);
        batches(&mut poller, &mut now, 8, 1_000);
        assert_eq!(poll(&mut poller, &mut now), 0);
        batches(&mut poller, &mut now, 8, 10);
        assert_eq!(poll(&mut poller, &mut now), 160);
    }

    #[test]
    fn long_pause_affects_few_requests() {
        let (mut poller, mut now) = new_poller();
        batches(&mut poller, &mut now, 8, 10);
        batches(&mut poller, &mut now, 1, 1_000_000_000);
        batches(&mut poller, &mut now, 3, 10);
        assert_eq!(poll(&mut poller, &mut now), 160);
    }

    #[test]
    fn preemption_shortens_the_window_for_some_requests() {
        let (mut poller, mut now) = new_poller();
        batches(&mut poller, &mut now, 8, 2);
        now += 2 * PREEMPTED;
        assert!(!poller.keep_polling(now));
        batches(&mut poller, &mut now, SCARCE_BATCHES - 4, 2);
        assert_eq!(poll(&mut poller, &mut now), 10);
        batches(&mut poller, &mut now, 2, 50);
        assert_eq!(poll(&mut poller, &mut now), 0);
        batches(&mut poller, &mut now, SCARCE_BATCHES, 50);
        assert_eq!(poll(&mut poller, &mut now), 160);
    }

    #[test]
    fn zero_maximum_never_polls() {
        let now = Instant::now();
        let mut poller = Poller::new(Duration::ZERO, now);
        poller.finish_batch(now);
        assert!(!poller.keep_polling(now));
    }
}
