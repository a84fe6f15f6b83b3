//! One front end after the other: listens, serves, starts clean for the next.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error, ShutdownHandle, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::doorbell::FaultDoorbell;
use super::event_queue::EventQueue;
use super::exits::Exits;
use super::gate::Gate;
use super::request_queue::RequestQueue;
use super::tally::TransportTally;
use super::timer::Timer;
use super::{Backend, CLOCK, DOORBELL, EVENT_THREAD, LOOK, Options, REQUEST_THREAD};
use crate::bell::Bell;
use crate::iopf::Iopf;
use crate::viommu::Viommu;

/// Ends a [`Server`] from another thread.
#[derive(Clone)]
pub struct Stop(Arc<StopState>);

struct StopState {
    requested: Bell,
    connection: Mutex<Option<ShutdownHandle>>,
}

impl Stop {
    fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(StopState { requested: Bell::new()?, connection: Mutex::new(None) })))
    }

    /// Lets [`Server::run`] return, whatever it waits for.
    pub fn request(&self) {
        self.0.requested.ring();
        if let Some(connection) = &*self.connection() {
            connection.shutdown();
        }
    }

    fn set_connection(&self, connection: Option<ShutdownHandle>) {
        *self.connection() = connection;
        // A request that came before there was a connection to shut down.
        if is_readable(self.0.requested.as_fd())
            && let Some(connection) = &*self.connection()
        {
            connection.shutdown();
        }
    }

    fn connection(&self) -> std::sync::MutexGuard<'_, Option<ShutdownHandle>> {
        self.0.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves the device on a socket.
pub struct Server {
    listener: Listener,
    listener_fd: OwnedFd,
    options: Options,
    viommu: Arc<Mutex<Viommu>>,
    faults: Arc<Iopf>,
    doorbell: FaultDoorbell,
    stop: Stop,
    tally: Arc<TransportTally>,
}

impl Server {
    /// A server for front ends that connect to `listener`. `doorbell` is the one that `faults`
    /// rings.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new(
        listener: UnixListener,
        options: Options,
        viommu: Arc<Mutex<Viommu>>,
        faults: Arc<Iopf>,
        doorbell: FaultDoorbell,
    ) -> io::Result<Self> {
        let listener_fd = listener.as_fd().try_clone_to_owned()?;
        let stop = Stop::new()?;
        let listener = Listener::from(listener);
        let tally = Arc::new(TransportTally::new(options.timed));
        Ok(Self { listener, listener_fd, options, viommu, faults, doorbell, stop, tally })
    }

    /// What ends [`run`](Self::run).
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// What is counted here, for who reads it.
    pub fn tally(&self) -> Arc<TransportTally> {
        self.tally.clone()
    }

    /// Serves one front end after the other until [`Stop::request`]. A connection that fails is
    /// logged and the next one awaited.
    pub fn run(&mut self) {
        while self.wait_for_front_end() {
            if let Err(error) = self.serve_one() {
                log::error!("front end not served: {error}");
                // Out of descriptors or memory: do not spin on a connection that waits.
                std::thread::sleep(Duration::from_millis(100));
            }
            self.tally.connected.set(0);
            self.stop.set_connection(None);
            self.doorbell.disconnect();
            self.viommu.lock().unwrap_or_else(PoisonError::into_inner).restart();
        }
    }

    /// `false` when the server is to stop.
    fn wait_for_front_end(&self) -> bool {
        let mut fds = [
            PollFd::new(&self.stop.0.requested, PollFlags::IN),
            PollFd::new(&self.listener_fd, PollFlags::IN),
        ];
        while poll(&mut fds, None) == Err(rustix::io::Errno::INTR) {}
        fds[0].revents().is_empty()
    }

    fn serve_one(&mut self) -> Result<(), ServeError> {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let timer = Timer::new(self.options.clock_period)?;
        let clock = timer.as_raw_fd();
        let look = Bell::new()?;
        let gate = Arc::new(Gate::new(look.clone(), self.doorbell.bell().clone()));
        let backend = Arc::new(Backend {
            options: self.options,
            viommu: self.viommu.clone(),
            requests: Mutex::new(RequestQueue::new(
                self.viommu.clone(),
                memory.clone(),
                gate.clone(),
                self.options.max_poll,
                self.tally.clone(),
            )),
            events: Arc::new(EventQueue::new(
                self.faults.clone(),
                memory.clone(),
                gate,
                timer,
                self.tally.clone(),
            )),
            doorbell: self.doorbell.clone(),
            look: look.clone(),
            scheduled: Once::new(),
            exits: Exits::new()?,
        });
        let mut daemon = VhostUserDaemon::new("vhost-user".into(), backend, memory)
            .map_err(ServeError::Daemon)?;
        daemon.start(&mut self.listener).map_err(ServeError::Daemon)?;
        log::info!("front end connected");
        self.tally.front_ends.add(1);
        self.tally.connected.set(1);
        self.stop.set_connection(daemon.shutdown_handle());
        for (thread, fd, event) in [
            (EVENT_THREAD, self.doorbell.bell().as_raw_fd(), DOORBELL),
            (EVENT_THREAD, clock, CLOCK),
            (REQUEST_THREAD, look.as_raw_fd(), LOOK),
        ] {
            let events = &daemon.get_epoll_handlers()[thread];
            events.register_listener(fd, EventSet::IN, event.into())?;
        }
        match daemon.wait() {
            Ok(()) | Err(Error::HandleRequest(VhostUserError::Disconnected)) => {
                log::info!("front end gone");
            }
            Err(error) => log::warn!("front end dropped: {error}"),
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("{0}")]
    Daemon(Error),
    #[error("{0}")]
    Io(#[from] io::Error),
}

fn is_readable(fd: BorrowedFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&rustix::event::Timespec::default())).is_ok_and(|ready| ready > 0)
}
