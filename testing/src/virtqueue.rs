//! A split virtqueue from the driver's side; tests can corrupt every field.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::memory::GuestMemory;
use crate::wait;

/// Descriptor flags: `VIRTQ_DESC_F_*`.
#[expect(missing_docs, reason = "the specification's names")]
pub mod flags {
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const INDIRECT: u16 = 4;
}

/// Bytes between any two buffers, and after the last.
const GUARD: usize = 16;
/// Content of guards and of device-writable buffers that the device has not written.
pub const UNWRITTEN: u8 = 0xEE;

/// A descriptor chain: one descriptor for each slice to read and for each length to write.
#[derive(Clone, Debug)]
pub struct Chain<'a> {
    /// Device-readable buffers.
    pub readable: Vec<&'a [u8]>,
    /// Lengths of device-writable buffers.
    pub writable: Vec<usize>,
    /// Location of the descriptors.
    pub table: Table,
}

/// The table that holds the descriptors of a chain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Table {
    /// All in the descriptor table.
    Direct,
    /// All in one indirect table.
    Indirect,
    /// The first in the descriptor table, the others in an indirect table.
    Mixed,
}

impl<'a> Chain<'a> {
    /// Creates a chain in the descriptor table.
    pub fn new(readable: Vec<&'a [u8]>, writable: Vec<usize>) -> Self {
        Self { readable, writable, table: Table::Direct }
    }

    /// Replaces the table.
    pub fn table(self, table: Table) -> Self {
        Self { table, ..self }
    }
}

/// A used chain: the length that the device reports, and all device-writable bytes.
#[derive(Debug, PartialEq)]
pub struct Reply {
    /// `used.len`
    pub len: u32,
    /// The device-writable bytes of the chain.
    pub data: Vec<u8>,
}

impl Reply {
    /// Returns the status of a request. Checks that the device has written the whole tail, all
    /// device-writable bytes are in the length, and the tail's reserved bytes are 0.
    pub fn status(&self) -> u8 {
        let tail = self.data.last_chunk::<4>().expect("space for a tail");
        assert_eq!(self.len as usize, self.data.len(), "used.len is not the writable length");
        assert_eq!(tail[1..], [0; 3], "tail.reserved");
        tail[0]
    }

    /// Returns whether the device has returned the buffer unwritten.
    pub fn is_unwritten(&self) -> bool {
        self.len == 0 && self.data.iter().all(|&byte| byte == UNWRITTEN)
    }
}

struct Segment {
    address: u64,
    len: usize,
    writable: bool,
}

/// A split virtqueue with its buffers in guest memory.
///
/// ```no_run
/// use testing::memory::GuestMemory;
/// use testing::request::{attach, status};
/// use testing::virtqueue::Virtqueue;
///
/// let ram = GuestMemory::new(&[(0, 1 << 20)]);
/// let mut requests = Virtqueue::new(&ram, 256, 0x1_0000, 0x2_0000..0x4_0000);
/// // ... started by a front end
/// assert_eq!(requests.transact(&attach(1, 0x10).chain()).status(), status::OK);
/// ```
pub struct Virtqueue {
    /// The memory that holds the queue.
    pub ram: Arc<GuestMemory>,
    /// Number of descriptors.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring.
    pub avail: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
    /// Whether `VIRTIO_F_EVENT_IDX` is negotiated.
    pub event_idx: bool,
    /// Signalled by the driver.
    pub kick: EventFd,
    /// Signalled by the device.
    pub call: EventFd,
    /// The available index to publish next.
    pub next_avail: u16,
    published: u16,
    next_used: u16,
    buffers: Range<u64>,
    next_buffer: u64,
    next_descriptor: u16,
    in_flight: HashMap<u16, Vec<Segment>>,
}

impl Virtqueue {
    /// Creates a queue of `size` descriptors at `base`, with its buffers in `buffers`.
    pub fn new(ram: &Arc<GuestMemory>, size: u16, base: u64, buffers: Range<u64>) -> Self {
        let avail = base + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        let mut queue = Self {
            ram: ram.clone(),
            size,
            descriptors: base,
            avail,
            used,
            event_idx: true,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
            next_avail: 0,
            published: 0,
            next_used: 0,
            next_buffer: buffers.start,
            buffers,
            next_descriptor: 0,
            in_flight: HashMap::new(),
        };
        queue.clear();
        queue
    }

    /// Clears the queue, as a driver does after a device reset.
    pub fn clear(&mut self) {
        let end = self.used + 6 + 8 * u64::from(self.size);
        self.ram.fill(self.descriptors, (end - self.descriptors) as usize, 0);
        (self.next_avail, self.published, self.next_used) = (0, 0, 0);
        self.free_buffers();
    }

    fn free_buffers(&mut self) {
        self.in_flight.clear();
        self.next_buffer = self.buffers.start;
        self.next_descriptor = 0;
    }

