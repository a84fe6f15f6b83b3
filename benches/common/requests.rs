//! The request queue from the driver's side.

use std::sync::atomic::{Ordering, fence};

use vhost::vhost_user::Frontend;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Descriptor, Ring, load};

const QUEUE: u16 = 512;
/// Requests that can be in flight.
const SLOTS: u16 = QUEUE / 2;
/// One slot a request: what the driver writes, then what the device writes.
const SLOT: u64 = 64;
const TAIL: u64 = 48;
/// The longest request without its tail. Shorter ones have bytes behind that nobody reads.
const LONGEST: u32 = 36;

/// Slot n owns descriptors 2n and 2n + 1 and the n-th entry of the available ring, so that a
/// request costs the driver next to nothing.
pub struct Requests {
    memory: GuestMemoryMmap,
    ring: Ring,
    slots: u64,
    avail: u16,
}

impl Requests {
    /// Lays the queue out from `base` on and gives it to the device.
    pub fn start(front_end: &mut Frontend, memory: &GuestMemoryMmap, base: u64) -> Self {
        let ring = Ring::new(QUEUE, base);
        let slots = base + super::RING_SPAN;
        let requests = Self { memory: memory.clone(), ring, slots, avail: 0 };
        (0..SLOTS).for_each(|slot| requests.lay_out(slot));
        requests.ring.start(front_end, 0, memory).expect("the back end takes the request queue");
        requests
    }

    fn lay_out(&self, slot: u16) {
        let address = self.slots + u64::from(slot) * SLOT;
        let request = Descriptor { address, len: LONGEST, flags: 1, next: 2 * slot + 1 };
        let tail = Descriptor { address: address + TAIL, len: 4, flags: 2, next: 0 };
        self.ring.describe(&self.memory, 2 * slot, &request);
        self.ring.describe(&self.memory, 2 * slot + 1, &tail);
        for entry in [slot, slot + SLOTS] {
            let at = GuestAddress(self.ring.avail + 4 + u64::from(entry) * 2);
            self.memory.write_obj(2 * slot, at).expect("available ring");
        }
    }

    /// The slot whose turn it is `ahead` requests from now.
    fn slot(&self, ahead: usize) -> u16 {
        self.avail.wrapping_add(ahead as u16) % SLOTS
    }

    /// Writes the request that is submitted `ahead` requests from now.
    pub fn write(&self, ahead: usize, parts: &[&[u8]]) {
        let address = GuestAddress(self.slots + u64::from(self.slot(ahead)) * SLOT);
        self.memory.write_slice(&parts.concat(), address).expect("slot");
    }

    /// Makes `count` requests available; does not wait.
    pub fn submit(&mut self, count: usize) {
        let old = self.avail;
        self.avail = old.wrapping_add(count as u16);
        let index = GuestAddress(self.ring.avail + 2);
        self.memory.store(self.avail, index, Ordering::Release).expect("index");
        fence(Ordering::SeqCst);
        self.ring.kick_if_wanted(&self.memory, old, self.avail);
    }

    /// Spins until at most `count` requests are not used.
    pub fn spin(&self, count: u16) {
        while self.avail.wrapping_sub(load(&self.memory, self.ring.used + 2)) > count {
            std::hint::spin_loop();
        }
    }

    /// Checks that the last `count` requests were answered OK.
    pub fn check(&self, count: usize) {
        for back in 1..=count {
            let slot = self.avail.wrapping_sub(back as u16) % SLOTS;
            let at = GuestAddress(self.slots + u64::from(slot) * SLOT + TAIL);
            let status: u8 = self.memory.read_obj(at).expect("tail");
            assert_eq!(status, 0, "request in slot {slot}");
        }
    }
}
