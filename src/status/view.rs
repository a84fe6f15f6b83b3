//! What is shown of the figures, as numbers.

use std::collections::BTreeMap;
use std::time::Duration;

use super::samples::Sample;
use crate::metrics::PREFIX;

/// A daemon at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    pub(super) version: String,
    /// Seconds since 1970.
    pub(super) started: f64,
    pub(super) connected: bool,
    pub(super) requests: u64,
    /// Of those, the ones that ended with anything but OK.
    pub(super) failed: u64,
    pub(super) mappings: u64,
    pub(super) domains: u64,
    pub(super) attachments: u64,
    pub(super) endpoints: BTreeMap<String, Endpoint>,
}

/// An endpoint at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Endpoint {
    /// Faults by what became of them, and how many wait.
    pub(super) faults: BTreeMap<String, u64>,
    pub(super) faults_waiting: u64,
    /// Groups of page requests by how they were answered, and how many wait.
    pub(super) groups: BTreeMap<String, u64>,
    pub(super) groups_waiting: u64,
    /// How long the guest took to answer.
    pub(super) answers: Buckets,
}

/// Times: up to how many seconds each bucket goes, and how many lie in it or below.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Buckets(pub(super) Vec<(f64, u64)>);

impl View {
    /// What the samples say.
    pub(super) fn of(samples: &[Sample]) -> Result<Self, String> {
        let mut view = Self::default();
        let mut known = false;
        for sample in samples {
            let name = sample.name.strip_prefix(PREFIX).and_then(|name| name.strip_prefix('_'));
            if let Some(name) = name {
                known = true;
                view.take(name, sample);
            }
        }
        let sort = |endpoint: &mut Endpoint| endpoint.answers.0.sort_by(|a, b| a.0.total_cmp(&b.0));
        view.endpoints.values_mut().for_each(sort);
        if known { Ok(view) } else { Err(format!("none of them begins with {PREFIX}")) }
    }

    fn take(&mut self, name: &str, sample: &Sample) {
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
            _ => self.take_of_endpoint(name, sample, value),
        }
    }

    fn take_of_endpoint(&mut self, name: &str, sample: &Sample, value: u64) {
        let Some(endpoint) = sample.label("endpoint") else { return };
        let endpoint = self.endpoints.entry(endpoint.into()).or_default();
        let outcome = || sample.label("outcome").unwrap_or_default().to_owned();
        match name {
            "faults_total" => *endpoint.faults.entry(outcome()).or_default() += value,
            "faults_waiting" => endpoint.faults_waiting = value,
            "page_groups_total" => *endpoint.groups.entry(outcome()).or_default() += value,
            "page_groups_waiting" => endpoint.groups_waiting = value,
            "page_group_answer_seconds_bucket" if sample.label("answered_by") == Some("guest") => {
                if let Some(Ok(longest)) = sample.label("le").map(str::parse) {
                    endpoint.answers.0.push((longest, value));
                }
            }
            _ => {}
        }
    }
}

impl Endpoint {
    /// Faults that have ended in a way.
    pub(super) fn faults(&self, outcome: &str) -> u64 {
        self.faults.get(outcome).copied().unwrap_or_default()
    }

    /// Groups that were answered in a way.
    pub(super) fn groups(&self, outcome: &str) -> u64 {
        self.groups.get(outcome).copied().unwrap_or_default()
    }

    pub(super) fn all_faults(&self) -> u64 {
        self.faults.values().sum()
    }

    pub(super) fn all_groups(&self) -> u64 {
        self.groups.values().sum()
    }
}

impl Buckets {
    /// What has come since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let old: Vec<u64> = before.0.iter().map(|(_, count)| *count).collect();
        let new = self.0.iter().enumerate().map(|(index, &(longest, count))| {
            (longest, count.saturating_sub(old.get(index).copied().unwrap_or_default()))
        });
        Self(new.collect())
    }

    /// The time that so much of all is not longer than, to the precision of the buckets: as
    /// Prometheus has it, times are taken to be spread evenly in each. `None`: there are none.
    pub(super) fn quantile(&self, part: f64) -> Option<Duration> {
        let all = self.0.last().map(|(_, count)| *count).filter(|count| *count > 0)?;
        let rank = part * all as f64;
        let at = self.0.iter().position(|(_, count)| *count as f64 >= rank)?;
        let (shortest, below) = at.checked_sub(1).map_or((0.0, 0), |before| self.0[before]);
        let (longest, up_to) = self.0[at];
        let inside = (rank - below as f64) / (up_to - below).max(1) as f64;
        let longest = if longest.is_finite() { longest } else { shortest };
        Duration::try_from_secs_f64(shortest + (longest - shortest) * inside).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples::read;

    #[test]
    fn figures_of_an_endpoint_are_put_together() {
        let text = "vhost_user_iommu_requests_total{type=\"map\",status=\"ok\"} 5\n\
                    vhost_user_iommu_requests_total{type=\"map\",status=\"inval\"} 2\n\
                    vhost_user_iommu_faults_total{endpoint=\"a\",outcome=\"dropped\"} 3\n\
                    vhost_user_iommu_page_groups_waiting{endpoint=\"b\"} 4\n\
                    vhost_user_iommu_front_end_connected 1\nother 3\n# EOF\n";
        let view = View::of(&read(text).unwrap()).unwrap();
        assert_eq!((view.requests, view.failed, view.connected), (7, 2, true));
        assert_eq!(view.endpoints["a"].faults("dropped"), 3);
        assert_eq!(view.endpoints["b"].groups_waiting, 4);
        assert!(View::of(&read("other 3\n# EOF\n").unwrap()).is_err());
    }

    #[test]
    fn quantiles_lie_in_the_bucket_that_has_them() {
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
    fn what_has_come_since_is_a_difference() {
        let before = Buckets(vec![(1.0, 1), (2.0, 3)]);
        let after = Buckets(vec![(1.0, 1), (2.0, 8)]);
        assert_eq!(after.since(&before), Buckets(vec![(1.0, 0), (2.0, 5)]));
        assert_eq!(after.since(&Buckets::default()), after);
    }
}
