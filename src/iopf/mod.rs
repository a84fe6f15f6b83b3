//! I/O page faults: from their source to the guest, and page responses back to the source.
//!
//! ```text
//! source: the translation of an endpoint's access failed
//!   -> attachment of (endpoint, PASID) -> handler of its domain
//!        Direct: counted only
//!        Queue:  queued per endpoint, with a limit
//!   -> the event queue delivers from all endpoints, round robin
//!   -> the guest's page response completes the group and is sent to the source
//! ```
//!
//! A [`Fault`] is unrecoverable: the access failed, and the guest is notified. A [`PageRequest`]
//! is recoverable: its group awaits a [`Response`]. Each group gets exactly one response, because
//! completing it consumes it.
//!
//! Sources are emulated endpoints and the fault queues of the kernel. This module depends on
//! neither, nor on virtqueues or mappings.

mod counters;
mod endpoint;
mod event;
mod fault;
mod group;
mod group_queue;
mod page_request;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use counters::{FaultCounters, RequestCounters, ResponseTimes};
use endpoint::EndpointFaults;
pub use event::{DeliveryStatus, Event};
pub use fault::{Fault, FaultOutcome, FaultReason};
use group::Completion;
use group_queue::Progress;
pub use page_request::{
    GroupId, PageRequest, QueueFull, RespondError, Response, Source, SourceCookie,
};

use crate::address::{EndpointId, Pasid};
use crate::trace;

/// Maximum of [`Limits::groups`]: fewer than half of the group identifiers, so that a released
/// identifier is not reused immediately.
pub const MAX_GROUPS: usize = (1 << 15) - 1;

/// How the faults of an attachment are handled. A property of the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// Faults are only counted, and page requests rejected, immediately. For endpoints in bypass
    /// mode: they have no translation that the guest could correct.
    Direct,
    /// Faults and page requests are queued for the event queue.
    Queue,
}

/// Limits of each endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of queued faults. Further faults are dropped.
    pub faults: usize,
    /// Maximum number of outstanding page request groups, 1 to [`MAX_GROUPS`]. Further groups must
    /// be retried by their source.
    pub groups: usize,
    /// Time in which the guest must respond to a page request group.
    pub response_timeout: Duration,
}

/// Notifies the server of the event queue that events are queued.
pub trait EventNotifier: Send + Sync {
    /// Makes the server call [`Iopf::deliver`] soon. Called from any thread, without a lock of the
    /// fault path.
    fn notify(&self);
}

/// The fault path of all endpoints.
///
/// # Examples
///
/// A source makes a page request, and the guest responds:
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use std::time::Duration;
///
/// use vhost_user_iommu::address::{Access, EndpointId, Iova, Pasid};
/// use vhost_user_iommu::iopf::{
///     Event, EventNotifier, GroupId, Handler, Iopf, Limits, PageRequest, Response, Source,
///     SourceCookie,
/// };
///
/// struct NoNotifier;
///
/// impl EventNotifier for NoNotifier {
///     fn notify(&self) {}
/// }
///
/// #[derive(Default)]
/// struct FakeSource(Mutex<Vec<(SourceCookie, Response)>>);
///
/// impl Source for FakeSource {
///     fn respond(&self, _: Option<Pasid>, cookie: SourceCookie, response: Response) {
///         self.0.lock().unwrap().push((cookie, response));
///     }
///
///     fn capacity_available(&self) {}
/// }
///
/// let endpoint = EndpointId(8);
/// let limits = Limits { faults: 64, groups: 64, response_timeout: Duration::from_secs(30) };
/// let iopf = Iopf::new([endpoint], limits, Box::new(NoNotifier));
/// let source = Arc::new(FakeSource::default());
/// iopf.set_source(endpoint, source.clone());
///
/// // The driver negotiates page requests and attaches the endpoint to a domain.
/// iopf.enable_page_requests(true);
/// iopf.attach(endpoint, None, Handler::Queue);
///
/// // The endpoint accesses an address without a mapping.
/// let request = PageRequest {
///     pasid: None,
///     cookie: SourceCookie(7),
///     address: Iova(0x1000),
///     access: Access::READ,
///     exec: false,
///     privileged: false,
///     last: true,
/// };
/// iopf.report_page_request(endpoint, request)?;
///
/// // The event queue delivers the request to the driver.
/// let mut delivered = None;
/// iopf.deliver(&mut |event| {
///     if let Event::PageRequest { group, .. } = event {
///         delivered = Some(group);
///     }
///     true
/// });
/// assert_eq!(delivered, Some(GroupId(1)));
///
/// // The driver maps the page and responds.
/// iopf.respond(endpoint, GroupId(1), None, false, Response::Success)?;
/// assert_eq!(*source.0.lock().unwrap(), [(SourceCookie(7), Response::Success)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Iopf {
    endpoints: BTreeMap<EndpointId, Mutex<EndpointFaults>>,
    notifier: Box<dyn EventNotifier>,
    /// The notifier was signalled since the last delivery: one signal is enough for any number of
    /// events.
    notified: AtomicBool,
    /// The endpoint that was served last.
    last_served: AtomicU32,
    page_requests_enabled: AtomicBool,
    /// The clock of the deadlines, in nanoseconds. It stands while the guest is paused.
    clock: AtomicU64,
}

