//! Resets, stops, front ends that come and go, and the end of the daemon.

use std::fs;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use testing::accel::{Accel, fault_read, regs, ring_fault};
use testing::front_end::{EVENT_QUEUE, FrontEnd, Message, REALIZE, REQUEST_QUEUE, START};
use testing::memory::PAGE;
use testing::request::status::*;
use testing::request::{RW, attach, detach, map, probe, unmap};
use testing::virtqueue::Table;
use testing::vm::{DATA, EP0, Vm, daemon};
use testing::wait;

const IOVA: u64 = 0x7000_0000;

/// A driver that runs, with a domain that holds one page for the first accelerator.
fn mapped() -> Vm {
    let mut vm = Vm::strict();
    make_domain(&mut vm);
    vm
}

fn make_domain(vm: &mut Vm) {
    vm.attach_accel(1, 0);
    vm.ok(map(1, IOVA, IOVA + PAGE - 1, DATA, RW));
    vm.ram.write(DATA, b"mapped");
}

#[track_caller]
fn assert_kept(vm: &mut Vm) {
    assert_eq!(vm.accel(0).read(IOVA, 6).unwrap(), b"mapped");
    vm.expect(INVAL, map(1, IOVA, IOVA + PAGE - 1, DATA, RW));
}

#[track_caller]
fn assert_clean(vm: &mut Vm) {
    let accel = vm.accel(0);
    assert_eq!(accel.read(IOVA, 6), ring_fault(accel));
    vm.expect(NOENT, map(1, IOVA, IOVA + PAGE - 1, DATA, RW));
    vm.expect(INVAL, detach(1, EP0));
}

/// Keeps the first accelerator busy for longer than any test.
fn start_dma(vm: &mut Vm) {
    let accel = vm.accel(0);
    let work = regs::Descriptor {
        opcode: regs::OP_CRC32C,
        flags: regs::FLAG_COMPLETION,
        source: 0,
        length: 16 << 20,
        completion: accel.record(0),
        ..Default::default()
    };
    accel.start(0, &[work; Accel::RING_ENTRIES as usize - 1]);
}

fn all_messages() -> Vec<Message> {
    [&REALIZE[..], &START].concat()
}

#[test]
fn a_device_reset_ends_all_domains() {
    let mut vm = mapped();
    assert_kept(&mut vm);
    vm.reset();
    assert_clean(&mut vm);
    make_domain(&mut vm);
    assert_kept(&mut vm);
}

#[test]
fn a_device_reset_with_rings_elsewhere_ends_all_domains() {
    let mut vm = mapped();
    vm.front_end.stop();
    let ring = &mut vm.requests;
    let distance = 0x1_8000 - ring.descriptors;
    for part in [&mut ring.descriptors, &mut ring.avail, &mut ring.used] {
        *part += distance;
    }
    vm.boot();
    assert_clean(&mut vm);
}

#[test]
fn a_stopped_vm_that_goes_on_keeps_its_domains() {
    let mut vm = mapped();
    for _ in 0..3 {
        let bases = vm.pause();
        assert_ne!(bases[REQUEST_QUEUE], 0);
        vm.cont(bases);
        assert_kept(&mut vm);
    }
}

#[test]
fn a_saved_index_of_0_with_an_old_used_ring_keeps_the_domains() {
    let mut vm = mapped();
    // Until the 16-bit index wraps.
    while vm.requests.next_avail != 0 {
        let batch = (0x1_0000 - u32::from(vm.requests.next_avail)).min(256);
        let request = unmap(1, 0x1000, 0x1fff);
        for _ in 0..batch {
            vm.requests.add(&request.chain().table(Table::Indirect));
        }
        vm.requests.submit();
        for _ in 0..batch {
            assert_eq!(vm.requests.reply().1.status(), OK);
        }
    }
    let bases = vm.pause();
    assert_eq!(bases[REQUEST_QUEUE], 0);
    vm.cont(bases);
    assert_kept(&mut vm);
    vm.reset();
    assert_clean(&mut vm);
}

#[test]
fn dma_goes_on_while_the_vm_is_stopped() {
    // The VMM may stop devices in any order.
    let mut vm = mapped();
    let bases = vm.pause();
    assert_eq!(vm.accel(0).read(IOVA, 6).unwrap(), b"mapped");
    vm.accel(0).read(IOVA + PAGE, 6).unwrap_err();
    vm.cont(bases);
    assert_kept(&mut vm);
}

