//! Counters in the daemon's log. The outcomes of each line must add up to its total.

use std::collections::BTreeMap;

const REQUESTS: &str = "requests of type ";
const PAGE_REQUESTS: &str = "page requests of endpoint ";
const FAULTS: &str = "faults of endpoint ";

/// Maximum number of page requests of a group.
const MAX_GROUP: u64 = 32;

/// Values of one log line by their names.
pub type Counters = BTreeMap<String, u64>;

/// Returns the counters logged so far of page request groups of the endpoint at `bdf`, oldest
/// first: `groups`, `requests`, and the outcomes of the groups.
///
/// ```
/// use testing::counters;
///
/// let log = "[INFO] page requests of endpoint 0000:00:02.0: \
///            groups 2 requests 3: success 1, timed out 1\n";
/// let counters = counters::page_requests(log, "00:02.0");
/// assert_eq!(counters[0]["timed out"], 1);
/// ```
pub fn page_requests(log: &str, bdf: &str) -> Vec<Counters> {
    of_endpoint(log, PAGE_REQUESTS, bdf).inspect(assert_groups_add_up).collect()
}

/// Returns the counters logged so far of unrecoverable faults of the endpoint at `bdf`, oldest
/// first: `reported`, and the outcomes.
pub fn faults(log: &str, bdf: &str) -> Vec<Counters> {
    of_endpoint(log, FAULTS, bdf).inspect(assert_faults_add_up).collect()
}

/// Returns the latest counters of requests by type: `received`, and the statuses.
pub fn requests(log: &str) -> BTreeMap<&str, Counters> {
    lines(log, REQUESTS).inspect(|(_, counters)| assert_requests_add_up(counters)).collect()
}

/// Returns the counters of page requests of each endpoint, from a log whose counters were all
/// written after the last access: none may count a group or a fault that is still queued.
pub fn page_requests_at_end(log: &str) -> Vec<Counters> {
    // The last line is complete, with or without a newline.
    let log = format!("{log}\n");
    for (endpoint, counters) in lines(&log, FAULTS) {
        assert_faults_add_up(&counters);
        assert_eq!(counters["waiting"], 0, "{FAULTS}{endpoint}: {counters:?}");
    }
    let page_requests = lines(&log, PAGE_REQUESTS).inspect(|(endpoint, counters)| {
        assert_groups_add_up(counters);
        assert_eq!(counters["waiting"], 0, "{PAGE_REQUESTS}{endpoint}: {counters:?}");
    });
    page_requests.map(|(_, counters)| counters).collect()
}

/// Checks the log of a daemon that has exited: each line adds up, and the last one of each
/// endpoint counts no group and no fault that is still queued.
pub fn assert_none_pending(log: &str) {
    lines(log, PAGE_REQUESTS).for_each(|(_, counters)| assert_groups_add_up(&counters));
    lines(log, FAULTS).for_each(|(_, counters)| assert_faults_add_up(&counters));
    requests(log);
    for kind in [PAGE_REQUESTS, FAULTS] {
        let last: BTreeMap<_, _> = lines(log, kind).collect();
        for (endpoint, counters) in last {
            assert_eq!(counters["waiting"], 0, "{kind}{endpoint}: {counters:?}");
        }
    }
}

/// Checks that an endpoint has made page requests, and that the driver has completed all groups in
/// time.
pub fn assert_all_completed_by_driver(counters: &Counters) {
    assert!(counters["success"] > 0, "{counters:?}");
    for outcome in ["failure", "timed out", "reset"] {
        assert_eq!(counters[outcome], 0, "groups with outcome '{outcome}': {counters:?}");
    }
}

fn assert_groups_add_up(counters: &Counters) {
    let total: u64 = counters.values().sum();
    let (groups, requests) = (counters["groups"], counters["requests"]);
    assert_eq!(total - groups - requests, groups, "{counters:?}");
    assert!((groups..=MAX_GROUP * groups).contains(&requests), "{counters:?}");
}

fn assert_faults_add_up(counters: &Counters) {
    let total: u64 = counters.values().sum();
    assert_eq!(total, 2 * counters["reported"], "{counters:?}");
}

fn assert_requests_add_up(counters: &Counters) {
    let total: u64 = counters.values().sum();
    assert_eq!(total, 2 * counters["received"], "{counters:?}");
}

fn of_endpoint<'a>(log: &'a str, kind: &'a str, bdf: &'a str) -> impl Iterator<Item = Counters> {
    lines(log, kind)
        .filter(move |(endpoint, _)| endpoint.ends_with(bdf))
        .map(|(_, counters)| counters)
}

/// Returns the subject and the counters of each log message that starts with `kind`. Ignores the
/// last line until its newline is written.
fn lines<'a>(log: &'a str, kind: &'a str) -> impl Iterator<Item = (&'a str, Counters)> {
    let complete = log.rsplit_once('\n').map_or("", |(complete, _)| complete);
    complete.lines().filter_map(move |line| {
        let (_, message) = line.rsplit_once("] ")?;
        let (subject, counters) = message.strip_prefix(kind)?.split_once(": ")?;
        Some((subject, parse(counters)))
    })
}

/// Parses `groups 2 requests 3: success 2, timed out 0`.
fn parse(text: &str) -> Counters {
    let mut counters = Counters::new();
    let mut name = Vec::new();
    for word in text.split([' ', ',', ':']).filter(|word| !word.is_empty()) {
        match word.parse() {
            Ok(value) => {
                counters.insert(std::mem::take(&mut name).join(" "), value);
            }
            Err(_) => name.push(word),
        }
    }
    counters
}
