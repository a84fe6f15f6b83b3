//! A guest in the host: the daemon's endpoint there, and all that is between it and a process of
//! the guest. `scripts/guest/chain` runs it.

use testing::counters::{self, Counters};
use testing::machine::kernel_log;
use testing::testbed::report;

use crate::host::Host;

/// What is in the chain.
pub struct Chain {
    /// The kind of the endpoint, as the daemon's option names it.
    pub kind: &'static str,
    /// Further options of the daemon.
    pub daemon: &'static str,
    /// Options of `guest-dma sva`.
    pub process: &'static str,
}

/// The mock maps 38 bits of addresses, so the process must do with them.
pub const MOCK: Chain =
    Chain { kind: "mock", daemon: "--input-range 0-0x3fffffffff", process: "--below 0x4000000000" };

impl Chain {
    /// Runs scenarios of `guest-dma sva`, from the daemon's start to its end. Returns what it has
    /// counted.
    pub fn run(&self, host: &mut Host, scenarios: &[&str]) -> Counters {
        let Self { kind, daemon, process } = self;
        let (sva, all) = (format!("sva 00:02.0 {process}"), scenarios.join(" "));
        let output = host.run(&format!("sh /host/chain {kind} '{daemon}' '{sva}' {all}"));
        for scenario in scenarios {
            let start = format!("ok: {scenario}: ");
            let result = said_by(&output, "guest").find(|line| line.starts_with(&start));
            let result = result.unwrap_or_else(|| panic!("{scenario} has failed:\n{output}"));
            report(&format!("chain with {kind}: {result}"));
        }
        check_guest(&output);
        let counters = check_daemon(&output);
        report(&format!("chain with {kind}: {counters:?}"));
        counters
    }
}

fn check_guest(output: &str) {
    let console = said_by(output, "guest").collect::<Vec<_>>().join("\n");
    let complaints = kernel_log::failures(&console, &[]);
    assert!(complaints.is_empty(), "the nested guest's kernel says: {complaints:#?}");
}

/// There is one endpoint, which has been at work, and nothing is left of that.
fn check_daemon(output: &str) -> Counters {
    let log = said_by(output, "daemon").collect::<Vec<_>>().join("\n");
    for word in ["ERROR", "panicked at"] {
        assert!(!log.contains(word), "the daemon says {word}:\n{log}");
    }
    let mut counters = counters::page_requests_at_end(&log);
    assert_eq!(counters.len(), 1, "{counters:?}");
    counters.iter().for_each(counters::assert_all_answered);
    counters.remove(0)
}

/// What one of them has said.
fn said_by<'a>(output: &'a str, who: &str) -> impl Iterator<Item = &'a str> {
    let prefix = format!("{who}: ");
    output.lines().filter_map(move |line| line.strip_prefix(&prefix))
}
