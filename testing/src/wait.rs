//! Bounded waits. A test never measures time: the event occurs within the limit, or the test fails.

use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

/// Longest pause between two attempts of a wait.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Limit of waits for the daemon and its peers: 10 seconds, or `VUI_WAIT_LIMIT` seconds on slow
/// machines.
pub fn limit() -> Duration {
    let seconds = std::env::var("VUI_WAIT_LIMIT").ok().map(|seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(10))
}

/// Sleeps until `fd` is readable. Panics after [`limit`].
#[track_caller]
pub fn readable(fd: &impl AsRawFd, event: &str) {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, which outlives the call.
    let ready = unsafe { libc::poll(&mut poll, 1, limit().as_millis() as i32) };
    assert!(ready == 1, "timed out: {event}");
}

/// Repeats `attempt` until it returns a value. Panics after [`limit`].
///
/// ```
/// use testing::wait;
///
/// let mut attempts = 0;
/// let value = wait::until("three attempts", || {
///     attempts += 1;
///     (attempts == 3).then_some("done")
/// });
/// assert_eq!(value, "done");
/// ```
#[track_caller]
pub fn until<T>(event: &str, attempt: impl FnMut() -> Option<T>) -> T {
    until_within(limit(), event, attempt)
}

/// As [`until`], with another limit.
#[track_caller]
pub fn until_within<T>(limit: Duration, event: &str, attempt: impl FnMut() -> Option<T>) -> T {
    repeat(limit, attempt).unwrap_or_else(|| panic!("timed out after {limit:?}: {event}"))
}

/// As [`until`], for callers that can report the failure better: returns `None` after [`limit`].
pub fn try_until<T>(attempt: impl FnMut() -> Option<T>) -> Option<T> {
    repeat(limit(), attempt)
}

fn repeat<T>(limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    // Most waits are short: yield first, then sleep for increasing times.
    for _ in 0..200 {
        if let Some(value) = attempt() {
            return Some(value);
        }
        thread::yield_now();
    }
    let mut pause = Duration::from_millis(1);
    while start.elapsed() <= limit {
        if let Some(value) = attempt() {
            return Some(value);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    attempt()
}
