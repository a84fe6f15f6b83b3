//! The event queue: buffers for the device, and the faults and page requests in them.

use std::ops::Range;
use std::sync::Arc;

use crate::memory::GuestMemory;
use crate::virtqueue::{UNWRITTEN, Virtqueue, flags};

/// Size of `struct virtio_iommu_fault`, in bytes.
pub const EVENT_LEN: u32 = 24;
/// Size of an event for a driver that has negotiated page requests, in bytes.
pub const LONG_EVENT_LEN: u32 = 48;
/// Bytes of guest memory of each event buffer.
const BUFFER: u64 = 64;

/// An event: an unrecoverable fault, or a page request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fault {
    /// `VIRTIO_IOMMU_FAULT_R_*`
    pub reason: u8,
    /// `VIRTIO_IOMMU_FAULT_F_*`
    pub flags: u32,
    /// The endpoint that made the access.
    pub endpoint: u32,
    /// The PASID of the access, or 0.
    pub pasid: u32,
    /// I/O virtual address of the access.
    pub address: u64,
    /// The page request group, or 0.
    pub group: u16,
}

/// Reasons and flags: `VIRTIO_IOMMU_FAULT_*`.
#[expect(missing_docs, reason = "the specification's names")]
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
}

impl Fault {
    /// Parses an event of either length. Absent fields, and fields whose flag is clear, are 0.
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

    /// Returns whether one of `flags` is set.
    pub fn has(&self, flags: u32) -> bool {
        self.flags & flags != 0
    }
}

/// The event queue from the driver's side.
///
/// ```no_run
/// use testing::event::Fault;
/// use testing::vm::Vm;
///
/// let mut vm = Vm::new("--boot-bypass off");
/// vm.accel(0).read(0x1000, 8).unwrap_err();
/// assert_eq!(vm.events.receive().reason, Fault::R_DOMAIN);
/// ```
pub struct EventQueue {
    /// The virtqueue.
    pub queue: Virtqueue,
    /// Size of an event with the negotiated features, in bytes.
    pub event_len: u32,
    /// Whether used buffers are kept until [`refill`](Self::refill).
    pub hold: bool,
    kept: Vec<u16>,
    buffers: u64,
    /// Length of each buffer in bytes.
    lens: Vec<u32>,
}

impl EventQueue {
    /// Creates a queue of `size` descriptors at `base`, with its buffers in `buffers`.
    pub fn new(ram: &Arc<GuestMemory>, size: u16, base: u64, buffers: Range<u64>) -> Self {
        let start = buffers.start;
        let queue = Virtqueue::new(ram, size, base, buffers);
        let (kept, lens) = (Vec::new(), Vec::new());
        Self { queue, event_len: EVENT_LEN, hold: false, kept, buffers: start, lens }
    }

    /// Clears the queue, as a driver does after a device reset.
    pub fn clear(&mut self) {
        self.queue.clear();
        self.kept.clear();
    }

    /// Offers `count` buffers of `len` bytes; without a kick, as Linux does.
    pub fn fill(&mut self, count: u16, len: u32) {
        self.fill_with(&vec![len; count.into()]);
    }

    /// Offers buffers of these lengths, without a kick.
    pub fn fill_with(&mut self, lens: &[u32]) {
        self.lens = lens.to_vec();
        (0..lens.len() as u16).for_each(|slot| self.post(slot));
        self.queue.publish();
    }

    /// Offers the buffers that were kept again.
    pub fn refill(&mut self) {
        for slot in std::mem::take(&mut self.kept) {
            self.post(slot);
        }
        self.queue.submit();
    }

    fn post(&mut self, slot: u16) {
        let address = self.address(slot);
        self.queue.ram.fill(address, BUFFER as usize, UNWRITTEN);
        self.queue.descriptor(slot, address, self.lens[usize::from(slot)], flags::WRITE, 0);
        self.queue.offer(slot);
    }

    fn address(&self, slot: u16) -> u64 {
        self.buffers + BUFFER * u64::from(slot)
    }

    fn release(&mut self, slot: u16) {
        self.kept.push(slot);
        if !self.hold {
            self.refill();
        }
    }

    /// Waits for the next event and offers its buffer again.
    #[track_caller]
    pub fn receive(&mut self) -> Fault {
        let used = self.queue.wait_used();
        self.parse(used)
    }

    /// Returns the next event if it has been delivered, and offers its buffer again.
    #[track_caller]
    pub fn try_receive(&mut self) -> Option<Fault> {
        let used = self.queue.take_used()?;
        Some(self.parse(used))
    }

    /// Waits for the next used buffer. Returns `used.len` and all bytes of the buffer.
    #[track_caller]
    pub fn receive_raw(&mut self) -> (u32, Vec<u8>) {
        let (slot, len) = self.queue.wait_used();
        let data = self.queue.ram.read(self.address(slot), self.lens[usize::from(slot)] as usize);
        self.release(slot);
        (len, data)
    }

    #[track_caller]
    fn parse(&mut self, (slot, len): (u16, u32)) -> Fault {
        assert_eq!(len, self.event_len, "length of an event");
        let data = self.queue.ram.read(self.address(slot), BUFFER as usize);
        let (event, rest) = data.split_at(len as usize);
        assert!(rest.iter().all(|&byte| byte == UNWRITTEN), "the device wrote beyond the event");
        self.release(slot);
        Fault::parse(event)
    }
}
