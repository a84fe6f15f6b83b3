//! What the daemon's log says of the faults of each endpoint. It has to add up.

use std::collections::BTreeMap;

const PAGE_REQUESTS: &str = "page requests of endpoint ";
const FAULTS: &str = "] faults of endpoint ";
const REQUESTS: &str = "] requests of type ";

/// Numbers by their names, as one line of the log has them.
pub type Counters = BTreeMap<String, u64>;

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

fn assert_groups_add_up(counters: &Counters) {
    let total: u64 = counters.values().sum();
    let (groups, requests) = (counters["groups"], counters["requests"]);
    assert_eq!(total - groups - requests, groups, "{counters:?}");
    assert!((groups..=32 * groups).contains(&requests), "{counters:?}");
}

fn assert_faults_add_up(counters: &Counters) {
    let total: u64 = counters.values().sum();
    assert_eq!(total, 2 * counters["reported"], "{counters:?}");
}

fn assert_requests_add_up(counters: &Counters) {
    let total: u64 = counters.values().sum();
    assert_eq!(total, 2 * counters["received"], "{counters:?}");
}

/// Endpoint (or whatever follows `what`) and counters of each line that `what` begins, but of one that is still being written.
fn lines<'a>(log: &'a str, what: &'a str) -> impl Iterator<Item = (&'a str, Counters)> {
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let texts = whole.lines().filter_map(move |line| Some(line.split_once(what)?.1));
    texts.filter_map(|text| text.split_once(": ")).map(|(endpoint, text)| (endpoint, parse(text)))
}

/// Reads `groups 2 requests 3: success 2, timed out 0`.
fn parse(text: &str) -> Counters {
    let mut counters = Counters::new();
    let mut name = Vec::new();
    for word in text.split([' ', ',', ':']).filter(|word| !word.is_empty()) {
        match word.parse() {
            Ok(number) => counters.insert(std::mem::take(&mut name).join(" "), number),
            Err(_) => {
                name.push(word);
                None
            }
        };
    }
    counters
}
