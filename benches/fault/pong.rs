//! The unit of measurement: two processes that wake each other through eventfds.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

/// The argument that makes this program the other process.
pub const ARGUMENT: &str = "pong";

/// Runs the other process: signals back until it is killed.
pub fn echo() {
    let (ping, pong) = (std::io::stdin(), std::io::stdout());
    while wait(ping.as_fd()) {
        signal(pong.as_fd());
    }
}

fn wait(fd: BorrowedFd) -> bool {
    rustix::io::read(fd, &mut [0; 8]).is_ok()
}

fn signal(fd: BorrowedFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).expect("eventfd");
}

/// The other process. Killed when dropped.
pub struct Pong {
    child: Child,
    ping: OwnedFd,
    pong: OwnedFd,
}

impl Pong {
    pub fn start() -> Self {
        let event = || eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
        let (ping, pong) = (event(), event());
        let inherited = |fd: &OwnedFd| Stdio::from(fd.try_clone().expect("descriptor"));
        let child = Command::new(std::env::current_exe().expect("this program"))
            .arg(ARGUMENT)
            .stdin(inherited(&ping))
            .stdout(inherited(&pong))
            .spawn()
            .expect("another process");
        let pong = Self { child, ping, pong };
        pong.round_trip();
        pong
    }

    /// Wakes the other process and sleeps until it wakes this one.
    pub fn round_trip(&self) -> Duration {
        let start = Instant::now();
        signal(self.ping.as_fd());
        assert!(wait(self.pong.as_fd()), "the other process has exited");
        start.elapsed()
    }
}

impl Drop for Pong {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
