//! Virtual addresses of DMA buffers: chosen by the kernel, or below a limit for devices that cannot
//! access the whole address space.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, anyhow};

use crate::memory::PAGE;
use crate::sys;

/// The lowest address to allocate. The executable may be mapped below it.
const FIRST: usize = 1 << 30;

static LOW: OnceLock<Low> = OnceLock::new();

/// Allocates addresses below `end` in ascending order and never reuses them.
struct Low {
    end: usize,
    next: AtomicUsize,
}

/// Allocates all further DMA buffers below `end`.
pub fn keep_below(end: u64) -> Result<()> {
    let low = Low { end: end as usize, next: AtomicUsize::new(FIRST) };
    LOW.set(low).map_err(|_| anyhow!("the address limit is already set"))
}

/// Returns whether devices can access memory that this module has not mapped.
pub fn is_reached(address: u64, bytes: usize) -> bool {
    LOW.get().is_none_or(|low| low.holds(address as usize, bytes))
}

/// Maps private, zeroed memory at an unused address. `bytes` is a multiple of the page size.
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
                return Err(io::Error::other(format!("no free address below {:#x}", self.end)));
            }
            match sys::map_private(address, bytes, protection) {
                // The address is in use: try the next one.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                result => return result,
            }
        }
    }
}
