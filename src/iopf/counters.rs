//! Counters of an endpoint's faults and page requests.

use std::fmt;
use std::time::Instant;

use super::Response;
use super::group::Completion;
use crate::counter::{Times, TimesSnapshot};

/// Counters of unrecoverable faults.
///
/// `reported` is the sum of the other counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounters {
    /// Faults that the source reported.
    pub reported: u64,
    /// Faults that were written to the event queue.
    pub delivered: u64,
    /// Faults that were dropped: the fault queue was full, the driver had no buffer, or the device
    /// was reset.
    pub dropped: u64,
    /// Faults that [`Handler::Direct`](super::Handler::Direct) handled.
    pub direct: u64,
    /// Faults that are queued.
    pub pending: u64,
}

impl FaultCounters {
    /// Returns the number of faults by outcome, with the labels of the metrics.
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

/// Counters of page requests and their groups.
///
/// `groups` is the sum of the other counters, except `requests`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestCounters {
    /// Groups of which the source made the first request.
    pub groups: u64,
    /// Page requests in all groups.
    pub requests: u64,
    /// Groups to which the guest responded with SUCCESS.
    pub success: u64,
    /// Groups to which the guest responded with INVALID.
    pub invalid: u64,
    /// Groups to which the guest responded with FAILURE.
    pub failure: u64,
    /// Groups that were completed because their attachment was removed.
    pub detached: u64,
    /// Groups that were rejected because they could not be delivered.
    pub rejected: u64,
    /// Groups to which the guest did not respond before the deadline.
    pub timed_out: u64,
    /// Groups that were completed because the device was reset, the front end disconnected or the
    /// daemon stopped.
    pub reset: u64,
    /// Groups for which the source no longer expects a response.
    pub withdrawn: u64,
    /// Groups without a response.
    pub outstanding: u64,
}

impl RequestCounters {
    /// Returns the number of groups by outcome, with the labels of the metrics.
    pub fn by_outcome(&self) -> [(&'static str, u64); 8] {
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

    pub(super) fn count(&mut self, completion: Completion) {
        let counter = match completion {
            Completion::Guest(Response::Success) => &mut self.success,
            Completion::Guest(Response::Invalid) => &mut self.invalid,
            Completion::Guest(Response::Failure) => &mut self.failure,
            Completion::Detached => &mut self.detached,
            Completion::Rejected => &mut self.rejected,
            Completion::TimedOut => &mut self.timed_out,
            Completion::Reset => &mut self.reset,
            Completion::Withdrawn => &mut self.withdrawn,
        };
        *counter += 1;
    }
}

impl fmt::Display for RequestCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { groups, requests, success, invalid, failure, .. } = self;
        let Self { detached, rejected, timed_out, reset, withdrawn, outstanding, .. } = self;
        write!(
            f,
            "groups {groups} requests {requests}: success {success}, invalid {invalid}, \
             failure {failure}, detached {detached}, refused {rejected}, timed out {timed_out}, \
             reset {reset}, withdrawn {withdrawn}, waiting {outstanding}"
        )
    }
}

/// Times from the first request of a group to the response.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResponseTimes {
    /// Times of the groups to which the guest responded.
    pub by_guest: TimesSnapshot,
    /// Times of the groups that the daemon completed.
    pub by_daemon: TimesSnapshot,
}

/// Measures [`ResponseTimes`], once enabled.
#[derive(Debug, Default)]
pub(super) struct ResponseTimeCounters {
    enabled: bool,
    by_guest: Times,
    by_daemon: Times,
}

impl ResponseTimeCounters {
    pub(super) fn enable(&mut self) {
        self.enabled = true;
    }

    /// Returns the start time of a group, if measurement is enabled.
    pub(super) fn start(&self) -> Option<Instant> {
        self.enabled.then(Instant::now)
    }

    /// Records the time since `started`.
    pub(super) fn record(&self, completion: Completion, started: Option<Instant>) {
        let Some(started) = started else { return };
        match completion {
            Completion::Guest(_) => self.by_guest.add(started.elapsed()),
            _ => self.by_daemon.add(started.elapsed()),
        }
    }

    pub(super) fn read(&self) -> ResponseTimes {
        ResponseTimes { by_guest: self.by_guest.read(), by_daemon: self.by_daemon.read() }
    }
}
