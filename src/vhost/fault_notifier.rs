//! The fault path's doorbell.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::event_queue::EventQueue;
use super::virtqueue::Virtqueue;
use crate::iopf::EventNotifier;
use crate::notifier::Notifier;

/// Rung by whoever reports a fault, who then delivers it, too: there is one thread less to wake.
/// Where somebody else is at it, or there is more than a little to do, the event queue's own
/// thread is woken.
#[derive(Clone)]
pub struct FaultNotifier {
    notifier: Notifier,
    connection: Arc<Mutex<Option<Connection>>>,
}

struct Connection {
    events: Arc<EventQueue>,
    ring: Virtqueue,
}

impl FaultNotifier {
    /// A doorbell that nobody has rung, without a front end.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { notifier: Notifier::new()?, connection: Arc::default() })
    }

    /// Wakes the event queue's thread.
    pub(super) fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// From now on events go into `ring`.
    pub(super) fn connect(&self, events: &Arc<EventQueue>, ring: &Virtqueue) {
        let connection = || Connection { events: events.clone(), ring: ring.clone() };
        self.connection().get_or_insert_with(connection);
    }

    /// The front end has gone.
    pub(super) fn disconnect(&self) {
        *self.connection() = None;
    }

    fn connection(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventNotifier for FaultNotifier {
    fn notify(&self) {
        let all_done = match self.connection.try_lock() {
            Ok(connection) => {
                connection.as_ref().is_some_and(|to| to.events.serve_a_little(&to.ring))
            }
            Err(_) => false,
        };
        if !all_done {
            self.notifier.signal();
        }
    }
}
