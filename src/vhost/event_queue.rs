//! The event queue: takes events from the fault path, puts them into the driver's buffers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vhost_user_backend::{VringState, VringT};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};

use super::counters::TransportCounters;
use super::descriptor_chain::gather;
use super::notification::signal_driver;
use super::request_queue::next_chain;
use super::reset_barrier::ResetBarrier;
use super::timer::Timer;
use super::virtqueue::{Memory, Start, Virtqueue};
use crate::heartbeat::Heartbeat;
use crate::iopf::{DeliveryStatus, Event, Iopf};
use crate::viommu::Features;
use crate::viommu::event::{self, Encoded};

/// What a thread that has something else to do delivers, in turns of each endpoint.
const TURNS: usize = 4;

/// The server of the event queue.
pub struct EventQueue {
    faults: Arc<Iopf>,
    memory: Memory,
    /// What the driver has accepted: it decides the format of events.
    features: AtomicU64,
    barrier: Arc<ResetBarrier>,
    /// Runs while the guest owes an answer.
    timer: Timer,
    counters: Arc<TransportCounters>,
    beat: Heartbeat,
}

impl EventQueue {
    /// Tells the driver of what comes out of `faults`, which `timer` keeps the time of. `beat` is
    /// that of the loop it is served in.
    pub fn new(
        faults: Arc<Iopf>,
        memory: Memory,
        barrier: Arc<ResetBarrier>,
        timer: Timer,
        counters: Arc<TransportCounters>,
        beat: Heartbeat,
    ) -> Self {
        Self { faults, memory, features: AtomicU64::new(0), barrier, timer, counters, beat }
    }

    /// The driver has accepted `features`.
    pub fn set_features(&self, features: u64) {
        self.features.store(features, Ordering::Relaxed);
    }

    /// Time has passed. A guest that does not run cannot answer, so that time does not count.
    pub fn tick(&self, ring: &Virtqueue) {
        let running = ring.is_running(&ring.get_ref());
        if self.timer.take() && running {
            self.faults.advance_clock(self.timer.period());
        }
    }

    /// Delivers all that waits, or all that the driver has buffers for. A fault that finds none
    /// is dropped and counted: the driver can do nothing about it but log, and its buffers say
    /// how much it wants to log (virtio 1.4, 5.13.6.8.2). A page request waits for one.
    pub fn serve(&self, ring: &Virtqueue) {
        self.beat.beat();
        while !self.serve_a_little(ring) {
            self.beat.beat();
        }
    }

    /// Does what [`serve`](Self::serve) does, but for a few turns at most; `true` when it is done.
    pub fn serve_a_little(&self, ring: &Virtqueue) -> bool {
        let all_done = (0..TURNS).any(|_| !self.deliver_some(ring));
        if !self.timer.is_running() && self.faults.has_pending_groups() {
            self.timer.start();
        }
        all_done
    }

    /// One turn of each endpoint; `true` when there may be more to do.
    ///
    /// Buffers are looked for when there is an event, not when the driver kicks: Linux fills this
    /// queue without kicking. Only when page requests wait for buffers are kicks asked for.
    fn deliver_some(&self, ring: &Virtqueue) -> bool {
        let mut vring = ring.lock_as_worker();
        let memory = self.memory.memory();
        if ring.is_running(&vring)
            && ring.take_start(vring.get_queue(), &memory) == Some(Start::Fresh)
        {
            self.barrier.close();
        }
        if self.barrier.is_closed() {
            return false;
        }
        let used = vring.get_queue().next_used();
        let features = Features(self.features.load(Ordering::Relaxed));
        let delivered = self.faults.deliver(&mut |event: Event| {
            ring.is_running(&vring)
                && put(ring, &mut vring, &memory, &event::encode(&event, features))
        });
        if vring.get_queue().next_used() != used {
            signal_driver(ring, &mut vring, &memory, &self.counters.event_signals);
        }
        match delivered {
            DeliveryStatus::Complete => false,
            DeliveryStatus::More => true,
            DeliveryStatus::NoBuffer if !ring.is_running(&vring) => false,
            DeliveryStatus::NoBuffer => enable_kicks(ring, &mut vring, &memory),
        }
    }
}

/// Asks for a kick when there are buffers; `true`: there are some already.
fn enable_kicks(
    ring: &Virtqueue,
    vring: &mut VringState<Memory>,
    memory: &GuestMemoryMmap,
) -> bool {
    vring.get_queue_mut().enable_notification(memory).unwrap_or_else(|error| {
        ring.set_broken(format_args!("event queue: {error}"));
        false
    })
}

fn put(
    ring: &Virtqueue,
    vring: &mut VringState<Memory>,
    memory: &GuestMemoryMmap,
    event: &Encoded,
) -> bool {
    put_into(vring.get_queue_mut(), memory, event).unwrap_or_else(|error| {
        ring.set_broken(format_args!("event queue: {error}"));
        false
    })
}

/// Puts an event into the next buffer that is large enough; smaller ones go back empty, because
/// an event is never spread over several. `false`: there is none.
fn put_into(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    event: &Encoded,
) -> Result<bool, virtio_queue::Error> {
    while let Some(chain) = next_chain(queue, memory)? {
        let head = chain.head_index();
        let gathered = gather(chain.clone(), memory, &mut []);
        let bytes = event.within(gathered.room).unwrap_or_default();
        let written = gathered.scatter(chain, memory, bytes);
        queue.add_used(memory, head, written as u32)?;
        if written > 0 && written == bytes.len() {
            return Ok(true);
        }
    }
    Ok(false)
}