impl Iopf {
    /// Creates the fault path of `endpoints`.
    pub fn new(
        endpoints: impl IntoIterator<Item = EndpointId>,
        limits: Limits,
        notifier: Box<dyn EventNotifier>,
    ) -> Self {
        Self {
            endpoints: endpoints
                .into_iter()
                .map(|endpoint| (endpoint, Mutex::new(EndpointFaults::new(endpoint, limits))))
                .collect(),
            notifier,
            notified: AtomicBool::new(false),
            last_served: AtomicU32::new(0),
            page_requests_enabled: AtomicBool::new(false),
            clock: AtomicU64::new(0),
        }
    }

    /// Sets the source of an endpoint's page requests. Must be called before the first one.
    pub fn set_source(&self, endpoint: EndpointId, source: Arc<dyn Source>) {
        if let Some(mut faults) = self.lock(endpoint) {
            faults.set_source(source);
        }
    }

    /// Sets whether the driver negotiated page requests. If not, new page requests are rejected
    /// and reported as unrecoverable faults. Outstanding groups do not change.
    pub fn enable_page_requests(&self, enabled: bool) {
        self.page_requests_enabled.store(enabled, Ordering::SeqCst);
    }

    /// Attaches an endpoint, or one of its PASIDs, to a domain with `handler`.
    pub fn attach(&self, endpoint: EndpointId, pasid: Option<Pasid>, handler: Handler) {
        if let Some(mut faults) = self.lock(endpoint) {
            faults.attach(pasid, handler);
        }
    }

    /// Detaches an endpoint, or one of its PASIDs, and returns the handler of the attachment.
    ///
    /// All groups of the attachment are complete when this function returns, and new page requests
    /// are rejected. Faults are still reported, with [`FaultReason::Domain`].
    pub fn detach(&self, endpoint: EndpointId, pasid: Option<Pasid>) -> Option<Handler> {
        self.lock(endpoint)?.detach(pasid)
    }

    /// Reports an unrecoverable fault. Does not block.
    pub fn report_fault(&self, fault: Fault) -> FaultOutcome {
        let Some(mut faults) = self.lock(fault.endpoint) else {
            log::warn!("dropped a fault of unknown endpoint {}", fault.endpoint);
            return FaultOutcome::Dropped;
        };
        let outcome = faults.report_fault(fault);
        drop(faults);
        if outcome == FaultOutcome::Queued {
            self.notify();
        }
        outcome
    }

    /// Reports a page request. Its group gets a response, through [`Source::respond`], after the
    /// last request. Does not block.
    ///
    /// # Errors
    /// Returns [`QueueFull`] if the request begins a group and the endpoint has no capacity for
    /// it. The source must retry the request.
    pub fn report_page_request(
        &self,
        endpoint: EndpointId,
        request: PageRequest,
    ) -> Result<(), QueueFull> {
        let Some(mut faults) = self.lock(endpoint) else {
            log::warn!("dropped a page request of unknown endpoint {endpoint}");
            return Ok(());
        };
        let PageRequest { pasid, cookie, address, .. } = request;
        trace::page_requested(endpoint, pasid, cookie.0, address);
        log::trace!("endpoint {endpoint}: {request:?}");
        let enabled = self.page_requests_enabled.load(Ordering::SeqCst);
        let queued = faults.report_page_request(request, enabled, self.now())?;
        drop(faults);
        if queued {
            self.notify();
        }
        Ok(())
    }

    /// Withdraws the page requests of a source that was reset: completes all groups of `endpoint`.
    pub fn withdraw(&self, endpoint: EndpointId) {
        if let Some(mut faults) = self.lock(endpoint) {
            faults.withdraw();
        }
    }

