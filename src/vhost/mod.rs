//! The vhost-user back end: connection, rings, bytes.
//!
//! Requests come out of `request_queue`, go to the device model, and their answers go back.
//! Faults come out of the fault path and go into `event_queue`. No domain and no mapping is
//! known here. Each queue has a thread of its own, so that polling one never delays the other; a
//! fault is delivered by the thread that reports it, if the event queue is free (`doorbell`).

mod counters;
mod descriptor_chain;
mod event_queue;
mod exit_events;
mod fault_notifier;
mod notification;
mod polling;
mod request_queue;
mod reset_barrier;
mod scheduling;
mod server;
mod timer;
mod virtqueue;

use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use vhost::vhost_user::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

use crate::notifier::Notifier;
use crate::sandbox::{self, Role};
use crate::viommu::{Features, Viommu};
pub use counters::{RequestQueueCounters, TransportCounters};
use event_queue::EventQueue;
use exit_events::ExitEvents;
pub use fault_notifier::FaultNotifier;
use request_queue::RequestQueue;
pub use scheduling::{Scheduling, check_realtime};
pub use server::{Phase, Server, Stop};
use virtqueue::{Memory, Virtqueue};

/// Queue 0 takes requests, queue 1 gives events (virtio 1.4, 5.13.2).
const QUEUES: usize = 2;
/// The thread that serves the request queue, and that queue's index among the thread's.
const REQUEST_THREAD: usize = 0;
/// The thread that serves the event queue.
const EVENT_THREAD: usize = 1;
/// What the event loop calls the fault path's doorbell: past the queues and their exit event.
const DOORBELL: u16 = QUEUES as u16 + 1;
/// What it calls the fault path's clock.
const CLOCK: u16 = DOORBELL + 1;
/// What it calls the event queue's wish that the request queue be looked at.
const LOOK: u16 = CLOCK + 1;

/// What the transport is made with.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The longest queue that a front end may set up, in descriptors (a power of two).
    pub queue_size: u16,
    /// How long the request queue is polled after work, at most.
    pub max_poll: Duration,
    /// How the thread that serves requests is scheduled.
    pub scheduling: Scheduling,
    /// How often it is looked whether the guest has taken too long to answer page requests.
    pub timer_period: Duration,
    /// Whether batches of requests are timed.
    pub time_batches: bool,
}

/// What serves one connection.
struct Backend {
    options: Options,
    viommu: Arc<Mutex<Viommu>>,
    requests: Mutex<RequestQueue>,
    events: Arc<EventQueue>,
    doorbell: FaultNotifier,
    look: Notifier,
    /// Done when the request thread has told the kernel what it needs, and what not.
    request_thread: Once,
    /// The same of the event thread.
    event_thread: Once,
    exits: ExitEvents,
}

impl Backend {
    fn viommu(&self) -> MutexGuard<'_, Viommu> {
        self.viommu.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The features offered: the device's own, and those of the rings.
fn features() -> u64 {
    Features::OFFERED.0
        | 1 << VIRTIO_F_VERSION_1
        | 1 << VIRTIO_RING_F_INDIRECT_DESC
        | 1 << VIRTIO_RING_F_EVENT_IDX
        | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

/// An error returned from here would close the connection, and QEMU would abort: nothing that a
/// guest or a front end can cause becomes one.
impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Virtqueue;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        self.options.queue_size.into()
    }

    fn features(&self) -> u64 {
        features()
    }

    fn acked_features(&self, features: u64) {
        self.viommu().set_features(features);
        self.events.set_features(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn reset_device(&self) {
        self.viommu().reset();
    }

    fn set_event_idx(&self, _: bool) {}

    /// Exactly `size` bytes, whatever is asked for; zeros past the end.
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let space = self.viommu().config();
        let from_offset = space.iter().skip(offset as usize).copied();
        from_offset.chain(std::iter::repeat(0)).take(size as usize).collect()
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> std::io::Result<()> {
        self.viommu().write_config(offset as usize, bytes);
        Ok(())
    }

    fn update_memory(&self, memory: Memory) -> std::io::Result<()> {
        self.viommu().set_memory(&memory.memory());
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..QUEUES).map(|queue| 1 << queue).collect()
    }

    fn exit_event(&self, thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exits.take(thread)
    }

    fn handle_event(
        &self,
        event: u16,
        _: EventSet,
        rings: &[Virtqueue],
        thread: usize,
    ) -> std::io::Result<()> {
        let Some(ring) = rings.first() else { return Ok(()) };
        if thread == REQUEST_THREAD {
            if event == LOOK {
                self.look.clear();
            }
            self.request_thread.call_once(|| {
                scheduling::apply(self.options.scheduling);
                sandbox::enter_role(Role::Requests);
            });
            self.requests.lock().unwrap_or_else(PoisonError::into_inner).serve(ring);
        } else {
            self.event_thread.call_once(|| sandbox::enter_role(Role::Events));
            self.doorbell.connect(&self.events, ring);
            match event {
                DOORBELL => self.doorbell.notifier().clear(),
                CLOCK => self.events.tick(ring),
                _ => {}
            }
            self.events.serve(ring);
        }
        Ok(())
    }
}
