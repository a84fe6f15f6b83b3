//! Where memory for devices lies in this process: where the kernel puts it, or lower, for devices
//! that do not reach all addresses.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::memory::PAGE;
use crate::{Result, sys};

/// The lowest address that is given out. The program itself may lie near the first page.
const FIRST: usize = 1 << 30;

static LOW: OnceLock<Low> = OnceLock::new();

/// The lower part of the address space, given out once, from bottom to top.
struct Low {
    end: usize,
    next: AtomicUsize,
}

/// From now on all memory for devices lies below `end`.
pub fn keep_below(end: u64) -> Result<()> {
    let low = Low { end: end as usize, next: AtomicUsize::new(FIRST) };
    LOW.set(low).map_err(|_| "there is a limit for addresses already".into())
}

/// Whether devices reach memory that has not been mapped here.
pub fn is_reached(address: u64, bytes: usize) -> bool {
    LOW.get().is_none_or(|low| low.holds(address as usize, bytes))
}

/// Maps private memory, zero, where nothing has been. Its size is a multiple of the page size.
pub fn map(bytes: usize, protection: i32) -> io::Result<*mut libc::c_void> {
    match LOW.get() {
        None => sys::map_private(0, bytes, protection),
        Some(low) => low.map(bytes, protection),
    }
}

impl Low {
    fn holds(&self, address: usize, bytes: usize) -> bool {
        address.checked_add(bytes).is_some_and(|end| end <= self.end)
    }

    fn map(&self, bytes: usize, protection: i32) -> io::Result<*mut libc::c_void> {
        assert!(bytes.is_multiple_of(PAGE));
        loop {
            let address = self.next.fetch_add(bytes, Ordering::Relaxed);
            if !self.holds(address, bytes) {
                return Err(io::Error::other(format!("no address is left below {:#x}", self.end)));
            }
            match sys::map_private(address, bytes, protection) {
                // Something else lies there: on with the addresses behind.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                result => return result,
            }
        }
    }
}
