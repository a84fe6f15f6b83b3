//! The duty to answer a group of page requests.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::counters::PageRequestCounters;
use super::{Response, Source, SourceCookie};
use crate::address::{EndpointId, Pasid};
use crate::trace;

/// How a group was answered, and by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// By the guest.
    Guest(Response),
    /// The attachment that it came through has gone.
    Detached,
    /// There is nobody to ask: nothing attached, bypass, or the guest wants no requests.
    Refused,
    /// The guest has not answered in time.
    TimedOut,
    /// The device was reset: its driver has gone, or the daemon ends.
    Reset,
    /// The source does not wait any more: it was reset, or its host has answered.
    Withdrawn,
}

impl Answer {
    /// How many there are.
    pub(super) const KINDS: usize = 8;

    /// A number below [`KINDS`](Self::KINDS) for each.
    pub(super) fn index(self) -> usize {
        match self {
            Self::Guest(Response::Success) => 0,
            Self::Guest(Response::Invalid) => 1,
            Self::Guest(Response::Failure) => 2,
            Self::Detached => 3,
            Self::Refused => 4,
            Self::TimedOut => 5,
            Self::Reset => 6,
            Self::Withdrawn => 7,
        }
    }

    /// What the source is told. Only the guest can say yes.
    fn response(self) -> Response {
        match self {
            Self::Guest(response) => response,
            _ => Response::Invalid,
        }
    }
}

/// Made with a group and used up by its answer, so that there is one answer to each group.
pub(super) struct Ticket {
    endpoint: EndpointId,
    source: Arc<dyn Source>,
    tally: Arc<PageRequestCounters>,
    pasid: Option<Pasid>,
    cookie: SourceCookie,
    begun: Option<Instant>,
    answered: bool,
}

impl Ticket {
    /// Counts a new group of `source`.
    pub(super) fn new(
        endpoint: EndpointId,
        source: Arc<dyn Source>,
        tally: Arc<PageRequestCounters>,
        pasid: Option<Pasid>,
        cookie: SourceCookie,
    ) -> Self {
        tally.count_group();
        let begun = tally.now();
        Self { endpoint, source, tally, pasid, cookie, begun, answered: false }
    }

    /// The address space of the group.
    pub(super) fn pasid(&self) -> Option<Pasid> {
        self.pasid
    }

    /// What the source calls the group.
    pub(super) fn cookie(&self) -> SourceCookie {
        self.cookie
    }

    /// Answers the group and counts the answer.
    pub(super) fn answer(mut self, answer: Answer) {
        self.give(answer);
    }

    /// Says what happens to the group, for who follows it through the log.
    pub(super) fn log(&self, what: impl fmt::Display) {
        log::debug!("endpoint {}: page requests {} {what}", self.endpoint, self.cookie.0);
    }

    fn give(&mut self, answer: Answer) {
        self.answered = true;
        self.log(format_args!("answered: {answer:?}"));
        trace::group_answered(self.endpoint, self.pasid, self.cookie.0, answer.index());
        self.tally.count(answer, self.begun);
        self.source.respond(self.pasid, self.cookie, answer.response());
    }
}

/// A group that is lost hangs a device, so even one lost by a defect gets its answer.
impl Drop for Ticket {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        log::error!("defect: page requests dropped without an answer; please report it");
        self.give(Answer::Refused);
        debug_assert!(std::thread::panicking(), "a group was dropped without an answer");
    }
}
