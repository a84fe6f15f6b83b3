//! Groups and the buffers of the event queue: waiting for them, in whose turn, and unbroken.

use std::collections::{HashMap, HashSet};

use testing::accel::regs::{self, Descriptor};
use testing::accel::{Accel, fault_write};
use testing::event::{Fault, LONG_EVENT_LEN};
use testing::front_end::feature;
use testing::memory::PAGE;
use testing::paging::{Channel, Group, INVALID};
use testing::request::{RW, map, unmap};
use testing::vm::{DATA, ENDPOINTS, EP0, Vm};
use testing::wait;

const IOVA: u64 = 0x7000_0000;
const PASID: u32 = 0x12345;

/// Channels of one endpoint.
fn channels(index: usize, count: u32) -> impl Iterator<Item = Channel> {
    (0..count).map(move |number| Channel::new(index, number, Some(PASID)))
}

/// Makes each channel ask for `pages` pages of its own, and waits until they wait.
fn ask(vm: &mut Vm, index: usize, count: u32, pages: u64) {
    vm.accel(index).group_pages = pages as u32;
    for channel in channels(index, count) {
        vm.write_pages(channel, IOVA + u64::from(channel.number) * 0x10_0000, pages);
    }
    vm.assert_groups(index, &[("waiting", count.into())]);
}

/// A machine with an address space for each endpoint and so many event buffers.
fn vm(buffers: u16) -> Vm {
    let mut vm = Vm::paging_with("", buffers);
    (0..ENDPOINTS.len()).for_each(|index| vm.open(Channel::new(index, 0, Some(PASID))));
    vm
}

#[test]
fn groups_wait_for_buffers_and_none_is_lost() {
    for event_idx in [true, false] {
        let mut vm = Vm::realized("--boot-bypass off");
        vm.features |= feature::PASID | feature::PAGE_REQUEST;
        if !event_idx {
            vm.features &= !feature::EVENT_IDX;
        }
        vm.event_buffers = (0, LONG_EVENT_LEN);
        vm.boot();
        vm.open(Channel::new(0, 0, Some(PASID)));
        ask(&mut vm, 0, 32, 1);
        // The driver does not kick unless the device asks for it.
        vm.events.fill(3, LONG_EVENT_LEN);
        vm.events.queue.submit();
        vm.events.hold = true;
        let mut pages = Vec::new();
        for turn in 0..32 {
            if turn % 3 == 0 {
                vm.events.refill();
            }
            let group = vm.group();
            pages.extend(group.pages.iter().copied());
            vm.resolve(&group);
        }
        let in_order: Vec<_> = (0..32).map(|n| IOVA + n * 0x10_0000).collect();
        assert_eq!(pages, in_order);
        channels(0, 32).for_each(|channel| assert_eq!(vm.outcome(channel), Ok(())));
        vm.assert_groups(0, &[("success", 32)]);
    }
}

#[test]
fn requests_are_served_while_groups_wait_for_buffers() {
    let mut vm = vm(0);
    ask(&mut vm, 0, 8, 4);
    for _ in 0..100 {
        vm.ok(map(0x10 * PASID + 1, IOVA, IOVA + PAGE - 1, DATA, RW));
        vm.ok(unmap(0x10 * PASID + 1, IOVA, IOVA + PAGE - 1));
    }
}

#[test]
fn a_group_larger_than_the_queue_is_delivered_as_buffers_come() {
    let mut vm = vm(3);
    ask(&mut vm, 0, 2, 32);
    for _ in 0..2 {
        let group = vm.group();
        assert_eq!(group.pages.len(), 32);
        vm.resolve(&group);
    }
    channels(0, 2).for_each(|channel| assert_eq!(vm.outcome(channel), Ok(())));
    vm.assert_requests(0, 64);
}

/// Takes `count` events, of groups of `pages`, with a single buffer for them all.
fn one_by_one(vm: &mut Vm, mut events: Vec<Fault>, count: usize, pages: usize) {
    while events.len() < count {
        vm.events.refill();
        events.push(vm.events.receive());
    }
    for group in events.chunks(pages) {
        assert!(Group::new(group).pages.is_sorted());
    }
}

#[test]
fn nothing_comes_between_the_events_of_a_group() {
    // Whichever of them the device has begun with, the others ask when it has.
    for beginner in 0..ENDPOINTS.len() {
        let mut vm = vm(1);
        vm.events.hold = true;
        ask(&mut vm, beginner, 5, 5);
        let first = vm.events.receive();
        let others = (0..ENDPOINTS.len()).filter(|index| *index != beginner);
        others.for_each(|index| ask(&mut vm, index, 5, 5));
        one_by_one(&mut vm, vec![first], 3 * 5 * 5, 5);
    }
}

