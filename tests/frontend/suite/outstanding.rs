//! What ends groups that nobody has answered: each is answered once, and none is left.

use std::time::Duration;
use std::{iter, thread};

use testing::accel::{AccessError, denied_write, regs};
use testing::front_end::REALIZE;
use testing::memory::PAGE;
use testing::paging::{Channel, Group, INVALID, SUCCESS};
use testing::request::status::*;
use testing::request::{RW, attach, map};
use testing::vm::{DATA, EP0, Vm};
use testing::wait;

const IOVA: u64 = 0x7000_0000;
const PASID: u32 = 0x12345;
const PROCESS: Channel = Channel::new(0, 0, Some(PASID));
const OWN: Channel = Channel::new(0, 1, None);
const OTHER: Channel = Channel::new(0, 2, Some(7));
const BESIDE: Channel = Channel::new(1, 0, Some(PASID));
const ALL: [Channel; 4] = [PROCESS, OWN, OTHER, BESIDE];

/// A machine with a group of each channel delivered and unanswered.
fn outstanding(args: &str) -> (Vm, [Group; 4]) {
    let mut vm = Vm::paging(args);
    ALL.into_iter().for_each(|channel| vm.open(channel));
    let groups = ALL.map(|channel| vm.fault(channel, IOVA));
    (vm, groups)
}

/// Each channel begins to ask for a page. Waits until the groups wait.
fn ask_all(vm: &mut Vm) {
    ALL.into_iter().for_each(|channel| vm.write_pages(channel, IOVA, 1));
    vm.assert_groups(0, &[("waiting", 3)]);
    vm.assert_groups(1, &[("waiting", 1)]);
}

/// The channel got INVALID. If its address space goes at once, it cannot write (all of) its
/// record.
#[track_caller]
fn assert_cut_off(vm: &mut Vm, channel: Channel) {
    let record = vm.accel(channel.index).record(channel.number);
    match vm.outcome(channel) {
        Err(AccessError::Channel { error: regs::ERROR_COMPLETION_FAULT, address }) => {
            assert!(address == record || address == record + 8, "{address:#x}");
        }
        outcome => assert_eq!(outcome, denied_write(IOVA)),
    }
}

/// A driver comes to a device that was reset, and attaches as before.
fn open_all(vm: &mut Vm) {
    ALL.into_iter().for_each(|channel| vm.open(channel));
}

/// The device has no groups left, and works.
#[track_caller]
fn assert_all_work(vm: &mut Vm) {
    for channel in ALL {
        let group = vm.fault(channel, IOVA + 0x10_0000);
        vm.resolve(&group);
        assert_eq!(vm.outcome(channel), Ok(()));
    }
}

#[test]
fn detach_of_a_pasid_answers_its_groups_and_no_others() {
    let (mut vm, groups) = outstanding("");
    let [process, own, other, beside] = &groups;
    vm.ok(PROCESS.detach());
    vm.expect(NOENT, process.response(SUCCESS));
    assert_cut_off(&mut vm, PROCESS);
    for (group, channel) in [(own, OWN), (other, OTHER), (beside, BESIDE)] {
        assert!(vm.is_pending(channel));
        vm.resolve(group);
        assert_eq!(vm.outcome(channel), Ok(()));
    }
    vm.assert_groups(0, &[("success", 2), ("detached", 1)]);
    vm.assert_groups(1, &[("success", 1)]);
}

#[test]
fn detach_of_the_endpoint_answers_the_groups_of_its_own_space_and_not_those_of_its_pasids() {
    let (mut vm, groups) = outstanding("");
    let [process, own, other, beside] = &groups;
    vm.ok(OWN.detach());
    vm.expect(NOENT, own.response(SUCCESS));
    assert_cut_off(&mut vm, OWN);
    for (group, channel) in [(process, PROCESS), (other, OTHER), (beside, BESIDE)] {
        assert!(vm.is_pending(channel));
        vm.resolve(group);
        assert_eq!(vm.outcome(channel), Ok(()));
    }
    vm.assert_groups(0, &[("success", 2), ("detached", 1)]);
}

