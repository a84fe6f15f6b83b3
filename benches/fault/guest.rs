//! A driver that receives page requests and responds immediately.

use std::sync::Arc;

use testing::bench::{FEATURES, Requests, endpoint_id, start_driver};
use testing::daemon::Daemon;
use testing::event::{Fault, LONG_EVENT_LEN};
use testing::front_end::{FrontEnd, feature};
use testing::memory::GuestMemory;
use testing::virtqueue::{Virtqueue, flags};
use vm_memory::{Bytes, GuestAddress};

pub use testing::memory::PAGE;
pub use testing::paging::SUCCESS;

/// The PASID of every accelerator.
pub const PASID: u32 = 1;
/// Bytes of guest memory; each address space maps all of it at its guest-physical addresses.
pub const MEMORY: u64 = 32 << 20;
/// Start of the memory that is free for accelerators and data.
pub const FREE: u64 = 0x20_0000;

const EVENTS: u64 = 0x10_0000;
const EVENT_BUFFERS: u64 = 0x18_0000;
const EVENT_QUEUE_SIZE: u16 = 256;
/// Distance between event buffers, in bytes.
const EVENT_BUFFER: u64 = 64;

/// Maximum number of requests that are submitted together: a third of those that can be in flight.
const BATCH: usize = 80;

/// A page request, the only one of its group.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest {
    /// Index of the endpoint.
    pub index: u32,
    group: u16,
    pub address: u64,
}

/// A driver with an address space for each endpoint.
pub struct Guest {
    pub ram: Arc<GuestMemory>,
    pub events: Events,
    requests: Requests,
    /// Number of requests written and not submitted.
    written: usize,
    _front_end: FrontEnd,
}

impl Guest {
    /// Starts the driver and attaches the address spaces.
    pub fn start(daemon: &mut Daemon, endpoints: u32) -> Self {
        let ram = GuestMemory::new(&[(0, MEMORY)]);
        let (requests, events) = (Requests::new(&ram, 0), Events::new(&ram));
        let features = FEATURES | feature::PROBE | feature::PASID | feature::PAGE_REQUEST;
        let queues = [&requests.queue, &events.queue];
        let front_end = start_driver(daemon, &ram, features, queues);
        let mut guest = Self { ram, events, requests, written: 0, _front_end: front_end };
        for index in 0..endpoints {
            guest.write(&[1, domain(index), endpoint_id(index), 2, PASID]);
            guest.map(index, 0, MEMORY);
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

    pub fn respond(&mut self, request: &PageRequest, code: u16) {
        let group = u32::from(code) << 16 | u32::from(request.group);
        self.write(&[8, endpoint_id(request.index), 1, PASID, group, 0, 0]);
    }

    /// Submits the requests written since the last time. Waits only for free slots.
    pub fn submit(&mut self) {
        let count = std::mem::take(&mut self.written);
        if count > 0 {
            self.requests.submit(count);
            self.requests.spin(BATCH as u16);
        }
    }

    /// Submits the requests written, waits until all are complete, and checks their statuses.
    pub fn finish(&mut self) {
        self.submit();
        self.requests.spin(0);
        self.requests.check(2 * BATCH);
    }
}

/// Returns the domain of an endpoint's address space.
fn domain(index: u32) -> u32 {
    1 + index
}

fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// The event queue from the driver's side, without the checks of
/// [`EventQueue`](testing::event::EventQueue), whose cost would be measured.
pub struct Events {
    pub queue: Virtqueue,
}

impl Events {
    fn new(ram: &Arc<GuestMemory>) -> Self {
        let mut queue = Virtqueue::new(ram, EVENT_QUEUE_SIZE, EVENTS, 0..0);
        for slot in 0..EVENT_QUEUE_SIZE {
            let address = EVENT_BUFFERS + u64::from(slot) * EVENT_BUFFER;
            queue.descriptor(slot, address, LONG_EVENT_LEN, flags::WRITE, 0);
            queue.offer(slot);
        }
        queue.publish();
        Self { queue }
    }

    /// Publishes the buffers that were offered again.
    pub fn publish(&mut self) {
        self.queue.submit();
    }

    /// Returns the next page request, if there is one, and offers its buffer again.
    pub fn next(&mut self) -> Option<PageRequest> {
        let (slot, len) = self.queue.take_used()?;
        assert_eq!(len, LONG_EVENT_LEN, "length of an event");
        let buffer = GuestAddress(EVENT_BUFFERS + u64::from(slot) * EVENT_BUFFER);
        let words: [u32; 7] = self.queue.ram.0.read_obj(buffer).expect("event");
        self.queue.offer(slot);
        assert_ne!(words[1] & Fault::LAST, 0, "groups of one request");
        let address = u64::from(words[5]) << 32 | u64::from(words[4]);
        Some(PageRequest { index: words[2] - endpoint_id(0), group: words[6] as u16, address })
    }
}
