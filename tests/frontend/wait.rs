//! Bounded waits. A test never measures time: it either sees what it waits for, or fails.

use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

/// How long somebody else can take: a while, or more seconds where everything is slow.
pub fn patience() -> Duration {
    let seconds = std::env::var("VUI_PATIENCE").ok().map(|seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(10))
}

/// Sleeps until `fd` can be read.
pub fn readable(fd: &impl AsRawFd, what: &str) {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, which outlives the call.
    let ready = unsafe { libc::poll(&mut poll, 1, patience().as_millis() as i32) };
    assert!(ready == 1, "waited in vain for {what}");
}

/// Asks again and again until there is an answer.
#[track_caller]
pub fn until<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    patiently(ask).unwrap_or_else(|| panic!("waited in vain for {what}"))
}

/// The same, for callers that can say what is wrong: `None` after a long time without answer.
pub fn patiently<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let (start, patience) = (Instant::now(), patience());
    let mut turn = 0_u32;
    loop {
        let answer = ask();
        if answer.is_some() || start.elapsed() > patience {
            return answer;
        }
        if turn < 200 {
            thread::yield_now();
        } else {
            thread::sleep(Duration::from_millis(1));
        }
        turn += 1;
    }
}
