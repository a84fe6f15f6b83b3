//! A whole machine: daemon, front end, driver and accelerators.

use std::sync::Arc;

use vhost::VhostUserMemoryRegionInfo;

use crate::accel::Accel;
use crate::daemon::Daemon;
use crate::driver::request::{self, RW};
use crate::driver::{
    EVENT_LEN, EventQueue, LONG_EVENT_LEN, PAGE, Ram, Reply, Request, Ring, status,
};
use crate::frontend::{EVENT_QUEUE, REQUEST_QUEUE, Session, Start, feature};

pub const ENDPOINTS: [(&str, u32); 3] =
    [("00:02.0", 0x10), ("0001:02:03.4", 0x1021c), ("00:1f.7", 0xff)];
pub const EP0: u32 = ENDPOINTS[0].1;
pub const EP1: u32 = ENDPOINTS[1].1;
pub const EP2: u32 = ENDPOINTS[2].1;
pub const NO_ENDPOINT: u32 = 0x7777;

/// Guest memory: rings, buffers and the accelerators' homes low, a second region high.
pub const LOW: (u64, u64) = (0, 32 << 20);
pub const HIGH: (u64, u64) = (4 << 30, 4 << 20);

const REQUEST_RING: u64 = 0x1_0000;
const EVENT_RING: u64 = 0x2_0000;
const REQUEST_BUFFERS: u64 = 0x10_0000;
const EVENT_BUFFERS: u64 = 0x20_0000;
const HOMES: u64 = 0x40_0000;
/// Free for tests.
pub const DATA: u64 = 0x80_0000;

const RING_SIZE: u16 = 256;
pub const EVENT_RING_SIZE: u16 = 64;

pub struct Vm {
    // Dropped from top to bottom: the daemon last, so that it is seen to outlive its peers.
    accels: [Option<Accel>; ENDPOINTS.len()],
    pub session: Session,
    pub requests: Ring,
    pub events: EventQueue,
    pub ram: Arc<Ram>,
    pub features: u64,
    /// Buffers that a driver start offers on the event queue, and their length.
    pub event_buffers: (u16, u32),
    pub daemon: Daemon,
}

/// The daemon with all endpoints.
pub fn daemon(args: &str) -> Daemon {
    let builder = Daemon::builder().args(args);
    ENDPOINTS.iter().fold(builder, |builder, (bdf, _)| builder.endpoint(bdf)).start()
}

impl Vm {
    /// A machine whose driver runs.
    pub fn new(args: &str) -> Self {
        let mut vm = Self::realized(args);
        vm.boot();
        vm
    }

    /// A machine without IOMMU bypass, whose driver runs.
    pub fn strict() -> Self {
        Self::new("--boot-bypass off")
    }

    /// A machine that has no driver yet.
    pub fn realized(args: &str) -> Self {
        Self::realized_on(daemon(args))
    }

    pub fn realized_on(daemon: Daemon) -> Self {
        let mut vm = Self::connected(daemon);
        vm.run(&Session::realize_steps(), [0; 2]);
        vm
    }

    /// A machine whose front end has not said anything.
    pub fn connected(mut daemon: Daemon) -> Self {
        let ram = Ram::new(&[LOW, HIGH]);
        Self {
            accels: [const { None }; _],
            session: Session::connect(&mut daemon),
            requests: Ring::new(
                &ram,
                RING_SIZE,
                REQUEST_RING,
                REQUEST_BUFFERS..REQUEST_BUFFERS + 0x10_0000,
            ),
            events: EventQueue::new(
                &ram,
                EVENT_RING_SIZE,
                EVENT_RING,
                EVENT_BUFFERS..EVENT_BUFFERS + 0x1_0000,
            ),
            ram,
            features: feature::DRIVER,
            event_buffers: (EVENT_RING_SIZE, EVENT_LEN),
            daemon,
        }
    }

    /// Sends messages of a start at `bases`.
    pub fn run(&mut self, steps: &[crate::frontend::Step], bases: [u16; 2]) {
        let start = Start {
            features: self.features,
            memory: self.ram.regions(),
            rings: [&self.requests, &self.events.ring],
            bases,
        };
        self.session.run(steps, &start);
    }

    /// The driver starts, with fresh rings.
    pub fn start(&mut self) {
        self.fresh_rings();
        self.run(&Session::start_steps(), [0; 2]);
    }

