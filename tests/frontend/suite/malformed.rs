//! Rings and messages that no good driver or VMM makes: the daemon outlives them, and what
//! comes after is served correctly.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use testing::daemon;
use testing::request::attach;
use testing::request::status::OK;
use testing::virtqueue::Virtqueue;
use testing::virtqueue::flags::{INDIRECT, NEXT, WRITE};
use testing::vm::{DATA, EP0, HIGH, LOW, Vm};

/// Where abused descriptors start, so that a good request behind them has its own.
const AT: u16 = 200;
/// A whole ATTACH, for chains that are only wrong in other ways.
const REQUEST: u64 = DATA;
const REPLY: u64 = DATA + 0x1000;
const TABLE: u64 = DATA + 0x2000;
const NOWHERE: u64 = 0xdead_0000_0000;

/// One descriptor: address, length, flags, next.
type Descriptor = (u64, u32, u16, u16);

/// Chains that start at descriptor `AT`, and indirect tables that lie at `TABLE`.
#[rustfmt::skip]
const CHAINS: &[(&str, &[Descriptor], &[Descriptor])] = &[
    ("a loop of one", &[(REQUEST, 20, NEXT, AT)], &[]),
    ("a loop of two", &[(REQUEST, 20, NEXT, AT + 1), (REPLY, 4, NEXT | WRITE, AT)], &[]),
    ("next beyond the table", &[(REQUEST, 20, NEXT, 256)], &[]),
    ("next far beyond the table", &[(REQUEST, 20, NEXT, 0xffff)], &[]),
    ("read outside memory", &[(NOWHERE, 20, NEXT, AT + 1), (REPLY, 4, WRITE, 0)], &[]),
    ("write outside memory", &[(REQUEST, 20, NEXT, AT + 1), (NOWHERE, 4, WRITE, 0)], &[]),
    ("read past the end of a region", &[(LOW.1 - 10, 20, NEXT, AT + 1), (REPLY, 4, WRITE, 0)], &[]),
    ("write past the end of a region", &[(REQUEST, 20, NEXT, AT + 1), (HIGH.0 + HIGH.1 - 2, 4, WRITE, 0)], &[]),
    ("read past all addresses", &[(u64::MAX - 9, 20, NEXT, AT + 1), (REPLY, 4, WRITE, 0)], &[]),
    ("write past all addresses", &[(REQUEST, 20, NEXT, AT + 1), (u64::MAX - 1, 4, WRITE, 0)], &[]),
    ("a huge length to read", &[(REQUEST, u32::MAX, NEXT, AT + 1), (REPLY, 4, WRITE, 0)], &[]),
    ("a huge length to write", &[(REQUEST, 20, NEXT, AT + 1), (REPLY, u32::MAX, WRITE, 0)], &[]),
    ("lengths that add up to more than 32 bits", &[(REQUEST, u32::MAX, NEXT, AT + 1), (REQUEST, u32::MAX, NEXT, AT + 2), (REPLY, u32::MAX, NEXT | WRITE, AT + 3), (REPLY, u32::MAX, WRITE, 0)], &[]),
    ("empty descriptors", &[(REQUEST, 0, NEXT, AT + 1), (REPLY, 0, WRITE, 0)], &[]),
    ("an empty descriptor nowhere", &[(u64::MAX, 0, NEXT, AT + 1), (REPLY, 4, WRITE, 0)], &[]),
    ("write before read", &[(REPLY, 4, NEXT | WRITE, AT + 1), (REQUEST, 20, 0, 0)], &[]),
    ("read, write, read", &[(REQUEST, 8, NEXT, AT + 1), (REPLY, 4, NEXT | WRITE, AT + 2), (REQUEST + 8, 12, 0, 0)], &[]),
    ("unknown flags", &[(REQUEST, 20, NEXT | 0xfff8, AT + 1), (REPLY, 4, WRITE | 0xfff8, 0)], &[]),
    ("a chain without end to its first table", &[(REQUEST, 20, NEXT, AT + 1), (REPLY, 4, WRITE | NEXT, 0)], &[]),
    ("an empty indirect table", &[(TABLE, 0, INDIRECT, 0)], &[]),
    ("an indirect table of half a descriptor", &[(TABLE, 8, INDIRECT, 0)], &[]),
    ("an indirect table of an odd length", &[(TABLE, 33, INDIRECT, 0)], &[(REQUEST, 20, NEXT, 1), (REPLY, 4, WRITE, 0)]),
    ("an indirect table of a huge length", &[(TABLE, 0xffff_fff0, INDIRECT, 0)], &[(REQUEST, 20, NEXT, 1), (REPLY, 4, WRITE, 0)]),
    ("an indirect table outside memory", &[(NOWHERE, 32, INDIRECT, 0)], &[]),
    ("an indirect table past all addresses", &[(u64::MAX - 15, 32, INDIRECT, 0)], &[]),
    ("a misaligned indirect table", &[(TABLE + 1, 32, INDIRECT, 0)], &[]),
    ("indirect in indirect", &[(TABLE, 32, INDIRECT, 0)], &[(TABLE, 32, INDIRECT, 0)]),
    ("indirect with next", &[(TABLE, 32, INDIRECT | NEXT, AT + 1), (REPLY, 4, WRITE, 0)], &[(REQUEST, 20, NEXT, 1), (REPLY, 4, WRITE, 0)]),
    ("indirect to write", &[(TABLE, 32, INDIRECT | WRITE, 0)], &[(REQUEST, 20, NEXT, 1), (REPLY, 4, WRITE, 0)]),
    ("a loop in an indirect table", &[(TABLE, 32, INDIRECT, 0)], &[(REQUEST, 20, NEXT, 1), (REPLY, 4, NEXT | WRITE, 0)]),
    ("next beyond an indirect table", &[(TABLE, 32, INDIRECT, 0)], &[(REQUEST, 20, NEXT, 2)]),
    ("next far beyond an indirect table", &[(TABLE, 32, INDIRECT, 0)], &[(REQUEST, 20, NEXT, 0xffff)]),
];

