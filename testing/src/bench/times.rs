//! Samples of durations, and their quantiles.

use std::time::Duration;

/// Samples in microseconds.
///
/// ```
/// use std::time::Duration;
///
/// use testing::bench::Times;
///
/// let mut times = Times::default();
/// [1, 2, 9].map(|us| times.add(Duration::from_micros(us)));
/// assert_eq!(times.p50(), 2.0);
/// ```
#[derive(Default)]
pub struct Times(Vec<f64>);

impl Times {
    /// Adds a sample.
    pub fn add(&mut self, time: Duration) {
        self.0.push(time.as_nanos() as f64 / 1e3);
    }

    /// Returns the differences of samples with the same index.
    pub fn less(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a - b).collect())
    }

    /// Returns the median.
    pub fn p50(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Returns the 99th percentile.
    pub fn p99(&self) -> f64 {
        self.quantile(0.99)
    }

    fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[((sorted.len() - 1) as f64 * part) as usize]
    }
}
