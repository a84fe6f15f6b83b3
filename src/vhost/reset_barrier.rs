//! A barrier that keeps events of the previous driver from the next one.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::notifier::Notifier;

/// Holds back events until the request queue has handled a reset.
///
/// Both virtqueues start at the same time, but only the request thread detects whether the driver
/// is a new one, and then resets the device. Until that has happened, an event may belong to the
/// previous driver.
pub struct ResetBarrier {
    closed: AtomicBool,
    requests: Notifier,
    events: Notifier,
}

impl ResetBarrier {
    /// Creates an open barrier between the threads that listen to the two notifiers.
    pub fn new(requests: Notifier, events: Notifier) -> Self {
        Self { closed: AtomicBool::new(false), requests, events }
    }

    /// Closes the barrier when the event queue has started, and wakes up the request thread.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.requests.signal();
    }

    /// Returns whether events are held back.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Opens the barrier after the request thread has checked for a start of the request queue,
    /// and wakes up the event thread.
    pub fn open(&self) {
        if self.is_closed() && self.closed.swap(false, Ordering::SeqCst) {
            self.events.signal();
        }
    }
}
