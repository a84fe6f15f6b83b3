//! The fault state of one endpoint: where its faults go, and those that wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Counters, Fault, Handler, Outcome};
use crate::address::Pasid;

/// Lives as long as the endpoint, whatever it is attached to.
pub(super) struct EndpointFaults {
    state: Mutex<State>,
    depth: usize,
    pub(super) counters: Counters,
}

#[derive(Default)]
struct State {
    routes: BTreeMap<Option<Pasid>, Handler>,
    waiting: VecDeque<Fault>,
}

impl EndpointFaults {
    pub(super) fn new(depth: usize) -> Self {
        Self { state: Mutex::default(), depth, counters: Counters::default() }
    }

    pub(super) fn route(&self, pasid: Option<Pasid>, handler: Handler) {
        self.lock().routes.insert(pasid, handler);
    }

    pub(super) fn unroute(&self, pasid: Pasid) {
        self.lock().routes.remove(&Some(pasid));
    }

    pub(super) fn report(&self, fault: Fault) -> Outcome {
        self.counters.reported.add(1);
        let outcome = self.lock().accept(fault, self.depth);
        match outcome {
            Outcome::Direct => self.counters.direct.add(1),
            Outcome::Dropped => self.counters.dropped.add(1),
            Outcome::Queued => {}
        }
        outcome
    }

    pub(super) fn take(&self) -> Option<Fault> {
        self.lock().waiting.pop_front()
    }

    pub(super) fn reset(&self) {
        let waiting = std::mem::take(&mut self.lock().waiting);
        self.counters.dropped.add(waiting.len() as u64);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn accept(&mut self, fault: Fault, depth: usize) -> Outcome {
        // What was never attached is blocked, and the guest wants to know who tried.
        let handler = self.routes.get(&fault.pasid).copied().unwrap_or(Handler::Work);
        if handler == Handler::Direct {
            return Outcome::Direct;
        }
        if self.waiting.len() >= depth {
            return Outcome::Dropped;
        }
        self.waiting.push_back(fault);
        Outcome::Queued
    }
}
