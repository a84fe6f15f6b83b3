//! The lines of the daemon's log that count.

use std::collections::BTreeMap;

pub const PAGE_REQUESTS: &str = "page requests of endpoint ";
pub const FAULTS: &str = "faults of endpoint ";

/// Numbers by their names, as one line of the log has them.
pub type Counters = BTreeMap<String, u64>;

pub fn assert_groups_add_up(counters: &Counters) {
    let total: u64 = counters.values().sum();
    let (groups, requests) = (counters["groups"], counters["requests"]);
    assert_eq!(total - groups - requests, groups, "{counters:?}");
    assert!((groups..=32 * groups).contains(&requests), "{counters:?}");
}

pub fn assert_faults_add_up(counters: &Counters) {
    let total: u64 = counters.values().sum();
    assert_eq!(total, 2 * counters["reported"], "{counters:?}");
}

/// What follows `what`, and the counters, of each line that it begins, but not of one that is still
/// being written.
pub fn lines<'a>(log: &'a str, what: &'a str) -> impl Iterator<Item = (&'a str, Counters)> {
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let said = whole.lines().filter_map(|line| Some(line.rsplit_once("] ")?.1));
    let texts = said.filter_map(move |text| text.strip_prefix(what));
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
