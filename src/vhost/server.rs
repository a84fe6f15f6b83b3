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

use super::counters::TransportCounters;
use super::event_queue::EventQueue;
use super::exit_events::ExitEvents;
use super::fault_notifier::FaultNotifier;
use super::request_queue::RequestQueue;
use super::reset_barrier::ResetBarrier;
use super::timer::Timer;
use super::{Backend, CLOCK, DOORBELL, EVENT_THREAD, LOOK, Options, REQUEST_THREAD};
use crate::heartbeat::{Heartbeat, Heartbeats};
use crate::iopf::Iopf;
use crate::notifier::Notifier;
use crate::viommu::Viommu;

/// Ends a [`Server`] from another thread.
#[derive(Clone)]
pub struct Stop(Arc<StopState>);

struct StopState {
    requested: Notifier,
    connection: Mutex<Option<ShutdownHandle>>,
}

impl Stop {
    fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(StopState { requested: Notifier::new()?, connection: Mutex::new(None) })))
    }

    /// Lets [`Server::run`] return, whatever it waits for.
    pub fn request(&self) {
        self.0.requested.signal();
        if let Some(connection) = &*self.connection() {
            connection.shutdown();
        }
    }

    fn is_requested(&self) -> bool {
        is_readable(self.0.requested.as_fd())
    }

    fn set_connection(&self, connection: Option<ShutdownHandle>) {
        *self.connection() = connection;
        // A request that came before there was a connection to shut down.
        if self.is_requested()
            && let Some(connection) = &*self.connection()
        {
            connection.shutdown();
        }
    }

    fn connection(&self) -> std::sync::MutexGuard<'_, Option<ShutdownHandle>> {
        self.0.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a [`Server`] is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No front end is connected.
    Waiting,
    /// One is.
    Connected,
}

/// Serves the device on a socket.
pub struct Server {
    listener: Listener,
    listener_fd: OwnedFd,
    options: Options,
    viommu: Arc<Mutex<Viommu>>,
    faults: Arc<Iopf>,
    doorbell: FaultNotifier,
    stop: Stop,
    counters: Arc<TransportCounters>,
    heartbeats: Heartbeats,
    /// Wakes who waits for a front end.
    wake: Notifier,
    /// That of the loop that waits, and of what is done between two front ends.
    beat: Option<Heartbeat>,
}

impl Server {
    /// A server for front ends that connect to `listener`. `doorbell` is the one that `faults`
    /// rings; `heartbeats` comes to know the server's loops.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new(
        listener: UnixListener,
        options: Options,
        viommu: Arc<Mutex<Viommu>>,
        faults: Arc<Iopf>,
        doorbell: FaultNotifier,
        heartbeats: Heartbeats,
    ) -> io::Result<Self> {
        let listener_fd = listener.as_fd().try_clone_to_owned()?;
        let (stop, wake) = (Stop::new()?, Notifier::new()?);
        let listener = Listener::from(listener);
        // Where there is one core, whoever is polled for cannot run. Asked for once: the answer
        // is in files, which cannot be read later.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let max_poll = if cores > 1 { options.max_poll } else { Duration::ZERO };
        let options = Options { max_poll, ..options };
        let counters = Arc::new(TransportCounters::new(options.time_batches));
        let mut server = Self {
            listener,
            listener_fd,
            options,
            viommu,
            faults,
            doorbell,
            stop,
            counters,
            heartbeats,
            wake,
            beat: None,
        };
        server.begin_to_wait();
        Ok(server)
    }

    /// What ends [`run`](Self::run).
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// What is counted here, for who reads it.
    pub fn counters(&self) -> Arc<TransportCounters> {
        self.counters.clone()
    }

    /// Serves one front end after the other until [`Stop::request`]. A connection that fails is
    /// logged and the next one awaited. `told` is called at the beginning of each phase.
    pub fn run(&mut self, told: &dyn Fn(Phase)) {
        while self.run_once(told) {}
    }

    /// Serves the next front end; `false`: there was none before [`Stop::request`].
    pub fn run_once(&mut self, told: &dyn Fn(Phase)) -> bool {
        if self.stop.is_requested() {
            return false;
        }
        told(Phase::Waiting);
        if !self.wait_for_front_end() {
            return false;
        }
        if let Err(error) = self.serve_one(told) {
            log::error!("front end not served: {error}");
            // Out of descriptors or memory: do not spin on a connection that waits.
            std::thread::sleep(Duration::from_millis(100));
        }
        self.counters.connected.set(0);
        self.stop.set_connection(None);
        self.doorbell.disconnect();
        self.viommu.lock().unwrap_or_else(PoisonError::into_inner).restart();
        true
    }

    fn begin_to_wait(&mut self) {
        self.beat = Some(self.heartbeats.add("front ends", &self.wake));
    }

    /// `false` when the server is to stop.
    fn wait_for_front_end(&self) -> bool {
        loop {
            let fds = [self.stop.0.requested.as_fd(), self.listener_fd.as_fd(), self.wake.as_fd()];
            let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            let _ = poll(&mut fds, None);
            let [stop, front_end, wake] = fds.map(|fd| !fd.revents().is_empty());
            if stop || front_end {
                return !stop;
            }
            if wake {
                self.wake.clear();
            }
            self.beat.iter().for_each(Heartbeat::beat);
        }
    }

    fn serve_one(&mut self, told: &dyn Fn(Phase)) -> Result<(), ServeError> {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let timer = Timer::new(self.options.timer_period)?;
        let clock = timer.as_raw_fd();
        let look = Notifier::new()?;
        let events = self.doorbell.notifier();
        let barrier = Arc::new(ResetBarrier::new(look.clone(), events.clone()));
        let backend = Arc::new(Backend {
            options: self.options,
            viommu: self.viommu.clone(),
            requests: Mutex::new(RequestQueue::new(
                self.viommu.clone(),
                memory.clone(),
                barrier.clone(),
                self.options.max_poll,
                self.counters.clone(),
                self.heartbeats.add("requests", &look),
            )),
            events: Arc::new(EventQueue::new(
                self.faults.clone(),
                memory.clone(),
                barrier,
                timer,
                self.counters.clone(),
                self.heartbeats.add("events", events),
            )),
            doorbell: self.doorbell.clone(),
            look: look.clone(),
            request_thread: Once::new(),
            event_thread: Once::new(),
            exits: ExitEvents::new()?,
        });
        let mut daemon = VhostUserDaemon::new("vhost-user".into(), backend, memory)
            .map_err(ServeError::Daemon)?;
        daemon.start(&mut self.listener).map_err(ServeError::Daemon)?;
        log::info!("front end connected");
        told(Phase::Connected);
        self.counters.front_ends.add(1);
        self.counters.connected.set(1);
        self.stop.set_connection(daemon.shutdown_handle());
        for (thread, fd, event) in [
            (EVENT_THREAD, self.doorbell.notifier().as_raw_fd(), DOORBELL),
            (EVENT_THREAD, clock, CLOCK),
            (REQUEST_THREAD, look.as_raw_fd(), LOOK),
        ] {
            let events = &daemon.get_epoll_handlers()[thread];
            events.register_listener(fd, EventSet::IN, event.into())?;
        }
        // Now its threads have the loops that count.
        self.beat = None;
        let end = daemon.wait();
        self.begin_to_wait();
        match end {
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