#[test]
fn attach_to_another_domain_answers_the_groups_of_the_space_before() {
    for channel in [PROCESS, OWN] {
        const NEXT: u32 = 0x4444;
        let mut vm = Vm::open_on("", channel);
        let group = vm.fault(channel, IOVA);
        vm.ok(attach(NEXT, testing::vm::EP2));
        vm.map_home(NEXT, channel.index);
        vm.ok(channel.attach(NEXT));
        vm.expect(NOENT, group.response(SUCCESS));
        assert_eq!(vm.outcome(channel), denied_write(IOVA));
        vm.assert_groups(0, &[("detached", 1)]);
        let group = vm.fault(channel, IOVA);
        vm.ok(map(NEXT, IOVA, IOVA + PAGE - 1, DATA, RW));
        vm.ok(group.response(SUCCESS));
        assert_eq!(vm.outcome(channel), Ok(()));
    }
}

#[test]
fn attach_to_the_same_domain_changes_nothing() {
    let (mut vm, groups) = outstanding("");
    for (group, channel) in groups.iter().zip(ALL) {
        vm.ok(channel.attach(channel.domain()));
        assert!(vm.is_pending(channel));
        vm.resolve(group);
        assert_eq!(vm.outcome(channel), Ok(()));
    }
    vm.assert_groups(0, &[("success", 3)]);
}

#[test]
fn a_refused_attach_or_detach_changes_nothing() {
    let (mut vm, groups) = outstanding("");
    vm.expect(INVAL, testing::request::detach(OTHER.domain(), EP0));
    vm.expect(INVAL, testing::request::detach_pasid(OTHER.domain(), EP0, PASID));
    vm.expect(INVAL, PROCESS.attach(OTHER.domain()).patched(12, 0x82));
    for (group, channel) in groups.iter().zip(ALL) {
        vm.resolve(group);
        assert_eq!(vm.outcome(channel), Ok(()));
    }
}

#[test]
fn a_pasid_that_is_attached_again_starts_without_groups() {
    let mut vm = Vm::open_on("", PROCESS);
    for _ in 0..50 {
        let old = vm.fault(PROCESS, IOVA);
        vm.ok(PROCESS.detach());
        assert_cut_off(&mut vm, PROCESS);
        vm.open(PROCESS);
        let new = vm.fault(PROCESS, IOVA);
        assert_ne!(old.id, new.id);
        vm.expect(NOENT, old.response(SUCCESS));
        assert!(vm.is_pending(PROCESS), "the answer to an old group reached a new one");
        vm.resolve(&new);
        assert_eq!(vm.outcome(PROCESS), Ok(()));
        vm.ok(PROCESS.detach());
        vm.open(PROCESS);
    }
}

#[test]
fn a_device_reset_answers_all_groups() {
    for reset in [Vm::reset, |vm: &mut Vm| {
        vm.front_end.stop();
        vm.front_end.reset_device();
        vm.boot();
    }] {
        let (mut vm, groups) = outstanding("");
        reset(&mut vm);
        ALL.into_iter().for_each(|channel| assert_cut_off(&mut vm, channel));
        open_all(&mut vm);
        for group in groups {
            vm.expect(NOENT, group.response(SUCCESS));
        }
        assert_all_work(&mut vm);
        vm.assert_groups(0, &[("success", 3), ("reset", 3)]);
        vm.assert_groups(1, &[("success", 1), ("reset", 1)]);
    }
}

#[test]
fn vhost_reset_device_answers_before_it_is_answered() {
    let (mut vm, _) = outstanding("");
    vm.front_end.stop();
    vm.front_end.reset_device();
    vm.front_end.config();
    assert_eq!(vm.page_requests(0)["waiting"], 0);
    vm.boot();
}

#[test]
fn after_a_reset_no_event_of_a_group_before_is_delivered() {
    // The event queue may start before the request queue has found out that it was a reset.
    for _ in 0..20 {
        // Only the first of four groups has a buffer, and of that one only the first request.
        let mut vm = Vm::paging_with("", 1);
        open_all(&mut vm);
        vm.accel(0).group_pages = 2;
        vm.events.hold = true;
        ALL.into_iter().for_each(|channel| vm.write_pages(channel, IOVA, 2));
        vm.events.receive();
        vm.assert_groups(0, &[("waiting", 3)]);
        vm.assert_groups(1, &[("waiting", 1)]);
        vm.event_buffers.0 = 16;
        vm.events.hold = false;
        vm.reset();
        assert_cut_off(&mut vm, BESIDE);
        vm.open(BESIDE);
        vm.assert_no_event(BESIDE);
    }
}