#[test]
fn nor_do_faults_that_are_only_reported() {
    const NOISY: u32 = 9;
    let mut vm = vm(1);
    vm.events.hold = true;
    ask(&mut vm, 0, 1, 32);
    let mut events = vec![vm.events.receive()];
    for index in [0, 1] {
        vm.accel(index).use_pasid(Some(PASID));
        vm.accel(index).makes_page_requests = false;
    }
    while events.len() < 32 {
        for index in [0, 1] {
            let record = vm.accel(index).record(NOISY);
            vm.accel(index).start(NOISY, &[noise(record); Accel::RING_ENTRIES as usize - 1]);
        }
        vm.events.refill();
        events.push(vm.events.receive());
    }
    assert_eq!(Group::new(&events).pages.len(), 32);
}

/// Work that faults and does not stop the channel.
fn noise(completion: u64) -> Descriptor {
    let (opcode, flags) = (regs::OP_CRC32C, regs::FLAG_COMPLETION);
    Descriptor { opcode, flags, source: IOVA, length: 1, completion, ..Default::default() }
}

#[test]
fn faults_that_are_only_reported_are_dropped_and_counted_while_a_group_waits_for_buffers() {
    let quiet = Channel::new(1, 0, Some(PASID));
    let mut vm = vm(0);
    ask(&mut vm, 0, 1, 1);
    vm.accel(1).makes_page_requests = false;
    for page in 0..4 {
        vm.write_pages(quiet, IOVA + page * PAGE, 1);
        assert_eq!(vm.outcome(quiet), fault_write(IOVA + page * PAGE));
    }
    wait::until("the faults to be dropped", || (vm.faults(1)["dropped"] == 4).then_some(()));
    vm.events.fill(8, LONG_EVENT_LEN);
    vm.events.queue.submit();
    let group = vm.group();
    assert_eq!(group.endpoint, EP0);
    vm.resolve(&group);
    assert_eq!(vm.events.try_receive(), None);
}

#[test]
fn endpoints_take_turns_group_by_group() {
    let mut vm = vm(1);
    vm.events.hold = true;
    // The first one has much to ask for, and did so before the others.
    ask(&mut vm, 0, 20, 2);
    ask(&mut vm, 1, 3, 2);
    ask(&mut vm, 2, 3, 2);
    let first = vm.events.receive();
    vm.events.hold = false;
    vm.events.refill();
    let mut order = vec![vm.rest_of(first).endpoint];
    order.extend((0..25).map(|_| vm.group().endpoint));
    let [one, others] = [&order[..1], &order[1..]];
    assert_eq!(one, [EP0]);
    // Until the others have no more, nobody gets two turns in a round.
    for round in others[..9].chunks(3) {
        let endpoints: HashSet<_> = round.iter().collect();
        assert_eq!(endpoints.len(), 3, "{order:x?}");
    }
    let mut groups = HashMap::new();
    order.iter().for_each(|endpoint| *groups.entry(*endpoint).or_insert(0) += 1);
    assert_eq!(ENDPOINTS.map(|(_, endpoint)| groups[&endpoint]), [20, 3, 3]);
}

#[test]
fn the_turns_hold_for_groups_of_any_length() {
    let mut vm = vm(0);
    ask(&mut vm, 0, 8, 8);
    ask(&mut vm, 1, 8, 1);
    vm.events.fill(16, LONG_EVENT_LEN);
    vm.events.queue.submit();
    let order: Vec<_> = (0..16).map(|_| vm.group().endpoint).collect();
    assert!(order.windows(2).all(|pair| pair[0] != pair[1]), "{order:x?}");
}

#[test]
fn a_storm_that_nobody_answers_leaves_another_endpoint_its_turns() {
    let mut vm = vm(4);
    ask(&mut vm, 0, 32, 1);
    let stuck: Vec<_> = (0..32).map(|_| vm.group()).collect();
    let quiet = Channel::new(1, 0, Some(PASID));
    for page in 0..100 {
        let group = vm.fault(quiet, IOVA + page * PAGE);
        vm.resolve(&group);
        assert_eq!(vm.outcome(quiet), Ok(()));
    }
    for group in stuck {
        vm.ok(group.response(INVALID));
    }
    vm.assert_groups(0, &[("invalid", 32)]);
    vm.assert_groups(1, &[("success", 100)]);
}
