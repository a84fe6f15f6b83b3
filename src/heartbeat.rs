//! Whether the loops that the guest depends on turn.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::notifier::Notifier;

/// Knows the loops that run at the moment.
#[derive(Clone, Default)]
pub struct Heartbeats(Arc<Mutex<Vec<Loop>>>);

struct Loop {
    name: &'static str,
    notifier: Notifier,
    turned: Arc<AtomicBool>,
}

/// A loop that runs, until it is dropped.
pub struct Heartbeat {
    turned: Arc<AtomicBool>,
    heartbeats: Heartbeats,
}

impl Heartbeat {
    /// The loop has turned.
    pub fn beat(&self) {
        self.turned.store(true, Ordering::Relaxed);
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.heartbeats.loops().retain(|one| !Arc::ptr_eq(&one.turned, &self.turned));
    }
}

impl Heartbeats {
    /// A loop that turns when `notifier` rings, from now on.
    pub fn add(&self, name: &'static str, notifier: &Notifier) -> Heartbeat {
        let turned = Arc::new(AtomicBool::new(true));
        self.loops().push(Loop { name, notifier: notifier.clone(), turned: turned.clone() });
        Heartbeat { turned, heartbeats: self.clone() }
    }

    /// The loops that have not turned since the last check. All are asked to, by their bells.
    pub fn check(&self) -> Vec<&'static str> {
        self.loops().iter().filter(|one| !one.has_turned()).map(|one| one.name).collect()
    }

    fn loops(&self) -> std::sync::MutexGuard<'_, Vec<Loop>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loop {
    fn has_turned(&self) -> bool {
        let turned = self.turned.swap(false, Ordering::Relaxed);
        self.notifier.signal();
        turned
    }
}

#[cfg(test)]
mod tests {
    use super::Heartbeats;
    use crate::notifier::Notifier;

    #[test]
    fn a_loop_that_does_not_turn_is_named_until_it_does() {
        let heartbeats = Heartbeats::default();
        assert!(heartbeats.check().is_empty());
        let notifier = Notifier::new().unwrap();
        let (one, other) = (heartbeats.add("one", &notifier), heartbeats.add("other", &notifier));
        assert!(heartbeats.check().is_empty(), "new loops have had no time");
        one.beat();
        assert_eq!(heartbeats.check(), ["other"]);
        assert_eq!(heartbeats.check(), ["one", "other"]);
        one.beat();
        other.beat();
        assert!(heartbeats.check().is_empty());
        drop(other);
        one.beat();
        assert!(heartbeats.check().is_empty(), "a loop that has ended need not turn");
    }
}