#[test]
fn a_stopped_vm_that_goes_on_keeps_its_groups() {
    let (mut vm, groups) = outstanding("");
    for _ in 0..3 {
        let bases = vm.pause();
        vm.cont(bases);
    }
    for (group, channel) in groups.iter().zip(ALL) {
        assert!(vm.is_pending(channel));
        vm.resolve(group);
        assert_eq!(vm.outcome(channel), Ok(()));
    }
    vm.assert_groups(0, &[("success", 3)]);
}

#[test]
fn what_is_asked_for_while_the_vm_is_stopped_is_delivered_afterwards() {
    let mut vm = Vm::paging("");
    open_all(&mut vm);
    let bases = vm.pause();
    ask_all(&mut vm);
    vm.cont(bases);
    for _ in ALL {
        let group = vm.group();
        vm.resolve(&group);
    }
    ALL.into_iter().for_each(|channel| assert_eq!(vm.outcome(channel), Ok(())));
}

#[test]
fn the_groups_of_a_front_end_that_has_gone_are_answered() {
    let (mut vm, groups) = outstanding("");
    vm.reconnect();
    ALL.into_iter().for_each(|channel| assert_cut_off(&mut vm, channel));
    vm.assert_groups(0, &[("reset", 3)]);
    vm.send_messages(&REALIZE, [0; 2]);
    vm.boot();
    open_all(&mut vm);
    for group in groups {
        vm.expect(NOENT, group.response(SUCCESS));
    }
    assert_all_work(&mut vm);
}

#[test]
fn groups_that_no_front_end_was_told_of_are_answered_when_it_goes() {
    let mut vm = Vm::paging_with("", 0);
    open_all(&mut vm);
    ask_all(&mut vm);
    vm.reconnect();
    ALL.into_iter().for_each(|channel| assert_cut_off(&mut vm, channel));
    vm.assert_groups(0, &[("reset", 3)]);
}

#[test]
fn requests_while_no_front_end_is_connected_are_refused() {
    let (mut vm, _) = outstanding("");
    vm.reconnect();
    assert_cut_off(&mut vm, BESIDE);
    vm.assert_groups(1, &[("reset", 1)]);
    let before = vm.page_requests(1)["refused"];
    vm.write_pages(BESIDE, IOVA, 1);
    vm.outcome(BESIDE).unwrap_err();
    vm.assert_groups(1, &[("reset", 1), ("refused", before + 1)]);
}

#[test]
fn a_signal_answers_all_groups_before_the_daemon_ends() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let (mut vm, _) = outstanding("");
        vm.daemon.stop(signal);
        for (bdf, groups) in [("00:02.0", 3), ("0001:02:03.4", 1)] {
            let last = testing::counters::page_requests(&vm.daemon.log(), bdf).pop().unwrap();
            // A channel may still ask for the page of its record.
            assert_eq!((last["reset"], last["waiting"]), (groups, 0), "{last:?}");
        }
    }
}

#[test]
fn a_function_that_is_reset_takes_its_groups_back() {
    let (mut vm, groups) = outstanding("");
    let [process, own, other, beside] = &groups;
    vm.accel(0).reset();
    for group in [process, own, other] {
        vm.expect(NOENT, group.response(SUCCESS));
    }
    vm.resolve(beside);
    assert_eq!(vm.outcome(BESIDE), Ok(()));
    vm.assert_groups(0, &[("withdrawn", 3)]);
    assert_all_work(&mut vm);
}

#[test]
fn a_function_whose_vmm_side_goes_takes_its_groups_back() {
    let (mut vm, groups) = outstanding("");
    vm.drop_accel(0);
    vm.assert_groups(0, &[("withdrawn", 3)]);
    for group in &groups[..3] {
        vm.expect(NOENT, group.response(SUCCESS));
    }
    vm.accel(0).enable_page_requests();
    vm.resolve(&groups[3]);
    assert_all_work(&mut vm);
}

#[test]
fn a_group_that_was_taken_back_before_it_was_delivered_is_not_delivered() {
    let mut vm = Vm::paging_with("", 0);
    open_all(&mut vm);
    ask_all(&mut vm);
    vm.accel(0).reset();
    vm.ok(BESIDE.detach());
    vm.assert_groups(1, &[("detached", 1)]);
    vm.events.fill(8, 48);
    vm.events.queue.submit();
    vm.open(BESIDE);
    vm.assert_no_event(BESIDE);
    vm.assert_groups(0, &[("withdrawn", 3)]);
}

