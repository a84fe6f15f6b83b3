//! The vfio-user server of an accelerator: its socket and its two threads.

use crate::device::{Device, irqs, regions};
use crate::dma::Dma;
use crate::engine::Engine;
use crate::exec::Executor;
use crate::faults::{FaultHandler, Responder};
use crate::memory::{ClientMemory, Regions};
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

/// Time to wait after a failure to accept a connection, for example for lack of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// A thread of an accelerator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadRole {
    /// Executes descriptors.
    Worker,
    /// Serves the vfio-user client.
    Server,
}

/// Parameters of an accelerator.
pub struct Config {
    /// Name of the accelerator in log lines.
    pub name: String,
    /// Suffix of the names of its threads, `dma-SUFFIX` and `vfio-SUFFIX`. Linux shows 15
    /// characters of a thread's name.
    pub thread_suffix: String,
    /// Table that receives the client's memory; must be empty. Only the accelerator changes it.
    pub memory: ClientMemory,
    /// Path of all accesses to memory.
    pub dma: Arc<dyn Dma>,
    /// Handler of faults.
    pub faults: Arc<dyn FaultHandler>,
    /// Called first on each thread.
    pub on_thread_start: fn(ThreadRole),
}

/// State of the server thread, for a stop request that must not wait for a client to disconnect.
#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Serving,
    Stopping,
}

/// State that an [`Accelerator`] shares with its server thread.
struct Control {
    phase: Mutex<Phase>,
    stop: OwnedFd,
}

impl Control {
    fn new() -> io::Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self { phase: Mutex::new(Phase::Waiting), stop })
    }

    /// Enters `phase`. Returns false after a stop request.
    fn enter(&self, phase: Phase) -> bool {
        let mut current = self.lock();
        if *current == Phase::Stopping {
            return false;
        }
        *current = phase;
        true
    }

    /// Requests the thread to end. Returns false if it ends only when its client disconnects.
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

/// A running accelerator with its vfio-user server.
///
/// Dropping it stops the accelerator: no access to memory is in progress afterwards. The server
/// thread ends too, unless a client is connected: then it ends when the client disconnects or
/// the process exits.
pub struct Accelerator {
    name: Arc<str>,
    engine: Arc<Engine>,
    control: Arc<Control>,
    server: Option<JoinHandle<()>>,
    worker: Option<JoinHandle<()>>,
}

impl Accelerator {
    /// Starts an accelerator that serves the vfio-user clients of `listener` sequentially.
    ///
    /// # Errors
    /// If a thread or a file descriptor cannot be created.
    pub fn start(listener: UnixListener, config: Config) -> io::Result<Self> {
        let Config { name, thread_suffix, memory, dma, faults, on_thread_start } = config;
        let name: Arc<str> = name.into();
        let engine = Arc::new(Engine::default());
        faults.connect(Responder::new(engine.clone()));
        let control = Arc::new(Control::new()?);
        let device = Device::new(engine.clone(), faults.clone(), Regions::new(memory));
        let serving = Serving::new(name.clone(), listener, control.clone(), device)?;
        // Dropping it stops the first thread if the second cannot be started.
        let mut accelerator =
            Self { name, engine: engine.clone(), control, server: None, worker: None };
        accelerator.worker = Some(spawn(format!("dma-{thread_suffix}"), move || {
            on_thread_start(ThreadRole::Worker);
            engine.run(Executor::new(dma, faults));
        })?);
        accelerator.server = Some(spawn(format!("vfio-{thread_suffix}"), move || {
            on_thread_start(ThreadRole::Server);
            serving.run();
        })?);
        Ok(accelerator)
    }

    fn join(&self, thread: Option<JoinHandle<()>>) {
        if thread.is_some_and(|thread| thread.join().is_err()) {
            log::error!("{}: a thread panicked", self.name);
        }
    }
}

impl Drop for Accelerator {
    fn drop(&mut self) {
        self.engine.stop();
        let (worker, server) = (self.worker.take(), self.server.take());
        self.join(worker);
        if self.control.stop() {
            self.join(server);
        }
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name).spawn(body)
}

/// The server thread.
struct Serving {
    name: Arc<str>,
    listener: UnixListener,
    control: Arc<Control>,
    server: Server,
    device: Device,
}

impl Serving {
    fn new(
        name: Arc<str>,
        listener: UnixListener,
        control: Arc<Control>,
        device: Device,
    ) -> io::Result<Self> {
        // `accept` must not block if the client has disconnected before it.
        listener.set_nonblocking(true)?;
        let server = Server::from_owned_fd(listener.try_clone()?.into(), true, irqs(), regions());
        Ok(Self { name, listener, control, server, device })
    }

    fn run(mut self) {
        while self.wait() && self.control.enter(Phase::Serving) {
            self.serve_client();
            if !self.control.enter(Phase::Waiting) {
                break;
            }
        }
    }

    /// Waits for a client or a stop request; the phase distinguishes them. Returns false if it
    /// cannot wait.
    fn wait(&self) -> bool {
        let mut events = [&self.listener as &dyn AsFd, &self.control.stop]
            .map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
        loop {
            match poll(&mut events, None) {
                Ok(_) => return true,
                Err(Errno::INTR) => {}
                Err(error) => {
                    log::error!("{}: cannot wait for vfio-user clients: {error}", self.name);
                    return false;
                }
            }
        }
    }

    /// Serves one client until it disconnects. The vfio_user crate can panic on a malformed
    /// message.
    fn serve_client(&mut self) {
        let (server, device) = (&self.server, &mut self.device);
        let result = catch_unwind(AssertUnwindSafe(|| server.run(device)));
        self.device.disconnect();
        let name = &self.name;
        match result {
            Ok(Ok(())) => log::info!("{name}: vfio-user client disconnected"),
            Ok(Err(vfio_user::Error::SocketAccept(error))) => self.accept_failed(&error),
            Ok(Err(error)) => log::warn!("{name}: vfio-user client dropped: {error}"),
            Err(_) => log::error!("{name}: vfio-user client dropped: the server panicked"),
        }
    }

    fn accept_failed(&self, error: &io::Error) {
        if error.kind() != ErrorKind::WouldBlock {
            log::warn!("{}: cannot accept a vfio-user client: {error}", self.name);
            thread::sleep(ACCEPT_RETRY);
        }
    }
}
