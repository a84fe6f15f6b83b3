//! Heartbeats: detects event loops that have stalled.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::notifier::Notifier;

/// The event loops that are running.
#[derive(Clone, Default)]
pub struct Heartbeats(Arc<Mutex<Vec<Loop>>>);

struct Loop {
    name: &'static str,
    notifier: Notifier,
    alive: Arc<AtomicBool>,
}

/// The heartbeat of one event loop, which is checked until this is dropped.
pub struct Heartbeat {
    alive: Arc<AtomicBool>,
    heartbeats: Heartbeats,
}

impl Heartbeat {
    /// Records that the loop has run once.
    pub fn beat(&self) {
        self.alive.store(true, Ordering::Relaxed);
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.heartbeats.loops().retain(|one| !Arc::ptr_eq(&one.alive, &self.alive));
    }
}

impl Heartbeats {
    /// Registers a loop that `notifier` wakes, and that beats after each wake-up.
    pub fn add(&self, name: &'static str, notifier: &Notifier) -> Heartbeat {
        let alive = Arc::new(AtomicBool::new(true));
        self.loops().push(Loop { name, notifier: notifier.clone(), alive: alive.clone() });
        Heartbeat { alive, heartbeats: self.clone() }
    }

    /// Returns the names of the loops without a heartbeat since the last check, and wakes all loops
    /// so that they beat before the next one.
    pub fn check(&self) -> Vec<&'static str> {
        self.loops().iter().filter(|one| !one.take_beat()).map(|one| one.name).collect()
    }

    fn loops(&self) -> std::sync::MutexGuard<'_, Vec<Loop>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loop {
    fn take_beat(&self) -> bool {
        let alive = self.alive.swap(false, Ordering::Relaxed);
        self.notifier.signal();
        alive
    }
}

#[cfg(test)]
mod tests {
    use super::Heartbeats;
    use crate::notifier::Notifier;

    #[test]
    fn loop_without_heartbeat_is_returned_until_it_beats() {
        let heartbeats = Heartbeats::default();
        assert!(heartbeats.check().is_empty());
        let notifier = Notifier::new().unwrap();
        let (one, other) = (heartbeats.add("one", &notifier), heartbeats.add("other", &notifier));
        assert!(heartbeats.check().is_empty(), "a new loop counts as alive");
        one.beat();
        assert_eq!(heartbeats.check(), ["other"]);
        assert_eq!(heartbeats.check(), ["one", "other"]);
        one.beat();
        other.beat();
        assert!(heartbeats.check().is_empty());
        drop(other);
        one.beat();
        assert!(heartbeats.check().is_empty(), "a loop that has ended is not checked");
    }
}
