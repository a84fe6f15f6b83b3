//! What has happened to the faults of an endpoint.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Response;
use super::ticket::Answer;

/// Every fault reported is delivered, dropped, dealt with directly, or still waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounters {
    /// Reported by the source.
    pub reported: u64,
    /// Written into the event queue.
    pub delivered: u64,
    /// Given up: the endpoint's queue was full, the guest had no buffer, or was reset.
    pub dropped: u64,
    /// Dealt with by a direct handler.
    pub direct: u64,
    /// Not delivered yet.
    pub waiting: u64,
}

impl fmt::Display for FaultCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reported, delivered, dropped, direct, waiting } = self;
        write!(
            f,
            "reported {reported}: delivered {delivered}, dropped {dropped}, direct {direct}, \
             waiting {waiting}"
        )
    }
}

/// Every group of page requests is answered, in one of the ways below, or still waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestCounters {
    /// Groups that the source has begun.
    pub groups: u64,
    /// Requests in them.
    pub requests: u64,
    /// Answered by the guest with SUCCESS.
    pub success: u64,
    /// Answered by the guest with INVALID.
    pub invalid: u64,
    /// Answered by the guest with FAILURE.
    pub failure: u64,
    /// Answered because their attachment went away.
    pub detached: u64,
    /// Answered on the spot: there was nobody to ask.
    pub refused: u64,
    /// Answered because the guest did not in time.
    pub timed_out: u64,
    /// Answered because the device was reset, the front end left or the daemon ended.
    pub reset: u64,
    /// Not waited for by their source any more: it was reset, or its host has answered.
    pub withdrawn: u64,
    /// Not answered yet.
    pub waiting: u64,
}

impl fmt::Display for RequestCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { groups, requests, success, invalid, failure, .. } = self;
        let Self { detached, refused, timed_out, reset, withdrawn, waiting, .. } = self;
        write!(
            f,
            "groups {groups} requests {requests}: success {success}, invalid {invalid}, \
             failure {failure}, detached {detached}, refused {refused}, timed out {timed_out}, \
             reset {reset}, withdrawn {withdrawn}, waiting {waiting}"
        )
    }
}

/// The counters of page requests while they count. All of them change with their endpoint's lock
/// held, and are atomic only because every group's ticket has them too.
#[derive(Debug, Default)]
pub(super) struct RequestTally {
    groups: AtomicU64,
    requests: AtomicU64,
    answers: [AtomicU64; Answer::KINDS],
}

impl RequestTally {
    pub(super) fn count_group(&self) {
        self.groups.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count(&self, answer: Answer) {
        self.answers[answer.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// The numbers now; `waiting` groups are not answered.
    pub(super) fn counters(&self, waiting: usize) -> RequestCounters {
        let of = |answer: Answer| self.answers[answer.index()].load(Ordering::Relaxed);
        RequestCounters {
            groups: self.groups.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            success: of(Answer::Guest(Response::Success)),
            invalid: of(Answer::Guest(Response::Invalid)),
            failure: of(Answer::Guest(Response::Failure)),
            detached: of(Answer::Detached),
            refused: of(Answer::Refused),
            timed_out: of(Answer::TimedOut),
            reset: of(Answer::Reset),
            withdrawn: of(Answer::Withdrawn),
            waiting: waiting as u64,
        }
    }
}
