//! Telling the driver of used buffers, if it wants to hear of them.

use vhost_user_backend::VringState;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::virtqueue::{Memory, Virtqueue};
use crate::counter::Count;

/// Signals the driver for what has been added to the used ring since the last time; `signals`
/// counts how often.
pub fn signal_driver(
    ring: &Virtqueue,
    vring: &mut VringState<Memory>,
    memory: &GuestMemoryMmap,
    signals: &Count,
) {
    match driver_wants_signal(vring.get_queue_mut(), memory) {
        Ok(true) => {
            signals.add(1);
            if let Err(error) = vring.signal_used_queue() {
                log::warn!("driver could not be signalled: {error}");
            }
        }
        Ok(false) => {}
        Err(error) => ring.set_broken(format_args!("available ring: {error}")),
    }
}

/// Asks the ring. `virtio-queue` knows the event index only; without it the driver's flag
/// decides (virtio 1.4, 2.7.7).
fn driver_wants_signal(queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<bool, Error> {
    let wanted = queue.needs_notification(memory)?;
    if queue.event_idx_enabled() {
        return Ok(wanted);
    }
    let flags: u16 =
        memory.read_obj(GuestAddress(queue.avail_ring())).map_err(Error::GuestMemory)?;
    Ok(u16::from_le(flags) & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
}
