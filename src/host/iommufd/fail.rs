//! Lets calls of the kernel fail, for tests: the failure looks as if the kernel had refused.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

/// Calls left before the one that fails; 0: none fails.
static LEFT: AtomicU64 = AtomicU64::new(0);

/// Fails the `n`th call of this process from now on, counted from 1, with ENOMEM; 0: none.
pub fn nth(n: u64) {
    LEFT.store(n, Ordering::SeqCst);
}

/// Whether a call is still to fail.
pub fn is_armed() -> bool {
    LEFT.load(Ordering::SeqCst) > 0
}

/// Counts a call; an error if it is to fail.
pub(super) fn count() -> Result<(), Errno> {
    let one_less = |left: u64| left.checked_sub(1);
    match LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) {
        Ok(1) => Err(Errno::NOMEM),
        _ => Ok(()),
    }
}