#[test]
fn requests_made_while_stopped_are_served_afterwards() {
    let mut vm = mapped();
    let bases = vm.pause();
    let requests = [unmap(1, IOVA, IOVA + PAGE - 1), map(1, 0, PAGE - 1, DATA, RW)];
    let heads = requests.each_ref().map(|request| vm.requests.add(&request.chain()));
    vm.requests.submit();
    let _ = vm.requests.kick.write(1);
    // Nothing is served now: a read of the configuration space is a barrier for the front end.
    vm.front_end.config();
    assert_eq!(vm.requests.take_used(), None);
    vm.cont(bases);
    for head in heads {
        let (used, reply) = vm.requests.reply();
        assert_eq!((used, reply.status()), (head, OK));
    }
}

#[test]
fn a_disabled_ring_is_not_served_until_it_is_enabled() {
    let mut vm = mapped();
    vm.enable(false);
    let head = vm.requests.add(&attach(2, EP0).chain());
    vm.requests.submit();
    vm.front_end.config();
    assert_eq!(vm.requests.take_used(), None);
    vm.enable(true);
    assert_eq!(vm.requests.reply().0, head);
}

#[test]
fn stopping_again_and_again_is_harmless() {
    let mut vm = mapped();
    let bases = vm.pause();
    assert_eq!(vm.pause(), bases);
    vm.cont(bases);
    assert_kept(&mut vm);
    for _ in 0..50 {
        vm.reset();
        vm.ok(attach(1, EP0));
    }
}

#[test]
fn a_front_end_that_asks_for_no_replies_is_served() {
    let mut vm = Vm::connected(daemon("--boot-bypass off"));
    vm.front_end.request_replies = false;
    vm.send_messages(&REALIZE, [0; 2]);
    vm.start();
    make_domain(&mut vm);
    let bases = vm.pause();
    vm.cont(bases);
    assert_kept(&mut vm);
    vm.reset();
    assert_clean(&mut vm);
}

#[test]
fn call_descriptors_can_be_exchanged_while_the_driver_runs() {
    // QEMU does so when the guest masks and unmasks a vector.
    let mut vm = mapped();
    for _ in 0..10 {
        vm.requests.call = EventFd::new(EFD_NONBLOCK).unwrap();
        vm.events.queue.call = EventFd::new(EFD_NONBLOCK).unwrap();
        vm.front_end.set_call(REQUEST_QUEUE, &vm.requests.call);
        vm.front_end.set_call(EVENT_QUEUE, &vm.events.queue.call);
        vm.accel(0).read(IOVA + PAGE, 1).unwrap_err();
        assert_eq!(vm.events.receive().address, IOVA + PAGE);
        assert_kept(&mut vm);
    }
}

#[test]
fn kicks_without_requests_are_harmless() {
    let mut vm = mapped();
    for _ in 0..100 {
        vm.requests.kick.write(1).unwrap();
        vm.events.queue.kick.write(1).unwrap();
        assert_kept(&mut vm);
    }
}

#[test]
fn vhost_reset_device_starts_clean() {
    let mut vm = mapped();
    use vhost::vhost_user::VhostUserProtocolFeatures as P;
    if !vm.front_end.protocol.contains(P::RESET_DEVICE) {
        return;
    }
    vm.front_end.stop();
    vm.front_end.reset_device();
    vm.boot();
    assert_clean(&mut vm);
}

#[test]
fn memory_regions_come_and_go_while_the_driver_runs() {
    let mut vm = mapped();
    let both = vm.memory();
    for regions in [&both[..1], &both[..], &both[..1], &both[..]] {
        vm.front_end.set_memory(regions).unwrap();
        assert_kept(&mut vm);
    }
    // The rings' memory goes and comes back.
    vm.front_end.set_memory(&both[1..]).unwrap();
    vm.front_end.set_memory(&both).unwrap();
    vm.reset();
    vm.assert_works();
}

#[test]
fn single_memory_regions_can_be_added_and_removed() {
    use vhost::vhost_user::VhostUserProtocolFeatures as P;
    let mut vm = mapped();
    if !vm.front_end.protocol.contains(P::CONFIGURE_MEM_SLOTS) {
        return;
    }
    let high = vm.memory()[1];
    for _ in 0..3 {
        vm.front_end.remove_region(&high);
        assert_kept(&mut vm);
        vm.front_end.add_region(&high);
        assert_kept(&mut vm);
    }
}

#[test]
fn memory_changes_across_a_stop_keep_the_domains() {
    let mut vm = mapped();
    let bases = vm.pause();
    let both = vm.memory();
    vm.front_end.set_memory(&both[..1]).unwrap();
    vm.cont(bases);
    assert_kept(&mut vm);
}

