//! Counters of the transport. They continue across front ends.

use std::time::Instant;

use crate::counter::{Count, Times};

/// One of this many batches of requests is timed: reading the clock costs time itself.
const TIMED_INTERVAL: u64 = 8;

/// Counters of the connection and its virtqueues.
#[derive(Debug, Default)]
pub struct TransportCounters {
    /// Front ends that have connected.
    pub front_ends: Count,
    /// 1 while a front end is connected, otherwise 0.
    pub connected: Count,
    /// Counters of the request queue.
    pub requests: RequestQueueCounters,
    /// Used buffer notifications sent for the event queue.
    pub event_signals: Count,
}

/// Counters of the request queue. The request thread updates them.
#[derive(Debug, Default)]
pub struct RequestQueueCounters {
    /// Wake-ups of the thread.
    pub wake_ups: Count,
    /// Returns of the thread to sleep after polling.
    pub sleeps: Count,
    /// Polls that found the available ring empty and were followed by another poll.
    pub polls: Count,
    /// Batches of requests found by the first look after a wake-up.
    pub woken_batches: Count,
    /// Batches of requests found by polling.
    pub polled_batches: Count,
    /// Used buffer notifications sent to the driver.
    pub signals: Count,
    /// Times from finding a batch until all its requests were handled and the driver was notified.
    /// A sample of the batches, if timing is enabled.
    pub times: Times,
    time_batches: bool,
}

impl TransportCounters {
    /// Creates counters. `time_batches` enables the timing of batches of requests.
    pub fn new(time_batches: bool) -> Self {
        let requests = RequestQueueCounters { time_batches, ..RequestQueueCounters::default() };
        Self { requests, ..Self::default() }
    }
}

impl RequestQueueCounters {
    /// Returns the current time if the next batch is to be timed.
    pub(super) fn start_batch(&self) -> Option<Instant> {
        let batches = self.woken_batches.get().wrapping_add(self.polled_batches.get());
        (self.time_batches && batches.is_multiple_of(TIMED_INTERVAL)).then(Instant::now)
    }

    /// Counts a handled batch, which was found by polling or not.
    pub(super) fn finish_batch(&self, start: Option<Instant>, polled: bool, now: Instant) {
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
    fn sample_of_batches_is_timed_if_enabled() {
        for (time_batches, expected) in [(false, 0), (true, 10)] {
            let counters = TransportCounters::new(time_batches).requests;
            for batch in 0..10 * TIMED_INTERVAL {
                counters.finish_batch(counters.start_batch(), batch % 3 == 0, Instant::now());
            }
            assert_eq!(counters.times.read().count(), expected);
            let batches = counters.woken_batches.get() + counters.polled_batches.get();
            assert_eq!(batches, 10 * TIMED_INTERVAL);
        }
    }
}
