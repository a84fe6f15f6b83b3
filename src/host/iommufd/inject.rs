//! Failure injection for tests: calls fail as if the kernel had rejected them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

/// Number of calls up to and including the one that fails; 0 if none fails.
static REMAINING: AtomicU64 = AtomicU64::new(0);
/// The name of an ioctl that the kernel does not implement.
static UNKNOWN: Mutex<Option<&str>> = Mutex::new(None);

/// Makes the `n`th ioctl of this process from now on fail with ENOMEM, counted from 1. With 0, no
/// ioctl fails.
pub fn fail_nth(n: u64) {
    REMAINING.store(n, Ordering::SeqCst);
}

/// Returns whether the ioctl that [`fail_nth`] has selected has not been made yet.
pub fn is_armed() -> bool {
    REMAINING.load(Ordering::SeqCst) > 0
}

/// Makes all ioctls of this name (as in the kernel's header) fail with ENOTTY, as on a kernel that
/// does not implement them.
pub fn pretend_unknown(call: Option<&'static str>) {
    *UNKNOWN.lock().unwrap_or_else(PoisonError::into_inner) = call;
}

/// Counts an ioctl, and fails if it was selected to fail.
pub(super) fn count_call(call: &str) -> Result<(), Errno> {
    if *UNKNOWN.lock().unwrap_or_else(PoisonError::into_inner) == Some(call) {
        return Err(Errno::NOTTY);
    }
    match REMAINING.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)) {
        Ok(1) => Err(Errno::NOMEM),
        _ => Ok(()),
    }
}
