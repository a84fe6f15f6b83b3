//! The fault state of one endpoint: where its faults go, and those that wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::counters::{FaultCounters, PageRequestCounters, RequestCounters, ResponseTimes};
use super::groups::{Group, Groups, Progress};
use super::ticket::{Answer, Ticket};
use super::{
    Event, Fault, FaultOutcome, FaultReason, GroupId, Handler, Limits, PageRequest, QueueFull,
    RespondError, Response, Source,
};
use crate::address::{EndpointId, Pasid};

/// Lives as long as the endpoint, whatever it is attached to.
///
/// One lock guards it, held also while the source is answered: whatever ends an attachment comes
/// wholly before or wholly after an answer, and no answer is given twice.
pub(super) struct EndpointFaults {
    id: EndpointId,
    state: Mutex<State>,
    limits: Limits,
    requests: Arc<PageRequestCounters>,
}

#[derive(Default)]
struct State {
    routes: BTreeMap<Option<Pasid>, Handler>,
    /// Unrecoverable ones.
    waiting: VecDeque<Fault>,
    /// Of those; what waits is counted when somebody asks.
    faults: FaultCounters,
    source: Option<Arc<dyn Source>>,
    /// Made by the first attachment whose page requests the guest takes, and kept.
    groups: Option<Box<Groups>>,
    /// The attachment whose requests the guest has answered with FAILURE.
    stopped_by: Option<Option<Pasid>>,
}

/// How the driver and the clock stand when a page request comes.
#[derive(Clone, Copy)]
pub(super) struct Now {
    /// The driver takes page requests.
    pub(super) accepted: bool,
    /// The clock of the fault path.
    pub(super) time: Duration,
}

impl EndpointFaults {
    pub(super) fn new(id: EndpointId, limits: Limits) -> Self {
        Self { id, state: Mutex::default(), limits, requests: Arc::default() }
    }

    pub(super) fn connect(&self, source: Arc<dyn Source>) {
        self.lock().source = Some(source);
    }

    pub(super) fn attach(&self, pasid: Option<Pasid>, handler: Handler, accepted: bool) {
        let mut state = self.lock();
        state.routes.insert(pasid, handler);
        if accepted && handler == Handler::Queue && state.groups.is_none() {
            let new = |source: &Arc<dyn Source>| {
                Groups::new(self.id, source.clone(), self.requests.clone(), self.limits.groups)
            };
            state.groups = state.source.as_ref().map(new).map(Box::new);
        }
    }

    pub(super) fn detach(&self, pasid: Option<Pasid>) -> Option<Handler> {
        let mut state = self.lock();
        let handler = state.routes.remove(&pasid);
        if let Some(groups) = &mut state.groups {
            groups.detach(pasid);
        }
        state.stopped_by.take_if(|by| pasid.is_none() || *by == pasid);
        handler
    }

    pub(super) fn report(&self, fault: Fault) -> FaultOutcome {
        let mut state = self.lock();
        let outcome = state.accept(fault, self.limits.faults);
        state.faults.reported += 1;
        match outcome {
            FaultOutcome::Direct => state.faults.direct += 1,
            FaultOutcome::Dropped => state.faults.dropped += 1,
            FaultOutcome::Queued => {}
        }
        outcome
    }

    /// Takes a page request. Returns what the driver is to be told of instead, when the request
    /// cannot be passed on to it; `true`: there is a new group to deliver.
    pub(super) fn request(
        &self,
        request: PageRequest,
        now: Now,
    ) -> Result<(bool, Vec<Fault>), QueueFull> {
        let mut state = self.lock();
        let Some(groups) = &mut state.groups else {
            return Ok((false, self.refuse_at_once(&state, request, now)));
        };
        let Some(group) = groups.add(request, now.time + self.limits.response_time)? else {
            return Ok((false, Vec::new()));
        };
        if !groups.is_awaited(&group) {
            // Of an attachment that has gone: what is attached now has nothing to do with it.
            groups.withdraw_one(group);
            return Ok((false, Vec::new()));
        }
        if now.accepted && state.is_open(&group) {
            state.queue(group);
            return Ok((true, Vec::new()));
        }
        let faults = state.as_faults(self.id, group.requests(), now);
        state.refuse(group);
        Ok((false, faults))
    }

    /// No group has ever been possible here: there is nothing to keep.
    fn refuse_at_once(&self, state: &State, request: PageRequest, now: Now) -> Vec<Fault> {
        self.requests.count_request();
        if request.last
            && let Some(source) = state.source.clone()
        {
            let tally = self.requests.clone();
            let ticket = Ticket::new(self.id, source, tally, request.pasid, request.cookie);
            ticket.answer(Answer::Refused);
        }
        state.as_faults(self.id, &[request], now)
    }