    pub fn fresh_rings(&mut self) {
        let event_idx = self.features & feature::EVENT_IDX != 0;
        self.requests.clear();
        self.events.clear();
        for ring in [&mut self.requests, &mut self.events.ring] {
            ring.event_idx = event_idx;
        }
        let long = self.features & feature::PAGE_REQUEST != 0;
        self.events.event_len = if long { LONG_EVENT_LEN } else { EVENT_LEN };
        let (count, len) = self.event_buffers;
        self.events.fill(count, len);
    }

    /// The driver resets the device and starts it again.
    pub fn reset(&mut self) {
        self.session.stop();
        self.boot();
    }

    /// The driver starts and makes a first request. Whether the device was reset or stopped
    /// before shows in how the driver starts, and has taken effect once a request is answered.
    pub fn boot(&mut self) {
        self.start();
        self.expect(status::NOENT, request::detach(0, NO_ENDPOINT));
    }

    /// The VM stops. Returns what `cont` needs.
    pub fn pause(&mut self) -> [u16; 2] {
        self.session.stop()
    }

    /// The VM goes on.
    pub fn cont(&mut self, bases: [u16; 2]) {
        self.run(&Session::start_steps(), bases);
    }

    /// The front end goes, and another comes and starts its driver.
    pub fn replace_front_end(&mut self) {
        self.reconnect();
        self.run(&Session::realize_steps(), [0; 2]);
        self.start();
    }

    /// The same, and its driver has made a first request.
    pub fn lose_front_end(&mut self) {
        self.replace_front_end();
        self.expect(status::NOENT, request::detach(0, NO_ENDPOINT));
    }

    /// The front end goes, and another connects.
    pub fn reconnect(&mut self) {
        self.session = Session::connect(&mut self.daemon);
    }

    pub fn memory(&self) -> Vec<VhostUserMemoryRegionInfo> {
        self.ram.regions()
    }

    pub fn send(&mut self, request: &Request) -> Reply {
        self.requests.transact(&request.shape())
    }

    pub fn status(&mut self, request: &Request) -> u8 {
        self.send(request).status()
    }

    #[track_caller]
    pub fn ok(&mut self, request: Request) {
        self.expect(status::OK, request);
    }

    #[track_caller]
    pub fn expect(&mut self, status: u8, request: Request) {
        assert_eq!(self.status(&request), status, "status of {request:x?}");
    }

    /// Checks one row after the other.
    #[track_caller]
    pub fn table(&mut self, rows: impl IntoIterator<Item = (&'static str, Request, u8)>) {
        for (what, request, status) in rows {
            assert_eq!(self.status(&request), status, "{what}: status of {request:x?}");
        }
    }

    /// The accelerator behind endpoint `index`.
    pub fn accel(&mut self, index: usize) -> &mut Accel {
        let (daemon, ram) = (&self.daemon, &self.ram);
        self.accels[index]
            .get_or_insert_with(|| Accel::connect(&daemon.endpoint_socket(index), ram, home(index)))
    }

    pub fn drop_accel(&mut self, index: usize) {
        self.accels[index] = None;
    }

    /// Attaches endpoint `index` and maps what its accelerator needs to work at all.
    #[track_caller]
    pub fn attach_accel(&mut self, domain: u32, index: usize) {
        self.ok(request::attach(domain, ENDPOINTS[index].1));
        self.map_home(domain, index);
    }

    /// Maps the accelerator's ring, record and buffer, at the addresses that bypass has too.
    #[track_caller]
    pub fn map_home(&mut self, domain: u32, index: usize) {
        let home = home(index);
        self.ok(request::map(domain, home, home + Accel::HOME_LEN - 1, home, RW));
    }

    /// The device works: requests, translation, and faults.
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
            let fault = self.events.next();
            if fault.address == IOVA && fault.endpoint == EP0 {
                break;
            }
        }
        self.ok(request::unmap(DOMAIN, 0, u64::MAX));
        self.ok(request::detach(DOMAIN, EP0));
    }

    /// Disables or enables both queues, as QEMU does around a stop.
    pub fn enable(&mut self, on: bool) {
        self.session.enable(REQUEST_QUEUE, on);
        self.session.enable(EVENT_QUEUE, on);
    }
}

fn home(index: usize) -> u64 {
    HOMES + index as u64 * Accel::HOME_LEN
}
