//! Used buffer notifications, subject to notification suppression by the driver.

use vhost_user_backend::VringState;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::virtqueue::{Memory, Virtqueue};
use crate::counter::Count;

/// Notifies the driver of the buffers used since the last call, unless it suppresses the
/// notification. `sent` counts the notifications.
pub fn notify_driver(
    queue: &Virtqueue,
    vring: &mut VringState<Memory>,
    memory: &GuestMemoryMmap,
    sent: &Count,
) {
    match needs_notification(vring.get_queue_mut(), memory) {
        Ok(true) => {
            sent.add(1);
            if let Err(error) = vring.signal_used_queue() {
                log::warn!("cannot signal the call eventfd of a virtqueue: {error}");
            }
        }
        Ok(false) => {}
        Err(error) => queue.set_broken(format_args!("available ring: {error}")),
    }
}

/// Returns whether the driver has to be notified.
///
/// `virtio-queue` evaluates the event index only. Without VIRTIO_F_EVENT_IDX the flag in the
/// available ring decides (virtio 1.4, 2.7.7).
fn needs_notification(queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<bool, Error> {
    let needed = queue.needs_notification(memory)?;
    if queue.event_idx_enabled() {
        return Ok(needed);
    }
    let flags: u16 =
        memory.read_obj(GuestAddress(queue.avail_ring())).map_err(Error::GuestMemory)?;
    Ok(u16::from_le(flags) & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
}
