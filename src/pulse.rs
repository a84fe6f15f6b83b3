//! Whether the loops that the guest depends on turn.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::bell::Bell;

/// Knows the loops that run at the moment.
#[derive(Clone, Default)]
pub struct Pulse(Arc<Mutex<Vec<Loop>>>);

struct Loop {
    name: &'static str,
    bell: Bell,
    turned: Arc<AtomicBool>,
}

/// A loop that runs, until it is dropped.
pub struct Beat {
    turned: Arc<AtomicBool>,
    pulse: Pulse,
}

impl Beat {
    /// The loop has turned.
    pub fn turn(&self) {
        self.turned.store(true, Ordering::Relaxed);
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.pulse.loops().retain(|one| !Arc::ptr_eq(&one.turned, &self.turned));
    }
}

impl Pulse {
    /// A loop that turns when `bell` rings, from now on.
    pub fn add(&self, name: &'static str, bell: &Bell) -> Beat {
        let turned = Arc::new(AtomicBool::new(true));
        self.loops().push(Loop { name, bell: bell.clone(), turned: turned.clone() });
        Beat { turned, pulse: self.clone() }
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
        self.bell.ring();
        turned
    }
}

#[cfg(test)]
mod tests {
    use super::Pulse;
    use crate::bell::Bell;

    #[test]
    fn a_loop_that_does_not_turn_is_named_until_it_does() {
        let pulse = Pulse::default();
        assert!(pulse.check().is_empty());
        let bell = Bell::new().unwrap();
        let (one, other) = (pulse.add("one", &bell), pulse.add("other", &bell));
        assert!(pulse.check().is_empty(), "new loops have had no time");
        one.turn();
        assert_eq!(pulse.check(), ["other"]);
        assert_eq!(pulse.check(), ["one", "other"]);
        one.turn();
        other.turn();
        assert!(pulse.check().is_empty());
        drop(other);
        one.turn();
        assert!(pulse.check().is_empty(), "a loop that has ended need not turn");
    }
}
