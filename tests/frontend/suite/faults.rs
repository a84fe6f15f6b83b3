//! Unrecoverable faults on the event queue.

use testing::accel::{Accel, regs};
use testing::event::{EVENT_LEN, Fault};
use testing::front_end::{EVENT_QUEUE, feature};
use testing::memory::PAGE;
use testing::request::{READ, RW, WRITE, attach, detach, map};
use testing::vm::{DATA, EP0, EP1, Vm};
use testing::wait;

const IOVA: u64 = 0x7000_0000;
/// An address that is not mapped in any test.
const MARK: u64 = 0x6666_6000;

fn fault(reason: u8, access: u32, endpoint: u32, address: u64) -> Fault {
    Fault { reason, flags: access | Fault::ADDRESS, endpoint, address, ..Default::default() }
}

/// Causes a fault that marks a position in the event queue, and returns the expected event.
fn marker(vm: &mut Vm) -> Fault {
    vm.accel(0).read(MARK, 8).unwrap_err();
    fault(Fault::R_MAPPING, Fault::READ, EP0, MARK)
}

/// Causes marker faults until one is reported: pending faults may use all buffers. Returns the
/// events before the marker.
fn until_marker(vm: &mut Vm) -> Vec<Fault> {
    let mut before = Vec::new();
    wait::until("a marker", || {
        let expected = marker(vm);
        let events: Vec<_> = std::iter::from_fn(|| vm.events.try_receive()).collect();
        let seen = events.contains(&expected);
        before.extend(events.into_iter().take_while(|event| *event != expected));
        seen.then_some(())
    });
    before
}

#[test]
fn access_without_attachment_has_reason_domain() {
    let mut vm = Vm::strict();
    for index in [0, 1] {
        vm.accel(index).read(IOVA, 8).unwrap_err();
        let (home, endpoint) = (vm.accel(index).home, [EP0, EP1][index]);
        assert_eq!(vm.events.receive(), fault(Fault::R_DOMAIN, Fault::READ, endpoint, home));
    }
    vm.ok(attach(1, EP0));
    vm.ok(detach(1, EP0));
    vm.accel(0).read(IOVA, 8).unwrap_err();
    assert_eq!(vm.events.receive().reason, Fault::R_DOMAIN);
}

#[test]
fn access_without_mapping_has_reason_mapping() {
    let mut vm = Vm::strict();
    for index in [0, 1] {
        let endpoint = [EP0, EP1][index];
        vm.attach_accel(1 + index as u32, index);
        vm.accel(index).read(IOVA + 1, 8).unwrap_err();
        assert_eq!(vm.events.receive(), fault(Fault::R_MAPPING, Fault::READ, endpoint, IOVA + 1));
        vm.accel(index).write(u64::MAX - 7, &[0; 8]).unwrap_err();
        assert_eq!(
            vm.events.receive(),
            fault(Fault::R_MAPPING, Fault::WRITE, endpoint, u64::MAX - 7)
        );
    }
}

#[test]
fn access_without_permission_has_reason_mapping() {
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    vm.ok(map(1, IOVA, IOVA + PAGE - 1, DATA, READ));
    vm.ok(map(1, IOVA + PAGE, IOVA + 2 * PAGE - 1, DATA, WRITE));
    vm.accel(0).write(IOVA, &[0]).unwrap_err();
    assert_eq!(vm.events.receive(), fault(Fault::R_MAPPING, Fault::WRITE, EP0, IOVA));
    vm.accel(0).read(IOVA + PAGE, 1).unwrap_err();
    assert_eq!(vm.events.receive(), fault(Fault::R_MAPPING, Fault::READ, EP0, IOVA + PAGE));
    // The access can read up to the end of the first page.
    vm.accel(0).read(IOVA + PAGE - 8, 16).unwrap_err();
    assert_eq!(vm.events.receive(), fault(Fault::R_MAPPING, Fault::READ, EP0, IOVA + PAGE));
}

#[test]
fn access_to_a_reserved_region_faults() {
    let mut vm = Vm::new("--boot-bypass off --reserved-region 0x10000-0x1ffff");
    vm.attach_accel(1, 0);
    vm.accel(0).read(0x1_0000, 4).unwrap_err();
    assert_eq!(vm.events.receive().address, 0x1_0000);
}

#[test]
fn allowed_access_causes_no_event() {
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    vm.ok(map(1, IOVA, IOVA + PAGE - 1, DATA, RW));
    for _ in 0..10 {
        vm.accel(0).write(IOVA, b"fine").unwrap();
        vm.accel(0).read(IOVA, 4).unwrap();
    }
    let expected = marker(&mut vm);
    assert_eq!(vm.events.receive(), expected);
    assert_eq!(vm.events.try_receive(), None);
}

#[test]
fn faults_are_in_order_and_buffers_can_be_reused() {
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    for page in 0..300 {
        vm.accel(0).read(IOVA + page * PAGE, 8).unwrap_err();
        assert_eq!(vm.events.receive().address, IOVA + page * PAGE);
    }
}

#[test]
fn buffers_without_a_kick_are_used() {
    // Linux fills its event queue and does not kick before the first event has been used.
    let mut vm = Vm::strict();
    assert!(vm.events.queue.kick.read().is_err(), "the test sent a kick");
    vm.accel(0).read(IOVA, 8).unwrap_err();
    assert_eq!(vm.events.receive().reason, Fault::R_DOMAIN);
}

#[test]
fn buffers_made_available_after_the_start_are_used() {
    let mut vm = Vm::realized("--boot-bypass off");
    vm.event_buffers = (0, EVENT_LEN);
    vm.start();
    vm.attach_accel(1, 0);
    vm.events.fill(4, EVENT_LEN);
    let expected = marker(&mut vm);
    assert_eq!(vm.events.receive(), expected);
}

