//! More page request groups than the limit of an endpoint, and an endpoint that makes page
//! requests without end.

use std::collections::HashMap;

use testing::accel::{Accel, denied_write};
use testing::daemon;
use testing::memory::PAGE;
use testing::paging::{Channel, Group, INVALID, SUCCESS};
use testing::request::status::*;
use testing::vm::{EP0, Vm};

const IOVA: u64 = 0x7000_0000;
const PASID: u32 = 0x12345;
const OTHER: Channel = Channel::new(1, 0, Some(PASID));
const CHANNELS: u64 = Accel::CHANNELS as u64;

fn channels() -> impl Iterator<Item = Channel> {
    (0..Accel::CHANNELS).map(|number| Channel::new(0, number, Some(PASID)))
}

fn address(channel: Channel) -> u64 {
    IOVA + u64::from(channel.number) * 0x10_0000
}

/// Makes page requests for `pages` pages on each channel of endpoint 0.
fn storm(args: &str, pages: u32) -> Vm {
    let mut vm = Vm::open_on(args, channels().next().unwrap());
    vm.open(OTHER);
    vm.accel(0).group_pages = pages;
    channels().for_each(|channel| vm.write_pages(channel, address(channel), pages.into()));
    vm
}

#[test]
fn outstanding_groups_are_limited_and_none_is_lost() {
    let sizes: &[u32] = if daemon::has_small_groups() { &[1] } else { &[1, 4] };
    for limit in [1, 5] {
        for &pages in sizes {
            let mut vm = storm(&format!("--max-page-groups {limit}"), pages);
            let mut outstanding: Vec<_> = (0..limit).map(|_| vm.group()).collect();
            for done in 1..=CHANNELS {
                vm.assert_no_event(OTHER);
                vm.assert_groups(0, &pending_and_success(outstanding.len() as u64, done - 1));
                let group = outstanding.remove(0);
                vm.resolve(&group);
                if done + (outstanding.len() as u64) < CHANNELS {
                    outstanding.push(vm.group());
                }
            }
            channels().for_each(|channel| assert_eq!(vm.outcome(channel), Ok(())));
            vm.assert_groups(0, &[("success", CHANNELS)]);
            vm.assert_requests(0, CHANNELS * u64::from(pages));
        }
    }
}

fn pending_and_success(pending: u64, success: u64) -> Vec<(&'static str, u64)> {
    [("waiting", pending), ("success", success)].into_iter().filter(|(_, n)| *n > 0).collect()
}

#[test]
fn page_requests_beyond_limit_continue_after_detach() {
    let mut vm = storm("--max-page-groups 2", 1);
    let other = Channel::new(0, 0, Some(7));
    vm.open(other);
    let groups = [vm.group(), vm.group()];
    vm.ok(OTHER.detach());
    vm.ok(channels().next().unwrap().detach());
    for group in groups {
        vm.expect(NOENT, group.response(SUCCESS));
    }
    assert!(channels().all(|channel| vm.outcome(channel).is_err()));
    let group = vm.fault(other, IOVA);
    vm.resolve(&group);
    assert_eq!(vm.outcome(other), Ok(()));
    assert_eq!(vm.page_requests(0)["waiting"], 0);
}

#[test]
fn page_requests_beyond_limit_continue_after_deadlines() {
    let mut vm = storm("--max-page-groups 4 --page-response-timeout 0.1", 1);
    channels().for_each(|channel| assert_eq!(vm.outcome(channel), denied_write(address(channel))));
    vm.assert_groups(0, &[("timed out", CHANNELS)]);
}

#[test]
fn group_limit_applies_to_each_endpoint_separately() {
    let mut vm = storm("--max-page-groups 1", 1);
    let pending = vm.group();
    assert_eq!(pending.endpoint, EP0);
    for page in 0..10 {
        let group = vm.fault(OTHER, IOVA + page * PAGE);
        vm.resolve(&group);
        assert_eq!(vm.outcome(OTHER), Ok(()));
    }
    vm.assert_groups(0, &[("waiting", 1)]);
}

/// Responds SUCCESS to a group without mapping its page, so that it is requested again.
fn respond_without_mapping(vm: &mut Vm, group: &Group) {
    assert_eq!(group.endpoint, EP0);
    vm.ok(group.response(SUCCESS));
}

#[test]
fn endless_page_requests_do_not_starve_other_endpoint() {
    let mut vm = storm("", 1);
    for page in 0..50 {
        vm.write_pages(OTHER, IOVA + page * PAGE, 1);
        let group = loop {
            match vm.group() {
                group if group.endpoint == OTHER.endpoint() => break group,
                group => respond_without_mapping(&mut vm, &group),
            }
        };
        vm.resolve(&group);
        assert_eq!(vm.outcome(OTHER), Ok(()));
    }
    vm.assert_groups(1, &[("success", 50)]);
    // INVALID for each channel ends the page requests.
    let mut ended = HashMap::new();
    while ended.len() < CHANNELS as usize {
        let group = vm.group();
        vm.ok(group.response(INVALID));
        assert_eq!(ended.insert(group.pages[0], ()), None, "requested again after INVALID");
    }
    channels().for_each(|channel| assert_eq!(vm.outcome(channel), denied_write(address(channel))));
    let counters = vm.page_requests(0);
    assert_eq!((counters["invalid"], counters["waiting"]), (CHANNELS, 0));
}

#[test]
fn detach_ends_endless_page_requests() {
    let mut vm = storm("", 1);
    for _ in 0..1000 {
        let group = vm.group();
        respond_without_mapping(&mut vm, &group);
    }
    vm.ok(channels().next().unwrap().detach());
    assert!(channels().all(|channel| vm.outcome(channel).is_err()));
    while let Some(group) = vm.try_group() {
        vm.expect(NOENT, group.response(SUCCESS));
    }
    vm.assert_no_event(OTHER);
    let counters = vm.page_requests(0);
    assert_eq!((counters["success"], counters["waiting"]), (1000, 0));
}
