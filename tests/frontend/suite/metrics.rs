//! Metrics: they match the operations and the counters in the log.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use testing::counters::{self, Counters};
use testing::memory::PAGE;
use testing::metrics::{self, METRICS, Metrics, scrape};
use testing::paging::{Channel, FAILURE, INVALID};
use testing::request::status::*;
use testing::request::{RW, Request, attach, detach, map, probe, unmap};
use testing::vm::{DATA, ENDPOINTS, EP0, EP1, NO_ENDPOINT, Vm};
use testing::wait;

const IOVA: u64 = 0x7000_0000;
const OWN: Channel = Channel::new(0, 0, None);
const OTHER: Channel = Channel::new(1, 0, None);

/// The endpoints as the metrics name them.
const NAMES: [&str; 3] = ["0000:00:02.0", "0001:02:03.4", "0000:00:1f.7"];

fn page(index: u64) -> (u64, u64) {
    (IOVA + index * PAGE, IOVA + index * PAGE + PAGE - 1)
}

fn map_page(index: u64) -> Request {
    let (first, last) = page(index);
    map(1, first, last, DATA, RW)
}

fn counts<const N: usize>(counts: [(&str, u64); N]) -> BTreeMap<String, u64> {
    counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

#[test]
fn requests_are_counted_by_type_and_status() {
    let mut vm = Vm::realized(METRICS);
    vm.start();
    vm.ok(attach(1, EP0));
    vm.ok(attach(2, EP1));
    vm.expect(NOENT, attach(1, NO_ENDPOINT));
    (0..5).for_each(|index| vm.ok(map_page(index)));
    vm.expect(INVAL, map_page(0));
    vm.expect(RANGE, map(1, IOVA + 1, IOVA + PAGE, DATA, RW));
    vm.expect(NOENT, map(7, 0, PAGE - 1, DATA, RW));
    vm.ok(unmap(1, IOVA, page(1).1));
    vm.ok(detach(2, EP1));
    let probe_size = vm.front_end.config().probe_size as usize;
    vm.ok(probe(EP0, probe_size));
    vm.expect(INVAL, probe(EP0, probe_size - 1));
    assert!(vm.send(&Request::new(77)).is_unwritten());
    assert!(vm.send(&map_page(9).cut(3)).is_unwritten());
    assert!(vm.send(&map_page(9).writable(3)).is_unwritten());

    let metrics = scrape(&vm.daemon);
    let rows = [
        ("attach", counts([("ok", 2), ("noent", 1)])),
        ("detach", counts([("ok", 1)])),
        ("map", counts([("ok", 5), ("inval", 1), ("range", 1), ("noent", 1), ("unwritten", 1)])),
        ("unmap", counts([("ok", 1)])),
        ("probe", counts([("ok", 1), ("inval", 1)])),
        ("page_response", counts([])),
        ("unknown", counts([("unwritten", 2)])),
    ];
    for (kind, expected) in rows {
        assert_eq!(metrics.requests(kind), expected, "{kind}");
    }
}

#[test]
fn mappings_domains_and_attachments_are_shown() {
    let state = |vm: &Vm| {
        let metrics = scrape(&vm.daemon);
        ["mappings", "domains", "attachments", "endpoints"].map(|name| metrics.get(name))
    };
    let mut vm = Vm::new(METRICS);
    assert_eq!(state(&vm), [0, 0, 0, 3]);
    vm.ok(attach(1, EP0));
    vm.ok(attach(1, EP1));
    (0..5).for_each(|index| vm.ok(map_page(index)));
    assert_eq!(state(&vm), [5, 1, 2, 3]);
    vm.ok(unmap(1, page(1).0, page(2).1));
    vm.ok(detach(1, EP0));
    assert_eq!(state(&vm), [3, 1, 1, 3]);
    vm.reset();
    assert_eq!(state(&vm), [0, 0, 0, 3]);
    vm.ok(attach(1, EP0));
    vm.ok(map_page(0));
    vm.lose_front_end();
    assert_eq!(state(&vm), [0, 0, 0, 3]);
}

#[test]
fn front_ends_and_the_request_queue_are_counted() {
    let daemon = testing::vm::daemon(METRICS);
    let connected =
        |metrics: &Metrics| (metrics.get("front_end_connected"), metrics.get("front_ends_total"));
    assert_eq!(connected(&scrape(&daemon)), (0, 0));
    let mut vm = Vm::realized_on(daemon);
    vm.start();
    assert_eq!(connected(&scrape(&vm.daemon)), (1, 1));
    vm.lose_front_end();
    (0..100).for_each(|_| vm.expect(NOENT, detach(1, NO_ENDPOINT)));
    assert_eq!(connected(&scrape(&vm.daemon)), (1, 2));
    let (metrics, batches) = wait::until("sleep after all batches", || {
        let metrics = scrape(&vm.daemon);
        let found = metrics.by_label("request_queue_batches_total{found_by=\"", "\"}");
        let sleeps = metrics.get("request_queue_sleeps_total") > 0;
        // One request at a time, so each is a batch.
        (sleeps && found.values().sum::<u64>() == 101).then_some((metrics, found))
    });
    assert!(metrics.get("driver_signals_total{queue=\"request\"}") > 0);
    assert!(metrics.get("request_queue_wake_ups_total") > 0);
    let timed = metrics.get("request_batch_seconds_count");
    assert_eq!(metrics.get("request_batch_seconds_bucket{le=\"+Inf\"}"), timed);
    assert_eq!(timed, 13, "one of eight of {batches:?}");
    let Vm { daemon, front_end, .. } = vm;
    drop(front_end);
    wait::until("no front end", || (connected(&scrape(&daemon)) == (0, 2)).then_some(()));
}

/// Causes faults and groups with several outcomes.
fn make_faults(vm: &mut Vm) {
    vm.open(OWN);
    vm.open(OTHER);
    for page in 0..3 {
        let group = vm.fault(OWN, IOVA + page * PAGE);
        vm.resolve(&group);
        assert_eq!(vm.outcome(OWN), Ok(()));
    }
    let group = vm.fault(OWN, IOVA + 10 * PAGE);
    vm.ok(group.response(INVALID));
    vm.outcome(OWN).unwrap_err();
    let group = vm.fault(OTHER, IOVA);
    vm.accel(1).reset();
    vm.expect(NOENT, group.response(INVALID));
    vm.accel(2).read(IOVA, 8).unwrap_err();
    assert_eq!(vm.events.receive().endpoint, ENDPOINTS[2].1);
}

/// Returns the counters of the log with the names of the labels.
fn labels(counters: &Counters, without: &[&str]) -> BTreeMap<String, u64> {
    let some =
        counters.iter().filter(|(name, count)| **count > 0 && !without.contains(&name.as_str()));
    some.map(|(name, count)| (name.replace(' ', "_"), *count)).collect()
}

#[test]
fn fault_counters_match_the_log() {
    let mut vm = Vm::paging(METRICS);
    make_faults(&mut vm);
    let group = vm.fault(OWN, IOVA + 20 * PAGE);
    let metrics = scrape(&vm.daemon);
    for (index, endpoint) in NAMES.into_iter().enumerate() {
        let groups = vm.page_requests(index);
        let logged = labels(&groups, &["groups", "requests", "waiting"]);
        assert_eq!(metrics.outcomes("page_groups_total", endpoint), logged, "{endpoint}");
        assert_eq!(metrics.of("page_groups_waiting", endpoint), groups["waiting"]);
        assert_eq!(metrics.of("page_requests_total", endpoint), groups["requests"]);
        let faults = vm.faults(index);
        let logged = labels(&faults, &["reported", "waiting"]);
        assert_eq!(metrics.outcomes("faults_total", endpoint), logged, "{endpoint}");
        assert_eq!(metrics.of("faults_waiting", endpoint), faults["waiting"]);
        let answered = |by: &str| {
            let labels = format!("{{endpoint=\"{endpoint}\",answered_by=\"{by}\"}}");
            metrics.get(&format!("page_group_answer_seconds_count{labels}"))
        };
        let by_guest = groups["success"] + groups["invalid"] + groups["failure"];
        assert_eq!(answered("guest"), by_guest, "{endpoint}");
        assert_eq!(answered("daemon"), groups["groups"] - by_guest - groups["waiting"]);
    }
    assert_eq!(metrics.of("page_groups_waiting", NAMES[0]), 1);
    assert_eq!(metrics.outcomes("page_groups_total", NAMES[0])["success"], 3);
    vm.ok(group.response(FAILURE));
}

#[test]
fn last_scrape_matches_log_on_exit() {
    let mut vm = Vm::paging(METRICS);
    make_faults(&mut vm);
    vm.expect(NOENT, detach(9, NO_ENDPOINT));
    vm.send(&Request::new(200));
    let metrics = scrape(&vm.daemon);
    vm.daemon.stop(libc::SIGTERM);
    let log = vm.daemon.log();

    let requests = counters::requests(&log);
    assert!(requests.len() >= 5, "{requests:?}");
    for kind in ["attach", "detach", "map", "unmap", "probe", "page_response", "unknown"] {
        let logged = requests.get(kind).map(|counters| labels(counters, &["received"]));
        assert_eq!(metrics.requests(kind), logged.unwrap_or_default(), "{kind}");
    }
    for (index, (bdf, _)) in ENDPOINTS.into_iter().enumerate() {
        let last = counters::page_requests(&log, bdf).pop().unwrap();
        let groups = labels(&last, &["groups", "requests", "waiting"]);
        assert_eq!(metrics.outcomes("page_groups_total", NAMES[index]), groups, "{bdf}");
        let last = counters::faults(&log, bdf).pop().unwrap();
        let faults = labels(&last, &["reported", "waiting"]);
        assert_eq!(metrics.outcomes("faults_total", NAMES[index]), faults, "{bdf}");
    }
}

#[test]
fn metrics_socket_has_given_permissions() {
    let mut daemon = testing::vm::daemon(&format!("{METRICS} --socket-mode 600"));
    let socket = daemon.file("metrics");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    daemon.stop(libc::SIGTERM);
    assert!(!socket.exists(), "the socket remains");
}

#[test]
fn metrics_socket_requires_option() {
    let vm = Vm::new("");
    assert!(!vm.daemon.file("metrics").exists());
}

/// `scripts/test metrics` installs the parser and runs this test.
#[test]
#[ignore = "requires Debian's python3-prometheus-client"]
fn an_independent_parser_accepts_all_metrics() {
    const PROGRAM: &str = "
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
for family in parse(sys.stdin.read()):
    for sample in family.samples:
        print(family.type, sample.name, *sorted(sample.labels.values()), float(sample.value))
";
    let mut vm = Vm::paging(METRICS);
    make_faults(&mut vm);
    let text = metrics::text(&vm.daemon);
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", PROGRAM])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "not OpenMetrics:\n{text}");
    let read = String::from_utf8(output.stdout).unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(read.lines().count(), samples, "not all of them were read");
    for line in [
        "counter vhost_user_iommu_page_groups_total 0000:00:02.0 success 3.0",
        "gauge vhost_user_iommu_endpoints 3.0",
        "histogram vhost_user_iommu_page_group_answer_seconds_bucket +Inf 0000:00:02.0 guest 4.0",
        "info vhost_user_iommu_build_info 0.1.0 1.0",
    ] {
        assert!(read.lines().any(|read| read == line), "no line '{line}' in:\n{read}");
    }
}
