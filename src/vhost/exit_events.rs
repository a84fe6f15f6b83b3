//! What ends the worker threads of a connection.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::QUEUES;

/// One exit event for each worker. The `vhost-user-backend` crate takes the descriptor that the
/// worker waits on and never closes it; this does, when the workers have gone.
pub struct ExitEvents {
    events: Mutex<[Option<(EventConsumer, EventNotifier)>; QUEUES]>,
    given: Mutex<Vec<RawFd>>,
}

impl ExitEvents {
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = || new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC);
        let events = [Some(event()?), Some(event()?)];
        Ok(Self { events: Mutex::new(events), given: Mutex::default() })
    }

    /// The event of a worker, once.
    pub fn take(&self, thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let event = events.get_mut(thread)?.take()?;
        self.given.lock().unwrap_or_else(PoisonError::into_inner).push(event.0.as_raw_fd());
        Some(event)
    }
}

impl Drop for ExitEvents {
    fn drop(&mut self) {
        let given = self.given.get_mut().unwrap_or_else(PoisonError::into_inner);
        for fd in given.drain(..) {
            // SAFETY: the crate turned the consumer that take() gave it into this number without
            // an owner. Workers hold the back end, and so this, until they end: none of them
            // waits on the descriptor any more.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}
