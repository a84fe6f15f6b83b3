//! Delivery of groups when event buffers are scarce: queuing, service order, consecutive events.

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

/// Returns channels of one endpoint.
fn channels(index: usize, count: u32) -> impl Iterator<Item = Channel> {
    (0..count).map(move |number| Channel::new(index, number, Some(PASID)))
}

/// Makes each channel request `pages` separate pages. Returns when all groups are outstanding.
fn request_pages(vm: &mut Vm, index: usize, count: u32, pages: u64) {
    vm.accel(index).group_pages = pages as u32;
    for channel in channels(index, count) {
        vm.write_pages(channel, IOVA + u64::from(channel.number) * 0x10_0000, pages);
    }
    vm.assert_groups(index, &[("waiting", count.into())]);
}

/// Returns a virtual machine with one attached PASID of each endpoint and `buffers` event buffers.
fn vm(buffers: u16) -> Vm {
    let mut vm = Vm::paging_with("", buffers);
    (0..ENDPOINTS.len()).for_each(|index| vm.open(Channel::new(index, 0, Some(PASID))));
    vm
}

#[test]
fn groups_stay_queued_until_buffers_are_available() {
    for event_idx in [true, false] {
        let mut vm = Vm::realized("--boot-bypass off");
        vm.features |= feature::PASID | feature::PAGE_REQUEST;
        if !event_idx {
            vm.features &= !feature::EVENT_IDX;
        }
        vm.event_buffers = (0, LONG_EVENT_LEN);
        vm.boot();
        vm.open(Channel::new(0, 0, Some(PASID)));
        request_pages(&mut vm, 0, 32, 1);
        // The driver does not kick unless the device enabled notifications.
        vm.events.fill(3, LONG_EVENT_LEN);
        vm.events.queue.submit();
        vm.events.hold = true;
        let mut pages = Vec::new();
        for index in 0..32 {
            if index % 3 == 0 {
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
fn requests_are_served_while_groups_lack_buffers() {
    let mut vm = vm(0);
    request_pages(&mut vm, 0, 8, 4);
    for _ in 0..100 {
        vm.ok(map(0x10 * PASID + 1, IOVA, IOVA + PAGE - 1, DATA, RW));
        vm.ok(unmap(0x10 * PASID + 1, IOVA, IOVA + PAGE - 1));
    }
}

#[test]
fn group_larger_than_the_event_queue_is_delivered_in_parts() {
    let mut vm = vm(3);
    request_pages(&mut vm, 0, 2, 32);
    for _ in 0..2 {
        let group = vm.group();
        assert_eq!(group.pages.len(), 32);
        vm.resolve(&group);
    }
    channels(0, 2).for_each(|channel| assert_eq!(vm.outcome(channel), Ok(())));
    vm.assert_requests(0, 64);
}

/// Receives events one at a time until there are `count`, and asserts that each `pages` of them
/// form a group.
fn assert_consecutive(vm: &mut Vm, mut events: Vec<Fault>, count: usize, pages: usize) {
    while events.len() < count {
        vm.events.refill();
        events.push(vm.events.receive());
    }
    for group in events.chunks(pages) {
        assert!(Group::new(group).pages.is_sorted());
    }
}

#[test]
fn page_requests_do_not_separate_the_events_of_a_group() {
    // The other endpoints make their requests after the delivery of the first group has started.
    for first_endpoint in 0..ENDPOINTS.len() {
        let mut vm = vm(1);
        vm.events.hold = true;
        request_pages(&mut vm, first_endpoint, 5, 5);
        let first = vm.events.receive();
        let others = (0..ENDPOINTS.len()).filter(|index| *index != first_endpoint);
        others.for_each(|index| request_pages(&mut vm, index, 5, 5));
        assert_consecutive(&mut vm, vec![first], 3 * 5 * 5, 5);
    }
}

#[test]
fn faults_do_not_separate_the_events_of_a_group() {
    const NOISY: u32 = 9;
    let mut vm = vm(1);
    vm.events.hold = true;
    request_pages(&mut vm, 0, 1, 32);
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

/// Returns a descriptor that faults without stopping the channel.
fn noise(completion: u64) -> Descriptor {
    let (opcode, flags) = (regs::OP_CRC32C, regs::FLAG_COMPLETION);
    Descriptor { opcode, flags, source: IOVA, length: 1, completion, ..Default::default() }
}

#[test]
fn faults_are_dropped_and_counted_while_a_group_lacks_buffers() {
    let other = Channel::new(1, 0, Some(PASID));
    let mut vm = vm(0);
    request_pages(&mut vm, 0, 1, 1);
    vm.accel(1).makes_page_requests = false;
    for page in 0..4 {
        vm.write_pages(other, IOVA + page * PAGE, 1);
        assert_eq!(vm.outcome(other), fault_write(IOVA + page * PAGE));
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
fn endpoints_are_served_round_robin() {
    let mut vm = vm(1);
    vm.events.hold = true;
    // The first endpoint has most groups, and requested them first.
    request_pages(&mut vm, 0, 20, 2);
    request_pages(&mut vm, 1, 3, 2);
    request_pages(&mut vm, 2, 3, 2);
    let first = vm.events.receive();
    vm.events.hold = false;
    vm.events.refill();
    let mut order = vec![vm.rest_of(first).endpoint];
    order.extend((0..25).map(|_| vm.group().endpoint));
    let (first, others) = order.split_at(1);
    assert_eq!(first, [EP0]);
    // As long as all have pending groups, each round serves each endpoint once.
    for round in others[..9].chunks(3) {
        let endpoints: HashSet<_> = round.iter().collect();
        assert_eq!(endpoints.len(), 3, "{order:x?}");
    }
    let mut groups = HashMap::new();
    order.iter().for_each(|endpoint| *groups.entry(*endpoint).or_insert(0) += 1);
    assert_eq!(ENDPOINTS.map(|(_, endpoint)| groups[&endpoint]), [20, 3, 3]);
}

#[test]
fn service_order_is_independent_of_group_length() {
    let mut vm = vm(0);
    request_pages(&mut vm, 0, 8, 8);
    request_pages(&mut vm, 1, 8, 1);
    vm.events.fill(16, LONG_EVENT_LEN);
    vm.events.queue.submit();
    let order: Vec<_> = (0..16).map(|_| vm.group().endpoint).collect();
    assert!(order.windows(2).all(|pair| pair[0] != pair[1]), "{order:x?}");
}

#[test]
fn outstanding_groups_do_not_delay_another_endpoint() {
    let mut vm = vm(4);
    request_pages(&mut vm, 0, 32, 1);
    let outstanding: Vec<_> = (0..32).map(|_| vm.group()).collect();
    let other = Channel::new(1, 0, Some(PASID));
    for page in 0..100 {
        let group = vm.fault(other, IOVA + page * PAGE);
        vm.resolve(&group);
        assert_eq!(vm.outcome(other), Ok(()));
    }
    for group in outstanding {
        vm.ok(group.response(INVALID));
    }
    vm.assert_groups(0, &[("invalid", 32)]);
    vm.assert_groups(1, &[("success", 100)]);
}
