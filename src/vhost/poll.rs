//! Whether to look at a ring again before going to sleep.
//!
//! Linux spins for each request with interrupts off, so what a wake-up costs the daemon is guest
//! CPU time. After work the ring is therefore polled for a while, with notifications left off,
//! so that a busy guest never kicks.
//!
//! The longer the wait, the less polling pays: a window that found nothing is halved, one that
//! found work doubled. Where no core is to spare, the thread is made to wait itself sooner or
//! later; then only requests that follow each other closely are polled for, because a thread
//! that sleeps much gets a core soon when it wakes.

use std::time::{Duration, Instant};

/// A gap between two looks at the clock that means that somebody else ran on this core.
const PREEMPTED: Duration = Duration::from_micros(100);

/// The shortest window is this part of the longest.
const SHORTEST: u32 = 16;

/// With each request the window may grow by this part of itself again, after a preemption.
const RECOVERY: u32 = 256;

/// Decides for one ring.
pub struct Poller {
    max: Duration,
    /// How long the ring is polled now.
    window: Duration,
    /// How long it may be at most, as long as cores are scarce.
    ceiling: Duration,
    found: Instant,
    looked: Instant,
}

impl Poller {
    /// Polls for at most `max` after work; never when that is zero.
    pub fn new(max: Duration, now: Instant) -> Self {
        Self { max, window: max, ceiling: max, found: now, looked: now }
    }

    /// The worker woke up for a kick.
    pub fn woke_up(&mut self, now: Instant) {
        self.found = now;
        self.looked = now;
    }

    /// The ring gave work: the window starts anew.
    pub fn found_work(&mut self, now: Instant) {
        self.found = now;
        self.looked = now;
        self.ceiling = self.max.min(self.ceiling + self.ceiling / RECOVERY);
        self.window = self.ceiling.min(self.window * 2);
    }

    /// The ring gave nothing for the last few looks. Whether to go on looking.
    pub fn keep_polling(&mut self, now: Instant) -> bool {
        let shortest = self.max / SHORTEST;
        if now.duration_since(self.looked) > PREEMPTED {
            self.ceiling = shortest;
            self.window = shortest;
        }
        self.looked = now;
        let polling = now.duration_since(self.found) < self.window;
        if !polling {
            self.window = shortest.max(self.window / 2);
        }
        polling
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_micros(160);
    const STEP: Duration = Duration::from_micros(1);

    /// Polls from `now` until the poller gives up; for how long?
    fn poll(poller: &mut Poller, now: &mut Instant) -> Duration {
        let start = *now;
        while poller.keep_polling(*now) {
            *now += STEP;
        }
        *now - start
    }

    fn started() -> (Poller, Instant) {
        let now = Instant::now();
        (Poller::new(MAX, now), now)
    }

    #[test]
    fn the_window_shrinks_while_it_finds_nothing_and_grows_when_it_does() {
        let (mut poller, mut now) = started();
        let windows: Vec<_> = (0..6)
            .map(|_| {
                poller.woke_up(now);
                poll(&mut poller, &mut now).as_micros()
            })
            .collect();
        assert_eq!(windows, [160, 80, 40, 20, 10, 10]);
        poller.found_work(now);
        assert_eq!(poll(&mut poller, &mut now).as_micros(), 20);
    }

    #[test]
    fn a_thread_that_was_preempted_polls_briefly_until_it_has_run_undisturbed_for_long() {
        let (mut poller, mut now) = started();
        poller.found_work(now);
        now += 2 * PREEMPTED;
        assert!(!poller.keep_polling(now));
        poller.found_work(now);
        assert!(poll(&mut poller, &mut now) <= MAX / SHORTEST + STEP);
        (0..2 * SHORTEST * RECOVERY).for_each(|_| poller.found_work(now));
        assert_eq!(poll(&mut poller, &mut now), MAX);
    }

    #[test]
    fn zero_never_polls() {
        let now = Instant::now();
        let mut poller = Poller::new(Duration::ZERO, now);
        poller.found_work(now);
        assert!(!poller.keep_polling(now));
    }
}
