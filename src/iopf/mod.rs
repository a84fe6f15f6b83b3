//! I/O page faults: from where they happen to where they are dealt with.
//!
//! ```text
//! source (an endpoint's translation failed)
//!   -> its endpoint's route: (endpoint, PASID) -> attachment -> the domain's handler
//!        Direct: dealt with on the spot
//!        Queue:   queued, bounded, per endpoint
//!   -> whoever serves the event queue takes them, one endpoint after the other
//!   -> the guest's answer finds the group of page requests, and goes to the source
//! ```
//!
//! Sources are emulated endpoints, and the kernel's fault queues ([`KernelSource`]).
//!
//! There are two kinds. A [`Fault`] is unrecoverable: the access has failed, and the guest is
//! told. A [`PageRequest`] waits for the guest; each group of them gets exactly one [`Response`],
//! which its ticket sees to.
//!
//! Nothing here knows sockets, rings or mappings.

mod counters;
mod endpoint;
mod fault;
mod groups;
mod request;
mod ticket;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

pub use counters::{FaultCounters, RequestCounters, ResponseTimes};
use endpoint::{EndpointFaults, Now};
pub use fault::{Fault, FaultReason};
use groups::Progress;
pub use groups::{GroupId, RespondError};
pub use request::{PageRequest, QueueFull, Response, Source, SourceCookie};

use crate::address::{EndpointId, Pasid};
use crate::trace;

/// Who deals with the faults of an attachment. The domain decides, not the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// Dealt with on the spot, in the source's thread: refused and counted, nobody is told.
    /// For endpoints that bypass the IOMMU: the guest asked for no translation, so there is
    /// none that could have failed.
    Direct,
    /// Queued for the event queue. Page requests only if the driver takes them.
    Queue,
}

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOutcome {
    /// Dealt with by a [`Handler::Direct`].
    Direct,
    /// Waits for the event queue.
    Queued,
    /// The endpoint's queue is full: counted and dropped.
    Dropped,
}

/// What the driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// An access has failed.
    Fault(&'a Fault),
    /// A request of a group that waits for an answer.
    PageRequest {
        /// Whose request it is.
        endpoint: EndpointId,
        /// What the guest is to call the group.
        group: GroupId,
        /// The request.
        request: &'a PageRequest,
    },
}

impl Event<'_> {
    /// Tells who traces the daemon that it was delivered.
    fn trace_delivery(self) {
        match self {
            Event::Fault(fault) => {
                trace::fault_delivered(fault.endpoint, fault.pasid, fault.address);
            }
            Event::PageRequest { endpoint, group, request } => {
                let PageRequest { pasid, cookie, address, .. } = *request;
                trace::page_request_delivered(endpoint, pasid, cookie.0, group.0, address);
            }
        }
    }
}

/// How much of what there was to deliver was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryStatus {
    /// Everything: the notifier rings for more.
    Complete,
    /// Some; there may be more.
    More,
    /// Until the driver had no buffer for a page request, which waits for one.
    NoBuffer,
}

/// How much of an endpoint's faults is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Unrecoverable faults that wait to be delivered; more are dropped.
    pub faults: usize,
    /// Groups of page requests that wait for an answer, 1 to [`MAX_GROUPS`]; the source is held
    /// back from making more.
    pub groups: usize,
    /// How long the guest can take to answer a group.
    pub response_time: Duration,
}

/// The most groups of page requests of one endpoint: fewer than half of the identifiers, so that
/// none is used again at once.
pub const MAX_GROUPS: usize = (1 << 15) - 1;

/// Rung when faults begin to wait. Implemented by whoever serves the event queue; called from
/// any thread, with no lock held.
pub trait EventNotifier: Send + Sync {
    /// Makes the server call [`Iopf::deliver`] soon.
    fn notify(&self);
}

