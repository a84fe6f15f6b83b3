//! The outstanding page request groups of an endpoint, by state.
//!
//! ```text
//!            last request       first event           last event         PAGE_RESP
//!  partial ---------------> pending -----> in delivery -----> delivered -----> complete
//! ```
//!
//! The daemon can complete a group in each state but `partial`: a source does not expect the
//! response to a group of which it has not made the last request. The exception is a reset of the
//! source itself.

use std::collections::{BTreeMap, VecDeque};

use super::group::Group;
use super::{GroupId, PageRequest, RespondError};
use crate::address::Pasid;

/// The outstanding groups of an endpoint.
#[derive(Default)]
pub(super) struct GroupQueue {
    partial: Vec<Group>,
    pending: VecDeque<Group>,
    delivery: Option<Delivery>,
    delivered: BTreeMap<GroupId, Group>,
    last_id: GroupId,
}

/// The delivery of a group's events.
struct Delivery {
    id: GroupId,
    /// `None` if the daemon completed the group meanwhile. A driver that has received the first
    /// event of a group waits for the last one, so the remaining events are still delivered.
    group: Option<Group>,
    remaining: VecDeque<PageRequest>,
    started: bool,
}

/// The result of the delivery of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// There was nothing to deliver.
    Idle,
    /// All events of the group were delivered.
    Delivered,
    /// The driver has no buffer for the next event. If `partially_delivered`, it has received
    /// earlier events of the group.
    NoBuffer { partially_delivered: bool },
}

impl GroupQueue {
    /// Returns the number of outstanding groups.
    pub(super) fn len(&self) -> usize {
        let in_delivery = self.delivery.as_ref().is_some_and(|delivery| delivery.group.is_some());
        self.partial.len() + self.pending.len() + usize::from(in_delivery) + self.delivered.len()
    }

    pub(super) fn push_partial(&mut self, group: Group) {
        self.partial.push(group);
    }

    /// Removes the partial group that includes `request`.
    pub(super) fn take_partial(&mut self, request: &PageRequest) -> Option<Group> {
        let index = self.partial.iter().position(|group| group.includes(request))?;
        Some(self.partial.swap_remove(index))
    }

    /// Queues a group for delivery.
    pub(super) fn push_pending(&mut self, group: Group) {
        self.pending.push_back(group);
    }

    /// Returns whether the driver has received some but not all events of a group.
    pub(super) fn is_partially_delivered(&self) -> bool {
        self.delivery.as_ref().is_some_and(|delivery| delivery.started)
    }

    /// Delivers the oldest pending group, or the remaining events of the one in delivery. `put`
    /// returns whether the driver had a buffer for the event.
    pub(super) fn deliver(
        &mut self,
        mut put: impl FnMut(GroupId, &PageRequest) -> bool,
    ) -> Progress {
        let Some(mut delivery) = self.delivery.take().or_else(|| self.start_delivery()) else {
            return Progress::Idle;
        };
        while let Some(request) = delivery.remaining.front() {
            if !put(delivery.id, request) {
                let partially_delivered = delivery.started;
                self.delivery = Some(delivery);
                return Progress::NoBuffer { partially_delivered };
            }
            delivery.started = true;
            delivery.remaining.pop_front();
        }
        if let Some(group) = delivery.group {
            self.delivered.insert(delivery.id, group);
        }
        Progress::Delivered
    }

    fn start_delivery(&mut self) -> Option<Delivery> {
        let mut group = self.pending.pop_front()?;
        let remaining = std::mem::take(&mut group.requests).into();
        let id = self.next_id();
        group.log(format_args!("delivered with group_id {}", id.0));
        Some(Delivery { id, group: Some(group), remaining, started: false })
    }

    /// Returns the least recently used identifier that is free. An endpoint has fewer groups than
    /// there are identifiers ([`MAX_GROUPS`](super::MAX_GROUPS)), so there always is one.
    fn next_id(&mut self) -> GroupId {
        loop {
            self.last_id = GroupId(self.last_id.0.wrapping_add(1));
            if !self.delivered.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }

    /// Removes the group that matches a page response.
    pub(super) fn take_delivered(
        &mut self,
        id: GroupId,
        pasid: Option<Pasid>,
        pasid_required: bool,
    ) -> Result<Group, RespondError> {
        let group = self.delivered.get(&id).ok_or(RespondError::NoSuchGroup)?;
        match (group.pasid, pasid) {
            (Some(_), None) if pasid_required => return Err(RespondError::PasidMissing),
            (Some(_), None) => {}
            (of_group, of_response) if of_group == of_response => {}
            _ => return Err(RespondError::NoSuchGroup),
        }
        self.delivered.remove(&id).ok_or(RespondError::NoSuchGroup)
    }

    /// Removes the partial groups.
    pub(super) fn take_all_partial(&mut self) -> Vec<Group> {
        std::mem::take(&mut self.partial)
    }

    /// Removes the groups that match `predicate`, except partial ones, oldest first.
    pub(super) fn take_matching(&mut self, predicate: impl Fn(&Group) -> bool) -> Vec<Group> {
        let mut taken: Vec<Group> = self
            .delivered
            .extract_if(.., |_, group| predicate(group))
            .map(|(_, group)| group)
            .collect();
        taken.extend(self.take_from_delivery(&predicate));
        let (matching, others) = std::mem::take(&mut self.pending).into_iter().partition(predicate);
        self.pending = others;
        taken.extend::<VecDeque<Group>>(matching);
        taken
    }

    fn take_from_delivery(&mut self, predicate: impl Fn(&Group) -> bool) -> Option<Group> {
        let group = self.delivery.as_mut()?.group.take_if(|group| predicate(group));
        self.delivery.take_if(|delivery| delivery.group.is_none() && !delivery.started);
        group
    }

    /// Discards the remaining events of a completed group that is partially delivered.
    pub(super) fn discard_remaining_events(&mut self) {
        self.delivery.take_if(|delivery| delivery.group.is_none());
    }
}
