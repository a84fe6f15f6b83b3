//! Bounded waits. A test never measures time: it either sees what it waits for, or fails.

use std::thread;
use std::time::{Duration, Instant};

/// Emulated machines on a busy host are slow, and a limit here is no requirement on the daemon.
pub const PATIENCE: Duration = Duration::from_secs(900);

/// Asks again and again until there is an answer.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