#[test]
fn faults_without_buffers_do_not_block_requests() {
    let mut vm = Vm::realized("--boot-bypass off");
    vm.event_buffers = (0, EVENT_LEN);
    vm.start();
    vm.attach_accel(1, 0);
    for page in 0..2000 {
        vm.accel(0).read(IOVA + page * PAGE, 8).unwrap_err();
        vm.ok(map(1, IOVA, IOVA + PAGE - 1, DATA, WRITE));
        vm.ok(testing::request::unmap(1, IOVA, IOVA + PAGE - 1));
    }
    vm.events.fill(8, EVENT_LEN);
    vm.events.queue.submit();
    // Some of the earlier faults may have been queued, but not all, and in order.
    let events: Vec<_> = until_marker(&mut vm).iter().map(|event| event.address).collect();
    assert!(events.len() < 2000, "unbounded fault queue");
    assert!(events.is_sorted(), "{events:x?}");
}

#[test]
fn too_small_buffer_is_returned_without_event() {
    for len in [1, 4, 8, 16, EVENT_LEN - 1] {
        let mut vm = Vm::realized("--boot-bypass off");
        vm.event_buffers = (4, len);
        vm.start();
        vm.attach_accel(1, 0);
        for page in 0..4 {
            vm.accel(0).read(IOVA + page * PAGE, 8).unwrap_err();
        }
        vm.ok(map(1, IOVA, IOVA + PAGE - 1, DATA, RW));
        vm.accel(0).read(IOVA, 8).unwrap();
        while let Some((_, used)) = vm.events.queue.take_used() {
            assert_eq!(used, 0, "event in a buffer of {len} bytes");
        }
        vm.reset();
        assert!(vm.accel(0).read(IOVA, 8).is_err());
    }
}

#[test]
fn fault_skips_small_buffers() {
    let mut vm = Vm::realized("--boot-bypass off");
    vm.event_buffers = (0, EVENT_LEN);
    vm.start();
    vm.attach_accel(1, 0);
    // Two small buffers, then sufficient ones, at different addresses.
    let ring = &mut vm.events.queue;
    for (slot, len) in [(0, 8), (1, 23), (2, 24), (3, 24), (4, 24), (5, 24)] {
        ring.descriptor(
            slot,
            0x20_0000 + 64 * u64::from(slot),
            len,
            testing::virtqueue::flags::WRITE,
            0,
        );
        ring.offer(slot);
    }
    ring.publish();
    let seen = wait::until("an event", || {
        vm.accel(0).read(MARK, 8).unwrap_err();
        // A synchronous request, after which the event has been delivered.
        vm.requests.transact(&testing::request::probe(EP0, 512).chain());
        while let Some((slot, len)) = vm.events.queue.take_used() {
            match slot {
                0 | 1 => assert_eq!(len, 0, "event in a small buffer"),
                _ => return Some((slot, len)),
            }
        }
        None
    });
    assert_eq!(seen, (2, EVENT_LEN));
}

#[test]
fn larger_buffer_is_written_up_to_the_event_length() {
    let mut vm = Vm::realized("--boot-bypass off");
    vm.event_buffers = (8, 64);
    vm.start();
    vm.attach_accel(1, 0);
    marker(&mut vm);
    let (len, data) = vm.events.receive_raw();
    assert_eq!(len, EVENT_LEN);
    assert_eq!(data[24..], [0xEE; 40]);
}

#[test]
fn event_can_span_several_descriptors() {
    let mut vm = Vm::realized("--boot-bypass off");
    vm.event_buffers = (0, EVENT_LEN);
    vm.start();
    vm.attach_accel(1, 0);
    let shape = testing::virtqueue::Chain::new(vec![], vec![1, 3, 4, 7, 9]);
    let head = vm.events.queue.add(&shape);
    vm.events.queue.publish();
    marker(&mut vm);
    let (used, reply) = vm.events.queue.reply();
    assert_eq!((used, reply.len), (head, EVENT_LEN));
    assert_eq!(reply.data[0], Fault::R_MAPPING);
    assert_eq!(reply.data[16..], MARK.to_le_bytes());
}

#[test]
fn noisy_endpoint_does_not_suppress_faults_of_another() {
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    vm.attach_accel(1, 1);
    let accel = vm.accel(0);
    let noise = regs::Descriptor {
        opcode: regs::OP_CRC32C,
        flags: regs::FLAG_COMPLETION,
        source: IOVA,
        length: 1,
        completion: accel.record(0),
        ..Default::default()
    };
    let noise = [noise; Accel::RING_ENTRIES as usize - 1];
    for round in 0..8 {
        let address = MARK + round * PAGE;
        wait::until("fault of the other endpoint", || {
            if !vm.accel(0).is_busy() {
                vm.accel(0).start(0, &noise);
            }
            vm.accel(1).read(address, 1).unwrap_err();
            std::iter::from_fn(|| vm.events.try_receive())
                .find(|event| (event.endpoint, event.address) == (EP1, address))
        });
    }
}

#[test]
fn faults_work_after_the_event_queue_was_disabled() {
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    vm.front_end.enable(EVENT_QUEUE, false);
    for _ in 0..100 {
        vm.accel(0).read(IOVA, 8).unwrap_err();
    }
    vm.front_end.enable(EVENT_QUEUE, true);
    until_marker(&mut vm);
}

#[test]
fn events_are_signalled_without_event_idx() {
    let mut vm = Vm::realized("--boot-bypass off");
    vm.features &= !feature::EVENT_IDX;
    vm.start();
    vm.attach_accel(1, 0);
    for _ in 0..100 {
        let expected = marker(&mut vm);
        assert_eq!(vm.events.receive(), expected);
    }
}
