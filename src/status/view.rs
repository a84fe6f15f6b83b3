//! The values that the table shows, collected from the samples.

use std::collections::BTreeMap;
use std::time::Duration;

use super::InvalidResponse;
use super::samples::Sample;
use crate::metrics::PREFIX;

/// The state of a daemon at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    pub(super) version: String,
    /// Start time in seconds since the Unix epoch.
    pub(super) started: f64,
    pub(super) connected: bool,
    pub(super) requests: u64,
    /// Number of these requests with a status other than OK.
    pub(super) failed: u64,
    pub(super) mappings: u64,
    pub(super) domains: u64,
    pub(super) attachments: u64,
    pub(super) endpoints: BTreeMap<String, Endpoint>,
}

/// The state of an endpoint at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Endpoint {
    /// Unrecoverable faults by outcome, and the number of pending ones.
    pub(super) faults: BTreeMap<String, u64>,
    pub(super) faults_waiting: u64,
    /// Page request groups by outcome, and the number of pending ones.
    pub(super) groups: BTreeMap<String, u64>,
    pub(super) groups_waiting: u64,
    /// Response times of the guest.
    pub(super) response_times: Buckets,
}

/// A cumulative histogram: upper bound of each bucket in seconds, and number of durations up to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Buckets(pub(super) Vec<(f64, u64)>);

impl View {
    /// Collects the values from samples.
    pub(super) fn from_samples(samples: &[Sample]) -> Result<Self, InvalidResponse> {
        let mut view = Self::default();
        let mut known = false;
        for sample in samples {
            let name = sample.name.strip_prefix(PREFIX).and_then(|name| name.strip_prefix('_'));
            if let Some(name) = name {
                known = true;
                view.add(name, sample);
            }
        }
        for endpoint in view.endpoints.values_mut() {
            endpoint.response_times.0.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        if known { Ok(view) } else { Err(InvalidResponse::NoMetrics) }
    }

    fn add(&mut self, name: &str, sample: &Sample) {
        let value = sample.value as u64;
        match name {
            "build_info" => self.version = sample.label("version").unwrap_or_default().into(),
            "start_time_seconds" => self.started = sample.value,
            "front_end_connected" => self.connected = value > 0,
            "requests_total" => {
                self.requests += value;
                self.failed += if sample.label("status") == Some("ok") { 0 } else { value };
            }
            "mappings" => self.mappings = value,
            "domains" => self.domains = value,
            "attachments" => self.attachments = value,
            _ => self.add_of_endpoint(name, sample, value),
        }
    }

    fn add_of_endpoint(&mut self, name: &str, sample: &Sample, value: u64) {
        let Some(endpoint) = sample.label("endpoint") else { return };
        let endpoint = self.endpoints.entry(endpoint.into()).or_default();
        let outcome = || sample.label("outcome").unwrap_or_default().to_owned();
        match name {
            "faults_total" => *endpoint.faults.entry(outcome()).or_default() += value,
            "faults_waiting" => endpoint.faults_waiting = value,
            "page_groups_total" => *endpoint.groups.entry(outcome()).or_default() += value,
            "page_groups_waiting" => endpoint.groups_waiting = value,
            "page_group_answer_seconds_bucket" if sample.label("answered_by") == Some("guest") => {
                if let Some(Ok(bound)) = sample.label("le").map(str::parse) {
                    endpoint.response_times.0.push((bound, value));
                }
            }
            _ => {}
        }
    }
}

impl Endpoint {
    /// Returns the number of faults with an outcome.
    pub(super) fn faults(&self, outcome: &str) -> u64 {
        self.faults.get(outcome).copied().unwrap_or_default()
    }

    /// Returns the number of groups with an outcome.
    pub(super) fn groups(&self, outcome: &str) -> u64 {
        self.groups.get(outcome).copied().unwrap_or_default()
    }

    /// Returns the number of faults with any outcome.
    pub(super) fn all_faults(&self) -> u64 {
        self.faults.values().sum()
    }

    /// Returns the number of groups with any outcome.
    pub(super) fn all_groups(&self) -> u64 {
        self.groups.values().sum()
    }
}

impl Buckets {
    /// Returns the durations added since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let old: Vec<u64> = before.0.iter().map(|(_, count)| *count).collect();
        let new = self.0.iter().enumerate().map(|(index, &(bound, count))| {
            (bound, count.saturating_sub(old.get(index).copied().unwrap_or_default()))
        });
        Self(new.collect())
    }

    /// Returns the quantile `part` (0 to 1), interpolated as in Prometheus on the assumption that
    /// durations are distributed evenly within a bucket. `None` if there are no durations.
    pub(super) fn quantile(&self, part: f64) -> Option<Duration> {
        let all = self.0.last().map(|(_, count)| *count).filter(|count| *count > 0)?;
        let rank = part * all as f64;
        let at = self.0.iter().position(|(_, count)| *count as f64 >= rank)?;
        let (lower, below) = at.checked_sub(1).map_or((0.0, 0), |before| self.0[before]);
        let (upper, up_to) = self.0[at];
        let inside = (rank - below as f64) / (up_to - below).max(1) as f64;
        let upper = if upper.is_finite() { upper } else { lower };
        Duration::try_from_secs_f64(lower + (upper - lower) * inside).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples::parse;

    #[test]
    fn samples_are_collected_by_endpoint() {
        let text = "vhost_user_iommu_requests_total{type=\"map\",status=\"ok\"} 5\n\
                    vhost_user_iommu_requests_total{type=\"map\",status=\"inval\"} 2\n\
                    vhost_user_iommu_faults_total{endpoint=\"a\",outcome=\"dropped\"} 3\n\
                    vhost_user_iommu_page_groups_waiting{endpoint=\"b\"} 4\n\
                    vhost_user_iommu_front_end_connected 1\nother 3\n# EOF\n";
        let view = View::from_samples(&parse(text).unwrap()).unwrap();
        assert_eq!((view.requests, view.failed, view.connected), (7, 2, true));
        assert_eq!(view.endpoints["a"].faults("dropped"), 3);
        assert_eq!(view.endpoints["b"].groups_waiting, 4);
        assert!(View::from_samples(&parse("other 3\n# EOF\n").unwrap()).is_err());
    }

    #[test]
    fn quantiles_are_interpolated_within_a_bucket() {
        let buckets = Buckets(vec![(1.0, 0), (2.0, 90), (4.0, 100), (f64::INFINITY, 100)]);
        let seconds = |part| buckets.quantile(part).map(|time| time.as_secs_f64());
        assert_eq!(seconds(0.9), Some(2.0));
        assert_eq!(seconds(0.45), Some(1.5));
        assert_eq!(seconds(0.95), Some(3.0));
        assert_eq!(Buckets(vec![(1.0, 0), (f64::INFINITY, 0)]).quantile(0.5), None);
        assert_eq!(Buckets::default().quantile(0.5), None);
        let beyond = Buckets(vec![(1.0, 0), (f64::INFINITY, 5)]);
        assert_eq!(beyond.quantile(0.5), Some(Duration::from_secs(1)));
    }

    #[test]
    fn since_subtracts_counts() {
        let before = Buckets(vec![(1.0, 1), (2.0, 3)]);
        let after = Buckets(vec![(1.0, 1), (2.0, 8)]);
        assert_eq!(after.since(&before), Buckets(vec![(1.0, 0), (2.0, 5)]));
        assert_eq!(after.since(&Buckets::default()), after);
    }
}
