//! Trace points: the program contains them, and the kernel counts their hits.

use std::collections::BTreeMap;

use crate::uprobe::{Uprobe, trace_points};
use testing::daemon::program;
use testing::paging::Channel;
use testing::vm::Vm;

const IOVA: u64 = 0x7000_0000;

#[test]
fn program_has_trace_points_with_arguments() {
    let points = trace_points(&program());
    let found: BTreeMap<&str, usize> =
        points.iter().map(|(name, locations)| (name.as_str(), locations[0].arguments)).collect();
    let expected = [
        ("fault_delivered", 3),
        ("fault_reported", 4),
        ("group_answered", 4),
        ("page_request_delivered", 5),
        ("page_requested", 4),
        ("request_done", 2),
        ("request_taken", 2),
        ("response_received", 4),
    ];
    assert_eq!(found, expected.into());
    // Tools that confuse the two would put a probe in the middle of an instruction.
    let locations = points.values().flatten();
    locations.for_each(|location| assert_eq!(location.address, location.offset, "{location:x?}"));
}

/// `scripts/test metrics` runs this test if possible.
#[test]
#[ignore = "requires the privilege to probe programs"]
fn each_trace_point_is_hit_for_each_event() {
    let mut vm = Vm::paging("");
    vm.ok(testing::request::attach(1, testing::vm::EP1));
    // The probes of a thread include the threads that it starts later.
    let tasks = || std::fs::read_dir(format!("/proc/{}/task", vm.daemon.pid())).unwrap();
    let threads: Vec<u32> =
        tasks().map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    let mut probes: BTreeMap<String, Vec<Uprobe>> = BTreeMap::new();
    for (name, locations) in trace_points(&program()) {
        let each =
            locations.iter().flat_map(|location| threads.iter().map(move |pid| (location, *pid)));
        let all =
            each.map(|(location, pid)| Uprobe::new(&program(), location.offset, pid).unwrap());
        probes.insert(name, all.collect());
    }
    let channel = Channel::new(0, 0, None);
    vm.open(channel);
    for page in 0..3 {
        let group = vm.fault(channel, IOVA + page * 0x1000);
        vm.resolve(&group);
        vm.outcome(channel).unwrap();
    }
    vm.accel(2).read(IOVA, 8).unwrap_err();
    vm.events.receive();
    let counts: BTreeMap<&str, u64> = probes
        .iter_mut()
        .map(|(name, probes)| (name.as_str(), probes.iter_mut().map(Uprobe::count).sum()))
        .collect();
    let expected = [
        ("fault_delivered", 1),
        ("fault_reported", 1),
        ("group_answered", 3),
        ("page_request_delivered", 3),
        ("page_requested", 3),
        // ATTACH and MAP of the home, then MAP and PAGE_RESP for each page.
        ("request_done", 8),
        ("request_taken", 8),
        ("response_received", 3),
    ];
    assert_eq!(counts, expected.into());
}
