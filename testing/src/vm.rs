//! A virtual machine without processors: daemon, front end, driver and accelerators.

use std::sync::Arc;

use vhost::VhostUserMemoryRegionInfo;

use crate::accel::Accel;
use crate::daemon::Daemon;
use crate::event::{EVENT_LEN, EventQueue, LONG_EVENT_LEN};
use crate::front_end::{
    EVENT_QUEUE, FrontEnd, Message, REALIZE, REQUEST_QUEUE, START, Start, feature,
};
use crate::memory::{GuestMemory, PAGE};
use crate::request::{self, RW, Request, status};
use crate::virtqueue::{Reply, Virtqueue};

/// PCI address and endpoint ID of each endpoint.
pub const ENDPOINTS: [(&str, u32); 3] =
    [("00:02.0", 0x10), ("0001:02:03.4", 0x1021c), ("00:1f.7", 0xff)];
/// ID of the first endpoint.
pub const EP0: u32 = ENDPOINTS[0].1;
/// ID of the second endpoint.
pub const EP1: u32 = ENDPOINTS[1].1;
/// ID of the third endpoint.
pub const EP2: u32 = ENDPOINTS[2].1;
/// An ID that no endpoint has.
pub const NO_ENDPOINT: u32 = 0x7777;

/// The first region of guest memory, address and size: virtqueues, buffers, the accelerators'
/// rings and buffers.
pub const LOW: (u64, u64) = (0, 32 << 20);
/// The second region of guest memory.
pub const HIGH: (u64, u64) = (4 << 30, 4 << 20);

const REQUESTS: u64 = 0x1_0000;
const EVENTS: u64 = 0x2_0000;
const REQUEST_BUFFERS: u64 = 0x10_0000;
const EVENT_BUFFERS: u64 = 0x20_0000;
const HOMES: u64 = 0x40_0000;
/// Start of the memory that is free for tests.
pub const DATA: u64 = 0x80_0000;

const REQUEST_QUEUE_SIZE: u16 = 256;
/// Number of descriptors of the event queue.
pub const EVENT_QUEUE_SIZE: u16 = 64;

/// A virtual machine without processors. The test is both the VMM and the guest.
///
/// ```no_run
/// use testing::request::{attach, detach, status};
/// use testing::vm::{EP0, NO_ENDPOINT, Vm};
///
/// let mut vm = Vm::new("--max-domains 1");
/// vm.ok(attach(1, EP0));
/// vm.table([
///     ("unknown endpoint", attach(1, NO_ENDPOINT), status::NOENT),
///     ("not attached", detach(2, EP0), status::INVAL),
/// ]);
/// ```
pub struct Vm {
    // Dropped in order: the daemon last, which must outlive its peers.
    accels: [Option<Accel>; ENDPOINTS.len()],
    /// The front end.
    pub front_end: FrontEnd,
    /// The request queue.
    pub requests: Virtqueue,
    /// The event queue.
    pub events: EventQueue,
    /// Guest memory.
    pub ram: Arc<GuestMemory>,
    /// The features that the driver acknowledges at its next start.
    pub features: u64,
    /// Number and length of the buffers that a driver offers on the event queue when it starts.
    pub event_buffers: (u16, u32),
    /// The daemon.
    pub daemon: Daemon,
}

/// Starts the daemon with all [`ENDPOINTS`].
#[track_caller]
pub fn daemon(args: &str) -> Daemon {
    let builder = Daemon::builder().args(args);
    ENDPOINTS.iter().fold(builder, |builder, (bdf, _)| builder.endpoint(bdf)).start()
}

impl Vm {
    /// Starts daemon and driver.
    #[track_caller]
    pub fn new(args: &str) -> Self {
        let mut vm = Self::realized(args);
        vm.boot();
        vm
    }

    /// As [`new`](Self::new), with unattached endpoints blocked.
    #[track_caller]
    pub fn strict() -> Self {
        Self::new("--boot-bypass off")
    }

    /// Starts the daemon and realizes the device. No driver runs yet.
    #[track_caller]
    pub fn realized(args: &str) -> Self {
        Self::realized_on(daemon(args))
    }

    /// As [`realized`](Self::realized), on a daemon that is already started.
    #[track_caller]
    pub fn realized_on(daemon: Daemon) -> Self {
        let mut vm = Self::connected(daemon);
        vm.send_messages(&REALIZE, [0; 2]);
        vm
    }

    /// Connects a front end that has not sent a message yet.
    #[track_caller]
    pub fn connected(mut daemon: Daemon) -> Self {
        let ram = GuestMemory::new(&[LOW, HIGH]);
        let requests = REQUEST_BUFFERS..REQUEST_BUFFERS + 0x10_0000;
        let events = EVENT_BUFFERS..EVENT_BUFFERS + 0x1_0000;
        Self {
            accels: [const { None }; _],
            front_end: FrontEnd::connect(&mut daemon),
            requests: Virtqueue::new(&ram, REQUEST_QUEUE_SIZE, REQUESTS, requests),
            events: EventQueue::new(&ram, EVENT_QUEUE_SIZE, EVENTS, events),
            ram,
            features: feature::DRIVER,
            event_buffers: (EVENT_QUEUE_SIZE, EVENT_LEN),
            daemon,
        }
    }

    /// Sends vhost-user messages for virtqueues that start at the indices `bases`.
    #[track_caller]
    pub fn send_messages(&mut self, messages: &[Message], bases: [u16; 2]) {
        let start = Start {
            features: self.features,
            memory: self.ram.regions(),
            queues: [&self.requests, &self.events.queue],
            bases,
        };
        self.front_end.send_all(messages, &start);
    }

    /// Starts the driver with cleared virtqueues.
    #[track_caller]
    pub fn start(&mut self) {
        self.clear_queues();
        self.send_messages(&START, [0; 2]);
    }

