//! The vhost-user back end: connection, virtqueues and notifications.
//!
//! It moves bytes between virtqueues and the device model ([`crate::viommu`]) or the fault path
//! ([`crate::iopf`]). It has no knowledge of domains and mappings.
//!
//! # Threads
//! - The server thread ([`Server::run`]) waits for a front end, and then for the end of its
//!   connection. It serves front ends sequentially.
//! - The message thread of `vhost-user-backend` handles the messages of the front end, with the
//!   methods of [`VhostUserBackend`] and of the virtqueues.
//! - The request thread handles requests. Its loop wakes up for a kick of the request queue and
//!   for its notifier, handles all available requests, polls for more, and enables kicks before
//!   it sleeps.
//! - The event thread delivers faults and page requests. Its loop wakes up for a kick of the event
//!   queue, for the fault notifier, and for the timer of page responses. A thread that reports a
//!   fault delivers it itself if the event queue is free ([`FaultNotifier`]).
//!
//! The two virtqueues have separate threads so that polling one does not delay the other. The
//! threads of the virtqueues exist as long as the connection.

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
use zerocopy::IntoBytes;

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

/// Number of virtqueues: the request queue is virtqueue 0, the event queue virtqueue 1 (virtio
/// 1.4, 5.13.2). Each has a thread with the same index.
const QUEUES: usize = 2;
/// Index of the thread that serves the request queue.
const REQUEST_THREAD: usize = 0;
/// Index of the thread that serves the event queue.
const EVENT_THREAD: usize = 1;
/// Event of the event thread: the fault notifier. The identifiers up to `QUEUES` belong to the
/// kicks of the virtqueues and to the exit event.
const FAULT_EVENT: u16 = QUEUES as u16 + 1;
/// Event of the event thread: the timer of page responses.
const TIMER_EVENT: u16 = FAULT_EVENT + 1;
/// Event of the request thread: its notifier.
const REQUEST_EVENT: u16 = TIMER_EVENT + 1;

/// Parameters of the transport.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Maximum size of a virtqueue in descriptors, a power of two.
    pub queue_size: u16,
    /// Maximum time to poll the request queue after the last request.
    pub max_poll: Duration,
    /// Scheduling policy of the request thread.
    pub scheduling: Scheduling,
    /// Interval between checks for page requests whose response is overdue.
    pub timer_period: Duration,
    /// Whether to measure the time to handle batches of requests.
    pub time_batches: bool,
}

/// The back end of one connection.
struct Backend {
    options: Options,
    viommu: Arc<Mutex<Viommu>>,
    requests: Mutex<RequestQueue>,
    events: Arc<EventQueue>,
    fault_notifier: FaultNotifier,
    request_notifier: Notifier,
    /// Completed when the request thread has set its scheduling policy and system call filter.
    request_thread: Once,
    /// Completed when the event thread has set its system call filter.
    event_thread: Once,
    exit_events: ExitEvents,
}

impl Backend {
    fn viommu(&self) -> MutexGuard<'_, Viommu> {
        self.viommu.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Handles an event of the request thread.
    fn serve_requests(&self, event: u16, queue: &Virtqueue) {
        self.request_thread.call_once(|| {
            scheduling::apply(self.options.scheduling);
            sandbox::enter_role(Role::Requests);
        });
        if event == REQUEST_EVENT {
            self.request_notifier.clear();
        }
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).serve(queue);
    }

    /// Handles an event of the event thread.
    fn serve_events(&self, event: u16, queue: &Virtqueue) {
        self.event_thread.call_once(|| sandbox::enter_role(Role::Events));
        self.fault_notifier.connect(&self.events, queue);
        match event {
            FAULT_EVENT => self.fault_notifier.notifier().clear(),
            TIMER_EVENT => self.events.handle_timer(queue),
            _ => {}
        }
        self.events.serve(queue);
    }
}

/// Returns the offered features: those of the device, the virtqueues and the protocol.
fn offered_features() -> u64 {
    Features::OFFERED.0
        | 1 << VIRTIO_F_VERSION_1
        | 1 << VIRTIO_RING_F_INDIRECT_DESC
        | 1 << VIRTIO_RING_F_EVENT_IDX
        | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

/// An error returned from any method would close the connection, on which QEMU aborts. No error
/// that a guest or front end can cause is returned.
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
        offered_features()
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

    /// Returns exactly `size` bytes, as the protocol requires: zeros beyond the end of the space.
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.viommu().config();
        let from_offset = config.as_bytes().iter().skip(offset as usize).copied();
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
        self.exit_events.take(thread)
    }

    fn handle_event(
        &self,
        event: u16,
        _: EventSet,
        queues: &[Virtqueue],
        thread: usize,
    ) -> std::io::Result<()> {
        match queues.first() {
            Some(queue) if thread == REQUEST_THREAD => self.serve_requests(event, queue),
            Some(queue) => self.serve_events(event, queue),
            None => {}
        }
        Ok(())
    }
}
