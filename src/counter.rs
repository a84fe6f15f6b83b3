//! Counters and histograms that one thread at a time updates and any thread reads.
//!
//! Each module counts its own events; [`metrics`](crate::metrics) and the log read them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A counter or gauge. Writers are serialized, by a lock or because there is only one, so that an
/// update needs no atomic read-modify-write instruction. A reader may see a slightly older value.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `increment`.
    pub fn add(&self, increment: u64) {
        self.set(self.get().wrapping_add(increment));
    }

    /// Sets the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Returns the value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Binary logarithm of the upper bound of the first bucket in nanoseconds. Each bucket has twice
/// the upper bound of the one before.
const FIRST: u32 = 8;

/// Number of buckets. The upper bound of the last but one is 2^36 nanoseconds, about 69 seconds;
/// the last has none.
pub const BUCKETS: usize = 30;

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Times {
    buckets: [Count; BUCKETS],
    nanoseconds: Count,
}

/// The contents of a [`Times`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimesSnapshot {
    /// Number of durations in each bucket.
    pub buckets: [u64; BUCKETS],
    /// Sum of all durations.
    pub total: Duration,
}

impl Times {
    /// Adds one duration.
    pub fn add(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanoseconds)].add(1);
        self.nanoseconds.add(nanoseconds);
    }

    /// Returns the current contents.
    pub fn read(&self) -> TimesSnapshot {
        TimesSnapshot {
            buckets: std::array::from_fn(|index| self.buckets[index].get()),
            total: Duration::from_nanos(self.nanoseconds.get()),
        }
    }
}

impl TimesSnapshot {
    /// Returns the upper bound of a bucket, inclusive; `None` for the last, which has none.
    pub fn upper_bound(bucket: usize) -> Option<Duration> {
        (bucket + 1 < BUCKETS).then(|| Duration::from_nanos(1 << (FIRST as usize + bucket)))
    }

    /// Returns the number of durations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// Returns the bucket of a duration: the first whose upper bound is not less.
fn bucket(nanoseconds: u64) -> usize {
    let bits = u64::BITS - nanoseconds.saturating_sub(1).leading_zeros();
    (bits.saturating_sub(FIRST) as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_is_in_first_bucket_that_includes_it() {
        for nanoseconds in [0, 1, 255, 256, 257, 512, 513, 1_000_000, 1 << 36, (1 << 36) + 1] {
            let time = Duration::from_nanos(nanoseconds);
            let expected = (0..BUCKETS).find(|&bucket| {
                TimesSnapshot::upper_bound(bucket).is_none_or(|bound| time <= bound)
            });
            assert_eq!(Some(bucket(nanoseconds)), expected, "{nanoseconds}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn read_returns_sums_of_all_durations() {
        let times = Times::default();
        times.add(Duration::from_micros(1));
        times.add(Duration::from_micros(3));
        times.add(Duration::MAX);
        let read = times.read();
        assert_eq!((read.count(), read.buckets[BUCKETS - 1]), (3, 1));
        assert_eq!(read.buckets[2], 1, "1000 ns are in the bucket up to 1024 ns");
    }
}
