//! Signals as a file descriptor: signalfd(2).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

use libc::{c_int, signalfd_siginfo};
use vmm_sys_util::signal::create_sigset;

/// A blocking descriptor from which the process reads its signals.
pub(super) struct SignalFd(File);

impl SignalFd {
    /// Blocks `signals` in the calling thread, and so in all threads that it starts later, and
    /// opens a descriptor for them. Call it before any thread is started: the kernel delivers a
    /// signal to any thread that does not block it.
    ///
    /// The mask and the dispositions that the process inherits do not matter: a signal that is
    /// blocked is queued even if its disposition is to ignore it.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub(super) fn new(signals: &[c_int]) -> io::Result<Self> {
        let set = create_sigset(signals).map_err(io::Error::from)?;
        // SAFETY: `set` is initialized, and the old mask may be null.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) } {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        // SAFETY: `set` is initialized.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above has just opened `fd`, so nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }.into()))
    }

    /// Waits for a signal and returns its number.
    ///
    /// # Errors
    /// When the kernel cannot read the descriptor.
    pub(super) fn wait(&mut self) -> io::Result<c_int> {
        let mut info = [0; size_of::<signalfd_siginfo>()];
        self.0.read_exact(&mut info)?;
        // `ssi_signo` is the first field.
        let [a, b, c, d, ..] = info;
        Ok(i32::from_ne_bytes([a, b, c, d]))
    }
}

#[cfg(test)]
mod tests {
    use super::SignalFd;

    #[test]
    fn pending_signal_is_read_once() {
        let signals = [libc::SIGUSR1, libc::SIGUSR2];
        // SAFETY: only changes the disposition of a signal that no other test uses.
        unsafe { libc::signal(libc::SIGUSR2, libc::SIG_IGN) };
        let mut descriptor = SignalFd::new(&signals).unwrap();
        for signal in signals {
            // SAFETY: the signal is blocked in this thread, which is the one that receives it.
            assert_eq!(unsafe { libc::raise(signal) }, 0);
            assert_eq!(descriptor.wait().unwrap(), signal);
        }
    }
}
