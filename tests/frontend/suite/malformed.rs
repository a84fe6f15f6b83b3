//! Malformed virtqueues and messages. The daemon tolerates them, and handles later requests.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use testing::daemon;
use testing::request::attach;
use testing::request::status::OK;
use testing::virtqueue::Virtqueue;
use testing::virtqueue::flags::{INDIRECT, NEXT, WRITE};
use testing::vm::{DATA, EP0, HIGH, LOW, Vm};

/// First descriptor of malformed chains. Valid requests use lower ones.
const AT: u16 = 200;
/// Address of a valid ATTACH request.
const REQUEST: u64 = DATA;
const REPLY: u64 = DATA + 0x1000;
const TABLE: u64 = DATA + 0x2000;
const NOWHERE: u64 = 0xdead_0000_0000;

/// One descriptor: address, length, flags, next.
type Descriptor = (u64, u32, u16, u16);

/// Description, chain from descriptor `AT`, and indirect table at `TABLE`.
#[rustfmt::skip]
const CHAINS: &[(&str, &[Descriptor], &[Descriptor])] = &[
    ("loop of one descriptor", &[(REQUEST, 20, NEXT, AT)], &[]),
    ("loop of two descriptors", &[(REQUEST, 20, NEXT, AT + 1), (REPLY, 4, NEXT | WRITE, AT)], &[]),
    ("next beyond the descriptor table", &[(REQUEST, 20, NEXT, 256)], &[]),
    ("next far beyond the descriptor table", &[(REQUEST, 20, NEXT, 0xffff)], &[]),
    ("read outside guest memory", &[(NOWHERE, 20, NEXT, AT + 1), (REPLY, 4, WRITE, 0)], &[]),
    ("write outside guest memory", &[(REQUEST, 20, NEXT, AT + 1), (NOWHERE, 4, WRITE, 0)], &[]),
    ("read past the end of a region", &[(LOW.1 - 10, 20, NEXT, AT + 1), (REPLY, 4, WRITE, 0)], &[]),
    ("write past the end of a region", &[(REQUEST, 20, NEXT, AT + 1), (HIGH.0 + HIGH.1 - 2, 4, WRITE, 0)], &[]),
    ("read past 2^64", &[(u64::MAX - 9, 20, NEXT, AT + 1), (REPLY, 4, WRITE, 0)], &[]),
    ("write past 2^64", &[(REQUEST, 20, NEXT, AT + 1), (u64::MAX - 1, 4, WRITE, 0)], &[]),
    ("huge readable descriptor", &[(REQUEST, u32::MAX, NEXT, AT + 1), (REPLY, 4, WRITE, 0)], &[]),
    ("huge writable descriptor", &[(REQUEST, 20, NEXT, AT + 1), (REPLY, u32::MAX, WRITE, 0)], &[]),
    ("total length beyond 32 bits", &[(REQUEST, u32::MAX, NEXT, AT + 1), (REQUEST, u32::MAX, NEXT, AT + 2), (REPLY, u32::MAX, NEXT | WRITE, AT + 3), (REPLY, u32::MAX, WRITE, 0)], &[]),
    ("empty descriptors", &[(REQUEST, 0, NEXT, AT + 1), (REPLY, 0, WRITE, 0)], &[]),
    ("empty descriptor outside guest memory", &[(u64::MAX, 0, NEXT, AT + 1), (REPLY, 4, WRITE, 0)], &[]),
    ("writable before readable descriptor", &[(REPLY, 4, NEXT | WRITE, AT + 1), (REQUEST, 20, 0, 0)], &[]),
    ("writable between readable descriptors", &[(REQUEST, 8, NEXT, AT + 1), (REPLY, 4, NEXT | WRITE, AT + 2), (REQUEST + 8, 12, 0, 0)], &[]),
    ("unknown flags", &[(REQUEST, 20, NEXT | 0xfff8, AT + 1), (REPLY, 4, WRITE | 0xfff8, 0)], &[]),
    ("next to descriptor 0", &[(REQUEST, 20, NEXT, AT + 1), (REPLY, 4, WRITE | NEXT, 0)], &[]),
    ("empty indirect table", &[(TABLE, 0, INDIRECT, 0)], &[]),
    ("indirect table of half a descriptor", &[(TABLE, 8, INDIRECT, 0)], &[]),
    ("indirect table of odd length", &[(TABLE, 33, INDIRECT, 0)], &[(REQUEST, 20, NEXT, 1), (REPLY, 4, WRITE, 0)]),
    ("huge indirect table", &[(TABLE, 0xffff_fff0, INDIRECT, 0)], &[(REQUEST, 20, NEXT, 1), (REPLY, 4, WRITE, 0)]),
    ("indirect table outside guest memory", &[(NOWHERE, 32, INDIRECT, 0)], &[]),
    ("indirect table past 2^64", &[(u64::MAX - 15, 32, INDIRECT, 0)], &[]),
    ("misaligned indirect table", &[(TABLE + 1, 32, INDIRECT, 0)], &[]),
    ("nested indirect table", &[(TABLE, 32, INDIRECT, 0)], &[(TABLE, 32, INDIRECT, 0)]),
    ("INDIRECT and NEXT flags", &[(TABLE, 32, INDIRECT | NEXT, AT + 1), (REPLY, 4, WRITE, 0)], &[(REQUEST, 20, NEXT, 1), (REPLY, 4, WRITE, 0)]),
    ("INDIRECT and WRITE flags", &[(TABLE, 32, INDIRECT | WRITE, 0)], &[(REQUEST, 20, NEXT, 1), (REPLY, 4, WRITE, 0)]),
    ("loop in an indirect table", &[(TABLE, 32, INDIRECT, 0)], &[(REQUEST, 20, NEXT, 1), (REPLY, 4, NEXT | WRITE, 0)]),
    ("next beyond an indirect table", &[(TABLE, 32, INDIRECT, 0)], &[(REQUEST, 20, NEXT, 2)]),
    ("next far beyond an indirect table", &[(TABLE, 32, INDIRECT, 0)], &[(REQUEST, 20, NEXT, 0xffff)]),
];

