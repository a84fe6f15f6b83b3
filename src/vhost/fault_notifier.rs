//! The notifier of the fault path.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::event_queue::EventQueue;
use super::virtqueue::Virtqueue;
use crate::iopf::EventNotifier;
use crate::notifier::Notifier;

/// Delivers the faults that a thread reports.
///
/// The thread that reports a fault delivers it itself, which saves the wake-up of another thread.
/// The event thread is woken up only if another thread is delivering, or if there is more to
/// deliver than the reporting thread should spend its time on.
#[derive(Clone)]
pub struct FaultNotifier {
    notifier: Notifier,
    connection: Arc<Mutex<Option<Connection>>>,
}

struct Connection {
    events: Arc<EventQueue>,
    queue: Virtqueue,
}

impl FaultNotifier {
    /// Creates a notifier that is not connected to an event queue.
    ///
    /// # Errors
    /// Returns an error if the process has no file descriptor left.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { notifier: Notifier::new()?, connection: Arc::default() })
    }

    /// Returns the notifier that wakes up the event thread.
    pub(super) fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// Connects the notifier to the event queue, unless it is connected already.
    pub(super) fn connect(&self, events: &Arc<EventQueue>, queue: &Virtqueue) {
        self.connection()
            .get_or_insert_with(|| Connection { events: events.clone(), queue: queue.clone() });
    }

    /// Disconnects the notifier from the event queue.
    pub(super) fn disconnect(&self) {
        *self.connection() = None;
    }

    fn connection(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventNotifier for FaultNotifier {
    fn notify(&self) {
        let complete = self.connection.try_lock().is_ok_and(|connection| {
            connection.as_ref().is_some_and(|to| to.events.serve_briefly(&to.queue))
        });
        if !complete {
            self.notifier.signal();
        }
    }
}
