//! The request queue from the driver's side.

use std::sync::Arc;

use crate::memory::GuestMemory;
use crate::request::status;
use crate::virtqueue::{Virtqueue, flags};

const QUEUE_SIZE: u16 = 512;
/// Maximum number of requests in flight.
const SLOTS: u16 = QUEUE_SIZE / 2;
/// Bytes of a slot: the device-readable part of a request, then its tail.
const SLOT: u64 = 64;
const TAIL: u64 = 48;
/// Size of the longest request without its tail. The device ignores the bytes after a shorter
/// one.
const LONGEST: u32 = 36;
/// Distance of the slots from the queue.
const SLOTS_OFFSET: u64 = 0x1_0000;

/// A request queue without the checks of [`Virtqueue`], whose cost would be measured: slot n owns
/// descriptors 2n and 2n + 1 and the n-th entry of the available ring, all written once.
pub struct Requests {
    /// The virtqueue.
    pub queue: Virtqueue,
    slots: u64,
}

impl Requests {
    /// Lays the queue out from `base` on.
    pub fn new(ram: &Arc<GuestMemory>, base: u64) -> Self {
        let slots = base + SLOTS_OFFSET;
        let mut queue = Virtqueue::new(ram, QUEUE_SIZE, base, slots..slots);
        for slot in 0..SLOTS {
            let address = slots + u64::from(slot) * SLOT;
            queue.descriptor(2 * slot, address, LONGEST, flags::NEXT, 2 * slot + 1);
            queue.descriptor(2 * slot + 1, address + TAIL, 4, flags::WRITE, 0);
        }
        for entry in 0..QUEUE_SIZE {
            queue.offer(2 * (entry % SLOTS));
        }
        queue.next_avail = 0;
        Self { queue, slots }
    }

    /// Returns the address of the slot that is used `distance` requests from now.
    fn slot(&self, distance: u16) -> u64 {
        let slot = self.queue.next_avail.wrapping_add(distance) % SLOTS;
        self.slots + u64::from(slot) * SLOT
    }

    /// Writes the request that is submitted `ahead` requests from now.
    pub fn write(&self, ahead: usize, parts: &[&[u8]]) {
        self.queue.ram.write(self.slot(ahead as u16), &parts.concat());
    }

    /// Makes `count` requests available, without waiting.
    pub fn submit(&mut self, count: usize) {
        self.queue.next_avail = self.queue.next_avail.wrapping_add(count as u16);
        self.queue.submit();
    }

    /// Spins until at most `count` requests are in flight.
    pub fn spin(&self, count: u16) {
        let Virtqueue { ram, used, next_avail, .. } = &self.queue;
        while next_avail.wrapping_sub(ram.load(used + 2)) > count {
            std::hint::spin_loop();
        }
    }

    /// Checks that the last `count` requests have succeeded.
    pub fn check(&self, count: usize) {
        for back in 1..=count {
            let tail = self.slot((back as u16).wrapping_neg()) + TAIL;
            assert_eq!(self.queue.ram.read(tail, 1), [status::OK], "request {back} from the end");
        }
    }
}