    /// Completes a group with the guest's response. `pasid_required`: the endpoint requires the
    /// PASID of the group in the response.
    ///
    /// # Errors
    /// Returns an error, without effect, if the response matches no group.
    pub fn respond(
        &self,
        endpoint: EndpointId,
        group: GroupId,
        pasid: Option<Pasid>,
        pasid_required: bool,
        response: Response,
    ) -> Result<(), RespondError> {
        trace::response_received(endpoint, pasid, group.0, response as usize);
        let mut faults = self.lock(endpoint).ok_or(RespondError::NoSuchGroup)?;
        let group = faults.groups.take_delivered(group, pasid, pasid_required)?;
        faults.complete(group, Completion::Guest(response));
        Ok(())
    }

    /// Delivers at most one fault and one group of each endpoint, round robin. The events of an
    /// endpoint keep their order, and those of a group are consecutive.
    ///
    /// `put` returns whether the driver had a buffer for the event. A fault without a buffer is
    /// dropped. A page request without a buffer stays queued, and the function returns
    /// [`DeliveryStatus::NoBuffer`].
    pub fn deliver(&self, put: &mut dyn FnMut(Event) -> bool) -> DeliveryStatus {
        self.notified.store(false, Ordering::SeqCst);
        let mut status = DeliveryStatus::Complete;
        for (&EndpointId(id), faults) in self.in_service_order() {
            let progress = lock(faults).deliver(put);
            match progress {
                Progress::Idle => {}
                Progress::Delivered => {
                    self.last_served.store(id, Ordering::Relaxed);
                    status = DeliveryStatus::More;
                }
                Progress::NoBuffer { partially_delivered } => {
                    if partially_delivered {
                        // The endpoint is served next, so that no event separates those of the
                        // group.
                        self.last_served.store(id.wrapping_sub(1), Ordering::Relaxed);
                    }
                    self.lock_each().for_each(|mut faults| faults.drop_faults());
                    return DeliveryStatus::NoBuffer;
                }
            }
        }
        status
    }

    /// Returns all endpoints, starting after the one that was served last.
    fn in_service_order(&self) -> impl Iterator<Item = (&EndpointId, &Mutex<EndpointFaults>)> {
        let last = EndpointId(self.last_served.load(Ordering::Relaxed));
        let after = self.endpoints.range((Bound::Excluded(last), Bound::Unbounded));
        after.chain(self.endpoints.range(..=last))
    }

    /// Advances the clock of the deadlines by `time`, in which the guest was running, and
    /// completes the groups whose deadline has passed.
    pub fn advance_clock(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.clock.fetch_add(nanoseconds, Ordering::Relaxed);
        let now = self.now();
        self.lock_each().for_each(|mut faults| faults.expire(now));
    }

    /// Returns whether an endpoint has an outstanding group.
    pub fn has_outstanding_groups(&self) -> bool {
        self.lock_each().any(|faults| faults.groups.len() > 0)
    }

    /// Drops the queued events and completes the outstanding groups, after a reset of the device.
    pub fn reset(&self) {
        self.lock_each().for_each(|mut faults| faults.reset());
    }

    /// Returns the counters of each endpoint. Those of one endpoint are of the same moment.
    pub fn counters(&self) -> impl Iterator<Item = (EndpointId, FaultCounters, RequestCounters)> {
        self.endpoints.iter().map(|(&endpoint, faults)| {
            let (faults, requests) = lock(faults).counters();
            (endpoint, faults, requests)
        })
    }

    /// Enables the measurement of [`response_times`](Self::response_times) of new groups.
    pub fn enable_response_times(&self) {
        self.lock_each().for_each(|mut faults| faults.response_times.enable());
    }

    /// Returns the response times of each endpoint's groups.
    pub fn response_times(&self) -> impl Iterator<Item = (EndpointId, ResponseTimes)> {
        self.endpoints
            .iter()
            .map(|(&endpoint, faults)| (endpoint, lock(faults).response_times.read()))
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.clock.load(Ordering::Relaxed))
    }

    fn notify(&self) {
        if !self.notified.swap(true, Ordering::SeqCst) {
            self.notifier.notify();
        }
    }

    fn lock(&self, endpoint: EndpointId) -> Option<MutexGuard<'_, EndpointFaults>> {
        self.endpoints.get(&endpoint).map(lock)
    }

    fn lock_each(&self) -> impl Iterator<Item = MutexGuard<'_, EndpointFaults>> {
        self.endpoints.values().map(lock)
    }
}

fn lock(faults: &Mutex<EndpointFaults>) -> MutexGuard<'_, EndpointFaults> {
    faults.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
