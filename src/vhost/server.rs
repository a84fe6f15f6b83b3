//! The server: accepts front ends sequentially, and resets the device between them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread;
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
use super::virtqueue::Memory;
use super::{
    Backend, EVENT_THREAD, FAULT_EVENT, Options, REQUEST_EVENT, REQUEST_THREAD, TIMER_EVENT,
};
use crate::heartbeat::{Heartbeat, Heartbeats};
use crate::iopf::Iopf;
use crate::notifier::Notifier;
use crate::viommu::Viommu;

/// Delay before the next connection is accepted after one could not be served for lack of file
/// descriptors or memory.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// A handle to stop a [`Server`] from another thread.
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

    /// Makes [`Server::run`] return. A connection is shut down.
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
        // The request may have been made before there was a connection to shut down.
        if self.is_requested()
            && let Some(connection) = &*self.connection()
        {
            connection.shutdown();
        }
    }

    fn connection(&self) -> MutexGuard<'_, Option<ShutdownHandle>> {
        self.0.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The phase of a [`Server`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No front end is connected.
    Waiting,
    /// A front end is connected.
    Connected,
}

/// A server of the device on a socket.
pub struct Server {
    listener: Listener,
    listener_fd: OwnedFd,
    options: Options,
    viommu: Arc<Mutex<Viommu>>,
    faults: Arc<Iopf>,
    fault_notifier: FaultNotifier,
    stop: Stop,
    counters: Arc<TransportCounters>,
    heartbeats: Heartbeats,
    /// Wakes up the server thread while it waits for a front end.
    wake: Notifier,
    /// The heartbeat of the server thread while no front end is connected.
    heartbeat: Option<Heartbeat>,
}

impl Server {
    /// Creates a server for front ends that connect to `listener`. `fault_notifier` is the
    /// notifier of `faults`. The loops of the server are added to `heartbeats`.
    ///
    /// # Errors
    /// Returns an error if the process has no file descriptor left.
    pub fn new(
        listener: UnixListener,
        options: Options,
        viommu: Arc<Mutex<Viommu>>,
        faults: Arc<Iopf>,
        fault_notifier: FaultNotifier,
        heartbeats: Heartbeats,
    ) -> io::Result<Self> {
        let listener_fd = listener.as_fd().try_clone_to_owned()?;
        // On a single core, polling would keep the guest from running. The number of cores is
        // determined here because it is read from files, which the sandbox makes inaccessible.
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let max_poll = if cores > 1 { options.max_poll } else { Duration::ZERO };
        let mut server = Self {
            listener: Listener::from(listener),
            listener_fd,
            options: Options { max_poll, ..options },
            viommu,
            faults,
            fault_notifier,
            stop: Stop::new()?,
            counters: Arc::new(TransportCounters::new(options.time_batches)),
            heartbeats,
            wake: Notifier::new()?,
            heartbeat: None,
        };
        server.start_heartbeat();
        Ok(server)
    }

    /// Returns a handle that stops [`run`](Self::run).
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Returns the counters of the transport.
    pub fn counters(&self) -> Arc<TransportCounters> {
        self.counters.clone()
    }

    /// Serves front ends sequentially until [`Stop::request`]. An error of a connection is logged.
    /// `on_phase` is called at the start of each phase.
    pub fn run(&mut self, on_phase: &dyn Fn(Phase)) {
        while self.run_once(on_phase) {}
    }

    /// Serves the next front end. Returns `false` if none had connected before [`Stop::request`].
    pub fn run_once(&mut self, on_phase: &dyn Fn(Phase)) -> bool {
        if self.stop.is_requested() {
            return false;
        }
        on_phase(Phase::Waiting);
        if !self.wait_for_front_end() {
            return false;
        }
        if let Err(error) = self.serve_connection(on_phase) {
            log::error!("cannot serve front end: {error}");
            // The connection may still be pending: accepting it again now would be a busy loop.
            thread::sleep(RETRY_DELAY);
        }
        self.counters.connected.set(0);
        self.stop.set_connection(None);
        self.fault_notifier.disconnect();
        self.viommu.lock().unwrap_or_else(PoisonError::into_inner).system_reset();
        true
    }

