//! The fault state of one endpoint.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::counters::{FaultCounters, RequestCounters, ResponseTimeCounters};
use super::group::{Completion, Group};
use super::group_queue::{GroupQueue, Progress};
use super::{
    Event, Fault, FaultOutcome, FaultReason, Handler, Limits, PageRequest, QueueFull, Response,
    Source, SourceCookie,
};
use crate::address::{EndpointId, Pasid};
use crate::trace;

/// The attachments, faults and page request groups of an endpoint.
///
/// It exists as long as the endpoint, and is locked also while the source receives a response.
/// The removal of an attachment is therefore atomic with respect to a response, and no group gets
/// two responses.
pub(super) struct EndpointFaults {
    endpoint: EndpointId,
    limits: Limits,
    source: Arc<dyn Source>,
    /// The source received [`QueueFull`] and has not been notified since.
    source_blocked: bool,
    attachments: BTreeMap<Option<Pasid>, Handler>,
    /// The attachment whose group the guest completed with FAILURE.
    stopped_by: Option<Option<Pasid>>,
    faults: VecDeque<Fault>,
    pub(super) groups: GroupQueue,
    fault_counters: FaultCounters,
    request_counters: RequestCounters,
    pub(super) response_times: ResponseTimeCounters,
}

impl EndpointFaults {
    pub(super) fn new(endpoint: EndpointId, limits: Limits) -> Self {
        Self {
            endpoint,
            limits,
            source: Arc::new(NoSource),
            source_blocked: false,
            attachments: BTreeMap::new(),
            stopped_by: None,
            faults: VecDeque::new(),
            groups: GroupQueue::default(),
            fault_counters: FaultCounters::default(),
            request_counters: RequestCounters::default(),
            response_times: ResponseTimeCounters::default(),
        }
    }

    pub(super) fn set_source(&mut self, source: Arc<dyn Source>) {
        self.source = source;
    }

    pub(super) fn attach(&mut self, pasid: Option<Pasid>, handler: Handler) {
        self.attachments.insert(pasid, handler);
    }

    /// Removes an attachment and completes its groups. Returns its handler.
    pub(super) fn detach(&mut self, pasid: Option<Pasid>) -> Option<Handler> {
        self.stopped_by.take_if(|stopped_by| pasid.is_none() || *stopped_by == pasid);
        self.complete_matching(Completion::Detached, |group| group.pasid == pasid);
        self.attachments.remove(&pasid)
    }

    pub(super) fn report_fault(&mut self, fault: Fault) -> FaultOutcome {
        trace::fault_reported(fault.endpoint, fault.pasid, fault.address, fault.access.write);
        self.fault_counters.reported += 1;
        // Accesses without an attachment are blocked, and reported like those that have no mapping.
        let handler = self.attachments.get(&fault.pasid).copied().unwrap_or(Handler::Queue);
        let outcome = if handler == Handler::Direct {
            self.fault_counters.direct += 1;
            FaultOutcome::Direct
        } else if self.faults.len() >= self.limits.faults {
            self.fault_counters.dropped += 1;
            FaultOutcome::Dropped
        } else {
            self.faults.push_back(fault);
            FaultOutcome::Queued
        };
        log::debug!("{fault}: {outcome:?}");
        outcome
    }

    /// Adds a page request to its group. Returns whether an event was queued.
    ///
    /// `enabled`: the driver negotiated page requests. `now`: the time on the fault path's clock.
    pub(super) fn report_page_request(
        &mut self,
        request: PageRequest,
        enabled: bool,
        now: Duration,
    ) -> Result<bool, QueueFull> {
        let mut group = match self.groups.take_partial(&request) {
            Some(group) => group,
            None => self.start_group(&request)?,
        };
        self.request_counters.requests += 1;
        group.push(request, now + self.limits.response_timeout);
        if !request.last {
            self.groups.push_partial(group);
            return Ok(false);
        }
        Ok(self.queue_or_complete(group, enabled))
    }

    fn start_group(&mut self, request: &PageRequest) -> Result<Group, QueueFull> {
        if self.groups.len() >= self.limits.groups {
            self.source_blocked = true;
            return Err(QueueFull);
        }
        self.request_counters.groups += 1;
        let started = self.response_times.start();
        Ok(Group::new(self.endpoint, self.source.clone(), request, started))
    }

