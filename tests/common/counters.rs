//! What the daemon says at its end.

#[path = "counter_lines.rs"]
mod counter_lines;

use counter_lines::{FAULTS, PAGE_REQUESTS, assert_faults_add_up, assert_groups_add_up, lines};

/// What it has counted of page requests, for each endpoint. All that there was, of faults as well,
/// must have ended.
pub fn page_requests(log: &str) -> Vec<Counters> {
    // Whoever reads it has seen the daemon's end, and so the end of the last line.
    let log = format!("{log}\n");
    let of = |what| lines(&log, what).map(|(_, counters)| Counters(counters));
    of(FAULTS).for_each(|counters| {
        assert_faults_add_up(&counters.0);
        counters.assert_ended();
    });
    let all: Vec<_> = of(PAGE_REQUESTS).collect();
    all.iter().for_each(|counters| {
        assert_groups_add_up(&counters.0);
        counters.assert_ended();
    });
    all
}

/// That an endpoint has been at work, and all its groups have been answered in time.
pub fn assert_answered(counters: &Counters) {
    assert!(counters.count("success") > 0, "{counters:?}");
    for end in ["failure", "timed out", "reset"] {
        assert_eq!(counters.count(end), 0, "groups that ended with '{end}': {counters:?}");
    }
}

/// What the daemon has counted of an endpoint's faults, or of its page requests.
#[derive(Debug)]
pub struct Counters(counter_lines::Counters);

impl Counters {
    /// How many of this name.
    pub fn count(&self, name: &str) -> u64 {
        let count = self.0.get(name).copied();
        count.unwrap_or_else(|| panic!("the daemon does not count '{name}': {self:?}"))
    }

    /// All that there was has ended.
    fn assert_ended(&self) {
        assert_eq!(self.count("waiting"), 0, "{self:?}");
    }
}
