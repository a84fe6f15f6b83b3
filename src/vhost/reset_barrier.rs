//! Keeps what a driver before has left from the driver after it.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::notifier::Notifier;

/// Stands before the event queue. Both queues start at the same time, but only the request queue
/// finds out whether the driver is a new one, and resets the device if it is. Until then an event
/// may be one for the driver before.
pub struct ResetBarrier {
    closed: AtomicBool,
    requests: Notifier,
    events: Notifier,
}

impl ResetBarrier {
    /// An open barrier between the threads that listen to these bells.
    pub fn new(requests: Notifier, events: Notifier) -> Self {
        Self { closed: AtomicBool::new(false), requests, events }
    }

    /// The event queue has started: has the request queue look whether it has, too.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.requests.signal();
    }

    /// Whether events have to wait.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// The request queue has looked.
    pub fn open(&self) {
        if self.is_closed() && self.closed.swap(false, Ordering::SeqCst) {
            self.events.signal();
        }
    }
}
