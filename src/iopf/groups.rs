//! The life of an endpoint's page request groups.
//!
//! ```text
//!            last request       begun               last event        PAGE_RESP
//!  partial ---------------> pending -----> delivery ----------> delivered -----> answered
//! ```
//!
//! From everywhere but `partial` a group can also be answered by the daemon: see [`Answer`]. A
//! partial one is still being made by its source, which would not expect an answer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::counters::PageRequestCounters;
use super::ticket::{Answer, Ticket};
use super::{PageRequest, QueueFull, Response, Source, SourceCookie};
use crate::address::{EndpointId, Pasid};

/// What the guest calls a group: unique among the unanswered groups of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupId(pub u16);

/// Why a guest's answer answers nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RespondError {
    /// No group of that number waits for an answer, or it is one of another PASID.
    NoSuchGroup,
    /// The group has a PASID, and the endpoint needs it in the answer.
    PasidMissing,
}

/// Requests of one group beyond this are not kept, and the group is refused: a page request
/// group index has no bound of its own.
const MAX_REQUESTS: usize = 2048;

/// A group of page requests that is not answered.
pub(super) struct Group {
    ticket: Ticket,
    requests: Vec<PageRequest>,
    /// When it is to be answered at the latest, on the clock of the fault path.
    deadline: Duration,
}

impl Group {
    /// Whether all its requests were kept.
    pub(super) fn is_whole(&self) -> bool {
        self.requests.last().is_some_and(|request| request.last)
    }

    pub(super) fn pasid(&self) -> Option<Pasid> {
        self.ticket.pasid()
    }

    pub(super) fn requests(&self) -> &[PageRequest] {
        &self.requests
    }

    fn is(&self, pasid: Option<Pasid>, cookie: SourceCookie) -> bool {
        (self.ticket.pasid(), self.ticket.cookie()) == (pasid, cookie)
    }
}

/// The group whose events are being written.
struct Delivery {
    id: GroupId,
    /// `None`: it was answered meanwhile. What the driver has seen the beginning of, it is shown
    /// to the end, else it would wait for the end forever.
    group: Option<Group>,
    requests: VecDeque<PageRequest>,
    begun: bool,
}

/// Where delivering came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// There was nothing to deliver.
    Idle,
    /// A whole group was delivered.
    Delivered,
    /// The driver has no buffer for the next event; `amid`: it has seen the group begin.
    Starved { amid: bool },
}

/// The page request groups of one endpoint.
pub(super) struct Groups {
    endpoint: EndpointId,
    source: Arc<dyn Source>,
    tally: Arc<PageRequestCounters>,
    /// How many there can be.
    limit: usize,
    partial: Vec<Group>,
    pending: VecDeque<Group>,
    delivery: Option<Delivery>,
    delivered: BTreeMap<GroupId, Group>,
    last_id: GroupId,
    /// The source was told that there is no room.
    source_waits: bool,
}

impl Groups {
    pub(super) fn new(
        endpoint: EndpointId,
        source: Arc<dyn Source>,
        tally: Arc<PageRequestCounters>,
        limit: usize,
    ) -> Self {
        Self {
            endpoint,
            source,
            tally,
            limit,
            partial: Vec::new(),
            pending: VecDeque::new(),
            delivery: None,
            delivered: BTreeMap::new(),
            last_id: GroupId(0),
            source_waits: false,
        }
    }

    /// How many wait for their answers.
    pub(super) fn len(&self) -> usize {
        let in_delivery = self.delivery.as_ref().is_some_and(|delivery| delivery.group.is_some());
        self.partial.len() + self.pending.len() + usize::from(in_delivery) + self.delivered.len()
    }

    /// Takes a request; returns its group when it was the last one. The caller either
    /// [queues](Self::queue) or [refuses](Self::refuse) that.
    pub(super) fn add(
        &mut self,
        request: PageRequest,
        deadline: Duration,
    ) -> Result<Option<Group>, QueueFull> {
        let index = match self.partial.iter().position(|g| g.is(request.pasid, request.cookie)) {
            Some(index) => index,
            None => self.begin(&request, deadline)?,
        };
        let group = &mut self.partial[index];
        self.tally.count_request();
        if group.requests.len() < MAX_REQUESTS {
            group.requests.push(request);
        }
        group.deadline = deadline;
        Ok(request.last.then(|| self.partial.swap_remove(index)))
    }

    fn begin(&mut self, request: &PageRequest, deadline: Duration) -> Result<usize, QueueFull> {
        if self.len() >= self.limit {
            self.source_waits = true;
            return Err(QueueFull);
        }
        let (source, tally) = (self.source.clone(), self.tally.clone());
        let ticket = Ticket::new(self.endpoint, source, tally, request.pasid, request.cookie);
        self.partial.push(Group { ticket, requests: Vec::new(), deadline });
        Ok(self.partial.len() - 1)
    }

    /// A whole group is to be delivered.
    pub(super) fn queue(&mut self, group: Group) {
        self.pending.push_back(group);
    }

    /// A whole group is answered on the spot.
    pub(super) fn refuse(&mut self, group: Group) {
        self.settle(group, Answer::Refused);
    }