    /// Starts the heartbeat of the server thread.
    fn start_heartbeat(&mut self) {
        self.heartbeat = Some(self.heartbeats.add("front ends", &self.wake));
    }

    /// Waits for a front end. Returns `false` on a stop request.
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
            self.heartbeat.iter().for_each(Heartbeat::beat);
        }
    }

    /// Accepts a connection and serves it until the front end disconnects.
    fn serve_connection(&mut self, on_phase: &dyn Fn(Phase)) -> Result<(), ServeError> {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let timer = Timer::new(self.options.timer_period)?;
        let request_notifier = Notifier::new()?;
        let listeners = [
            (EVENT_THREAD, self.fault_notifier.notifier().as_raw_fd(), FAULT_EVENT),
            (EVENT_THREAD, timer.as_raw_fd(), TIMER_EVENT),
            (REQUEST_THREAD, request_notifier.as_raw_fd(), REQUEST_EVENT),
        ];
        let backend = Arc::new(self.backend(memory.clone(), timer, request_notifier)?);
        let mut daemon = VhostUserDaemon::new("vhost-user".into(), backend, memory)
            .map_err(ServeError::VhostUser)?;
        daemon.start(&mut self.listener).map_err(ServeError::VhostUser)?;
        log::info!("front end connected");
        on_phase(Phase::Connected);
        self.counters.front_ends.add(1);
        self.counters.connected.set(1);
        self.stop.set_connection(daemon.shutdown_handle());
        for (thread, fd, event) in listeners {
            let handler = &daemon.get_epoll_handlers()[thread];
            handler.register_listener(fd, EventSet::IN, event.into())?;
        }
        // While a front end is connected, the heartbeats are those of the virtqueues' threads.
        self.heartbeat = None;
        let end = daemon.wait();
        self.start_heartbeat();
        match end {
            Ok(()) | Err(Error::HandleRequest(VhostUserError::Disconnected)) => {
                log::info!("front end disconnected");
            }
            Err(error) => log::warn!("front end connection closed: {error}"),
        }
        Ok(())
    }

    /// Creates the back end of a connection.
    fn backend(
        &self,
        memory: Memory,
        timer: Timer,
        request_notifier: Notifier,
    ) -> io::Result<Backend> {
        let event_notifier = self.fault_notifier.notifier();
        let barrier = Arc::new(ResetBarrier::new(request_notifier.clone(), event_notifier.clone()));
        let requests = self.request_queue(memory.clone(), barrier.clone(), &request_notifier);
        let events = self.event_queue(memory, barrier, timer);
        Ok(Backend {
            options: self.options,
            viommu: self.viommu.clone(),
            requests: Mutex::new(requests),
            events: Arc::new(events),
            fault_notifier: self.fault_notifier.clone(),
            request_notifier,
            request_thread: Once::new(),
            event_thread: Once::new(),
            exit_events: ExitEvents::new()?,
        })
    }

    fn request_queue(
        &self,
        memory: Memory,
        barrier: Arc<ResetBarrier>,
        notifier: &Notifier,
    ) -> RequestQueue {
        RequestQueue::new(
            self.viommu.clone(),
            memory,
            barrier,
            self.options.max_poll,
            self.counters.clone(),
            self.heartbeats.add("requests", notifier),
        )
    }

    fn event_queue(&self, memory: Memory, barrier: Arc<ResetBarrier>, timer: Timer) -> EventQueue {
        EventQueue::new(
            self.faults.clone(),
            memory,
            barrier,
            timer,
            self.counters.clone(),
            self.heartbeats.add("events", self.fault_notifier.notifier()),
        )
    }
}

/// The reason why a connection could not be served.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("vhost-user: {0}")]
    VhostUser(Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn is_readable(fd: BorrowedFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&rustix::event::Timespec::default())).is_ok_and(|ready| ready > 0)
}
