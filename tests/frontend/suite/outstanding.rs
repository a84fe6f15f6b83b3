//! Completion of outstanding groups by the device: each gets one response, and none is left.

use std::time::Duration;
use std::{iter, thread};

use testing::accel::{AccessError, denied_write, regs};
use testing::front_end::{Message, REALIZE};
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
const OTHER_ENDPOINT: Channel = Channel::new(1, 0, Some(PASID));
const ALL: [Channel; 4] = [PROCESS, OWN, OTHER, OTHER_ENDPOINT];

/// Returns a virtual machine with a delivered and outstanding group of each channel.
fn outstanding(args: &str) -> (Vm, [Group; 4]) {
    let mut vm = Vm::paging(args);
    ALL.into_iter().for_each(|channel| vm.open(channel));
    let groups = ALL.map(|channel| vm.fault(channel, IOVA));
    (vm, groups)
}

/// Makes each channel request a page. Returns when all groups are outstanding.
fn request_all(vm: &mut Vm) {
    ALL.into_iter().for_each(|channel| vm.write_pages(channel, IOVA, 1));
    vm.assert_groups(0, &[("waiting", 3)]);
    vm.assert_groups(1, &[("waiting", 1)]);
}

/// Asserts that the channel received INVALID. If its address space was detached immediately, it
/// could not write (all of) its completion record.
#[track_caller]
fn assert_invalid(vm: &mut Vm, channel: Channel) {
    let record = vm.accel(channel.index).record(channel.number);
    match vm.outcome(channel) {
        Err(AccessError::Channel { error: regs::ERROR_COMPLETION_FAULT, address }) => {
            assert!(address == record || address == record + 8, "{address:#x}");
        }
        outcome => assert_eq!(outcome, denied_write(IOVA)),
    }
}

/// Attaches all channels, as the driver does after a device reset.
fn open_all(vm: &mut Vm) {
    ALL.into_iter().for_each(|channel| vm.open(channel));
}

/// Asserts that page requests of all channels work.
#[track_caller]
fn assert_all_work(vm: &mut Vm) {
    for channel in ALL {
        let group = vm.fault(channel, IOVA + 0x10_0000);
        vm.resolve(&group);
        assert_eq!(vm.outcome(channel), Ok(()));
    }
}

#[test]
fn detach_of_a_pasid_completes_only_its_groups() {
    let (mut vm, groups) = outstanding("");
    let [process, own, other, other_endpoint] = &groups;
    vm.ok(PROCESS.detach());
    vm.expect(NOENT, process.response(SUCCESS));
    assert_invalid(&mut vm, PROCESS);
    for (group, channel) in [(own, OWN), (other, OTHER), (other_endpoint, OTHER_ENDPOINT)] {
        assert!(vm.is_pending(channel));
        vm.resolve(group);
        assert_eq!(vm.outcome(channel), Ok(()));
    }
    vm.assert_groups(0, &[("success", 2), ("detached", 1)]);
    vm.assert_groups(1, &[("success", 1)]);
}

#[test]
fn detach_of_an_endpoint_keeps_groups_of_its_pasids() {
    let (mut vm, groups) = outstanding("");
    let [process, own, other, other_endpoint] = &groups;
    vm.ok(OWN.detach());
    vm.expect(NOENT, own.response(SUCCESS));
    assert_invalid(&mut vm, OWN);
    for (group, channel) in [(process, PROCESS), (other, OTHER), (other_endpoint, OTHER_ENDPOINT)] {
        assert!(vm.is_pending(channel));
        vm.resolve(group);
        assert_eq!(vm.outcome(channel), Ok(()));
    }
    vm.assert_groups(0, &[("success", 2), ("detached", 1)]);
}

