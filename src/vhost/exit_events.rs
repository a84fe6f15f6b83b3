//! The events that end the threads of the virtqueues.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::QUEUES;

/// One exit event for each thread of a virtqueue.
///
/// `vhost-user-backend` takes over the file descriptor that a thread waits for, but does not close
/// it. It is closed here after the threads have ended.
pub struct ExitEvents {
    events: Mutex<[Option<(EventConsumer, EventNotifier)>; QUEUES]>,
    taken: Mutex<Vec<RawFd>>,
}

impl ExitEvents {
    /// Creates the exit events.
    ///
    /// # Errors
    /// Returns an error if the process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        let events = [Some(new_event()?), Some(new_event()?)];
        Ok(Self { events: Mutex::new(events), taken: Mutex::default() })
    }

    /// Returns the exit event of a thread, once.
    pub fn take(&self, thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let event = events.get_mut(thread)?.take()?;
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).push(event.0.as_raw_fd());
        Some(event)
    }
}

fn new_event() -> io::Result<(EventConsumer, EventNotifier)> {
    new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)
}

impl Drop for ExitEvents {
    fn drop(&mut self) {
        let taken = self.taken.get_mut().unwrap_or_else(PoisonError::into_inner);
        for fd in taken.drain(..) {
            // SAFETY: the crate converted the consumer that take() returned into this raw
            // descriptor, which has had no owner since. The threads hold the back end, and with it
            // `self`, until they end: none of them uses the descriptor any more.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}