    /// Writes an entry of the descriptor table.
    pub fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.write_descriptor(self.descriptors, index, address, len, flags, next);
    }

    /// Writes an entry of the table at `table`.
    pub fn write_descriptor(
        &self,
        table: u64,
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.ram.write(table + 16 * u64::from(index), &bytes);
    }

    /// Puts `head` into the available ring, without publishing it.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next_avail % self.size);
        self.ram.store(self.avail + 4 + 2 * slot, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Publishes the offered chains, without a kick.
    pub fn publish(&mut self) {
        self.ram.store(self.avail + 2, self.next_avail);
        fence(Ordering::SeqCst);
    }

    /// Publishes the offered chains, and kicks if the device requests it.
    pub fn submit(&mut self) {
        self.publish();
        let (old, new) = (self.published, self.next_avail);
        self.published = new;
        let kick = if self.event_idx {
            let event = self.ram.load(self.used + 4 + 8 * u64::from(self.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.ram.load(self.used) & 1 == 0
        };
        if kick {
            self.kick.write(1).unwrap();
        }
    }

    /// Writes a chain to memory and offers it. Returns its head.
    pub fn add(&mut self, chain: &Chain) -> u16 {
        let mut segments: Vec<_> =
            chain.readable.iter().map(|data| self.buffer(data, false)).collect();
        for &len in &chain.writable {
            let segment = self.buffer(&vec![UNWRITTEN; len], true);
            segments.push(segment);
        }
        let direct = match chain.table {
            Table::Direct => segments.len(),
            Table::Indirect => 0,
            Table::Mixed => 1,
        };
        let head = self.next_descriptor;
        let indirect = direct < segments.len();
        self.link(self.descriptors, head, &segments[..direct], indirect);
        self.next_descriptor += direct as u16;
        if indirect {
            let (table, len) = (self.allocate(16 * segments.len()), 16 * (segments.len() - direct));
            self.link(table, 0, &segments[direct..], false);
            self.descriptor(self.next_descriptor, table, len as u32, flags::INDIRECT, 0);
            self.next_descriptor += 1;
        }
        assert!(self.next_descriptor <= self.size, "descriptor table is full");
        self.offer(head);
        self.in_flight.insert(head, segments);
        head
    }

    /// Links descriptors of `segments` in `table`, from index `first`.
    fn link(&self, table: u64, first: u16, segments: &[Segment], continued: bool) {
        for (index, segment) in (first..).zip(segments) {
            let last = usize::from(index - first) + 1 == segments.len() && !continued;
            let next = if last { 0 } else { flags::NEXT };
            let write = if segment.writable { flags::WRITE } else { 0 };
            let len = segment.len as u32;
            self.write_descriptor(table, index, segment.address, len, next | write, index + 1);
        }
    }

    fn buffer(&mut self, data: &[u8], writable: bool) -> Segment {
        let address = self.allocate(data.len() + GUARD);
        self.ram.write(address, data);
        self.ram.fill(address + data.len() as u64, GUARD, UNWRITTEN);
        Segment { address, len: data.len(), writable }
    }

    fn allocate(&mut self, len: usize) -> u64 {
        let address = self.next_buffer;
        self.next_buffer = (address + len as u64).next_multiple_of(16);
        assert!(self.next_buffer <= self.buffers.end, "no buffer is left");
        address
    }

    /// Returns the next used element, if any.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.ram.load(self.used + 2) == self.next_used {
            return None;
        }
        let slot = u64::from(self.next_used % self.size);
        let element = GuestAddress(self.used + 4 + 8 * slot);
        let [head, len]: [u32; 2] = self.ram.0.read_obj(element).unwrap();
        self.next_used = self.next_used.wrapping_add(1);
        Some((u32::from_le(head) as u16, u32::from_le(len)))
    }

    /// Requests a signal at the next used element. Returns `false` if it is available already.
    pub fn arm(&self) -> bool {
        let used_event = self.avail + 4 + 2 * u64::from(self.size);
        self.ram.store(used_event, self.next_used);
        fence(Ordering::SeqCst);
        self.ram.load(self.used + 2) == self.next_used
    }

    /// Waits for the next used element; sleeps until the device signals.
    #[track_caller]
    pub fn wait_used(&mut self) -> (u16, u32) {
        loop {
            if self.arm() {
                wait::readable(&self.call, "a used buffer");
                let _ = self.call.read();
            }
            if let Some(element) = self.take_used() {
                return element;
            }
        }
    }

    /// Waits for the next used element, as a driver that has disabled notifications and polls.
    #[track_caller]
    pub fn poll_used(&mut self) -> (u16, u32) {
        wait::until("a used buffer", || self.take_used())
    }

    /// Waits for the next used chain. Returns its head and its reply.
    #[track_caller]
    pub fn reply(&mut self) -> (u16, Reply) {
        let (head, len) = self.wait_used();
        (head, self.collect(head, len))
    }

    /// Collects the device-writable bytes of a used chain.
    #[track_caller]
    pub fn collect(&mut self, head: u16, len: u32) -> Reply {
        let segments = self.in_flight.remove(&head).expect("the head of a chain in flight");
        let mut data = Vec::new();
        for segment in &segments {
            let bytes = self.ram.read(segment.address, segment.len + GUARD);
            let (bytes, guard) = bytes.split_at(segment.len);
            assert_eq!(guard, [UNWRITTEN; GUARD], "the device wrote beyond a buffer");
            if segment.writable {
                data.extend_from_slice(bytes);
            }
        }
        if self.in_flight.is_empty() {
            self.free_buffers();
        }
        Reply { len, data }
    }

    /// Sends one chain and waits for its reply.
    #[track_caller]
    pub fn transact(&mut self, chain: &Chain) -> Reply {
        let head = self.add(chain);
        self.submit();
        let (used, reply) = self.reply();
        assert_eq!(used, head, "the device used another chain");
        reply
    }
}
