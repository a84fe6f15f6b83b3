//! Framing of requests in descriptor chains, and requests of the wrong size.

use testing::front_end::feature;
use testing::request::Request;
use testing::request::status::*;
use testing::request::{READ, RW, TAIL, attach, detach, map, probe, unmap};
use testing::virtqueue::{Chain, Reply, Table, flags};
use testing::vm::{DATA, EP0, Vm};

const TABLES: [Table; 3] = [Table::Direct, Table::Indirect, Table::Mixed];

fn attached() -> Vm {
    let mut vm = Vm::new("");
    vm.ok(attach(1, EP0));
    vm
}

fn map_page(page: u64) -> Request {
    map(1, page << 12, (page << 12) + 0xfff, 0, RW)
}

/// Returns a request of each type. They succeed in this order.
fn all() -> [Request; 5] {
    [attach(1, EP0), probe(EP0, 512), map_page(1), unmap(1, 0, u64::MAX), detach(1, EP0)]
}

/// Returns the status of a reply, which ends with the tail.
fn status(reply: &Reply) -> u8 {
    assert_eq!(reply.len as usize, reply.data.len());
    reply.data[reply.data.len() - TAIL]
}

#[test]
fn request_is_accepted_when_split_at_any_offset() {
    let mut vm = Vm::new("");
    assert_eq!(vm.front_end.config().probe_size, 512, "adapt this test to probe_size");
    for request in all() {
        for cut in 1..request.bytes.len() {
            let (a, b) = request.bytes.split_at(cut);
            for table in TABLES {
                let half = request.writable / 2;
                let writable = vec![half, request.writable - half];
                let reply = vm.requests.transact(&Chain::new(vec![a, b], writable).table(table));
                if let 3 | 4 = request.bytes[0] {
                    vm.ok(unmap(1, 0, u64::MAX));
                }
                assert_eq!(status(&reply), OK, "{request:x?} split at {cut}, {table:?}");
                if request.bytes[0] == 2 {
                    vm.ok(attach(1, EP0));
                }
            }
        }
        if request.bytes[0] == 2 {
            vm.ok(detach(1, EP0));
        }
    }
}

#[test]
fn request_is_accepted_in_one_byte_descriptors() {
    let mut vm = Vm::new("");
    for table in TABLES {
        for request in all() {
            let out = request.bytes.chunks(1).collect();
            // A reply to PROBE in single bytes would not fit into the descriptor table.
            let writable =
                if request.writable == TAIL { vec![1; TAIL] } else { vec![100, 400, 12, 1, 3] };
            let reply = vm.requests.transact(&Chain::new(out, writable).table(table));
            assert_eq!(status(&reply), OK, "{request:x?}, {table:?}");
        }
    }
}

#[test]
fn request_is_accepted_in_two_descriptors() {
    let mut vm = Vm::new("");
    for table in TABLES {
        for request in all() {
            let shape = Chain::new(vec![&request.bytes], vec![request.writable]).table(table);
            assert_eq!(status(&vm.requests.transact(&shape)), OK, "{request:x?}, {table:?}");
        }
    }
}

#[test]
fn empty_descriptors_in_a_chain_are_tolerated() {
    let mut vm = attached();
    for (round, out, writable) in
        [(0, &[0, 4][..], &[4][..]), (1, &[36], &[0, 4]), (2, &[0, 0, 36, 0], &[0, 2, 0, 2, 0])]
    {
        let request = map_page(round);
        let mut bytes = &request.bytes[..];
        let mut pieces: Vec<&[u8]> = Vec::new();
        for &len in out {
            let (piece, rest) = bytes.split_at(len);
            pieces.push(piece);
            bytes = rest;
        }
        pieces.push(bytes);
        for table in TABLES {
            let shape = Chain::new(pieces.clone(), writable.to_vec()).table(table);
            vm.requests.transact(&shape);
            vm.ok(unmap(1, 0, u64::MAX));
        }
    }
}

#[test]
fn truncated_request_is_rejected_with_inval() {
    let mut vm = attached();
    for request in all() {
        for len in 4..request.bytes.len() {
            let short = request.clone().cut(len);
            let reply = vm.send(&short);
            assert_eq!(status(&reply), INVAL, "{short:x?}");
        }
    }
    vm.ok(map_page(1));
}

#[test]
fn truncated_head_is_returned_unwritten() {
    let mut vm = attached();
    for request in all() {
        for len in 0..4 {
            assert!(vm.send(&request.clone().cut(len)).is_unwritten(), "{len} bytes");
        }
    }
    let unreadable = Chain::new(vec![], vec![TAIL]);
    assert!(vm.requests.transact(&unreadable).is_unwritten());
    vm.ok(map_page(1));
}

#[test]
fn unknown_type_is_returned_unwritten() {
    let mut vm = attached();
    for kind in (0..=255).filter(|kind| !(1..=5).contains(kind)) {
        for len in [4, 20, 36, 100] {
            let request = Request::new(kind).raw(&vec![0; len - 4]);
            assert!(vm.send(&request).is_unwritten(), "type {kind}, {len} bytes");
        }
    }
    vm.ok(map_page(1));
}

#[test]
fn request_without_space_for_tail_is_not_executed() {
    let mut vm = attached();
    for size in 0..TAIL {
        assert!(vm.send(&map_page(1).writable(size)).is_unwritten(), "{size} bytes");
        assert!(vm.send(&detach(1, EP0).writable(size)).is_unwritten(), "{size} bytes");
    }
    let unwritable = map_page(1);
    let shape = Chain::new(vec![&unwritable.bytes], vec![]);
    assert_eq!(vm.requests.transact(&shape).len, 0);
    vm.ok(map_page(1));
}

