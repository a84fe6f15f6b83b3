//! More groups than an endpoint can have, and an endpoint that never stops asking.

use std::collections::HashMap;

use testing::accel::{Accel, denied_write};
use testing::daemon;
use testing::memory::PAGE;
use testing::paging::{Channel, Group, INVALID, SUCCESS};
use testing::request::status::*;
use testing::vm::{EP0, Vm};

const IOVA: u64 = 0x7000_0000;
const PASID: u32 = 0x12345;
const QUIET: Channel = Channel::new(1, 0, Some(PASID));
const CHANNELS: u64 = Accel::CHANNELS as u64;

fn channels() -> impl Iterator<Item = Channel> {
    (0..Accel::CHANNELS).map(|number| Channel::new(0, number, Some(PASID)))
}

fn address(channel: Channel) -> u64 {
    IOVA + u64::from(channel.number) * 0x10_0000
}

/// All channels of endpoint 0 ask for `pages` pages each.
fn storm(args: &str, pages: u32) -> Vm {
    let mut vm = Vm::open_on(args, channels().next().unwrap());
    vm.open(QUIET);
    vm.accel(0).group_pages = pages;
    channels().for_each(|channel| vm.write_pages(channel, address(channel), pages.into()));
    vm
}

#[test]
fn an_endpoint_has_no_more_unanswered_groups_than_allowed_and_loses_none() {
    let sizes: &[u32] = if daemon::has_small_groups() { &[1] } else { &[1, 4] };
    for limit in [1, 5] {
        for &pages in sizes {
            let mut vm = storm(&format!("--max-page-groups {limit}"), pages);
            let mut unanswered: Vec<_> = (0..limit).map(|_| vm.group()).collect();
            for done in 1..=CHANNELS {
                vm.assert_no_event(QUIET);
                vm.assert_groups(0, &waiting_and_done(unanswered.len() as u64, done - 1));
                let group = unanswered.remove(0);
                vm.resolve(&group);
                if done + (unanswered.len() as u64) < CHANNELS {
                    unanswered.push(vm.group());
                }
            }
            channels().for_each(|channel| assert_eq!(vm.outcome(channel), Ok(())));
            vm.assert_groups(0, &[("success", CHANNELS)]);
            vm.assert_requests(0, CHANNELS * u64::from(pages));
        }
    }
}

fn waiting_and_done(waiting: u64, done: u64) -> Vec<(&'static str, u64)> {
    [("waiting", waiting), ("success", done)].into_iter().filter(|(_, n)| *n > 0).collect()
}

#[test]
fn what_is_held_back_goes_on_after_a_detach() {
    let mut vm = storm("--max-page-groups 2", 1);
    let beside = Channel::new(0, 0, Some(7));
    vm.open(beside);
    let groups = [vm.group(), vm.group()];
    vm.ok(QUIET.detach());
    vm.ok(channels().next().unwrap().detach());
    for group in groups {
        vm.expect(NOENT, group.response(SUCCESS));
    }
    assert!(channels().all(|channel| vm.outcome(channel).is_err()));
    let group = vm.fault(beside, IOVA);
    vm.resolve(&group);
    assert_eq!(vm.outcome(beside), Ok(()));
    assert_eq!(vm.page_requests(0)["waiting"], 0);
}

#[test]
fn what_is_held_back_goes_on_after_deadlines() {
    let mut vm = storm("--max-page-groups 4 --page-response-timeout 0.1", 1);
    channels().for_each(|channel| assert_eq!(vm.outcome(channel), denied_write(address(channel))));
    vm.assert_groups(0, &[("timed out", CHANNELS)]);
}

#[test]
fn the_limit_of_one_endpoint_is_not_that_of_another() {
    let mut vm = storm("--max-page-groups 1", 1);
    let stuck = vm.group();
    assert_eq!(stuck.endpoint, EP0);
    for page in 0..10 {
        let group = vm.fault(QUIET, IOVA + page * PAGE);
        vm.resolve(&group);
        assert_eq!(vm.outcome(QUIET), Ok(()));
    }
    vm.assert_groups(0, &[("waiting", 1)]);
}

/// Answers a group of the storm so that it comes again.
fn keep_up(vm: &mut Vm, group: &Group) {
    assert_eq!(group.endpoint, EP0);
    vm.ok(group.response(SUCCESS));
}

#[test]
fn an_endpoint_works_while_another_never_stops_asking() {
    let mut vm = storm("", 1);
    for page in 0..50 {
        vm.write_pages(QUIET, IOVA + page * PAGE, 1);
        let group = loop {
            match vm.group() {
                group if group.endpoint == QUIET.endpoint() => break group,
                group => keep_up(&mut vm, &group),
            }
        };
        vm.resolve(&group);
        assert_eq!(vm.outcome(QUIET), Ok(()));
    }
    vm.assert_groups(1, &[("success", 50)]);
    // The end of the storm: each channel is told that its page will not come.
    let mut ended = HashMap::new();
    while ended.len() < CHANNELS as usize {
        let group = vm.group();
        vm.ok(group.response(INVALID));
        assert_eq!(ended.insert(group.pages[0], ()), None, "asked for again after INVALID");
    }
    channels().for_each(|channel| assert_eq!(vm.outcome(channel), denied_write(address(channel))));
    let counted = vm.page_requests(0);
    assert_eq!((counted["invalid"], counted["waiting"]), (CHANNELS, 0));
}

#[test]
fn a_storm_can_be_ended_by_detach() {
    let mut vm = storm("", 1);
    for _ in 0..1000 {
        let group = vm.group();
        keep_up(&mut vm, &group);
    }
    vm.ok(channels().next().unwrap().detach());
    assert!(channels().all(|channel| vm.outcome(channel).is_err()));
    while let Some(group) = vm.try_group() {
        vm.expect(NOENT, group.response(SUCCESS));
    }
    vm.assert_no_event(QUIET);
    let counted = vm.page_requests(0);
    assert_eq!((counted["success"], counted["waiting"]), (1000, 0));
}