fn lay_out(queue: &mut Virtqueue, chain: &[Descriptor], table: &[Descriptor]) {
    queue.ram.write(REQUEST, &attach(1, EP0).bytes);
    for (index, &(address, len, flags, next)) in (AT..).zip(chain) {
        queue.descriptor(index, address, len, flags, next);
    }
    for (index, &(address, len, flags, next)) in (0..).zip(table) {
        queue.write_descriptor(TABLE, index, address, len, flags, next);
    }
    queue.offer(AT);
}

/// Checks that a valid request is handled, regardless of buffers returned before it.
fn assert_serves(vm: &mut Vm, previous: &str) {
    let head = vm.requests.add(&attach(0xbad, EP0).chain());
    vm.requests.submit();
    let reply = loop {
        let (used, len) = vm.requests.wait_used();
        if used == head {
            break vm.requests.collect(used, len);
        }
    };
    assert_eq!(reply.status(), OK, "after {previous}");
}

#[test]
fn request_after_malformed_chain_is_handled() {
    let mut vm = Vm::strict();
    for &(name, chain, table) in CHAINS {
        eprintln!("{name}");
        lay_out(&mut vm.requests, chain, table);
        assert_serves(&mut vm, name);
        vm.reset();
        vm.assert_works();
    }
}

#[test]
fn reset_recovers_from_invalid_head_index() {
    let mut vm = Vm::strict();
    for head in [256, 257, 0x7fff, 0xffff] {
        for index in 0..2 {
            let virtqueue = if index == 0 { &mut vm.requests } else { &mut vm.events.queue };
            virtqueue.offer(head);
            virtqueue.submit();
            vm.front_end.config();
            let _ = vm.accel(0).read(DATA, 8);
            vm.reset();
            vm.assert_works();
        }
    }
}

