//! A nested guest, from the daemon's endpoint in the host to a process of the guest.
//! `scripts/guest/chain` runs it.

use testing::counters::{self, Counters};
use testing::machine::kernel_log;
use testing::testbed::report;

use crate::host::Host;

/// The configuration of a nested guest.
pub struct Chain {
    /// The kind of the endpoint, as the daemon's option names it.
    pub kind: &'static str,
    /// Further options of the daemon.
    pub daemon: &'static str,
    /// Options of `guest-dma sva`.
    pub process: &'static str,
}

/// The mock device has addresses of 38 bits, so the process must not use higher ones.
pub const MOCK: Chain =
    Chain { kind: "mock", daemon: "--input-range 0-0x3fffffffff", process: "--below 0x4000000000" };

impl Chain {
    /// Runs scenarios of `guest-dma sva`, from the daemon's start to its end. Returns the daemon's
    /// counters.
    pub fn run(&self, host: &mut Host, scenarios: &[&str]) -> Counters {
        let Self { kind, daemon, process } = self;
        let (sva, all) = (format!("sva 00:02.0 {process}"), scenarios.join(" "));
        let output = host.run(&format!("sh /host/chain {kind} '{daemon}' '{sva}' {all}"));
        for scenario in scenarios {
            let start = format!("ok: {scenario}: ");
            let result = lines_of(&output, "guest").find(|line| line.starts_with(&start));
            let result = result.unwrap_or_else(|| panic!("{scenario} failed:\n{output}"));
            report(&format!("chain with {kind}: {result}"));
        }
        check_guest(&output);
        let counters = check_daemon(&output);
        report(&format!("chain with {kind}: {counters:?}"));
        counters
    }
}

fn check_guest(output: &str) {
    let console = lines_of(output, "guest").collect::<Vec<_>>().join("\n");
    let failures = kernel_log::failures(&console, &[]);
    assert!(failures.is_empty(), "the nested guest's kernel logged: {failures:#?}");
}

/// Checks that the daemon has one endpoint, which has made page requests, none of them pending.
fn check_daemon(output: &str) -> Counters {
    let log = lines_of(output, "daemon").collect::<Vec<_>>().join("\n");
    for word in ["ERROR", "panicked at"] {
        assert!(!log.contains(word), "the daemon logged {word}:\n{log}");
    }
    let mut counters = counters::page_requests_at_end(&log);
    assert_eq!(counters.len(), 1, "{counters:?}");
    counters.iter().for_each(counters::assert_all_completed_by_driver);
    counters.remove(0)
}

/// Returns the output of the guest or the daemon.
fn lines_of<'a>(output: &'a str, program: &str) -> impl Iterator<Item = &'a str> {
    let prefix = format!("{program}: ");
    output.lines().filter_map(move |line| line.strip_prefix(&prefix))
}