fn lay_out(ring: &mut Virtqueue, chain: &[Descriptor], table: &[Descriptor]) {
    ring.ram.write(REQUEST, &attach(1, EP0).bytes);
    for (index, &(address, len, flags, next)) in (AT..).zip(chain) {
        ring.descriptor(index, address, len, flags, next);
    }
    for (index, &(address, len, flags, next)) in (0..).zip(table) {
        ring.write_descriptor(TABLE, index, address, len, flags, next);
    }
    ring.offer(AT);
}

/// A good request behind bad ones is answered, whatever comes back before it.
fn assert_serves(vm: &mut Vm, what: &str) {
    let head = vm.requests.add(&attach(0xbad, EP0).chain());
    vm.requests.submit();
    let reply = loop {
        let (used, len) = vm.requests.wait_used();
        if used == head {
            break vm.requests.collect(used, len);
        }
    };
    assert_eq!(reply.status(), OK, "after {what}");
}

#[test]
fn a_bad_chain_does_not_keep_the_next_request_from_being_served() {
    let mut vm = Vm::strict();
    for &(what, chain, table) in CHAINS {
        eprintln!("{what}");
        lay_out(&mut vm.requests, chain, table);
        assert_serves(&mut vm, what);
        vm.reset();
        vm.assert_works();
    }
}

#[test]
fn a_head_beyond_the_table_is_repaired_by_a_reset() {
    let mut vm = Vm::strict();
    for head in [256, 257, 0x7fff, 0xffff] {
        for queue in 0..2 {
            let ring = if queue == 0 { &mut vm.requests } else { &mut vm.events.queue };
            ring.offer(head);
            ring.submit();
            vm.front_end.config();
            let _ = vm.accel(0).read(DATA, 8);
            vm.reset();
            vm.assert_works();
        }
    }
}

#[test]
fn a_bad_chain_on_the_event_queue_does_no_harm_to_requests() {
    let mut vm = Vm::realized("--boot-bypass off");
    let whole = vm.event_buffers;
    for &(what, chain, table) in CHAINS {
        eprintln!("{what}");
        vm.event_buffers = (0, 24);
        vm.start();
        // More bad ones than faults.
        for _ in 0..8 {
            lay_out_events(&mut vm.events.queue, chain, table);
        }
        vm.events.queue.submit();
        for _ in 0..4 {
            vm.accel(0).read(DATA, 8).unwrap_err();
        }
        vm.ok(attach(1, EP0));
        vm.front_end.stop();
        vm.event_buffers = whole;
        vm.start();
        vm.assert_works();
        vm.front_end.stop();
    }
}

/// As `lay_out`, for the event queue, whose table is too small for `AT`: from descriptor 0.
fn lay_out_events(ring: &mut Virtqueue, chain: &[Descriptor], table: &[Descriptor]) {
    let moved = |index: u16| if (AT..AT + 8).contains(&index) { index - AT } else { index };
    for (index, &(address, len, flags, next)) in (0..).zip(chain) {
        ring.descriptor(index, address, len, flags, moved(next));
    }
    for (index, &(address, len, flags, next)) in (0..).zip(table) {
        ring.write_descriptor(TABLE, index, address, len, flags, next);
    }
    ring.offer(0);
}