    /// Queues a group with all its requests for delivery, or completes it if it cannot be
    /// delivered. Returns whether an event was queued.
    fn queue_or_complete(&mut self, group: Group, enabled: bool) -> bool {
        if !group.source_expects_response() {
            // The group belongs to an earlier attachment. It must not reach the current one.
            self.complete(group, Completion::Withdrawn);
            return false;
        }
        if enabled && self.can_deliver(&group) {
            self.groups.push_pending(group);
            return true;
        }
        let queued = !enabled && self.report_as_faults(&group.requests);
        self.complete(group, Completion::Rejected);
        queued
    }

    fn can_deliver(&self, group: &Group) -> bool {
        self.attachments.get(&group.pasid) == Some(&Handler::Queue)
            && self.stopped_by.is_none()
            && !group.is_truncated()
    }

    /// Reports rejected page requests as unrecoverable faults, for a driver that did not negotiate
    /// page requests. Returns whether a fault was queued.
    fn report_as_faults(&mut self, requests: &[PageRequest]) -> bool {
        let mut queued = false;
        for &PageRequest { pasid, address, access, .. } in requests {
            let reason = match self.attachments.get(&pasid) {
                Some(_) => FaultReason::Mapping,
                None => FaultReason::Domain,
            };
            let fault = Fault { endpoint: self.endpoint, pasid, address, access, reason };
            queued |= self.report_fault(fault) == FaultOutcome::Queued;
        }
        queued
    }

    /// Delivers the remaining events of a partially delivered group, or otherwise one fault and
    /// one group.
    pub(super) fn deliver(&mut self, put: &mut dyn FnMut(Event) -> bool) -> Progress {
        let fault_delivered = !self.groups.is_partially_delivered() && self.deliver_fault(put);
        let endpoint = self.endpoint;
        let progress = self
            .groups
            .deliver(|group, request| Event::PageRequest { endpoint, group, request }.deliver(put));
        match progress {
            Progress::Idle if fault_delivered => Progress::Delivered,
            progress => progress,
        }
    }

    /// Delivers or drops the oldest fault. Returns whether there was one.
    fn deliver_fault(&mut self, put: &mut dyn FnMut(Event) -> bool) -> bool {
        let Some(fault) = self.faults.pop_front() else { return false };
        if Event::Fault(&fault).deliver(put) {
            self.fault_counters.delivered += 1;
        } else {
            self.fault_counters.dropped += 1;
        }
        true
    }

    /// Drops the queued faults.
    pub(super) fn drop_faults(&mut self) {
        self.fault_counters.dropped += self.faults.len() as u64;
        self.faults.clear();
    }

    /// Completes the groups whose deadline has passed.
    pub(super) fn expire(&mut self, now: Duration) {
        self.complete_matching(Completion::TimedOut, |group| group.is_expired(now));
    }

    /// Discards the state of a driver that was reset. Partial groups remain.
    pub(super) fn reset(&mut self) {
        self.drop_faults();
        self.stopped_by = None;
        self.complete_matching(Completion::Reset, |_| true);
        self.groups.discard_remaining_events();
    }

    /// Completes all groups of a source that was reset.
    pub(super) fn withdraw(&mut self) {
        self.stopped_by = None;
        self.complete_all(Completion::Withdrawn);
    }

    fn complete_all(&mut self, completion: Completion) {
        for group in self.groups.take_all_partial() {
            self.complete(group, completion);
        }
        self.complete_matching(completion, |_| true);
    }

    /// Completes the groups that match `predicate`, except partial ones.
    fn complete_matching(&mut self, completion: Completion, predicate: impl Fn(&Group) -> bool) {
        for group in self.groups.take_matching(predicate) {
            self.complete(group, completion);
        }
    }

    /// Completes a group. All groups end here.
    pub(super) fn complete(&mut self, group: Group, completion: Completion) {
        if completion == Completion::Guest(Response::Failure) {
            self.stopped_by = Some(group.pasid);
        }
        self.request_counters.count(completion);
        self.response_times.record(completion, group.started);
        group.complete(completion);
        if std::mem::take(&mut self.source_blocked) {
            self.source.capacity_available();
        }
    }

    /// Returns the counters, all of the same moment.
    pub(super) fn counters(&self) -> (FaultCounters, RequestCounters) {
        (
            FaultCounters { pending: self.faults.len() as u64, ..self.fault_counters },
            RequestCounters { outstanding: self.groups.len() as u64, ..self.request_counters },
        )
    }
}

impl Drop for EndpointFaults {
    fn drop(&mut self) {
        self.complete_all(Completion::Reset);
    }
}

/// The source of an endpoint that makes no page requests.
struct NoSource;

impl Source for NoSource {
    fn respond(&self, _: Option<Pasid>, _: SourceCookie, _: Response) {}

    fn capacity_available(&self) {}
}
