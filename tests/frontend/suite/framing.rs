//! How the bytes of a request may be spread over descriptors, and what becomes of the wrong ones.

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

/// Requests of every type that are all OK, in this order.
fn all() -> [Request; 5] {
    [attach(1, EP0), probe(EP0, 512), map_page(1), unmap(1, 0, u64::MAX), detach(1, EP0)]
}

/// The status of a reply of 512 bytes of properties, or of a tail only.
fn status(reply: &Reply) -> u8 {
    assert_eq!(reply.len as usize, reply.data.len());
    reply.data[reply.data.len() - TAIL]
}

#[test]
fn a_request_may_be_cut_in_two_anywhere() {
    let mut vm = Vm::new("");
    assert_eq!(vm.front_end.config().probe_size, 512, "adapt this test to probe_size");
    for request in all() {
        for cut in 1..request.bytes.len() {
            let (a, b) = request.bytes.split_at(cut);
            for table in TABLES {
                let half = request.writable / 2;
                let room = vec![half, request.writable - half];
                let reply = vm.requests.transact(&Chain::new(vec![a, b], room).table(table));
                if let 3 | 4 = request.bytes[0] {
                    vm.ok(unmap(1, 0, u64::MAX));
                }
                assert_eq!(status(&reply), OK, "{request:x?} cut at {cut}, {table:?}");
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
fn a_request_may_be_one_byte_per_descriptor() {
    let mut vm = Vm::new("");
    for table in TABLES {
        for request in all() {
            let out = request.bytes.chunks(1).collect();
            // An answer to PROBE in single bytes would not fit into the ring.
            let room =
                if request.writable == TAIL { vec![1; TAIL] } else { vec![100, 400, 12, 1, 3] };
            let reply = vm.requests.transact(&Chain::new(out, room).table(table));
            assert_eq!(status(&reply), OK, "{request:x?}, {table:?}");
        }
    }
}

#[test]
fn a_request_may_be_merged_into_one_descriptor_each_way() {
    let mut vm = Vm::new("");
    for table in TABLES {
        for request in all() {
            let shape = Chain::new(vec![&request.bytes], vec![request.writable]).table(table);
            assert_eq!(status(&vm.requests.transact(&shape)), OK, "{request:x?}, {table:?}");
        }
    }
}

#[test]
fn empty_descriptors_in_between_are_survived() {
    let mut vm = attached();
    for (round, out, room) in
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
            let shape = Chain::new(pieces.clone(), room.to_vec()).table(table);
            vm.requests.transact(&shape);
            vm.ok(unmap(1, 0, u64::MAX));
        }
    }
}

#[test]
fn a_truncated_body_of_a_known_type_is_invalid() {
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
fn a_request_without_a_whole_head_comes_back_unwritten() {
    let mut vm = attached();
    for request in all() {
        for len in 0..4 {
            assert!(vm.send(&request.clone().cut(len)).is_unwritten(), "{len} bytes");
        }
    }
    let nothing_to_read = Chain::new(vec![], vec![TAIL]);
    assert!(vm.requests.transact(&nothing_to_read).is_unwritten());
    vm.ok(map_page(1));
}

#[test]
fn an_unknown_type_comes_back_unwritten() {
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
fn a_request_without_room_for_a_tail_comes_back_unwritten_and_is_not_done() {
    let mut vm = attached();
    for room in 0..TAIL {
        assert!(vm.send(&map_page(1).writable(room)).is_unwritten(), "{room} bytes");
        assert!(vm.send(&detach(1, EP0).writable(room)).is_unwritten(), "{room} bytes");
    }
    let nothing_to_write = map_page(1);
    let shape = Chain::new(vec![&nothing_to_write.bytes], vec![]);
    assert_eq!(vm.requests.transact(&shape).len, 0);
    vm.ok(map_page(1));
}

#[test]
fn readable_bytes_behind_the_request_are_ignored() {
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
fn an_overlong_writable_part_has_the_tail_at_its_place_and_zeros_behind() {
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
fn no_more_than_64_kib_are_written() {
    let mut vm = attached();
    for (page, room) in (0..).zip([0x1_0001, 0x2_0000, 0x8_0000]) {
        let reply = vm.send(&map_page(page).writable(room));
        assert_eq!(reply.len, 0x1_0000);
        assert!(reply.data[..0x1_0000].iter().all(|&byte| byte == 0));
        assert!(reply.data[0x1_0000..].iter().all(|&byte| byte == 0xEE));
    }
    let reply = vm.send(&probe(EP0, 0x4_0000));
    assert_eq!(reply.len, 0x1_0000);
    assert_eq!(reply.data[512], OK);
}

#[test]
fn a_tail_may_be_spread_over_an_overlong_writable_part() {
    let mut vm = attached();
    let request = map_page(1);
    let shape = Chain::new(vec![&request.bytes], vec![1, 1, 100, 1]);
    let reply = vm.requests.transact(&shape);
    assert_eq!((reply.len, &reply.data[..]), (103, &[0; 103][..]));
}

#[test]
fn many_requests_in_flight_come_back_in_order() {
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
fn requests_added_while_others_are_served_are_served_too() {
    const SLOTS: u16 = 64;
    let request = detach(1, EP0);
    for features in [0, feature::EVENT_IDX] {
        let mut vm = Vm::realized("");
        vm.features &= !features;
        vm.start();
        let ring = &mut vm.requests;
        let place = |slot: u16| DATA + 64 * u64::from(slot);
        for slot in 0..SLOTS {
            ring.ram.write(place(slot), &request.bytes);
            ring.descriptor(2 * slot, place(slot), 20, flags::NEXT, 2 * slot + 1);
            ring.descriptor(2 * slot + 1, place(slot) + 32, 4, flags::WRITE, 0);
            ring.offer(2 * slot);
        }
        // Each that comes back goes out again at once.
        for _ in 0..20_000 {
            ring.submit();
            let (head, len) = ring.poll_used();
            assert_eq!(len, 4);
            ring.offer(head);
        }
    }
}

#[test]
fn without_indirect_and_event_idx_requests_are_served_too() {
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
fn a_driver_that_polls_without_notifications_is_served() {
    // Linux waits for requests this way, with interrupts off.
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
