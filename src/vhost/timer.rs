//! A one-shot timer for an event loop.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// A timer that expires once, one period after its start.
pub struct Timer {
    fd: OwnedFd,
    period: Duration,
    /// Started, and its expiration not [taken](Self::take_expiration) since.
    running: AtomicBool,
}

impl Timer {
    /// Creates a stopped timer.
    ///
    /// # Errors
    /// Returns an error if the process has no file descriptor left.
    pub fn new(period: Duration) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { fd, period, running: AtomicBool::new(false) })
    }

    /// Returns the period.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// Returns whether the timer was started, and its expiration not
    /// [taken](Self::take_expiration) since.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }

    /// Starts the timer unless it is running.
    pub fn start(&self) {
        if self.running.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Err(error) = self.arm() {
            log::error!("cannot start the timer of page responses: {error}");
        }
    }

    fn arm(&self) -> rustix::io::Result<()> {
        let once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let period = Timespec::try_from(self.period).map_err(|_| rustix::io::Errno::INVAL)?;
        let time = Itimerspec { it_interval: once, it_value: period };
        timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &time).map(drop)
    }

    /// Returns whether the timer has expired since the last call, and stops it in this case.
    pub fn take_expiration(&self) -> bool {
        let expired = rustix::io::read(&self.fd, &mut [0; 8]).is_ok();
        if expired {
            self.running.store(false, Ordering::SeqCst);
        }
        expired
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timer_expires_once_after_each_start() {
        let timer = Timer::new(Duration::from_millis(1)).unwrap();
        assert!(!timer.take_expiration());
        for _ in 0..2 {
            timer.start();
            timer.start();
            while !timer.take_expiration() {
                std::thread::yield_now();
            }
            assert!(!timer.take_expiration());
        }
    }
}