    /// Whether the source still waits for the answer to a whole group.
    pub(super) fn is_awaited(&self, group: &Group) -> bool {
        self.source.expects_response(group.ticket.cookie())
    }

    /// The source has forgotten a whole group.
    pub(super) fn withdraw_one(&mut self, group: Group) {
        self.settle(group, Answer::Withdrawn);
    }

    /// Whether the driver has seen the beginning of a group, and not its end.
    pub(super) fn is_amid_delivery(&self) -> bool {
        self.delivery.as_ref().is_some_and(|delivery| delivery.begun)
    }

    /// Delivers the oldest group, or the rest of it. `put` returns whether the driver took the
    /// event.
    pub(super) fn deliver(
        &mut self,
        mut put: impl FnMut(GroupId, &PageRequest) -> bool,
    ) -> Progress {
        let Some(mut delivery) = self.delivery.take().or_else(|| self.next_delivery()) else {
            return Progress::Idle;
        };
        while let Some(request) = delivery.requests.front() {
            if !put(delivery.id, request) {
                let amid = delivery.begun;
                self.delivery = Some(delivery);
                return Progress::Starved { amid };
            }
            delivery.begun = true;
            delivery.requests.pop_front();
        }
        if let Some(group) = delivery.group {
            self.delivered.insert(delivery.id, group);
        }
        Progress::Delivered
    }

    fn next_delivery(&mut self) -> Option<Delivery> {
        let mut group = self.pending.pop_front()?;
        let requests = std::mem::take(&mut group.requests).into();
        let id = self.next_id();
        group.ticket.log(format_args!("is group {}", id.0));
        Some(Delivery { id, group: Some(group), requests, begun: false })
    }

    /// An identifier that no group waits with, as long ago in use as can be. There is one: there
    /// are fewer groups than identifiers.
    fn next_id(&mut self) -> GroupId {
        loop {
            self.last_id = GroupId(self.last_id.0.wrapping_add(1));
            if !self.delivered.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }

    /// The guest answers a group that it was shown; returns the PASID of the group.
    pub(super) fn respond(
        &mut self,
        id: GroupId,
        pasid: Option<Pasid>,
        needs_pasid: bool,
        response: Response,
    ) -> Result<Option<Pasid>, RespondError> {
        let group = self.delivered.get(&id).ok_or(RespondError::NoSuchGroup)?;
        match (group.pasid(), pasid) {
            (of_group, of_answer) if of_group == of_answer => {}
            (Some(_), None) if needs_pasid => return Err(RespondError::PasidMissing),
            (Some(_), None) => {}
            _ => return Err(RespondError::NoSuchGroup),
        }
        let group = self.delivered.remove(&id).ok_or(RespondError::NoSuchGroup)?;
        let pasid = group.pasid();
        self.settle(group, Answer::Guest(response));
        Ok(pasid)
    }

    /// Answers the groups of an attachment that goes away.
    pub(super) fn detach(&mut self, pasid: Option<Pasid>) {
        self.give_up(Answer::Detached, |group| group.pasid() == pasid);
    }

    /// Answers the groups whose time is up.
    pub(super) fn expire(&mut self, now: Duration) {
        self.give_up(Answer::TimedOut, |group| group.deadline <= now);
    }

    /// Answers all groups that their source has completed; the driver has forgotten what it saw.
    pub(super) fn reset(&mut self) {
        self.give_up(Answer::Reset, |_| true);
        self.delivery = None;
    }

    /// The source has forgotten all its groups.
    pub(super) fn withdraw(&mut self) {
        self.give_up_all(Answer::Withdrawn);
    }

    fn give_up_all(&mut self, answer: Answer) {
        let partial = std::mem::take(&mut self.partial);
        partial.into_iter().for_each(|group| self.settle(group, answer));
        self.give_up(answer, |_| true);
    }

    /// Answers those of the groups that `which` chooses.
    fn give_up(&mut self, answer: Answer, which: impl Fn(&Group) -> bool) {
        let mut gone: Vec<Group> = self
            .delivered
            .extract_if(.., |_, group| which(group))
            .map(|(_, group)| group)
            .collect();
        gone.extend(self.give_up_delivery(&which));
        let (given_up, kept) = std::mem::take(&mut self.pending).into_iter().partition(&which);
        self.pending = kept;
        gone.extend::<VecDeque<Group>>(given_up);
        gone.into_iter().for_each(|group| self.settle(group, answer));
    }

    fn give_up_delivery(&mut self, which: impl Fn(&Group) -> bool) -> Option<Group> {
        let group = self.delivery.as_mut()?.group.take_if(|group| which(group));
        self.delivery.take_if(|delivery| delivery.group.is_none() && !delivery.begun);
        group
    }

    /// Every group ends here.
    fn settle(&mut self, group: Group, answer: Answer) {
        group.ticket.answer(answer);
        if std::mem::take(&mut self.source_waits) {
            self.source.capacity_available();
        }
    }
}

/// The endpoint goes away.
impl Drop for Groups {
    fn drop(&mut self) {
        self.give_up_all(Answer::Reset);
    }
}
