//! What the daemon's log says of requests, and of the faults of each endpoint. It has to add up.

use std::collections::BTreeMap;

#[path = "../common/counter_lines.rs"]
mod counter_lines;

pub use counter_lines::Counters;
use counter_lines::{FAULTS, PAGE_REQUESTS, assert_faults_add_up, assert_groups_add_up, lines};

const REQUESTS: &str = "requests of type ";

/// What was said so far of the page request groups of the endpoint at `bdf`, oldest first:
/// `groups`, `requests`, and what became of the groups.
pub fn page_requests(log: &str, bdf: &str) -> Vec<Counters> {
    of_endpoint(log, PAGE_REQUESTS, bdf).inspect(assert_groups_add_up).collect()
}

/// The same of faults that are only reported: `reported`, and what became of them.
pub fn faults(log: &str, bdf: &str) -> Vec<Counters> {
    of_endpoint(log, FAULTS, bdf).inspect(assert_faults_add_up).collect()
}

/// What was said last of the requests of each type: `received`, and how they ended.
pub fn requests(log: &str) -> BTreeMap<&str, Counters> {
    lines(log, REQUESTS).inspect(|(_, counters)| assert_requests_add_up(counters)).collect()
}

fn of_endpoint<'a>(log: &'a str, what: &'a str, bdf: &'a str) -> impl Iterator<Item = Counters> {
    let of_bdf = move |(endpoint, _): &(&str, _)| endpoint.ends_with(bdf);
    lines(log, what).filter(of_bdf).map(|(_, counters)| counters)
}

/// Checks the log of a daemon that has ended after it has run.
pub fn assert_nothing_left(log: &str) {
    lines(log, PAGE_REQUESTS).for_each(|(_, counters)| assert_groups_add_up(&counters));
    lines(log, FAULTS).for_each(|(_, counters)| assert_faults_add_up(&counters));
    requests(log);
    for what in [PAGE_REQUESTS, FAULTS] {
        let last: BTreeMap<_, _> = lines(log, what).collect();
        for (endpoint, counters) in last {
            assert_eq!(counters["waiting"], 0, "{what}{endpoint}: {counters:?}");
        }
    }
}

fn assert_requests_add_up(counters: &Counters) {
    let total: u64 = counters.values().sum();
    assert_eq!(total, 2 * counters["received"], "{counters:?}");
}