#[test]
fn a_group_of_which_a_part_was_delivered_is_delivered_to_its_end_whatever_has_answered_it() {
    let ends: [fn(&mut Vm); 3] = [
        |vm| vm.ok(PROCESS.detach()),
        |vm| vm.ok(PROCESS.attach(OTHER.domain())),
        |vm| vm.accel(0).reset(),
    ];
    for (end, counted) in ends.into_iter().zip(["detached", "detached", "withdrawn"]) {
        let mut vm = Vm::paging_with("", 1);
        open_all(&mut vm);
        vm.events.hold = true;
        vm.accel(0).group_pages = 3;
        vm.write_pages(PROCESS, IOVA, 3);
        let first = vm.events.receive();
        // Else it would ask again, page by page.
        vm.accel(0).stop(PROCESS.number);
        end(&mut vm);
        assert_eq!(vm.page_requests(0)[counted], 1);
        vm.events.hold = false;
        vm.events.refill();
        let group = vm.rest_of(first);
        assert_eq!(group.pages.len(), 3);
        vm.expect(NOENT, group.response(INVALID));
        vm.assert_no_event(BESIDE);
    }
}

#[test]
fn a_group_that_nobody_answers_is_answered_when_its_time_is_up() {
    let (mut vm, groups) = outstanding("--page-response-timeout 0.3");
    for (group, channel) in groups.iter().zip(ALL) {
        assert_eq!(vm.outcome(channel), denied_write(IOVA));
        vm.expect(NOENT, group.response(SUCCESS));
    }
    vm.assert_groups(0, &[("timed out", 3)]);
    vm.assert_groups(1, &[("timed out", 1)]);
}

#[test]
fn a_group_that_was_never_delivered_is_answered_when_its_time_is_up() {
    let mut vm = Vm::paging_with("--page-response-timeout 0.3", 0);
    open_all(&mut vm);
    ALL.into_iter().for_each(|channel| vm.write_pages(channel, IOVA, 1));
    ALL.into_iter().for_each(|channel| assert_eq!(vm.outcome(channel), denied_write(IOVA)));
    vm.assert_groups(0, &[("timed out", 3)]);
    vm.events.fill(8, 48);
    vm.events.queue.submit();
    assert_eq!(vm.events.try_receive(), None);
}

#[test]
fn a_driver_that_never_answers_does_not_stop_the_next_group() {
    let mut vm = Vm::open_on("--page-response-timeout 0.1 --max-page-groups 1", PROCESS);
    let ids: Vec<_> = (0..5)
        .map(|page| {
            let group = vm.fault(PROCESS, IOVA + page * PAGE);
            assert_eq!(vm.outcome(PROCESS), denied_write(IOVA + page * PAGE));
            group.id
        })
        .collect();
    assert!(ids.windows(2).all(|pair| pair[0] != pair[1]));
    vm.assert_groups(0, &[("timed out", 5)]);
}

#[test]
fn time_stands_still_while_the_vm_is_stopped() {
    let mut vm = Vm::open_on("--page-response-timeout 2", PROCESS);
    vm.fault(PROCESS, IOVA);
    let bases = vm.pause();
    thread::sleep(Duration::from_secs(3));
    assert!(vm.is_pending(PROCESS));
    vm.cont(bases);
    assert_eq!(vm.outcome(PROCESS), denied_write(IOVA));
    vm.assert_groups(0, &[("timed out", 1)]);
}

#[test]
fn groups_whose_events_lie_unread_in_the_ring_are_answered_by_detach_too() {
    let mut vm = Vm::open_on("", PROCESS);
    let channels: Vec<_> = (0..32).map(|n| Channel::new(0, n, Some(PASID))).collect();
    for round in 0..5 {
        for (channel, page) in channels.iter().zip(0..) {
            vm.write_pages(*channel, IOVA + page * PAGE, 1);
        }
        vm.ok(PROCESS.detach());
        for channel in &channels {
            vm.outcome(*channel).unwrap_err();
        }
        wait::until("the end of all groups", || {
            (vm.page_requests(0)["waiting"] == 0).then_some(())
        });
        let seen: Vec<_> = iter::from_fn(|| vm.try_group()).collect();
        for group in seen {
            vm.expect(NOENT, group.response(SUCCESS));
        }
        vm.open(PROCESS);
        let group = vm.fault(PROCESS, IOVA + (100 + round) * PAGE);
        vm.resolve(&group);
        assert_eq!(vm.outcome(PROCESS), Ok(()));
    }
}