    pub(super) fn withdraw(&self) {
        let mut state = self.lock();
        state.stopped_by = None;
        if let Some(groups) = &mut state.groups {
            groups.withdraw();
        }
    }

    pub(super) fn respond(
        &self,
        id: GroupId,
        pasid: Option<Pasid>,
        needs_pasid: bool,
        response: Response,
    ) -> Result<(), RespondError> {
        let mut state = self.lock();
        let groups = state.groups.as_mut().ok_or(RespondError::NoSuchGroup)?;
        let of_group = groups.respond(id, pasid, needs_pasid, response)?;
        if response == Response::Failure {
            state.stopped_by = Some(of_group);
        }
        Ok(())
    }

    /// Delivers what is next: the rest of a group, else one fault and one group.
    pub(super) fn deliver(&self, put: &mut dyn FnMut(Event) -> bool) -> Progress {
        let mut state = self.lock();
        let mut progress = Progress::Idle;
        if !state.groups.as_ref().is_some_and(|groups| groups.is_amid_delivery())
            && let Some(fault) = state.waiting.pop_front()
        {
            let taken = put(Event::Fault(&fault));
            state.faults.delivered += u64::from(taken);
            state.faults.dropped += u64::from(!taken);
            progress = Progress::Delivered;
        }
        let Some(groups) = &mut state.groups else { return progress };
        let endpoint = self.id;
        match groups.deliver(|group, request| put(Event::PageRequest { endpoint, group, request }))
        {
            Progress::Idle => progress,
            progress => progress,
        }
    }

    /// The driver has no buffers: what it cannot be told now it is not told at all.
    pub(super) fn drop_faults(&self) {
        self.lock().drop_faults();
    }

    pub(super) fn expire(&self, now: Duration) {
        if let Some(groups) = &mut self.lock().groups {
            groups.expire(now);
        }
    }

    pub(super) fn reset(&self) {
        let mut state = self.lock();
        state.drop_faults();
        state.stopped_by = None;
        if let Some(groups) = &mut state.groups {
            groups.reset();
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.lock().unanswered()
    }

    /// All numbers of one moment.
    pub(super) fn counters(&self) -> (FaultCounters, RequestCounters) {
        let state = self.lock();
        let faults = FaultCounters { pending: state.waiting.len() as u64, ..state.faults };
        (faults, self.requests.counters(state.unanswered()))
    }

    pub(super) fn enable_response_times(&self) {
        self.requests.time();
    }

    pub(super) fn response_times(&self) -> ResponseTimes {
        self.requests.times()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// How many groups wait for their answers.
    fn unanswered(&self) -> usize {
        self.groups.as_ref().map_or(0, |groups| groups.len())
    }

    fn drop_faults(&mut self) {
        self.faults.dropped += self.waiting.len() as u64;
        self.waiting.clear();
    }

    fn accept(&mut self, fault: Fault, depth: usize) -> FaultOutcome {
        // What was never attached is blocked, and the guest wants to know who tried.
        let handler = self.routes.get(&fault.pasid).copied().unwrap_or(Handler::Queue);
        if handler == Handler::Direct {
            return FaultOutcome::Direct;
        }
        if self.waiting.len() >= depth {
            return FaultOutcome::Dropped;
        }
        self.waiting.push_back(fault);
        FaultOutcome::Queued
    }

    /// Whether the guest can be asked.
    fn is_open(&self, group: &Group) -> bool {
        let routed = self.routes.get(&group.pasid()) == Some(&Handler::Queue);
        routed && self.stopped_by.is_none() && group.is_whole()
    }

    fn queue(&mut self, group: Group) {
        if let Some(groups) = &mut self.groups {
            groups.queue(group);
        }
    }

    fn refuse(&mut self, group: Group) {
        if let Some(groups) = &mut self.groups {
            groups.refuse(group);
        }
    }

    /// A driver that takes no page requests hears of those that were refused as of any access
    /// that failed.
    fn as_faults(&self, endpoint: EndpointId, requests: &[PageRequest], now: Now) -> Vec<Fault> {
        if now.accepted {
            return Vec::new();
        }
        let fault = |request: &PageRequest| Fault {
            endpoint,
            pasid: request.pasid,
            address: request.address,
            access: request.access,
            reason: match self.routes.get(&request.pasid) {
                Some(_) => FaultReason::Mapping,
                None => FaultReason::Domain,
            },
        };
        requests.iter().map(fault).collect()
    }
}
