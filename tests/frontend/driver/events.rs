//! The event queue: buffers out, faults in.

use std::ops::Range;
use std::sync::Arc;

use super::ring::flags;
use super::{Ram, Ring};

/// Bytes of a fault without extensions.
pub const EVENT_LEN: u32 = 24;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    pub reason: u8,
    pub flags: u32,
    pub endpoint: u32,
    pub address: u64,
}

impl Fault {
    pub const R_DOMAIN: u8 = 1;
    pub const R_MAPPING: u8 = 2;
    pub const READ: u32 = 1;
    pub const WRITE: u32 = 2;
    pub const ADDRESS: u32 = 1 << 8;
}

pub struct EventQueue {
    pub ring: Ring,
    buffers: u64,
    buffer_len: u32,
}

impl EventQueue {
    pub fn new(ram: &Arc<Ram>, size: u16, base: u64, buffers: Range<u64>) -> Self {
        let start = buffers.start;
        Self { ring: Ring::new(ram, size, base, buffers), buffers: start, buffer_len: EVENT_LEN }
    }

    /// Offers `count` buffers of `len` bytes, and as Linux does, without a kick.
    pub fn fill(&mut self, count: u16, len: u32) {
        self.buffer_len = len;
        (0..count).for_each(|slot| self.post(slot));
        self.ring.publish();
    }

    fn post(&mut self, slot: u16) {
        let address = self.address(slot);
        self.ring.ram.fill(address, 64, 0xEE);
        self.ring.descriptor(slot, address, self.buffer_len, flags::WRITE, 0);
        self.ring.offer(slot);
    }

    fn address(&self, slot: u16) -> u64 {
        self.buffers + 64 * u64::from(slot)
    }

    /// Waits for the next fault and gives its buffer back.
    pub fn next(&mut self) -> Fault {
        let used = self.ring.wait_used();
        self.accept(used)
    }

    /// The next fault, if it is there already.
    pub fn try_next(&mut self) -> Option<Fault> {
        let used = self.ring.take_used()?;
        Some(self.accept(used))
    }

    /// Waits for the next buffer, whatever is in it: `used.len` and all the bytes.
    pub fn next_raw(&mut self) -> (u32, Vec<u8>) {
        let (slot, len) = self.ring.wait_used();
        let data = self.ring.ram.read(self.address(slot), self.buffer_len as usize);
        self.post(slot);
        self.ring.submit();
        (len, data)
    }

    fn accept(&mut self, (slot, len): (u16, u32)) -> Fault {
        assert_eq!(len, EVENT_LEN, "length of an event");
        let data = self.ring.ram.read(self.address(slot), 64);
        assert_eq!(data[1..4], [0; 3], "reserved");
        assert_eq!(data[12..16], [0; 4], "reserved2");
        assert_eq!(data[24..], [0xEE; 40], "the device wrote beyond the event");
        self.post(slot);
        self.ring.submit();
        let le32 = |at: usize| u32::from_le_bytes(data[at..at + 4].try_into().unwrap());
        Fault {
            reason: data[0],
            flags: le32(4),
            endpoint: le32(8),
            address: u64::from_le_bytes(data[16..24].try_into().unwrap()),
        }
    }
}
