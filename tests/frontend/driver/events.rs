//! The event queue: buffers out, faults in.

use std::ops::Range;
use std::sync::Arc;

use super::ring::flags;
use super::{Ram, Ring};

/// Bytes of a fault without extensions.
pub const EVENT_LEN: u32 = 24;
/// Bytes of a fault for a driver that takes page requests.
pub const LONG_EVENT_LEN: u32 = 48;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fault {
    pub reason: u8,
    pub flags: u32,
    pub endpoint: u32,
    pub pasid: u32,
    pub address: u64,
    pub group: u16,
}

impl Fault {
    pub const R_DOMAIN: u8 = 1;
    pub const R_MAPPING: u8 = 2;
    pub const READ: u32 = 1;
    pub const WRITE: u32 = 2;
    pub const LAST: u32 = 1 << 4;
    pub const PAGE_REQ: u32 = 1 << 5;
    pub const ADDRESS: u32 = 1 << 8;
    pub const PASID: u32 = 1 << 9;
    pub const GROUP_ID: u32 = 1 << 10;

    /// Reads an event of either length. What it does not hold, or its flags do not announce, is
    /// zero.
    pub fn parse(data: &[u8]) -> Self {
        assert_eq!(data[1..4], [0; 3], "reserved");
        let mut long = [0; LONG_EVENT_LEN as usize];
        long[..data.len()].copy_from_slice(data);
        assert_eq!(long[26..], [0; 22], "reserved");
        let le32 = |at: usize| u32::from_le_bytes(long[at..at + 4].try_into().unwrap());
        let fault = Self {
            reason: long[0],
            flags: le32(4),
            endpoint: le32(8),
            pasid: le32(12),
            address: u64::from_le_bytes(long[16..24].try_into().unwrap()),
            group: u16::from_le_bytes([long[24], long[25]]),
        };
        assert!(fault.has(Self::PASID) || fault.pasid == 0, "a PASID without its flag");
        assert!(fault.has(Self::GROUP_ID) || fault.group == 0, "a group without its flag");
        fault
    }

    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

pub struct EventQueue {
    pub ring: Ring,
    /// Bytes of the events that the driver's features ask for.
    pub event_len: u32,
    /// Buffers are kept, once used, until `refill`.
    pub hold: bool,
    kept: Vec<u16>,
    buffers: u64,
    /// Bytes of each buffer.
    lens: Vec<u32>,
}

impl EventQueue {
    pub fn new(ram: &Arc<Ram>, size: u16, base: u64, buffers: Range<u64>) -> Self {
        let start = buffers.start;
        let ring = Ring::new(ram, size, base, buffers);
        let (kept, lens) = (Vec::new(), Vec::new());
        Self { ring, event_len: EVENT_LEN, hold: false, kept, buffers: start, lens }
    }

    /// As a driver leaves it after it has reset the device.
    pub fn clear(&mut self) {
        self.ring.clear();
        self.kept.clear();
    }

    /// Offers `count` buffers of `len` bytes, and as Linux does, without a kick.
    pub fn fill(&mut self, count: u16, len: u32) {
        self.fill_with(&vec![len; count.into()]);
    }

    /// Offers buffers of these lengths, without a kick.
    pub fn fill_with(&mut self, lens: &[u32]) {
        self.lens = lens.to_vec();
        (0..lens.len() as u16).for_each(|slot| self.post(slot));
        self.ring.publish();
    }

    /// Gives back the buffers that were kept.
    pub fn refill(&mut self) {
        for slot in std::mem::take(&mut self.kept) {
            self.post(slot);
        }
        self.ring.submit();
    }

    fn post(&mut self, slot: u16) {
        let address = self.address(slot);
        self.ring.ram.fill(address, 64, 0xEE);
        self.ring.descriptor(slot, address, self.lens[usize::from(slot)], flags::WRITE, 0);
        self.ring.offer(slot);
    }

    fn address(&self, slot: u16) -> u64 {
        self.buffers + 64 * u64::from(slot)
    }

    fn give_back(&mut self, slot: u16) {
        self.kept.push(slot);
        if !self.hold {
            self.refill();
        }
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
        let data = self.ring.ram.read(self.address(slot), self.lens[usize::from(slot)] as usize);
        self.give_back(slot);
        (len, data)
    }

    fn accept(&mut self, (slot, len): (u16, u32)) -> Fault {
        assert_eq!(len, self.event_len, "length of an event");
        let data = self.ring.ram.read(self.address(slot), 64);
        let (event, rest) = data.split_at(len as usize);
        assert!(rest.iter().all(|&byte| byte == 0xEE), "the device wrote beyond the event");
        self.give_back(slot);
        Fault::parse(event)
    }
}
