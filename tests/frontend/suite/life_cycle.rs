//! Reset, pause and resume, successive front ends, and shutdown of the daemon.

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

/// Returns a running driver with a domain in which one page is mapped for the first accelerator.
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

/// Checks that the domain still exists.
#[track_caller]
fn assert_kept(vm: &mut Vm) {
    assert_eq!(vm.accel(0).read(IOVA, 6).unwrap(), b"mapped");
    vm.expect(INVAL, map(1, IOVA, IOVA + PAGE - 1, DATA, RW));
}

/// Checks that the domain no longer exists.
#[track_caller]
fn assert_clean(vm: &mut Vm) {
    let accel = vm.accel(0);
    assert_eq!(accel.read(IOVA, 6), ring_fault(accel));
    vm.expect(NOENT, map(1, IOVA, IOVA + PAGE - 1, DATA, RW));
    vm.expect(INVAL, detach(1, EP0));
}

/// Starts DMA of the first accelerator that takes longer than any test.
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
fn device_reset_removes_domains() {
    let mut vm = mapped();
    assert_kept(&mut vm);
    vm.reset();
    assert_clean(&mut vm);
    make_domain(&mut vm);
    assert_kept(&mut vm);
}

#[test]
fn device_reset_with_moved_rings_removes_domains() {
    let mut vm = mapped();
    vm.front_end.stop();
    let queue = &mut vm.requests;
    let distance = 0x1_8000 - queue.descriptors;
    for part in [&mut queue.descriptors, &mut queue.avail, &mut queue.used] {
        *part += distance;
    }
    vm.boot();
    assert_clean(&mut vm);
}

#[test]
fn pause_and_resume_keep_domains() {
    let mut vm = mapped();
    for _ in 0..3 {
        let bases = vm.pause();
        assert_ne!(bases[REQUEST_QUEUE], 0);
        vm.cont(bases);
        assert_kept(&mut vm);
    }
}

#[test]
fn resume_with_wrapped_index_keeps_domains() {
    let mut vm = mapped();
    // Advance the 16-bit index until it wraps to 0.
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
fn dma_continues_while_vm_is_paused() {
    // The VMM may stop its devices in any order.
    let mut vm = mapped();
    let bases = vm.pause();
    assert_eq!(vm.accel(0).read(IOVA, 6).unwrap(), b"mapped");
    vm.accel(0).read(IOVA + PAGE, 6).unwrap_err();
    vm.cont(bases);
    assert_kept(&mut vm);
}

#[test]
fn requests_made_while_paused_are_handled_after_resume() {
    let mut vm = mapped();
    let bases = vm.pause();
    let requests = [unmap(1, IOVA, IOVA + PAGE - 1), map(1, 0, PAGE - 1, DATA, RW)];
    let heads = requests.each_ref().map(|request| vm.requests.add(&request.chain()));
    vm.requests.submit();
    let _ = vm.requests.kick.write(1);
    // No request is handled now: the reply to a read of the configuration space proves that all
    // earlier messages have been handled.
    vm.front_end.config();
    assert_eq!(vm.requests.take_used(), None);
    vm.cont(bases);
    for head in heads {
        let (used, reply) = vm.requests.reply();
        assert_eq!((used, reply.status()), (head, OK));
    }
}

#[test]
fn disabled_virtqueue_is_not_served() {
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
fn repeated_pause_and_reset_are_tolerated() {
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
fn front_end_without_reply_ack_is_served() {
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
fn call_eventfds_can_be_replaced_at_run_time() {
    // QEMU replaces them when the guest masks and unmasks an MSI-X vector.
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
fn spurious_kicks_are_tolerated() {
    let mut vm = mapped();
    for _ in 0..100 {
        vm.requests.kick.write(1).unwrap();
        vm.events.queue.kick.write(1).unwrap();
        assert_kept(&mut vm);
    }
}

#[test]
fn reset_device_message_removes_domains() {
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
fn memory_table_can_be_replaced_at_run_time() {
    let mut vm = mapped();
    let both = vm.memory();
    for regions in [&both[..1], &both[..], &both[..1], &both[..]] {
        vm.front_end.set_memory(regions).unwrap();
        assert_kept(&mut vm);
    }
    // The memory of the rings is removed and added again.
    vm.front_end.set_memory(&both[1..]).unwrap();
    vm.front_end.set_memory(&both).unwrap();
    vm.reset();
    vm.assert_works();
}

#[test]
fn memory_regions_can_be_added_and_removed_at_run_time() {
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
fn memory_change_during_pause_keeps_domains() {
    let mut vm = mapped();
    let bases = vm.pause();
    let both = vm.memory();
    vm.front_end.set_memory(&both[..1]).unwrap();
    vm.cont(bases);
    assert_kept(&mut vm);
}

#[test]
fn next_front_end_starts_without_domains() {
    let mut vm = mapped();
    for _ in 0..3 {
        vm.replace_front_end();
        assert_clean(&mut vm);
        make_domain(&mut vm);
    }
}

#[test]
fn disconnect_of_front_end_removes_mappings() {
    let mut vm = mapped();
    vm.reconnect();
    wait::until("removal of the domain", || {
        let accel = vm.accel(0);
        (accel.read(IOVA, 6) == ring_fault(accel)).then_some(())
    });
}

#[test]
fn disconnect_during_setup_is_tolerated() {
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
fn disconnect_with_pending_requests_is_tolerated() {
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
fn disconnect_during_dma_is_tolerated() {
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
fn endpoint_reconnects_after_disconnect_during_dma() {
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
fn requests_are_handled_during_dma() {
    let mut vm = Vm::strict();
    vm.ok(attach(1, EP0));
    vm.ok(map(1, 0, (32 << 20) - 1, 0, RW));
    start_dma(&mut vm);
    for _ in 0..100 {
        vm.ok(map(1, IOVA, IOVA + PAGE - 1, DATA, RW));
        vm.ok(unmap(1, IOVA, IOVA + PAGE - 1));
    }
    vm.ok(unmap(1, 0, u64::MAX));
    // The mapping was removed during the transfer.
    vm.events.receive();
    vm.map_home(1, 0);
    assert_eq!(vm.accel(0).read(IOVA, 1), fault_read(IOVA));
}

#[test]
fn successive_front_ends_leak_no_fds_or_threads() {
    let mut vm = mapped();
    let count = |vm: &Vm| {
        ["fd", "task"]
            .map(|dir| fs::read_dir(format!("/proc/{}/{dir}", vm.daemon.pid())).unwrap().count())
    };
    vm.replace_front_end();
    vm.assert_works();
    let before = count(&vm);
    for _ in 0..40 {
        vm.replace_front_end();
        vm.ok(attach(1, EP0));
    }
    vm.assert_works();
    wait::until("file descriptors and threads to be released", || {
        let now = count(&vm);
        (now[0] <= before[0] + 2 && now[1] <= before[1] + 1).then_some(())
    });
}

#[test]
fn signal_during_setup_shuts_down_cleanly() {
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
fn signal_without_front_end_shuts_down_cleanly() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        daemon("").stop(signal);
    }
}

#[test]
fn signal_during_dma_shuts_down_cleanly() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut vm = Vm::new("");
        start_dma(&mut vm);
        vm.daemon.stop(signal);
    }
}

#[test]
fn signal_with_pending_front_end_shuts_down_cleanly() {
    let mut vm = mapped();
    let _next = FrontEnd::connect(&mut vm.daemon);
    vm.daemon.stop(libc::SIGTERM);
}