    /// Clears the virtqueues for a driver that starts, and offers its event buffers.
    pub fn clear_queues(&mut self) {
        let event_idx = self.features & feature::EVENT_IDX != 0;
        self.requests.clear();
        self.events.clear();
        for queue in [&mut self.requests, &mut self.events.queue] {
            queue.event_idx = event_idx;
        }
        let long = self.features & feature::PAGE_REQUEST != 0;
        self.events.event_len = if long { LONG_EVENT_LEN } else { EVENT_LEN };
        let (count, len) = self.event_buffers;
        self.events.fill(count, len);
    }

    /// Resets the device and starts the driver again.
    #[track_caller]
    pub fn reset(&mut self) {
        self.front_end.stop();
        self.boot();
    }

    /// Starts the driver and sends a first request. The device can distinguish a reset from a
    /// stop only when the driver starts; the reset has taken effect when a request completes.
    #[track_caller]
    pub fn boot(&mut self) {
        self.start();
        self.expect(status::NOENT, request::detach(0, NO_ENDPOINT));
    }

    /// Stops the VM. Returns the indices for [`cont`](Self::cont).
    pub fn pause(&mut self) -> [u16; 2] {
        self.front_end.stop()
    }

    /// Continues a stopped VM.
    #[track_caller]
    pub fn cont(&mut self, bases: [u16; 2]) {
        self.send_messages(&START, bases);
    }

    /// Disconnects the front end; another one connects and starts its driver.
    #[track_caller]
    pub fn replace_front_end(&mut self) {
        self.reconnect();
        self.send_messages(&REALIZE, [0; 2]);
        self.start();
    }

    /// As [`replace_front_end`](Self::replace_front_end), and the driver sends a first request.
    #[track_caller]
    pub fn lose_front_end(&mut self) {
        self.replace_front_end();
        self.expect(status::NOENT, request::detach(0, NO_ENDPOINT));
    }

    /// Disconnects the front end; another one connects.
    #[track_caller]
    pub fn reconnect(&mut self) {
        self.front_end = FrontEnd::connect(&mut self.daemon);
    }

    /// Returns the memory table.
    pub fn memory(&self) -> Vec<VhostUserMemoryRegionInfo> {
        self.ram.regions()
    }

    /// Sends a request and waits for its reply.
    #[track_caller]
    pub fn send(&mut self, request: &Request) -> Reply {
        self.requests.transact(&request.chain())
    }

    /// Sends a request and returns its status.
    #[track_caller]
    pub fn status(&mut self, request: &Request) -> u8 {
        self.send(request).status()
    }

    /// Sends a request, which must succeed.
    #[track_caller]
    pub fn ok(&mut self, request: Request) {
        self.expect(status::OK, request);
    }

    /// Sends a request, which must complete with `status`.
    #[track_caller]
    pub fn expect(&mut self, status: u8, request: Request) {
        assert_eq!(self.status(&request), status, "status of {request:x?}");
    }

    /// Sends requests, which must complete with these statuses.
    #[track_caller]
    pub fn table(&mut self, rows: impl IntoIterator<Item = (&'static str, Request, u8)>) {
        for (case, request, status) in rows {
            assert_eq!(self.status(&request), status, "{case}: status of {request:x?}");
        }
    }

    /// Returns the accelerator of endpoint `index`, connected at the first call.
    #[track_caller]
    pub fn accel(&mut self, index: usize) -> &mut Accel {
        let (daemon, ram) = (&self.daemon, &self.ram);
        self.accels[index]
            .get_or_insert_with(|| Accel::connect(&daemon.endpoint_socket(index), ram, home(index)))
    }

    /// Disconnects the accelerator of endpoint `index`.
    pub fn drop_accel(&mut self, index: usize) {
        self.accels[index] = None;
    }

    /// Attaches endpoint `index` to `domain`, and maps its accelerator's rings and buffers.
    #[track_caller]
    pub fn attach_accel(&mut self, domain: u32, index: usize) {
        self.ok(request::attach(domain, ENDPOINTS[index].1));
        self.map_home(domain, index);
    }

    /// Maps the rings and buffers of endpoint `index`'s accelerator at their guest-physical addresses.
    #[track_caller]
    pub fn map_home(&mut self, domain: u32, index: usize) {
        let home = home(index);
        self.ok(request::map(domain, home, home + Accel::HOME_LEN - 1, home, RW));
    }

    /// Checks that the device works: requests, translation, and faults.
    #[track_caller]
    pub fn assert_works(&mut self) {
        const DOMAIN: u32 = 0x5eed;
        const IOVA: u64 = 0x7000_0000;
        self.attach_accel(DOMAIN, 0);
        self.ok(request::map(DOMAIN, IOVA, IOVA + PAGE - 1, DATA, RW));
        self.ram.write(DATA, b"it works");
        assert_eq!(self.accel(0).read(IOVA, 8).unwrap(), b"it works");
        self.ok(request::unmap(DOMAIN, IOVA, IOVA + PAGE - 1));
        self.accel(0).read(IOVA, 8).unwrap_err();
        loop {
            let fault = self.events.receive();
            if fault.address == IOVA && fault.endpoint == EP0 {
                break;
            }
        }
        self.ok(request::unmap(DOMAIN, 0, u64::MAX));
        self.ok(request::detach(DOMAIN, EP0));
    }

    /// Enables or disables both queues, as QEMU does around a stop.
    pub fn enable(&mut self, on: bool) {
        self.front_end.enable(REQUEST_QUEUE, on);
        self.front_end.enable(EVENT_QUEUE, on);
    }
}

fn home(index: usize) -> u64 {
    HOMES + index as u64 * Accel::HOME_LEN
}
