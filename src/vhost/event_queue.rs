//! The event queue: takes faults from the fault path, puts events into the driver's buffers.

use std::sync::Arc;

use vhost_user_backend::{VringState, VringT};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};

use super::chain::gather;
use super::notify::signal_driver;
use super::request_queue::next_chain;
use super::ring::{Memory, Ring};
use crate::iopf::{Fault, Iopf};
use crate::viommu::event;
use crate::viommu::wire::size;

/// The server of the event queue; one thread uses it.
pub struct EventQueue {
    faults: Arc<Iopf>,
    memory: Memory,
}

impl EventQueue {
    /// Tells the driver of what comes out of `faults`.
    pub fn new(faults: Arc<Iopf>, memory: Memory) -> Self {
        Self { faults, memory }
    }

    /// Delivers all faults that wait. A fault that finds no buffer is dropped and counted: the
    /// driver can do nothing about it but log, and its buffers say how much it wants to log
    /// (virtio 1.4, 5.13.6.8.2).
    ///
    /// Buffers are looked for when there is a fault, not when the driver kicks: Linux fills this
    /// queue without kicking.
    pub fn serve(&self, ring: &Ring) {
        let mut vring = ring.get_mut();
        let memory = self.memory.memory();
        let used = vring.get_queue().next_used();
        while let Some(fault) = self.faults.next() {
            if ring.is_running(&vring) && self.deliver(ring, &mut vring, &memory, &fault) {
                self.faults.delivered(&fault);
            } else {
                self.faults.dropped(&fault);
            }
        }
        if vring.get_queue().next_used() != used {
            signal_driver(ring, &mut vring, &memory);
        }
    }

    fn deliver(
        &self,
        ring: &Ring,
        vring: &mut VringState<Memory>,
        memory: &GuestMemoryMmap,
        fault: &Fault,
    ) -> bool {
        let event = event::encode(fault);
        put(vring.get_queue_mut(), memory, &event).unwrap_or_else(|error| {
            ring.set_broken(format_args!("event queue: {error}"));
            false
        })
    }
}

/// Puts an event into the next buffer that is large enough; smaller ones go back empty, because
/// an event is never spread over several. `false`: there is none.
fn put(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    event: &[u8; size::FAULT],
) -> Result<bool, virtio_queue::Error> {
    while let Some(chain) = next_chain(queue, memory)? {
        let head = chain.head_index();
        let gathered = gather(chain.clone(), memory, &mut []);
        let fits = gathered.room >= event.len();
        let bytes: &[u8] = if fits { event } else { &[] };
        let written = gathered.scatter(chain, memory, bytes);
        queue.add_used(memory, head, written as u32)?;
        if written == event.len() {
            return Ok(true);
        }
    }
    Ok(false)
}