#[test]
fn malformed_chain_in_event_queue_does_not_affect_requests() {
    let mut vm = Vm::realized("--boot-bypass off");
    let whole = vm.event_buffers;
    for &(name, chain, table) in CHAINS {
        eprintln!("{name}");
        vm.event_buffers = (0, 24);
        vm.start();
        // More malformed chains than faults.
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

/// Like `lay_out`, but from descriptor 0: the descriptor table of the event queue is smaller than
/// `AT`.
fn lay_out_events(queue: &mut Virtqueue, chain: &[Descriptor], table: &[Descriptor]) {
    let moved = |index: u16| if (AT..AT + 8).contains(&index) { index - AT } else { index };
    for (index, &(address, len, flags, next)) in (0..).zip(chain) {
        queue.descriptor(index, address, len, flags, moved(next));
    }
    for (index, &(address, len, flags, next)) in (0..).zip(table) {
        queue.write_descriptor(TABLE, index, address, len, flags, next);
    }
    queue.offer(0);
}

#[test]
fn reset_recovers_from_invalid_available_index() {
    let mut vm = Vm::strict();
    for distance in [257, 300, 0x7fff, 0x8000, 0xffff] {
        for index in 0..2 {
            let virtqueue = if index == 0 { &mut vm.requests } else { &mut vm.events.queue };
            virtqueue.next_avail = virtqueue.next_avail.wrapping_add(distance);
            virtqueue.submit();
            virtqueue.kick.write(1).unwrap();
            vm.front_end.config();
            let _ = vm.accel(0).read(DATA, 8);
            vm.reset();
            vm.assert_works();
        }
    }
}

#[test]
fn request_made_available_twice_is_tolerated() {
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
fn reset_recovers_from_reply_written_over_virtqueue() {
    let mut vm = Vm::strict();
    let queue = &vm.requests;
    for address in [queue.descriptors, queue.avail, queue.used] {
        let queue = &mut vm.requests;
        lay_out(queue, &[(REQUEST, 20, NEXT, AT + 1), (address, 0x1000, WRITE, 0)], &[]);
        queue.submit();
        vm.front_end.config();
        vm.reset();
        vm.assert_works();
    }
}

#[test]
fn request_of_almost_4_gib_is_handled() {
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
fn invalid_ring_addresses_are_tolerated() {
    let mut vm = Vm::realized("--boot-bypass off");
    let host = |vm: &Vm, gpa| vm.ram.host_address(gpa);
    let (low, last) = (host(&vm, 0x1_0000), host(&vm, LOW.1 - 16));
    let places = [
        ("zero", [0; 3]),
        ("past 2^64", [u64::MAX - 15, u64::MAX - 1, u64::MAX - 3]),
        ("misaligned descriptor table", [low + 1, low + 0x1000, low + 0x2000]),
        ("misaligned available ring", [low, low + 0x1001, low + 0x2000]),
        ("misaligned used ring", [low, low + 0x1000, low + 0x2001]),
        ("descriptor table past the end of guest memory", [last, low + 0x1000, low + 0x2000]),
        ("available ring past the end of guest memory", [low, last, low + 0x2000]),
        ("used ring past the end of guest memory", [low, low + 0x1000, last]),
        ("all at the same address", [low, low, low]),
    ];
    for (name, addresses) in places {
        for queue in 0..2 {
            eprintln!("{name}, queue {queue}");
            vm.start();
            // The reply may be an error, after which the connection may be closed.
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
fn removal_of_ring_memory_is_tolerated() {
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
fn virtqueue_of_any_size_is_served() {
    let mut vm = Vm::realized("");
    for size in [1, 2, 4, 64, 128] {
        vm.requests.size = size;
        vm.start();
        let request = attach(1, EP0);
        for _ in 0..300 {
            let shape = request.chain().table(testing::virtqueue::Table::Indirect);
            assert_eq!(vm.requests.transact(&shape).status(), OK, "virtqueue size {size}");
        }
        vm.front_end.stop();
    }
}

/// Returns a vhost-user message.
fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [request, flags, payload.len() as u32] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(payload);
    bytes
}

#[test]
fn malformed_vhost_user_messages_close_only_their_connection() {
    const VERSION: u32 = 1;
    let state = |queue: u32, value: u32| [queue.to_le_bytes(), value.to_le_bytes()].concat();
    let header = |size: u32| {
        let mut bytes = message(1, VERSION, &[]);
        bytes[8..].copy_from_slice(&size.to_le_bytes());
        bytes
    };
    let rows = [
        ("no bytes", vec![]),
        ("one byte", vec![1]),
        ("half a header", message(1, VERSION, &[])[..6].to_vec()),
        ("all byte values", (0..=255).collect()),
        ("zeros", vec![0; 64]),
        ("wrong version", message(1, 3, &[])),
        ("request 0", message(0, VERSION, &[])),
        ("unknown request", message(0xffff, VERSION, &[])),
        ("reply flag", message(1, VERSION | 4, &[])),
        ("missing payload", header(8)),
        ("huge payload size", header(u32::MAX)),
        ("short payload", message(2, VERSION, &[0; 4])),
        ("all feature bits", message(2, VERSION, &[0xff; 8])),
        ("all protocol features", message(16, VERSION, &[0xff; 8])),
        ("virtqueue index 2", message(8, VERSION, &state(2, 256))),
        ("virtqueue index -1", message(8, VERSION, &state(u32::MAX, 256))),
        ("virtqueue size 0", message(8, VERSION, &state(0, 0))),
        ("virtqueue size 3", message(8, VERSION, &state(0, 3))),
        ("virtqueue size 65536", message(8, VERSION, &state(0, 0x1_0000))),
        ("base 65536", message(10, VERSION, &state(0, 0x1_0000))),
        ("enable value 2", message(18, VERSION, &state(0, 2))),
        ("base of virtqueue 9", message(11, VERSION, &state(9, 0))),
        ("kick without file descriptor", message(12, VERSION, &[0; 8])),
        ("memory table without file descriptors", message(5, VERSION, &[2, 0, 0, 0, 0, 0, 0, 0])),
        ("configuration space without feature", message(24, VERSION, &[0; 12])),
        ("log base", message(6, VERSION, &[0; 8])),
        ("in-flight file descriptor", message(31, VERSION, &[0; 24])),
        ("status", message(39, VERSION, &[0; 8])),
    ];
    let mut vm = Vm::realized("--boot-bypass off");
    for (name, bytes) in rows {
        eprintln!("{name}");
        // It is served after the previous front end has disconnected.
        let mut raw = daemon::connect(&vm.daemon.socket());
        vm.reconnect();
        send(&mut raw, &bytes);
        drop(raw);
        vm.replace_front_end();
        vm.assert_works();
    }
}

/// Sends `bytes`, shuts down the sending side, and reads until the peer closes the connection.
fn send(stream: &mut UnixStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    stream.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    match stream.read_to_end(&mut Vec::new()) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            panic!("the connection was not closed in time")
        }
        _ => (),
    }
}

#[test]
fn malformed_vfio_user_messages_are_tolerated() {
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
        ("no bytes", vec![]),
        ("half a header", vec![0; 7]),
        ("all byte values", (0..=255).collect()),
        ("command 0", header(0, 16)),
        ("unknown command", header(99, 16)),
        ("short version message", with(header(1, 4), &[0; 4])),
        ("version that is not text", with(header(1, 24), &[0xff; 8])),
        ("huge version message", header(1, u32::MAX)),
        ("unknown region", with(header(5, 48), &[0x7f; 32])),
        (
            "read beyond a region",
            with(header(9, 32), &[0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0]),
        ),
        (
            "read at the highest offset",
            with(
                header(9, 32),
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 4, 0, 0, 0],
            ),
        ),
        ("DMA_MAP without memory", with(header(2, 48), &[0; 32])),
        ("DMA_MAP past 2^64", with(header(2, 48), &[0xff; 32])),
        ("DMA_UNMAP of all addresses", with(header(3, 40), &[0xff; 24])),
        ("SET_IRQS out of range", with(header(8, 36), &[0xff; 20])),
    ];
    let mut vm = Vm::strict();
    vm.daemon.tolerate_panics();
    for (name, bytes) in rows {
        eprintln!("{name}");
        vm.drop_accel(0);
        let mut raw = daemon::connect(&vm.daemon.endpoint_socket(0));
        send(&mut raw, &bytes);
        drop(raw);
        vm.assert_works();
    }
}
