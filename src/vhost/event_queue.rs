//! The event queue: writes events from the fault path into the driver's buffers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vhost_user_backend::{VringState, VringT};
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};

use super::counters::TransportCounters;
use super::descriptor_chain::gather;
use super::notification::notify_driver;
use super::reset_barrier::ResetBarrier;
use super::timer::Timer;
use super::virtqueue::{Memory, Start, Virtqueue, next_chain};
use crate::heartbeat::Heartbeat;
use crate::iopf::{DeliveryStatus, Event, Iopf};
use crate::viommu::Features;
use crate::viommu::event::{self, Encoded};

/// Maximum number of rounds over all endpoints in [`EventQueue::serve_briefly`].
const BRIEF_ROUNDS: usize = 4;

/// The device side of the event queue.
pub struct EventQueue {
    faults: Arc<Iopf>,
    memory: Memory,
    /// The negotiated features, which determine the format of events.
    features: AtomicU64,
    barrier: Arc<ResetBarrier>,
    /// Runs while page responses are outstanding.
    timer: Timer,
    counters: Arc<TransportCounters>,
    heartbeat: Heartbeat,
}

impl EventQueue {
    /// Creates an event queue that delivers the events of `faults`. `timer` advances the clock of
    /// their deadlines. `heartbeat` is that of the loop that calls [`serve`](Self::serve).
    pub fn new(
        faults: Arc<Iopf>,
        memory: Memory,
        barrier: Arc<ResetBarrier>,
        timer: Timer,
        counters: Arc<TransportCounters>,
        heartbeat: Heartbeat,
    ) -> Self {
        Self { faults, memory, features: AtomicU64::new(0), barrier, timer, counters, heartbeat }
    }

    /// Sets the negotiated features.
    pub fn set_features(&self, features: u64) {
        self.features.store(features, Ordering::Relaxed);
    }

    /// Handles the expiration of the timer. The clock of the deadlines stands still while the
    /// virtual machine is paused, because the guest cannot respond.
    pub fn handle_timer(&self, queue: &Virtqueue) {
        let running = queue.is_running(&queue.get_ref());
        if self.timer.take_expiration() && running {
            self.faults.advance_clock(self.timer.period());
        }
    }

    /// Delivers all pending events, as far as the driver has made buffers available.
    ///
    /// A fault without a buffer is counted and dropped (virtio 1.4, 5.13.6.8.2): the driver can
    /// only log it, and decides by its number of buffers how much it logs. A page request without
    /// a buffer stays pending.
    pub fn serve(&self, queue: &Virtqueue) {
        self.heartbeat.beat();
        while !self.serve_briefly(queue) {
            self.heartbeat.beat();
        }
    }

    /// Delivers pending events like [`serve`](Self::serve), but for a limited number of rounds.
    /// Returns whether nothing is left to deliver.
    pub fn serve_briefly(&self, queue: &Virtqueue) -> bool {
        let complete = (0..BRIEF_ROUNDS).any(|_| !self.deliver_round(queue));
        if !self.timer.is_running() && self.faults.has_outstanding_groups() {
            self.timer.start();
        }
        complete
    }

    /// Delivers the events of one round over all endpoints. Returns whether there may be more.
    ///
    /// Available buffers are looked up when there is an event, not when the driver kicks: Linux
    /// makes buffers available in this virtqueue without a kick. Kicks are enabled only while page
    /// requests are pending for lack of a buffer.
    fn deliver_round(&self, queue: &Virtqueue) -> bool {
        let mut vring = queue.lock();
        let memory = self.memory.memory();
        if queue.is_running(&vring)
            && queue.take_start(vring.get_queue(), &memory) == Some(Start::Fresh)
        {
            self.barrier.close();
        }
        if self.barrier.is_closed() {
            return false;
        }
        let used = vring.get_queue().next_used();
        let features = Features(self.features.load(Ordering::Relaxed));
        let status = self.faults.deliver(&mut |event: Event| {
            queue.is_running(&vring)
                && put(queue, &mut vring, &memory, &event::encode(&event, features))
        });
        if vring.get_queue().next_used() != used {
            notify_driver(queue, &mut vring, &memory, &self.counters.event_signals);
        }
        match status {
            DeliveryStatus::Complete => false,
            DeliveryStatus::More => true,
            DeliveryStatus::NoBuffer if !queue.is_running(&vring) => false,
            DeliveryStatus::NoBuffer => enable_kicks(queue, &mut vring, &memory),
        }
    }
}

/// Enables kicks. Returns whether buffers have become available in the meantime.
fn enable_kicks(
    queue: &Virtqueue,
    vring: &mut VringState<Memory>,
    memory: &GuestMemoryMmap,
) -> bool {
    let enabled = vring.get_queue_mut().enable_notification(memory);
    enabled.unwrap_or_else(|error| {
        queue.set_broken(format_args!("event queue: {error}"));
        false
    })
}

/// Writes an event into a buffer. Returns `false` if no buffer is available.
fn put(
    queue: &Virtqueue,
    vring: &mut VringState<Memory>,
    memory: &GuestMemoryMmap,
    event: &Encoded,
) -> bool {
    put_into(vring.get_queue_mut(), memory, event).unwrap_or_else(|error| {
        queue.set_broken(format_args!("event queue: {error}"));
        false
    })
}

/// Writes an event into the next buffer that is large enough. Smaller buffers are returned with a
/// used length of 0, because an event is never split. Returns `false` if no buffer is available.
fn put_into(queue: &mut Queue, memory: &GuestMemoryMmap, event: &Encoded) -> Result<bool, Error> {
    while let Some(chain) = next_chain(queue, memory)? {
        let head = chain.head_index();
        let gathered = gather(chain.clone(), memory, &mut []);
        let bytes = event.within(gathered.writable_size).unwrap_or_default();
        let written = gathered.scatter(chain, memory, bytes);
        queue.add_used(memory, head, written as u32)?;
        if written > 0 && written == bytes.len() {
            return Ok(true);
        }
    }
    Ok(false)
}
