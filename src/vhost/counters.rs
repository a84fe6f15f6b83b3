//! What the transport counts. It goes on from one front end to the next.

use std::time::Instant;

use crate::counter::{Count, Times};

/// Of so many batches of requests one is timed, so that a look at the clock is no part of most.
const ONE_TIMED_OF: u64 = 8;

/// What has happened on the connection and its queues.
#[derive(Debug, Default)]
pub struct TransportCounters {
    /// Front ends that have connected.
    pub front_ends: Count,
    /// 1 while one is connected, else 0.
    pub connected: Count,
    /// Of the request queue.
    pub requests: RequestQueueCounters,
    /// Times that the driver was signalled for its events.
    pub event_signals: Count,
}

/// Kept by the thread that serves the request queue.
#[derive(Debug, Default)]
pub struct RequestQueueCounters {
    /// Times that the thread woke up.
    pub wake_ups: Count,
    /// Times that it went to sleep because it gave up polling.
    pub sleeps: Count,
    /// Looks at the ring that found nothing, and after which it looked again.
    pub polls: Count,
    /// Batches of requests found at the first look after a wake-up.
    pub woken_batches: Count,
    /// Batches of requests found by polling.
    pub polled_batches: Count,
    /// Times that the driver was signalled.
    pub signals: Count,
    /// How long batches took, from where one was found until all of it was answered and the
    /// driver signalled: some batches only, and only where they are to be timed.
    pub times: Times,
    time_batches: bool,
}

impl TransportCounters {
    /// `timed`: whether batches of requests are timed.
    pub fn new(time_batches: bool) -> Self {
        let requests = RequestQueueCounters { time_batches, ..RequestQueueCounters::default() };
        Self { requests, ..Self::default() }
    }
}

impl RequestQueueCounters {
    /// The time, if the next batch is one of those that are timed.
    pub(super) fn start(&self) -> Option<Instant> {
        let batches = self.woken_batches.get().wrapping_add(self.polled_batches.get());
        (self.time_batches && batches.is_multiple_of(ONE_TIMED_OF)).then(Instant::now)
    }

    /// A batch is done, found by polling or not.
    pub(super) fn found(&self, start: Option<Instant>, polled: bool, now: Instant) {
        let batches = if polled { &self.polled_batches } else { &self.woken_batches };
        batches.add(1);
        if let Some(start) = start {
            self.times.add(now.saturating_duration_since(start));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_batches_are_timed_if_they_are_to_be() {
        for (timed, expected) in [(false, 0), (true, 10)] {
            let counters = TransportCounters::new(timed).requests;
            for batch in 0..10 * ONE_TIMED_OF {
                counters.found(counters.start(), batch % 3 == 0, Instant::now());
            }
            assert_eq!(counters.times.read().count(), expected);
            assert_eq!(
                counters.woken_batches.get() + counters.polled_batches.get(),
                10 * ONE_TIMED_OF
            );
        }
    }
}
