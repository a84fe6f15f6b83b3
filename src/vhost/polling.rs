//! Whether to look at a ring again before going to sleep.
//!
//! Linux spins for each request with interrupts off, so what a wake-up costs the daemon is guest
//! CPU time. After work the ring is therefore polled, with notifications left off, so that a busy
//! guest never kicks; but only while requests have lately come soon enough for that to pay.
//!
//! Where no core is to spare, a thread that polls long is made to wait itself sooner or later,
//! and the guest with it; one that sleeps much gets a core soon when it wakes. There only
//! requests that follow each other closely are polled for.

use std::time::{Duration, Instant};

/// A gap between two looks at the clock that means that somebody else ran on this core.
const PREEMPTED: Duration = Duration::from_micros(100);

/// So many requests after that, cores are taken to be scarce.
const SCARCITY: u32 = 16;

/// Then the window is this part of the longest.
const SCARCE_PART: u32 = 16;

/// Decides for one ring.
pub struct Poller {
    max: Duration,
    /// How long the ring has lately been empty between requests: a moving average.
    expected: Duration,
    /// Requests until cores are taken to be plenty again.
    scarce: u32,
    /// The end of the last work.
    idle_since: Instant,
    looked: Instant,
}

impl Poller {
    /// Polls for at most `max` after work; never when that is zero.
    pub fn new(max: Duration, now: Instant) -> Self {
        Self { max, expected: max, scarce: 0, idle_since: now, looked: now }
    }

    /// The worker woke up for a kick.
    pub fn woke_up(&mut self, now: Instant) {
        self.looked = now;
    }

    /// The ring gave work, which is done now.
    pub fn found_work(&mut self, now: Instant) {
        // A long pause must not be remembered for longer than a few requests.
        let gap = now.duration_since(self.idle_since).min(self.max * 2);
        self.expected = (self.expected * 3 + gap) / 4;
        self.scarce = self.scarce.saturating_sub(1);
        self.idle_since = now;
        self.looked = now;
    }

    /// The ring gave nothing for the last few looks. Whether to go on looking.
    pub fn keep_polling(&mut self, now: Instant) -> bool {
        if now.duration_since(self.looked) > PREEMPTED {
            self.scarce = SCARCITY;
        }
        self.looked = now;
        let window = if self.scarce > 0 { self.max / SCARCE_PART } else { self.max };
        self.expected <= window && now.duration_since(self.idle_since) < window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_micros(160);
    const STEP: Duration = Duration::from_micros(1);

    /// Polls until the poller gives up; for how many microseconds?
    fn poll(poller: &mut Poller, now: &mut Instant) -> u128 {
        let start = *now;
        while poller.keep_polling(*now) {
            *now += STEP;
        }
        (*now - start).as_micros()
    }

    /// Requests that are `gap` microseconds apart.
    fn requests(poller: &mut Poller, now: &mut Instant, count: u32, gap: u64) {
        for _ in 0..count {
            *now += Duration::from_micros(gap);
            poller.woke_up(*now);
            poller.found_work(*now);
        }
    }

    fn started() -> (Poller, Instant) {
        let now = Instant::now();
        (Poller::new(MAX, now), now)
    }

    #[test]
    fn requests_are_polled_for_while_they_come_soon_enough() {
        let (mut poller, mut now) = started();
        requests(&mut poller, &mut now, 8, 100);
        assert_eq!(poll(&mut poller, &mut now), 160);
        requests(&mut poller, &mut now, 8, 1_000);
        assert_eq!(poll(&mut poller, &mut now), 0);
        requests(&mut poller, &mut now, 8, 10);
        assert_eq!(poll(&mut poller, &mut now), 160);
    }

    #[test]
    fn one_long_pause_is_soon_forgotten() {
        let (mut poller, mut now) = started();
        requests(&mut poller, &mut now, 8, 10);
        requests(&mut poller, &mut now, 1, 1_000_000_000);
        requests(&mut poller, &mut now, 3, 10);
        assert_eq!(poll(&mut poller, &mut now), 160);
    }

    #[test]
    fn a_preempted_thread_polls_for_close_requests_only_until_some_have_gone_by() {
        let (mut poller, mut now) = started();
        requests(&mut poller, &mut now, 8, 2);
        now += 2 * PREEMPTED;
        assert!(!poller.keep_polling(now));
        requests(&mut poller, &mut now, SCARCITY - 4, 2);
        assert_eq!(poll(&mut poller, &mut now), 10);
        requests(&mut poller, &mut now, 2, 50);
        assert_eq!(poll(&mut poller, &mut now), 0);
        requests(&mut poller, &mut now, SCARCITY, 50);
        assert_eq!(poll(&mut poller, &mut now), 160);
    }

    #[test]
    fn zero_never_polls() {
        let now = Instant::now();
        let mut poller = Poller::new(Duration::ZERO, now);
        poller.found_work(now);
        assert!(!poller.keep_polling(now));
    }
}