#[test]
fn the_next_front_end_starts_clean() {
    let mut vm = mapped();
    for _ in 0..3 {
        vm.replace_front_end();
        assert_clean(&mut vm);
        make_domain(&mut vm);
    }
}

#[test]
fn the_mappings_of_a_front_end_that_has_gone_are_not_reached() {
    let mut vm = mapped();
    vm.reconnect();
    wait::until("the end of the domain", || {
        let accel = vm.accel(0);
        (accel.read(IOVA, 6) == ring_fault(accel)).then_some(())
    });
}

#[test]
fn a_front_end_that_goes_at_any_point_of_its_set_up_leaves_a_working_daemon() {
    let messages = all_messages();
    let mut vm = Vm::connected(daemon("--boot-bypass off"));
    for count in 0..=messages.len() {
        vm.clear_queues();
        vm.send_messages(&messages[..count], [0; 2]);
        vm.replace_front_end();
        vm.assert_works();
        vm.reconnect();
    }
}

#[test]
fn a_front_end_that_goes_with_a_request_in_its_ring_leaves_a_working_daemon() {
    let mut vm = mapped();
    for _ in 0..20 {
        let request = probe(EP0, 512);
        for _ in 0..64 {
            vm.requests.add(&request.chain());
        }
        vm.requests.submit();
        vm.replace_front_end();
        vm.assert_works();
    }
}

#[test]
fn a_front_end_that_goes_while_dma_runs_leaves_a_working_daemon() {
    let mut vm = Vm::strict();
    for _ in 0..5 {
        vm.ok(attach(1, EP0));
        vm.ok(map(1, 0, (32 << 20) - 1, 0, RW));
        start_dma(&mut vm);
        vm.replace_front_end();
        vm.assert_works();
    }
}

#[test]
fn an_endpoint_whose_vmm_side_goes_while_dma_runs_can_be_connected_again() {
    let mut vm = Vm::strict();
    vm.ok(attach(1, EP0));
    vm.ok(map(1, 0, (32 << 20) - 1, 0, RW));
    for _ in 0..5 {
        start_dma(&mut vm);
        vm.drop_accel(0);
        vm.accel(0).read(DATA, 8).unwrap();
    }
    vm.ok(unmap(1, 0, u64::MAX));
}

#[test]
fn requests_are_served_while_dma_runs() {
    let mut vm = Vm::strict();
    vm.ok(attach(1, EP0));
    vm.ok(map(1, 0, (32 << 20) - 1, 0, RW));
    start_dma(&mut vm);
    for _ in 0..100 {
        vm.ok(map(1, IOVA, IOVA + PAGE - 1, DATA, RW));
        vm.ok(unmap(1, IOVA, IOVA + PAGE - 1));
    }
    vm.ok(unmap(1, 0, u64::MAX));
    // The mapping has gone under the transfer.
    vm.events.receive();
    vm.map_home(1, 0);
    assert_eq!(vm.accel(0).read(IOVA, 1), fault_read(IOVA));
}

#[test]
fn many_front_ends_leave_no_descriptors_and_threads_behind() {
    let mut vm = mapped();
    let count = |vm: &Vm| {
        ["fd", "task"]
            .map(|what| fs::read_dir(format!("/proc/{}/{what}", vm.daemon.pid())).unwrap().count())
    };
    vm.replace_front_end();
    vm.assert_works();
    let before = count(&vm);
    for _ in 0..40 {
        vm.replace_front_end();
        vm.ok(attach(1, EP0));
    }
    vm.assert_works();
    wait::until("descriptors and threads to be given back", || {
        let now = count(&vm);
        (now[0] <= before[0] + 2 && now[1] <= before[1] + 1).then_some(())
    });
}

#[test]
fn a_signal_at_any_point_ends_the_daemon_cleanly() {
    let messages = all_messages();
    for (count, signal) in
        (0..=messages.len()).zip([libc::SIGTERM, libc::SIGINT].into_iter().cycle())
    {
        let mut vm = Vm::connected(daemon(""));
        vm.send_messages(&messages[..count], [0; 2]);
        vm.daemon.stop(signal);
    }
}

#[test]
fn a_signal_without_a_front_end_ends_the_daemon_cleanly() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        daemon("").stop(signal);
    }
}

#[test]
fn a_signal_while_dma_runs_ends_the_daemon_cleanly() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut vm = Vm::new("");
        start_dma(&mut vm);
        vm.daemon.stop(signal);
    }
}

#[test]
fn a_signal_with_the_next_front_end_waiting_ends_the_daemon_cleanly() {
    let mut vm = mapped();
    let _next = FrontEnd::connect(&mut vm.daemon);
    vm.daemon.stop(libc::SIGTERM);
}
