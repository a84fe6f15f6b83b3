//! What has happened to the faults of an endpoint.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::Response;
use super::ticket::Answer;
use crate::counter::{Times, TimesSnapshot};

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
    pub pending: u64,
}

impl FaultCounters {
    /// How many faults ended in which way.
    pub fn by_outcome(&self) -> [(&'static str, u64); 3] {
        let Self { delivered, dropped, direct, .. } = *self;
        [("delivered", delivered), ("dropped", dropped), ("direct", direct)]
    }
}

impl fmt::Display for FaultCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reported, delivered, dropped, direct, pending } = self;
        write!(
            f,
            "reported {reported}: delivered {delivered}, dropped {dropped}, direct {direct}, \
             waiting {pending}"
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
    pub rejected: u64,
    /// Answered because the guest did not in time.
    pub timed_out: u64,
    /// Answered because the device was reset, the front end left or the daemon ended.
    pub reset: u64,
    /// Not waited for by their source any more: it was reset, or its host has answered.
    pub withdrawn: u64,
    /// Not answered yet.
    pub pending: u64,
}

impl RequestCounters {
    /// How many groups were answered in which way.
    pub fn by_outcome(&self) -> [(&'static str, u64); Answer::KINDS] {
        [
            ("success", self.success),
            ("invalid", self.invalid),
            ("failure", self.failure),
            ("detached", self.detached),
            ("refused", self.rejected),
            ("timed_out", self.timed_out),
            ("reset", self.reset),
            ("withdrawn", self.withdrawn),
        ]
    }
}

/// How long groups of page requests have waited for their answer, from the first request of the
/// group on.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResponseTimes {
    /// Those that the guest has answered.
    pub by_guest: TimesSnapshot,
    /// Those that the daemon has answered.
    pub by_daemon: TimesSnapshot,
}

impl fmt::Display for RequestCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { groups, requests, success, invalid, failure, .. } = self;
        let Self { detached, rejected, timed_out, reset, withdrawn, pending, .. } = self;
        write!(
            f,
            "groups {groups} requests {requests}: success {success}, invalid {invalid}, \
             failure {failure}, detached {detached}, refused {rejected}, timed out {timed_out}, \
             reset {reset}, withdrawn {withdrawn}, waiting {pending}"
        )
    }
}

/// The counters of page requests while they count. All of them change with their endpoint's lock
/// held, and are atomic only because every group's ticket has them too.
#[derive(Debug, Default)]
pub(super) struct PageRequestCounters {
    groups: AtomicU64,
    requests: AtomicU64,
    answers: [AtomicU64; Answer::KINDS],
    timed: AtomicBool,
    by_guest: Times,
    by_daemon: Times,
}

impl PageRequestCounters {
    pub(super) fn count_group(&self) {
        self.groups.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an answer to a group that was begun then.
    pub(super) fn count(&self, answer: Answer, begun: Option<Instant>) {
        self.answers[answer.index()].fetch_add(1, Ordering::Relaxed);
        let times = match answer {
            Answer::Guest(_) => &self.by_guest,
            _ => &self.by_daemon,
        };
        if let Some(begun) = begun {
            times.add(begun.elapsed());
        }
    }

    /// Takes the time of groups from now on.
    pub(super) fn time(&self) {
        self.timed.store(true, Ordering::Relaxed);
    }

    /// The time, if it is taken.
    pub(super) fn now(&self) -> Option<Instant> {
        self.timed.load(Ordering::Relaxed).then(Instant::now)
    }

    /// The times that were taken.
    pub(super) fn times(&self) -> ResponseTimes {
        ResponseTimes { by_guest: self.by_guest.read(), by_daemon: self.by_daemon.read() }
    }

    /// The numbers now; `pending` groups are not answered.
    pub(super) fn counters(&self, pending: usize) -> RequestCounters {
        let of = |answer: Answer| self.answers[answer.index()].load(Ordering::Relaxed);
        RequestCounters {
            groups: self.groups.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            success: of(Answer::Guest(Response::Success)),
            invalid: of(Answer::Guest(Response::Invalid)),
            failure: of(Answer::Guest(Response::Failure)),
            detached: of(Answer::Detached),
            rejected: of(Answer::Refused),
            timed_out: of(Answer::TimedOut),
            reset: of(Answer::Reset),
            withdrawn: of(Answer::Withdrawn),
            pending: pending as u64,
        }
    }
}