/// The faults of all endpoints.
pub struct Iopf {
    endpoints: BTreeMap<EndpointId, EndpointFaults>,
    notifier: Box<dyn EventNotifier>,
    /// Whether the server knows that faults wait: one ring is enough for any number of them.
    notified: AtomicBool,
    /// Whose turn to deliver is over.
    last: AtomicU32,
    /// The driver takes page requests.
    accepted: AtomicBool,
    /// Nanoseconds that the guest has had to answer since the start.
    clock: AtomicU64,
}

impl Iopf {
    /// The fault path of `endpoints`.
    pub fn new(
        endpoints: impl IntoIterator<Item = EndpointId>,
        limits: Limits,
        notifier: Box<dyn EventNotifier>,
    ) -> Self {
        let faults = |id| (id, EndpointFaults::new(id, limits));
        Self {
            endpoints: endpoints.into_iter().map(faults).collect(),
            notifier,
            notified: AtomicBool::new(false),
            last: AtomicU32::new(0),
            accepted: AtomicBool::new(false),
            clock: AtomicU64::new(0),
        }
    }

    /// Says where an endpoint's page requests come from. To be called before it makes any.
    pub fn set_source(&self, endpoint: EndpointId, source: Arc<dyn Source>) {
        if let Some(faults) = self.endpoints.get(&endpoint) {
            faults.connect(source);
        }
    }

    /// Whether the driver takes page requests; what waits is not changed.
    pub fn enable_page_requests(&self, accepted: bool) {
        self.accepted.store(accepted, Ordering::SeqCst);
    }

    /// Sends the faults of an endpoint (of one of its PASIDs) to `handler` from now on.
    pub fn attach(&self, endpoint: EndpointId, pasid: Option<Pasid>, handler: Handler) {
        if let Some(faults) = self.endpoints.get(&endpoint) {
            faults.attach(pasid, handler, self.now().accepted);
        }
    }

    /// An endpoint, or one of its PASIDs, is attached to nothing any more: its page requests that
    /// wait have been answered when this returns, and new ones are refused. The guest hears of
    /// its faults as of those of any address space that does not exist. Returns the handler that
    /// it had.
    pub fn detach(&self, endpoint: EndpointId, pasid: Option<Pasid>) -> Option<Handler> {
        self.endpoints.get(&endpoint)?.detach(pasid)
    }

    /// A source reports a fault. Never blocks.
    pub fn report_fault(&self, fault: Fault) -> FaultOutcome {
        let Some(faults) = self.endpoints.get(&fault.endpoint) else {
            log::warn!("fault of unknown endpoint {} dropped", fault.endpoint);
            return FaultOutcome::Dropped;
        };
        trace::fault_reported(fault.endpoint, fault.pasid, fault.address, fault.access.write);
        let outcome = faults.report(fault);
        log::debug!("{fault}: {outcome:?}");
        if outcome == FaultOutcome::Queued {
            self.notify();
        }
        outcome
    }

    /// A source makes a page request. The requests of a group follow each other; each group is
    /// answered, by [`Source::respond`], after its last request. Never blocks.
    ///
    /// # Errors
    /// [`QueueFull`]: there is no room for a new group, and nothing was taken.
    pub fn report_page_request(
        &self,
        endpoint: EndpointId,
        request: PageRequest,
    ) -> Result<(), QueueFull> {
        let Some(faults) = self.endpoints.get(&endpoint) else {
            log::warn!("page request of unknown endpoint {endpoint} ignored");
            return Ok(());
        };
        let PageRequest { pasid, cookie, address, .. } = request;
        trace::page_requested(endpoint, pasid, cookie.0, address);
        let (queued, instead) = faults.request(request, self.now())?;
        log::trace!("endpoint {endpoint}: {request:?}, {}", if queued { "queued" } else { "kept" });
        if queued {
            self.notify();
        }
        for fault in instead {
            self.report_fault(fault);
        }
        Ok(())
    }

    /// A source was reset and has forgotten its page requests.
    pub fn withdraw(&self, endpoint: EndpointId) {
        if let Some(faults) = self.endpoints.get(&endpoint) {
            faults.withdraw();
        }
    }

