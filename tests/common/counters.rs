//! What the daemon says at its end.

/// What it has counted of page requests, for each endpoint. All that there was, of faults as well,
/// must have ended.
pub fn page_requests(log: &str) -> Vec<Counters> {
    let counters: Vec<_> = log.lines().filter_map(Counters::parse).collect();
    counters.iter().for_each(Counters::check);
    counters.into_iter().filter(|counters| counters.kind == "page requests").collect()
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
pub struct Counters {
    kind: String,
    /// What there was, by name: first of all the number of what has ended.
    totals: Vec<(String, u64)>,
    /// How it ended.
    ends: Vec<(String, u64)>,
}

impl Counters {
    /// From a line like
    /// `page requests of endpoint 0000:00:02.0: groups 3 requests 7: success 2, invalid 1, ...`.
    fn parse(line: &str) -> Option<Self> {
        let (start, counters) = line.split_once(" of endpoint ")?;
        let (_, kind) = start.rsplit_once("] ")?;
        let (_, counters) = counters.split_once(": ")?;
        let (totals, ends) = counters.split_once(": ")?;
        Some(Self { kind: kind.into(), totals: named(totals), ends: named(ends) })
    }

    /// How many of this name.
    pub fn count(&self, name: &str) -> u64 {
        let mut all = self.totals.iter().chain(&self.ends);
        let found = all.find(|(found, _)| found == name);
        found.unwrap_or_else(|| panic!("the daemon does not count '{name}': {self:?}")).1
    }

    /// All that there was has ended.
    fn check(&self) {
        let ends: u64 = self.ends.iter().map(|(_, count)| count).sum();
        assert_eq!(self.totals[0].1, ends, "{self:?}");
        assert_eq!(self.count("waiting"), 0, "{self:?}");
    }
}

/// Numbers, each behind its name.
fn named(text: &str) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    let mut name: Vec<&str> = Vec::new();
    for word in text.split([' ', ',']).filter(|word| !word.is_empty()) {
        match word.parse() {
            Ok(count) => all.push((std::mem::take(&mut name).join(" "), count)),
            Err(_) => name.push(word),
        }
    }
    all
}