#[test]
fn attach_to_another_domain_completes_groups() {
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
fn attach_to_the_same_domain_keeps_groups() {
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
fn rejected_attach_or_detach_keeps_groups() {
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
fn reattached_pasid_starts_without_groups() {
    let mut vm = Vm::open_on("", PROCESS);
    for _ in 0..50 {
        let old = vm.fault(PROCESS, IOVA);
        vm.ok(PROCESS.detach());
        assert_invalid(&mut vm, PROCESS);
        vm.open(PROCESS);
        let new = vm.fault(PROCESS, IOVA);
        assert_ne!(old.id, new.id);
        vm.expect(NOENT, old.response(SUCCESS));
        assert!(vm.is_pending(PROCESS), "stale response completed the new group");
        vm.resolve(&new);
        assert_eq!(vm.outcome(PROCESS), Ok(()));
        vm.ok(PROCESS.detach());
        vm.open(PROCESS);
    }
}

#[test]
fn device_reset_completes_all_groups() {
    for reset in [Vm::reset, |vm: &mut Vm| {
        vm.front_end.stop();
        vm.front_end.reset_device();
        vm.boot();
    }] {
        let (mut vm, groups) = outstanding("");
        reset(&mut vm);
        ALL.into_iter().for_each(|channel| assert_invalid(&mut vm, channel));
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
fn vhost_reset_device_returns_after_groups_are_complete() {
    let (mut vm, _) = outstanding("");
    vm.front_end.stop();
    vm.front_end.reset_device();
    vm.front_end.config();
    assert_eq!(vm.page_requests(0)["waiting"], 0);
    vm.boot();
}

#[test]
fn events_from_before_a_reset_are_not_delivered() {
    // The event queue may start before the request queue has detected the reset.
    for _ in 0..20 {
        // There is a buffer only for the first request of the first of four groups.
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
        assert_invalid(&mut vm, OTHER_ENDPOINT);
        vm.open(OTHER_ENDPOINT);
        vm.assert_no_event(OTHER_ENDPOINT);
    }
}

#[test]
fn stop_and_cont_keep_groups() {
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
fn page_requests_of_a_stopped_vm_are_delivered_after_cont() {
    let mut vm = Vm::paging("");
    open_all(&mut vm);
    let bases = vm.pause();
    request_all(&mut vm);
    vm.cont(bases);
    for _ in ALL {
        let group = vm.group();
        vm.resolve(&group);
    }
    ALL.into_iter().for_each(|channel| assert_eq!(vm.outcome(channel), Ok(())));
}

#[test]
fn front_end_disconnect_completes_delivered_groups() {
    let (mut vm, groups) = outstanding("");
    vm.reconnect();
    ALL.into_iter().for_each(|channel| assert_invalid(&mut vm, channel));
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
fn front_end_disconnect_completes_undelivered_groups() {
    let mut vm = Vm::paging_with("", 0);
    open_all(&mut vm);
    request_all(&mut vm);
    vm.reconnect();
    ALL.into_iter().for_each(|channel| assert_invalid(&mut vm, channel));
    vm.assert_groups(0, &[("reset", 3)]);
}

#[test]
fn page_requests_without_a_front_end_are_rejected() {
    let (mut vm, _) = outstanding("");
    vm.reconnect();
    assert_invalid(&mut vm, OTHER_ENDPOINT);
    // The reset completes the groups first. It has removed the attachments, too, when the daemon
    // replies to the next front end.
    vm.send_messages(&[Message::GetFeatures], [0; 2]);
    vm.assert_groups(1, &[("reset", 1)]);
    let before = vm.page_requests(1)["refused"];
    vm.write_pages(OTHER_ENDPOINT, IOVA, 1);
    vm.outcome(OTHER_ENDPOINT).unwrap_err();
    vm.assert_groups(1, &[("reset", 1), ("refused", before + 1)]);
}

#[test]
fn signal_completes_all_groups_before_the_daemon_exits() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let (mut vm, _) = outstanding("");
        vm.daemon.stop(signal);
        for (bdf, groups) in [("00:02.0", 3), ("0001:02:03.4", 1)] {
            let last = testing::counters::page_requests(&vm.daemon.log(), bdf).pop().unwrap();
            // A channel may still request the page of its completion record.
            assert_eq!((last["reset"], last["waiting"]), (groups, 0), "{last:?}");
        }
    }
}

#[test]
fn function_reset_withdraws_its_groups() {
    let (mut vm, groups) = outstanding("");
    let [process, own, other, other_endpoint] = &groups;
    vm.accel(0).reset();
    for group in [process, own, other] {
        vm.expect(NOENT, group.response(SUCCESS));
    }
    vm.resolve(other_endpoint);
    assert_eq!(vm.outcome(OTHER_ENDPOINT), Ok(()));
    vm.assert_groups(0, &[("withdrawn", 3)]);
    assert_all_work(&mut vm);
}

#[test]
fn vfio_user_disconnect_withdraws_groups() {
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
fn withdrawn_group_is_not_delivered() {
    let mut vm = Vm::paging_with("", 0);
    open_all(&mut vm);
    request_all(&mut vm);
    vm.accel(0).reset();
    vm.ok(OTHER_ENDPOINT.detach());
    vm.assert_groups(1, &[("detached", 1)]);
    vm.events.fill(8, 48);
    vm.events.queue.submit();
    vm.open(OTHER_ENDPOINT);
    vm.assert_no_event(OTHER_ENDPOINT);
    vm.assert_groups(0, &[("withdrawn", 3)]);
}

#[test]
fn partially_delivered_group_is_delivered_to_its_end() {
    let completions: [fn(&mut Vm); 3] = [
        |vm| vm.ok(PROCESS.detach()),
        |vm| vm.ok(PROCESS.attach(OTHER.domain())),
        |vm| vm.accel(0).reset(),
    ];
    for (complete, counter) in completions.into_iter().zip(["detached", "detached", "withdrawn"]) {
        let mut vm = Vm::paging_with("", 1);
        open_all(&mut vm);
        vm.events.hold = true;
        vm.accel(0).group_pages = 3;
        vm.write_pages(PROCESS, IOVA, 3);
        let first = vm.events.receive();
        // A running channel would repeat the requests, page by page.
        vm.accel(0).stop(PROCESS.number);
        complete(&mut vm);
        assert_eq!(vm.page_requests(0)[counter], 1);
        vm.events.hold = false;
        vm.events.refill();
        let group = vm.rest_of(first);
        assert_eq!(group.pages.len(), 3);
        vm.expect(NOENT, group.response(INVALID));
        vm.assert_no_event(OTHER_ENDPOINT);
    }
}

#[test]
fn response_timeout_completes_delivered_groups() {
    let (mut vm, groups) = outstanding("--page-response-timeout 0.3");
    for (group, channel) in groups.iter().zip(ALL) {
        assert_eq!(vm.outcome(channel), denied_write(IOVA));
        vm.expect(NOENT, group.response(SUCCESS));
    }
    vm.assert_groups(0, &[("timed out", 3)]);
    vm.assert_groups(1, &[("timed out", 1)]);
}

#[test]
fn response_timeout_completes_undelivered_groups() {
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
fn response_timeout_makes_capacity_for_the_next_group() {
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
fn response_timeout_excludes_the_time_of_a_stopped_vm() {
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
fn detach_completes_groups_with_unread_events() {
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
        wait::until("completion of all groups", || {
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