#[test]
fn an_available_index_out_of_bounds_is_repaired_by_a_reset() {
    let mut vm = Vm::strict();
    for distance in [257, 300, 0x7fff, 0x8000, 0xffff] {
        for queue in 0..2 {
            let ring = if queue == 0 { &mut vm.requests } else { &mut vm.events.queue };
            ring.next_avail = ring.next_avail.wrapping_add(distance);
            ring.submit();
            ring.kick.write(1).unwrap();
            vm.front_end.config();
            let _ = vm.accel(0).read(DATA, 8);
            vm.reset();
            vm.assert_works();
        }
    }
}

#[test]
fn a_request_that_is_offered_twice_does_no_harm() {
    let mut vm = Vm::strict();
    let head = vm.requests.add(&attach(1, EP0).chain());
    vm.requests.offer(head);
    vm.requests.submit();
    for _ in 0..2 {
        assert_eq!(vm.requests.wait_used().0, head);
    }
    vm.reset();
    vm.assert_works();
}

#[test]
fn a_reply_over_the_ring_itself_is_repaired_by_a_reset() {
    let mut vm = Vm::strict();
    let ring = &vm.requests;
    for place in [ring.descriptors, ring.avail, ring.used] {
        let ring = &mut vm.requests;
        lay_out(ring, &[(REQUEST, 20, NEXT, AT + 1), (place, 0x1000, WRITE, 0)], &[]);
        ring.submit();
        vm.front_end.config();
        vm.reset();
        vm.assert_works();
    }
}

#[test]
fn a_request_of_almost_4_gib_is_answered() {
    let mut vm = Vm::strict();
    let request = attach(1, EP0);
    vm.ram.write(REQUEST, &request.bytes);
    const COUNT: u16 = 170;
    for index in 0..COUNT {
        let address = if index == 0 { REQUEST } else { 0 };
        vm.requests.descriptor(index, address, (LOW.1 - REQUEST) as u32, NEXT, index + 1);
    }
    vm.requests.descriptor(COUNT, REPLY, 4, WRITE, 0);
    vm.requests.offer(0);
    vm.requests.submit();
    assert_eq!(vm.requests.wait_used(), (0, 4));
    assert_eq!(vm.ram.read(REPLY, 4), [OK, 0, 0, 0]);
    vm.reset();
    vm.assert_works();
}

#[test]
fn rings_outside_memory_or_misaligned_are_survived() {
    let mut vm = Vm::realized("--boot-bypass off");
    let host = |vm: &Vm, gpa| vm.ram.host_address(gpa);
    let (low, last) = (host(&vm, 0x1_0000), host(&vm, LOW.1 - 16));
    let places = [
        ("nowhere", [0; 3]),
        ("past all addresses", [u64::MAX - 15, u64::MAX - 1, u64::MAX - 3]),
        ("misaligned descriptors", [low + 1, low + 0x1000, low + 0x2000]),
        ("misaligned available ring", [low, low + 0x1001, low + 0x2000]),
        ("misaligned used ring", [low, low + 0x1000, low + 0x2001]),
        ("descriptors past the end", [last, low + 0x1000, low + 0x2000]),
        ("available ring past the end", [low, last, low + 0x2000]),
        ("used ring past the end", [low, low + 0x1000, last]),
        ("all in one place", [low, low, low]),
    ];
    for (what, addresses) in places {
        for queue in 0..2 {
            eprintln!("{what}, queue {queue}");
            vm.start();
            // The answer may be an error, and after it the end of the connection.
            if vm.front_end.set_addresses(queue, addresses).is_ok() {
                vm.requests.kick.write(1).unwrap();
                vm.front_end.config();
                let _ = vm.accel(0).read(DATA, 8);
            }
            vm.replace_front_end();
            vm.assert_works();
            vm.front_end.stop();
        }
    }
}

#[test]
fn rings_whose_memory_goes_away_are_survived() {
    let mut vm = Vm::strict();
    let both = vm.memory();
    for _ in 0..3 {
        vm.front_end.set_memory(&both[1..]).unwrap();
        vm.requests.add(&attach(1, EP0).chain());
        vm.requests.submit();
        vm.requests.kick.write(1).unwrap();
        vm.accel(0).read(DATA, 8).unwrap_err();
        vm.front_end.config();
        vm.front_end.set_memory(&both).unwrap();
        vm.reset();
        vm.assert_works();
    }
}

#[test]
fn a_ring_at_any_size_is_served() {
    let mut vm = Vm::realized("");
    for size in [1, 2, 4, 64, 128] {
        vm.requests.size = size;
        vm.start();
        let request = attach(1, EP0);
        for _ in 0..300 {
            let shape = request.chain().table(testing::virtqueue::Table::Indirect);
            assert_eq!(vm.requests.transact(&shape).status(), OK, "ring of {size}");
        }
        vm.front_end.stop();
    }
}

/// A vhost-user message: request, flags, payload.
fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [request, flags, payload.len() as u32] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(payload);
    bytes
}

