//! Numbers that one thread at a time counts up and any thread reads.
//!
//! Each part of the daemon keeps its own and knows nothing of who reads them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number. Whoever changes it holds a lock, or is the only one who does, so that no bus is
/// locked for it; a reader may be a moment behind.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Counts `more`.
    pub fn add(&self, more: u64) {
        self.set(self.get().wrapping_add(more));
    }

    /// Says what it is now.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// What it is now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The first bucket takes times up to 2^8 nanoseconds, each that follows twice those of the one
/// before.
const FIRST: u32 = 8;

/// The last but one takes times up to 2^36 nanoseconds, some 69 seconds; the last takes the rest.
pub const BUCKETS: usize = 30;

/// How often something took how long.
#[derive(Debug, Default)]
pub struct Times {
    buckets: [Count; BUCKETS],
    nanoseconds: Count,
}

/// What a [`Times`] held at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimesRead {
    /// How many fell into each bucket.
    pub buckets: [u64; BUCKETS],
    /// All times together.
    pub total: Duration,
}

impl Times {
    /// Counts one time.
    pub fn add(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanoseconds)].add(1);
        self.nanoseconds.add(nanoseconds);
    }

    /// What there is so far.
    pub fn read(&self) -> TimesRead {
        TimesRead {
            buckets: std::array::from_fn(|index| self.buckets[index].get()),
            total: Duration::from_nanos(self.nanoseconds.get()),
        }
    }
}

impl TimesRead {
    /// The longest time of a bucket; `None`: there is no longest.
    pub fn longest(bucket: usize) -> Option<Duration> {
        (bucket + 1 < BUCKETS).then(|| Duration::from_nanos(1 << (FIRST as usize + bucket)))
    }

    /// How many times there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// The bucket of a time: the first whose longest is not shorter.
fn bucket(nanoseconds: u64) -> usize {
    let bits = u64::BITS - nanoseconds.saturating_sub(1).leading_zeros();
    (bits.saturating_sub(FIRST) as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_bucket_that_is_long_enough() {
        for nanoseconds in [0, 1, 255, 256, 257, 512, 513, 1_000_000, 1 << 36, (1 << 36) + 1] {
            let time = Duration::from_nanos(nanoseconds);
            let expected = (0..BUCKETS)
                .find(|&bucket| TimesRead::longest(bucket).is_none_or(|longest| time <= longest));
            assert_eq!(Some(bucket(nanoseconds)), expected, "{nanoseconds}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn times_add_up() {
        let times = Times::default();
        times.add(Duration::from_micros(1));
        times.add(Duration::from_micros(3));
        times.add(Duration::MAX);
        let read = times.read();
        assert_eq!((read.count(), read.buckets[BUCKETS - 1]), (3, 1));
        assert_eq!(read.buckets[2], 1, "1000 ns are in the bucket up to 1024 ns");
    }
}
