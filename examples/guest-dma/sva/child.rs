//! Child processes that start with a copy of this process's address space.

use std::io;

use anyhow::{Result, anyhow};

/// A child process.
pub struct Child(libc::pid_t);

/// Runs `work` in a child process, which then exits. The program must be single-threaded.
pub fn fork(work: impl FnOnce() -> Result<()>) -> Result<Child> {
    // SAFETY: the program has a single thread, so the child can do everything its parent could.
    match unsafe { libc::fork() } {
        -1 => Err(anyhow!("cannot fork: {}", io::Error::last_os_error())),
        0 => exit(work()),
        pid => Ok(Child(pid)),
    }
}

/// Exits the child without running destructors of the parent's values.
fn exit(result: Result<()>) -> ! {
    if let Err(error) = &result {
        eprintln!("guest-dma: child: {error}");
    }
    // SAFETY: the call does not return and does not access memory of the program.
    unsafe { libc::_exit(i32::from(result.is_err())) }
}

impl Child {
    /// Waits for the child to exit with success.
    pub fn wait(self) -> Result<()> {
        let mut status = 0;
        // SAFETY: the status outlives the call.
        let pid = unsafe { libc::waitpid(self.0, &raw mut status, 0) };
        match (pid == self.0, status) {
            (true, 0) => Ok(()),
            (true, _) => Err(anyhow!("the child exited with wait status {status:#x}")),
            (false, _) => Err(anyhow!("cannot wait for the child: {}", io::Error::last_os_error())),
        }
    }
}
