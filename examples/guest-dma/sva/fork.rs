//! Child processes that start with a copy of this one's address space.

use std::io;

use crate::Result;

/// A child process.
pub struct Child(libc::pid_t);

/// Runs `work` in a child, which ends then. The program must have a single thread.
pub fn fork(work: impl FnOnce() -> Result<()>) -> Result<Child> {
    // SAFETY: with a single thread the child can do all that its parent could.
    match unsafe { libc::fork() } {
        -1 => Err(format!("cannot fork: {}", io::Error::last_os_error())),
        0 => end(work()),
        pid => Ok(Child(pid)),
    }
}

/// Ends the child, without the destructors of what belongs to the parent.
fn end(result: Result<()>) -> ! {
    if let Err(error) = &result {
        eprintln!("guest-dma: child: {error}");
    }
    // SAFETY: does not return, and touches nothing of this program.
    unsafe { libc::_exit(i32::from(result.is_err())) }
}

impl Child {
    /// Waits for its end, which must be a good one.
    pub fn wait(self) -> Result<()> {
        let mut status = 0;
        // SAFETY: the status outlives the call.
        let pid = unsafe { libc::waitpid(self.0, &raw mut status, 0) };
        match (pid == self.0, status) {
            (true, 0) => Ok(()),
            (true, _) => Err(format!("the child ended with wait status {status:#x}")),
            (false, _) => Err(format!("cannot wait: {}", io::Error::last_os_error())),
        }
    }
}
