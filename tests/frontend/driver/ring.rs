//! A split virtqueue as a driver sees it, with every field open to abuse.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Ram;
use crate::wait;

pub mod flags {
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const INDIRECT: u16 = 4;
}

/// Between any two buffers, and after the last.
const GUARD: usize = 16;
/// What the guard and unwritten buffers hold.
pub const UNWRITTEN: u8 = 0xEE;

/// How a request is laid out in descriptors: one per slice to read, one per length to write.
#[derive(Clone, Debug)]
pub struct Shape<'a> {
    pub out: Vec<&'a [u8]>,
    pub room: Vec<usize>,
    pub table: Table,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Table {
    /// A chain in the descriptor table.
    Direct,
    /// All descriptors in one indirect table.
    Indirect,
    /// The first descriptor in the descriptor table, the others in an indirect table.
    Mixed,
}

impl<'a> Shape<'a> {
    pub fn new(out: Vec<&'a [u8]>, room: Vec<usize>) -> Self {
        Self { out, room, table: Table::Direct }
    }

    pub fn table(self, table: Table) -> Self {
        Self { table, ..self }
    }
}

/// What came back: `used.len`, and all the writable bytes of the request.
#[derive(Debug, PartialEq)]
pub struct Reply {
    pub len: u32,
    pub data: Vec<u8>,
}

impl Reply {
    /// The status of a request that was answered: a whole tail, with nothing but it in the
    /// length, and its reserved bytes 0.
    pub fn status(&self) -> u8 {
        let tail = self.data.last_chunk::<4>().expect("room for a tail");
        assert_eq!(self.len as usize, self.data.len(), "used.len is not the writable length");
        assert_eq!(tail[1..], [0; 3], "tail.reserved");
        tail[0]
    }

    pub fn is_unwritten(&self) -> bool {
        self.len == 0 && self.data.iter().all(|&byte| byte == UNWRITTEN)
    }
}

struct Segment {
    address: u64,
    len: usize,
    writable: bool,
}

pub struct Ring {
    pub ram: Arc<Ram>,
    pub size: u16,
    pub descriptors: u64,
    pub avail: u64,
    pub used: u64,
    pub event_idx: bool,
    pub kick: EventFd,
    pub call: EventFd,
    /// The next avail index to be published.
    pub next_avail: u16,
    published: u16,
    next_used: u16,
    buffers: Range<u64>,
    next_buffer: u64,
    next_descriptor: u16,
    pending: HashMap<u16, Vec<Segment>>,
}

impl Ring {
    /// A ring of `size` entries at `base`, with its buffers in `buffers`.
    pub fn new(ram: &Arc<Ram>, size: u16, base: u64, buffers: Range<u64>) -> Self {
        let avail = base + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let mut ring = Self {
            ram: ram.clone(),
            size,
            descriptors: base,
            avail,
            used,
            event_idx: true,
            kick: event(),
            call: event(),
            next_avail: 0,
            published: 0,
            next_used: 0,
            next_buffer: buffers.start,
            buffers,
            next_descriptor: 0,
            pending: HashMap::new(),
        };
        ring.clear();
        ring
    }

    /// As a driver leaves it after it has reset the device.
    pub fn clear(&mut self) {
        let end = self.used + 6 + 8 * u64::from(self.size);
        self.ram.fill(self.descriptors, (end - self.descriptors) as usize, 0);
        (self.next_avail, self.published, self.next_used) = (0, 0, 0);
        self.forget();
    }

    fn forget(&mut self) {
        self.pending.clear();
        self.next_buffer = self.buffers.start;
        self.next_descriptor = 0;
    }

