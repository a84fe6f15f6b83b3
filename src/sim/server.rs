//! The vfio-user server of one accelerator: its socket and its two threads.

use super::FaultReporter;
use super::device::{Device, irqs, regions};
use super::engine::Engine;
use super::exec::Executor;
use super::memory::Regions;
use crate::address::EndpointId;
use crate::host::dma::Dma;
use crate::host::software::EndpointMemory;
use crate::sandbox::{self, Role};
use crate::socket::ListeningSocket;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use vfio_user::Server;

/// How long to leave the listener alone when it takes no connection, for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// What the serving thread does; guards against waiting for a client that never leaves.
#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Serving,
    Stopping,
}

/// What a [`Sim`] and its serving thread share.
struct Control {
    phase: Mutex<Phase>,
    stop: OwnedFd,
}

impl Control {
    fn new() -> io::Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self { phase: Mutex::new(Phase::Waiting), stop })
    }

    /// Enters `phase`; false when the thread is to end instead.
    fn enter(&self, phase: Phase) -> bool {
        let mut now = self.lock();
        if *now == Phase::Stopping {
            return false;
        }
        *now = phase;
        true
    }

    /// Makes the thread end; false when a client keeps it for now.
    fn stop(&self) -> bool {
        let before = std::mem::replace(&mut *self.lock(), Phase::Stopping);
        if let Err(error) = rustix::io::write(&self.stop, &1u64.to_ne_bytes()) {
            log::error!("cannot stop the vfio-user server: {error}");
            return false;
        }
        before != Phase::Serving
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One emulated accelerator with its server. Dropping it stops it, as [`Sim::stop`] does.
pub struct Sim {
    endpoint: EndpointId,
    engine: Arc<Engine>,
    control: Arc<Control>,
    server: Option<JoinHandle<()>>,
    worker: Option<JoinHandle<()>>,
    /// Held for its file.
    _socket: ListeningSocket,
}

impl Sim {
    /// Serves one vfio-user client after the other on `socket`.
    ///
    /// The client's RAM is put into `memory`, which must be empty and is changed by nobody
    /// else. All accesses of the accelerator go through `dma`; those that a translation stops
    /// are told to `faults`, or it is asked for the pages.
    ///
    /// # Errors
    /// If the system refuses a thread or a descriptor.
    pub fn start(
        endpoint: EndpointId,
        socket: ListeningSocket,
        memory: EndpointMemory,
        dma: Arc<dyn Dma>,
        faults: Arc<dyn FaultReporter>,
    ) -> io::Result<Sim> {
        let engine = Arc::new(Engine::default());
        faults.connect(engine.clone());
        let control = Arc::new(Control::new()?);
        let device = Device::new(engine.clone(), faults.clone(), Regions::new(memory));
        let serving = Serving::new(endpoint, &socket, control.clone(), device)?;
        // Dropping it stops the one thread if the other cannot be started.
        let mut sim =
            Sim { endpoint, engine, control, server: None, worker: None, _socket: socket };
        sim.spawn_worker(Executor::new(dma, faults))?;
        sim.server = Some(thread_of("vfio", endpoint, || serving.run())?);
        Ok(sim)
    }

    /// Stops the accelerator: no access to memory is under way once this returns. The serving
    /// thread ends too, unless a client is connected: then it ends with the process, or when
    /// the client leaves.
    pub fn stop(self) {}

    fn spawn_worker(&mut self, executor: Executor) -> io::Result<()> {
        let engine = self.engine.clone();
        let work = move || {
            sandbox::enter_role(Role::Accelerator);
            engine.run(executor);
        };
        self.worker = Some(thread_of("dma", self.endpoint, work)?);
        Ok(())
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.engine.stop();
        join(self.endpoint, self.worker.take());
        if self.control.stop() {
            join(self.endpoint, self.server.take());
        }
    }
}

fn thread_of(
    what: &str,
    endpoint: EndpointId,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    // Linux shows 15 characters.
    thread::Builder::new().name(format!("{what}-{:x}", endpoint.0)).spawn(body)
}

fn join(endpoint: EndpointId, thread: Option<JoinHandle<()>>) {
    if thread.is_some_and(|thread| thread.join().is_err()) {
        log::error!("endpoint {endpoint}: a thread ended by a panic");
    }
}

/// The serving thread.
struct Serving {
    endpoint: EndpointId,
    listener: UnixListener,
    control: Arc<Control>,
    server: Server,
    device: Device,
}

impl Serving {
    fn new(
        endpoint: EndpointId,
        socket: &ListeningSocket,
        control: Arc<Control>,
        device: Device,
    ) -> io::Result<Self> {
        let listener = socket.listener().try_clone()?;
        // A client that has gone again must not leave `accept` waiting for the next one.
        listener.set_nonblocking(true)?;
        let served = listener.try_clone()?;
        let server = Server::from_owned_fd(served.into(), true, irqs(), regions());
        Ok(Self { endpoint, listener, control, server, device })
    }

    fn run(mut self) {
        sandbox::enter_role(Role::VfioUser);
        while self.wait() && self.control.enter(Phase::Serving) {
            self.serve_client();
            if !self.control.enter(Phase::Waiting) {
                break;
            }
        }
    }

    /// Waits until there is a client to serve, or the thread is to end: the phase tells which.
    fn wait(&self) -> bool {
        let mut events = [&self.listener as &dyn AsFd, &self.control.stop]
            .map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
        loop {
            match poll(&mut events, None) {
                Ok(_) => return true,
                Err(Errno::INTR) => {}
                Err(error) => {
                    log::error!("endpoint {}: cannot wait for clients: {error}", self.endpoint);
                    return false;
                }
            }
        }
    }

    /// Serves one client until it leaves. The crate can panic on what a client sends.
    fn serve_client(&mut self) {
        let endpoint = self.endpoint;
        let (server, device) = (&self.server, &mut self.device);
        let served = catch_unwind(AssertUnwindSafe(|| server.run(device)));
        self.device.disconnect();
        match served {
            Ok(Ok(())) => log::info!("endpoint {endpoint}: client has left"),
            Ok(Err(vfio_user::Error::SocketAccept(error))) => self.not_accepted(&error),
            Ok(Err(error)) => log::warn!("endpoint {endpoint}: client dropped: {error}"),
            Err(_) => log::error!("endpoint {endpoint}: client dropped: panic while serving it"),
        }
    }

    fn not_accepted(&self, error: &io::Error) {
        if error.kind() != ErrorKind::WouldBlock {
            log::warn!("endpoint {}: cannot accept a client: {error}", self.endpoint);
            thread::sleep(ACCEPT_RETRY);
        }
    }
}