#[test]
fn malformed_messages_end_at_most_their_own_connection() {
    const VERSION: u32 = 1;
    let state = |queue: u32, value: u32| [queue.to_le_bytes(), value.to_le_bytes()].concat();
    let header = |size: u32| {
        let mut bytes = message(1, VERSION, &[]);
        bytes[8..].copy_from_slice(&size.to_le_bytes());
        bytes
    };
    let rows = [
        ("nothing", vec![]),
        ("one byte", vec![1]),
        ("half a header", message(1, VERSION, &[])[..6].to_vec()),
        ("noise", (0..=255).collect()),
        ("zeros", vec![0; 64]),
        ("another version", message(1, 3, &[])),
        ("request 0", message(0, VERSION, &[])),
        ("an unknown request", message(0xffff, VERSION, &[])),
        ("a reply", message(1, VERSION | 4, &[])),
        ("a payload that does not come", header(8)),
        ("a huge payload", header(u32::MAX)),
        ("a payload too short", message(2, VERSION, &[0; 4])),
        ("all feature bits", message(2, VERSION, &[0xff; 8])),
        ("all protocol features", message(16, VERSION, &[0xff; 8])),
        ("ring number 2", message(8, VERSION, &state(2, 256))),
        ("ring number -1", message(8, VERSION, &state(u32::MAX, 256))),
        ("ring size 0", message(8, VERSION, &state(0, 0))),
        ("ring size 3", message(8, VERSION, &state(0, 3))),
        ("ring size 65536", message(8, VERSION, &state(0, 0x1_0000))),
        ("ring index 65536", message(10, VERSION, &state(0, 0x1_0000))),
        ("enable with 2", message(18, VERSION, &state(0, 2))),
        ("base of ring 9", message(11, VERSION, &state(9, 0))),
        ("a kick without descriptor", message(12, VERSION, &[0; 8])),
        ("a memory table without descriptors", message(5, VERSION, &[2, 0, 0, 0, 0, 0, 0, 0])),
        ("configuration without the feature", message(24, VERSION, &[0; 12])),
        ("log base", message(6, VERSION, &[0; 8])),
        ("in-flight descriptor", message(31, VERSION, &[0; 24])),
        ("status", message(39, VERSION, &[0; 8])),
    ];
    let mut vm = Vm::realized("--boot-bypass off");
    for (what, bytes) in rows {
        eprintln!("{what}");
        // Its turn comes when the front end before it goes.
        let mut raw = daemon::connect(&vm.daemon.socket());
        vm.reconnect();
        send(&mut raw, &bytes);
        drop(raw);
        vm.replace_front_end();
        vm.assert_works();
    }
}

/// Sends, says that nothing more comes, and reads what the other side has to say until it ends.
fn send(stream: &mut UnixStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    stream.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    match stream.read_to_end(&mut Vec::new()) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            panic!("the connection is neither served nor closed")
        }
        _ => (),
    }
}

#[test]
fn malformed_messages_to_an_endpoint_leave_the_daemon_working() {
    // A vfio-user header: id, command, size, flags, error.
    let header = |command: u16, size: u32| {
        let mut bytes = vec![0, 0];
        bytes.extend(command.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend([0; 8]);
        bytes
    };
    let with = |mut bytes: Vec<u8>, more: &[u8]| {
        bytes.extend(more);
        bytes
    };
    let rows = [
        ("nothing", vec![]),
        ("half a header", vec![0; 7]),
        ("noise", (0..=255).collect()),
        ("command 0", header(0, 16)),
        ("an unknown command", header(99, 16)),
        ("a version shorter than its header", with(header(1, 4), &[0; 4])),
        ("a version that is no text", with(header(1, 24), &[0xff; 8])),
        ("a version of a huge size", header(1, u32::MAX)),
        ("an unknown region", with(header(5, 48), &[0x7f; 32])),
        (
            "a read beyond a region",
            with(header(9, 32), &[0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0]),
        ),
        (
            "a read of the far end",
            with(
                header(9, 32),
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 4, 0, 0, 0],
            ),
        ),
        ("a mapping without memory", with(header(2, 48), &[0; 32])),
        ("a mapping past all addresses", with(header(2, 48), &[0xff; 32])),
        ("an unmapping of everything", with(header(3, 40), &[0xff; 24])),
        ("interrupts out of range", with(header(8, 36), &[0xff; 20])),
    ];
    let mut vm = Vm::strict();
    vm.daemon.tolerate_panics();
    for (what, bytes) in rows {
        eprintln!("{what}");
        vm.drop_accel(0);
        let mut raw = daemon::connect(&vm.daemon.endpoint_socket(0));
        send(&mut raw, &bytes);
        drop(raw);
        vm.assert_works();
    }
}
