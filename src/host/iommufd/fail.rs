//! Lets calls of the kernel fail, for tests: the failure looks as if the kernel had refused.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

/// Calls left before the one that fails; 0: none fails.
static LEFT: AtomicU64 = AtomicU64::new(0);
/// A call that the kernel does not know.
static UNKNOWN: Mutex<Option<&str>> = Mutex::new(None);

/// Fails the `n`th call of this process from now on, counted from 1, with ENOMEM; 0: none.
pub fn nth(n: u64) {
    LEFT.store(n, Ordering::SeqCst);
}

/// Whether a call is still to fail.
pub fn is_armed() -> bool {
    LEFT.load(Ordering::SeqCst) > 0
}

/// The kernel is too old to know the ioctl of this name (as in its header).
pub fn pretend_unknown(call: Option<&'static str>) {
    *UNKNOWN.lock().unwrap_or_else(PoisonError::into_inner) = call;
}

/// Counts a call; an error if it is to fail.
pub(super) fn count(call: &str) -> Result<(), Errno> {
    if *UNKNOWN.lock().unwrap_or_else(PoisonError::into_inner) == Some(call) {
        return Err(Errno::NOTTY);
    }
    let one_less = |left: u64| left.checked_sub(1);
    match LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) {
        Ok(1) => Err(Errno::NOMEM),
        _ => Ok(()),
    }
}
