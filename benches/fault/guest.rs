//! A driver that takes page requests and answers them at once.

use std::sync::atomic::{Ordering, fence};

use vhost::vhost_user::Frontend;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::common::daemon::endpoint_id;
use crate::common::{self, Daemon, Descriptor, FEATURES, Requests, Ring, load};

/// PROBE, and those of the extension.
const MORE_FEATURES: u64 = 1 << 4 | 1 << 20 | 1 << 21;

/// The PASID that every accelerator works with.
pub const PASID: u32 = 1;
pub const PAGE: u64 = 4096;
/// Bytes of guest memory; each address space has all of it at its physical addresses.
pub const MEMORY: usize = 32 << 20;
/// Where memory is free for accelerators and data.
pub const FREE: u64 = 0x20_0000;

const EVENT_RING: u64 = 0x10_0000;
const EVENT_BUFFERS: u64 = 0x18_0000;
const EVENT_QUEUE: u16 = 256;
const EVENT: u32 = 48;
/// From one event buffer to the next.
const EVENT_SPAN: u64 = 64;
const EVENT_LAST: u32 = 1 << 4;

/// Most requests that are submitted at once: a third of those that can be in flight.
const BATCH: usize = 80;

pub const SUCCESS: u16 = 0;

/// A page request, the only one of its group.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest {
    /// Number of the endpoint.
    pub index: u32,
    group: u16,
    pub address: u64,
}

pub struct Guest {
    pub memory: GuestMemoryMmap,
    pub events: Events,
    requests: Requests,
    /// Requests written and not submitted.
    written: usize,
    _front_end: Frontend,
}

impl Guest {
    /// Starts the driver, with an address space for each endpoint.
    pub fn start(daemon: &Daemon, endpoints: u32) -> Self {
        let memory = common::memory(MEMORY);
        let mut front_end = common::connect(daemon, &memory, FEATURES | MORE_FEATURES);
        let requests = Requests::start(&mut front_end, &memory, 0);
        let events = Events::start(&mut front_end, &memory);
        let mut guest = Self { memory, events, requests, written: 0, _front_end: front_end };
        for index in 0..endpoints {
            guest.write(&[1, domain(index), endpoint_id(index), 2, PASID]);
            guest.map(index, 0, MEMORY as u64);
            guest.finish();
        }
        guest
    }

    /// Writes a request of 32-bit fields, the type first.
    fn write(&mut self, fields: &[u32]) {
        let bytes: Vec<_> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
        self.requests.write(self.written, &[&bytes]);
        self.written += 1;
        if self.written == BATCH {
            self.submit();
        }
    }

    /// Maps `len` bytes at `iova` to the memory from 0 on.
    pub fn map(&mut self, index: u32, iova: u64, len: u64) {
        let [first, last] = [iova, iova + len - 1].map(halves);
        self.write(&[3, domain(index), first[0], first[1], last[0], last[1], 0, 0, 3]);
    }

    pub fn unmap(&mut self, index: u32, iova: u64, len: u64) {
        let [first, last] = [iova, iova + len - 1].map(halves);
        self.write(&[4, domain(index), first[0], first[1], last[0], last[1], 0]);
    }

    pub fn answer(&mut self, request: &PageRequest, code: u16) {
        let group = u32::from(code) << 16 | u32::from(request.group);
        self.write(&[8, endpoint_id(request.index), 1, PASID, group, 0, 0]);
    }

    /// Makes available what was written since the last time. Waits only for room for more.
    pub fn submit(&mut self) {
        let count = std::mem::take(&mut self.written);
        if count > 0 {
            self.requests.submit(count);
            self.requests.spin(BATCH as u16);
        }
    }

    /// Submits what was written, waits until all is answered and checks that.
    pub fn finish(&mut self) {
        self.submit();
        self.requests.spin(0);
        self.requests.check(2 * BATCH);
    }
}

/// The domain of an endpoint's address space.
fn domain(index: u32) -> u32 {
    1 + index
}

fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// The event queue from the driver's side.
pub struct Events {
    memory: GuestMemoryMmap,
    ring: Ring,
    avail: u16,
    shown: u16,
    used: u16,
}

impl Events {
    fn start(front_end: &mut Frontend, memory: &GuestMemoryMmap) -> Self {
        let ring = Ring::new(EVENT_QUEUE, EVENT_RING);
        for slot in 0..EVENT_QUEUE {
            let address = EVENT_BUFFERS + u64::from(slot) * EVENT_SPAN;
            ring.describe(memory, slot, &Descriptor { address, len: EVENT, flags: 2, next: 0 });
        }
        let mut events = Self { memory: memory.clone(), ring, avail: 0, shown: 0, used: 0 };
        (0..EVENT_QUEUE).for_each(|slot| events.give_back(slot));
        events.show();
        events.ring.start(front_end, 1, memory).expect("the back end takes the event queue");
        events
    }

    fn give_back(&mut self, slot: u16) {
        let entry = u64::from(self.avail % EVENT_QUEUE);
        let at = GuestAddress(self.ring.avail + 4 + 2 * entry);
        self.memory.write_obj(slot, at).expect("available ring");
        self.avail = self.avail.wrapping_add(1);
    }

    /// Shows the device what was given back.
    pub fn show(&mut self) {
        let index = GuestAddress(self.ring.avail + 2);
        self.memory.store(self.avail, index, Ordering::Release).expect("index");
        fence(Ordering::SeqCst);
        self.ring.kick_if_wanted(&self.memory, self.shown, self.avail);
        self.shown = self.avail;
    }

    /// The next page request, if there is one. Its buffer is given back.
    pub fn next(&mut self) -> Option<PageRequest> {
        if load(&self.memory, self.ring.used + 2) == self.used {
            return None;
        }
        let entry = u64::from(self.used % EVENT_QUEUE);
        let at = GuestAddress(self.ring.used + 4 + 8 * entry);
        let [slot, len]: [u32; 2] = self.memory.read_obj(at).expect("used ring");
        assert_eq!(len, EVENT, "an event of the long format");
        self.used = self.used.wrapping_add(1);
        let buffer = GuestAddress(EVENT_BUFFERS + u64::from(slot) * EVENT_SPAN);
        let words: [u32; 7] = self.memory.read_obj(buffer).expect("event");
        self.give_back(slot as u16);
        assert_ne!(words[1] & EVENT_LAST, 0, "groups of one request");
        let address = u64::from(words[5]) << 32 | u64::from(words[4]);
        Some(PageRequest { index: words[2] - endpoint_id(0), group: words[6] as u16, address })
    }

    /// Asks for a signal at the next event. `false`: it is there already.
    pub fn arm(&self) -> bool {
        let at = GuestAddress(self.ring.avail + 4 + 2 * u64::from(EVENT_QUEUE));
        self.memory.store(self.used, at, Ordering::Relaxed).expect("used event");
        fence(Ordering::SeqCst);
        load(&self.memory, self.ring.used + 2) == self.used
    }

    /// What the device signals.
    pub fn signal(&self) -> &EventFd {
        &self.ring.call
    }
}