    /// The guest answers a group. `needs_pasid`: it must name the PASID of the group.
    ///
    /// # Errors
    /// When no group was answered.
    pub fn respond(
        &self,
        endpoint: EndpointId,
        group: GroupId,
        pasid: Option<Pasid>,
        needs_pasid: bool,
        response: Response,
    ) -> Result<(), RespondError> {
        trace::response_received(endpoint, pasid, group.0, response as usize);
        let faults = self.endpoints.get(&endpoint).ok_or(RespondError::NoSuchGroup)?;
        faults.respond(group, pasid, needs_pasid, response)
    }

    /// Delivers events: endpoints take turns, each keeps its order, and those of a group follow
    /// each other. `put` returns whether the driver took the event; for page requests that it did
    /// not take [`DeliveryStatus::NoBuffer`] is returned, other faults are dropped.
    pub fn deliver(&self, put: &mut dyn FnMut(Event) -> bool) -> DeliveryStatus {
        self.notified.store(false, Ordering::SeqCst);
        let put = &mut |event: Event| {
            let taken = put(event);
            if taken {
                event.trace_delivery();
            }
            taken
        };
        let mut delivered = DeliveryStatus::Complete;
        for (&id, faults) in self.in_turn() {
            match faults.deliver(put) {
                Progress::Idle => {}
                Progress::Delivered => {
                    self.last.store(id.0, Ordering::Relaxed);
                    delivered = DeliveryStatus::More;
                }
                Progress::Starved { amid } => {
                    if amid {
                        // Next in turn: nothing comes between the events of a group.
                        self.last.store(id.0.wrapping_sub(1), Ordering::Relaxed);
                    }
                    self.endpoints.values().for_each(EndpointFaults::drop_faults);
                    return DeliveryStatus::NoBuffer;
                }
            }
        }
        delivered
    }

    /// All endpoints, from the one after the last that had its turn.
    fn in_turn(&self) -> impl Iterator<Item = (&EndpointId, &EndpointFaults)> {
        let last = EndpointId(self.last.load(Ordering::Relaxed));
        let after = self.endpoints.range((Bound::Excluded(last), Bound::Unbounded));
        after.chain(self.endpoints.range(..=last))
    }

    /// The guest has had `time` more to answer: groups whose time is up are answered.
    pub fn advance_clock(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.clock.fetch_add(nanoseconds, Ordering::Relaxed);
        let now = self.now().time;
        self.endpoints.values().for_each(|faults| faults.expire(now));
    }

    /// Whether a group waits for an answer.
    pub fn has_pending_groups(&self) -> bool {
        self.endpoints.values().any(|faults| faults.waiting() > 0)
    }

    /// The guest's driver starts anew: what waits is of no interest to it.
    pub fn reset(&self) {
        self.endpoints.values().for_each(EndpointFaults::reset);
    }

    /// What has happened to the unrecoverable faults and to the page requests of each endpoint;
    /// the numbers of an endpoint are those of one moment.
    pub fn counters(&self) -> impl Iterator<Item = (EndpointId, FaultCounters, RequestCounters)> {
        self.endpoints.iter().map(|(&id, faults)| {
            let (faults, requests) = faults.counters();
            (id, faults, requests)
        })
    }

    /// Takes the time of page requests from now on, for [`response_times`](Self::response_times).
    pub fn enable_response_times(&self) {
        self.endpoints.values().for_each(EndpointFaults::enable_response_times);
    }

    /// How long the groups of page requests of each endpoint have waited for their answers.
    pub fn response_times(&self) -> impl Iterator<Item = (EndpointId, ResponseTimes)> {
        self.endpoints.iter().map(|(&id, faults)| (id, faults.response_times()))
    }

    fn now(&self) -> Now {
        Now {
            accepted: self.accepted.load(Ordering::SeqCst),
            time: Duration::from_nanos(self.clock.load(Ordering::Relaxed)),
        }
    }

    fn notify(&self) {
        if !self.notified.swap(true, Ordering::SeqCst) {
            self.notifier.notify();
        }
    }
}

#[cfg(test)]
mod tests;
