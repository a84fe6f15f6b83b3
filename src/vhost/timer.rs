//! A clock for the event loop, which runs only while somebody wants it to.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Fires once, a period after its start.
pub struct Timer {
    fd: OwnedFd,
    period: Duration,
    /// Started, and not [taken](Self::take) since.
    running: AtomicBool,
}

impl Timer {
    /// A timer that does not run.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new(period: Duration) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { fd, period, running: AtomicBool::new(false) })
    }

    /// How long it runs.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// Whether it was started, and has not been [taken](Self::take) since.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }

    /// Starts it, unless it runs.
    pub fn start(&self) {
        if self.running.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Err(error) = self.set() {
            log::error!("the clock of the fault path cannot be started: {error}");
        }
    }

    fn set(&self) -> rustix::io::Result<()> {
        let once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let period = Timespec::try_from(self.period).map_err(|_| rustix::io::Errno::INVAL)?;
        let time = Itimerspec { it_interval: once, it_value: period };
        timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &time).map(drop)
    }

    /// Whether it has fired since it was last asked.
    pub fn take(&self) -> bool {
        let fired = rustix::io::read(&self.fd, &mut [0; 8]).is_ok();
        if fired {
            self.running.store(false, Ordering::SeqCst);
        }
        fired
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
    fn fires_once_after_each_start() {
        let timer = Timer::new(Duration::from_millis(1)).unwrap();
        assert!(!timer.take());
        for _ in 0..2 {
            timer.start();
            timer.start();
            while !timer.take() {
                std::thread::yield_now();
            }
            assert!(!timer.take());
        }
    }
}