#[test]
fn excess_readable_bytes_are_ignored() {
    let mut vm = Vm::new("");
    for request in all() {
        for extra in [1, 4, 100, 0x1_0000, 0x2_0000] {
            if request.bytes[0] == 2 {
                vm.ok(attach(1, EP0));
            }
            let reply = vm.send(&request.clone().raw(&vec![0xff; extra]));
            assert_eq!(status(&reply), OK, "{extra} more bytes");
            if request.bytes[0] == 3 {
                vm.ok(unmap(1, 0, u64::MAX));
            }
        }
    }
}

#[test]
fn excess_writable_bytes_are_zeroed() {
    let mut vm = attached();
    for (page, more) in (0..).zip([1, 2, 4, 60, 4096, 0xfffc]) {
        let reply = vm.send(&map_page(page).writable(TAIL + more));
        assert_eq!(reply.len as usize, TAIL + more);
        assert!(reply.data.iter().all(|&byte| byte == 0), "{more} more bytes");
        let reply = vm.send(&map_page(page).writable(TAIL + more));
        assert_eq!(reply.len as usize, TAIL + more);
        assert_eq!(reply.data[0], INVAL, "{more} more bytes");
        assert!(reply.data[1..].iter().all(|&byte| byte == 0), "{more} more bytes");
    }
}

#[test]
fn reply_is_limited_to_64_kib() {
    let mut vm = attached();
    for (page, size) in (0..).zip([0x1_0001, 0x2_0000, 0x8_0000]) {
        let reply = vm.send(&map_page(page).writable(size));
        assert_eq!(reply.len, 0x1_0000);
        assert!(reply.data[..0x1_0000].iter().all(|&byte| byte == 0));
        assert!(reply.data[0x1_0000..].iter().all(|&byte| byte == 0xEE));
    }
    let reply = vm.send(&probe(EP0, 0x4_0000));
    assert_eq!(reply.len, 0x1_0000);
    assert_eq!(reply.data[512], OK);
}

#[test]
fn tail_may_be_split_over_descriptors() {
    let mut vm = attached();
    let request = map_page(1);
    let shape = Chain::new(vec![&request.bytes], vec![1, 1, 100, 1]);
    let reply = vm.requests.transact(&shape);
    assert_eq!((reply.len, &reply.data[..]), (103, &[0; 103][..]));
}

#[test]
fn requests_in_flight_complete_in_order() {
    let mut vm = attached();
    for table in [Table::Direct, Table::Indirect] {
        let count = if table == Table::Direct { 128 } else { 256 };
        for round in 0..4 {
            let requests: Vec<_> = (0..count)
                .map(|index| match round % 2 {
                    0 => map_page(index),
                    _ => unmap(1, index << 12, (index << 12) + 0xfff),
                })
                .collect();
            let heads: Vec<_> = requests
                .iter()
                .map(|request| vm.requests.add(&request.chain().table(table)))
                .collect();
            vm.requests.submit();
            for head in heads {
                let (used, reply) = vm.requests.reply();
                assert_eq!((used, reply.status()), (head, OK));
            }
        }
        assert_eq!(vm.status(&map_page(0)), OK);
        vm.ok(unmap(1, 0, u64::MAX));
    }
}

#[test]
fn requests_added_during_handling_are_handled() {
    const SLOTS: u16 = 64;
    let request = detach(1, EP0);
    for features in [0, feature::EVENT_IDX] {
        let mut vm = Vm::realized("");
        vm.features &= !features;
        vm.start();
        let queue = &mut vm.requests;
        let address = |slot: u16| DATA + 64 * u64::from(slot);
        for slot in 0..SLOTS {
            queue.ram.write(address(slot), &request.bytes);
            queue.descriptor(2 * slot, address(slot), 20, flags::NEXT, 2 * slot + 1);
            queue.descriptor(2 * slot + 1, address(slot) + 32, 4, flags::WRITE, 0);
            queue.offer(2 * slot);
        }
        // Each returned request is made available again immediately.
        for _ in 0..20_000 {
            queue.submit();
            let (head, len) = queue.poll_used();
            assert_eq!(len, 4);
            queue.offer(head);
        }
    }
}

#[test]
fn requests_work_without_indirect_desc_and_event_idx() {
    for features in
        [feature::EVENT_IDX, feature::INDIRECT_DESC, feature::EVENT_IDX | feature::INDIRECT_DESC]
    {
        let mut vm = Vm::realized("");
        vm.features &= !features;
        vm.start();
        vm.ok(attach(1, EP0));
        (0..1000).for_each(|page| vm.ok(map_page(page)));
        vm.assert_works();
    }
}

#[test]
fn requests_work_with_notifications_suppressed() {
    // Linux busy-waits for requests this way, with interrupts off.
    for features in [0, feature::EVENT_IDX] {
        let mut vm = Vm::realized("");
        vm.features &= !features;
        vm.start();
        vm.ok(attach(1, EP0));
        vm.ram.store(vm.requests.avail, 1);
        for page in 0..1000 {
            let request = map(1, page << 12, (page << 12) + 0xfff, 0, READ);
            let head = vm.requests.add(&request.chain());
            vm.requests.submit();
            let (used, len) = vm.requests.poll_used();
            assert_eq!(used, head);
            assert_eq!(vm.requests.collect(used, len).status(), OK);
        }
    }
}