    pub fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.write_descriptor(self.descriptors, index, address, len, flags, next);
    }

    /// Writes a descriptor into a table anywhere.
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

    /// Puts `head` into the avail ring; `publish` shows it.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next_avail % self.size);
        self.ram.store(self.avail + 4 + 2 * slot, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Shows what was offered to the device, without a kick.
    pub fn publish(&mut self) {
        self.ram.store(self.avail + 2, self.next_avail);
        fence(Ordering::SeqCst);
    }

    /// Publishes, and kicks if the device asks for it.
    pub fn submit(&mut self) {
        self.publish();
        let (old, new) = (self.published, self.next_avail);
        self.published = new;
        let wanted = if self.event_idx {
            let event = self.ram.load(self.used + 4 + 8 * u64::from(self.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.ram.load(self.used) & 1 == 0
        };
        if wanted {
            self.kick.write(1).unwrap();
        }
    }

    /// Lays a request out in memory and offers it. Returns its head.
    pub fn add(&mut self, shape: &Shape) -> u16 {
        let mut segments: Vec<_> = shape.out.iter().map(|data| self.buffer(data, false)).collect();
        for &len in &shape.room {
            let segment = self.buffer(&vec![UNWRITTEN; len], true);
            segments.push(segment);
        }
        let direct = match shape.table {
            Table::Direct => segments.len(),
            Table::Indirect => 0,
            Table::Mixed => 1,
        };
        let head = self.next_descriptor;
        let indirect = direct < segments.len();
        self.chain(self.descriptors, head, &segments[..direct], indirect);
        self.next_descriptor += direct as u16;
        if indirect {
            let (table, len) = (self.take(16 * segments.len()), 16 * (segments.len() - direct));
            self.chain(table, 0, &segments[direct..], false);
            self.descriptor(self.next_descriptor, table, len as u32, flags::INDIRECT, 0);
            self.next_descriptor += 1;
        }
        assert!(self.next_descriptor <= self.size, "descriptor table is full");
        self.offer(head);
        self.pending.insert(head, segments);
        head
    }

    fn chain(&self, table: u64, first: u16, segments: &[Segment], goes_on: bool) {
        for (index, segment) in (first..).zip(segments) {
            let last = usize::from(index - first) + 1 == segments.len() && !goes_on;
            let next = if last { 0 } else { flags::NEXT };
            let write = if segment.writable { flags::WRITE } else { 0 };
            let len = segment.len as u32;
            self.write_descriptor(table, index, segment.address, len, next | write, index + 1);
        }
    }

    fn buffer(&mut self, data: &[u8], writable: bool) -> Segment {
        let address = self.take(data.len() + GUARD);
        self.ram.write(address, data);
        self.ram.fill(address + data.len() as u64, GUARD, UNWRITTEN);
        Segment { address, len: data.len(), writable }
    }

    fn take(&mut self, len: usize) -> u64 {
        let address = self.next_buffer;
        self.next_buffer = (address + len as u64).next_multiple_of(16);
        assert!(self.next_buffer <= self.buffers.end, "no buffers left");
        address
    }

    /// The next used element, if there is one.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.ram.load(self.used + 2) == self.next_used {
            return None;
        }
        let slot = u64::from(self.next_used % self.size);
        let element = self.ram.read(self.used + 4 + 8 * slot, 8);
        self.next_used = self.next_used.wrapping_add(1);
        let field = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().unwrap());
        Some((field(0) as u16, field(4)))
    }

    /// The next used element; sleeps until the device signals one.
    pub fn wait_used(&mut self) -> (u16, u32) {
        loop {
            // used_event: signal at the next element.
            self.ram.store(self.avail + 4 + 2 * u64::from(self.size), self.next_used);
            fence(Ordering::SeqCst);
            if let Some(element) = self.take_used() {
                return element;
            }
            wait::readable(&self.call, "a used buffer");
            let _ = self.call.read();
        }
    }

    /// The next used element, for a driver that has turned notifications off and polls.
    pub fn poll_used(&mut self) -> (u16, u32) {
        wait::until("a used buffer", || self.take_used())
    }

    /// The reply to the next request that comes back, with its head.
    pub fn reply(&mut self) -> (u16, Reply) {
        let (head, len) = self.wait_used();
        (head, self.collect(head, len))
    }

    /// Gathers the writable bytes of a request that came back.
    pub fn collect(&mut self, head: u16, len: u32) -> Reply {
        let segments = self.pending.remove(&head).expect("the head of a request in flight");
        let mut data = Vec::new();
        for segment in &segments {
            let bytes = self.ram.read(segment.address, segment.len + GUARD);
            let (bytes, guard) = bytes.split_at(segment.len);
            assert_eq!(guard, [UNWRITTEN; GUARD], "the device wrote beyond a buffer");
            if segment.writable {
                data.extend_from_slice(bytes);
            }
        }
        if self.pending.is_empty() {
            self.forget();
        }
        Reply { len, data }
    }

    /// Sends one request and waits for its reply.
    pub fn transact(&mut self, shape: &Shape) -> Reply {
        let head = self.add(shape);
        self.submit();
        let (used, reply) = self.reply();
        assert_eq!(used, head, "another request came back");
        reply
    }
}
